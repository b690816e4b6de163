//! Writes that cover a device's blocks only in part, where direct I/O needs whole ones.
//!
//! Such a write reads the blocks at its edges, changes what it may, and writes them back. Meanwhile no other write may pass, or it would be undone
//! by the bytes that were read before it. Whole-block writes pass each other freely.
//!
//! | | whole | partial |
//! |---|---|---|
//! | **whole** | together | one after the other |
//! | **partial** | one after the other | one after the other |

use std::sync::Mutex;

use tzero_io::Notify;

#[derive(Debug, Default)]
struct Passing {
    whole: usize,
    partial: bool,
}

/// Keeps partial writes and all others apart.
#[derive(Default)]
pub(crate) struct Edges {
    passing: Mutex<Passing>,
    passed: Notify,
}

impl std::fmt::Debug for Edges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edges").field("passing", &self.passing).finish_non_exhaustive()
    }
}

impl Edges {
    /// Waits until a write may pass.
    pub(crate) async fn enter(&self, partial: bool) -> Entered<'_> {
        loop {
            let passed = self.passed.listen();
            if self.try_enter(partial) {
                return Entered { edges: self, partial };
            }
            passed.await;
        }
    }

    fn try_enter(&self, partial: bool) -> bool {
        let mut passing = self.passing.lock().expect("nothing panics under this lock");
        let free = !passing.partial && (!partial || passing.whole == 0);
        if free && partial {
            passing.partial = true;
        } else if free {
            passing.whole += 1;
        }
        free
    }
}

/// A write that passes, until dropped.
pub(crate) struct Entered<'a> {
    edges: &'a Edges,
    partial: bool,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut passing = self.edges.passing.lock().expect("nothing panics under this lock");
        if self.partial {
            passing.partial = false;
        } else {
            passing.whole -= 1;
        }
        drop(passing);
        self.edges.passed.notify_all();
    }
}
