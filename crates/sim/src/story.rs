//! What happened, line by line, for the replay of one schedule. Nothing is kept unless it was asked for.

use std::cell::RefCell;

use crate::executor::now_ns;

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Begins (or ends) keeping what happens on this thread.
pub fn tell(on: bool) {
    LINES.set(on.then(Vec::new));
}

/// What has happened since.
pub fn told() -> Vec<String> {
    LINES.take().unwrap_or_default()
}

/// Something happens; `line` is called only if somebody listens.
pub fn happens(line: impl FnOnce() -> String) {
    LINES.with_borrow_mut(|lines| {
        if let Some(lines) = lines {
            lines.push(format!("{:>12} {}", now_ns(), line()));
        }
    });
}
