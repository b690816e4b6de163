//! Waiting for a condition that announces itself in no other way.

use std::thread;
use std::time::{Duration, Instant};

/// Longest wait.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again until `held`.
///
/// # Panics
/// When it does not come about in 20 s.
pub fn until(mut held: impl FnMut() -> bool) {
    let began = Instant::now();
    while !held() {
        assert!(began.elapsed() < LIMIT, "it does not come about");
        thread::park_timeout(PAUSE);
    }
}
