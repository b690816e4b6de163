//! Panics inside a simulation are results, not noise: they are kept, with their place, and not printed.

use std::cell::{Cell, RefCell};
use std::panic;
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// While this lives, panics of the thread are not printed.
pub struct Quiet(bool);

impl Quiet {
    /// From now on.
    pub fn begin() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if QUIET.get() {
                    LOCATION.set(info.location().map(ToString::to_string));
                } else {
                    before(info);
                }
            }));
        });
        Self(QUIET.replace(true))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(self.0);
    }
}

/// Where the last quiet panic happened.
pub fn take_location() -> Option<String> {
    LOCATION.take()
}
