//! Waiting a little for what a killed process still holds.
//!
//! Its locks, and block devices that it had for itself, go with the last of its requests in the kernel, which may be a few
//! hundred milliseconds after the process has gone.

use std::thread;
use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(20);

/// Tries again for a while, as long as what is in the way may pass. Blocking.
pub(crate) fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + LONGEST;
    loop {
        match attempt() {
            Err(error) if may_pass(&error) && Instant::now() < deadline => thread::sleep(STEP),
            other => return other,
        }
    }
}
