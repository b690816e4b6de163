//! Writes that cover a device's blocks only in part, where direct I/O needs whole ones.
//!
//! Such a write reads the blocks at its edges, changes what it may, and writes them back. Meanwhile no other change may pass, or it would be undone
//! by the bytes that were read before it: no write, and no zeroing or discarding either, whatever call does it. Whole-block changes pass each
//! other freely.
//!
//! | | whole | partial |
//! |---|---|---|
//! | **whole** | together | one after the other |
//! | **partial** | one after the other | one after the other |
//!
//! Nobody overtakes who has to wait: a stream of either kind never keeps the other out.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use tzero_io::Notify;

#[derive(Debug, Default)]
struct Passing {
    whole: usize,
    partial: bool,
    next: u64,
    waiting: BTreeSet<u64>,
}

/// Keeps partial writes and all other changes apart.
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
    /// Waits until a change may pass.
    pub(crate) async fn enter(&self, partial: bool) -> Entered<'_> {
        let place = {
            let mut passing = self.passing();
            if passing.waiting.is_empty() && passing.admit(partial) {
                return Entered { edges: self, partial };
            }
            let place = passing.next;
            passing.next += 1;
            passing.waiting.insert(place);
            Place { edges: self, place }
        };
        loop {
            let passed = self.passed.listen();
            {
                let mut passing = self.passing();
                if passing.waiting.first() == Some(&place.place) && passing.admit(partial) {
                    break;
                }
            }
            passed.await;
        }
        drop(place);
        Entered { edges: self, partial }
    }

    fn passing(&self) -> MutexGuard<'_, Passing> {
        self.passing.lock().expect("nothing panics under this lock")
    }
}

impl Passing {
    fn admit(&mut self, partial: bool) -> bool {
        let free = !self.partial && (!partial || self.whole == 0);
        if free && partial {
            self.partial = true;
        } else if free {
            self.whole += 1;
        }
        free
    }
}

/// A place in the queue, until dropped.
struct Place<'a> {
    edges: &'a Edges,
    place: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut passing = self.edges.passing();
        passing.waiting.remove(&self.place);
        let others = !passing.waiting.is_empty();
        drop(passing);
        // The next one is first now.
        if others {
            self.edges.passed.notify_all();
        }
    }
}

/// A change that passes, until dropped.
pub(crate) struct Entered<'a> {
    edges: &'a Edges,
    partial: bool,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut passing = self.edges.passing();
        if self.partial {
            passing.partial = false;
        } else {
            passing.whole -= 1;
        }
        let others = !passing.waiting.is_empty();
        drop(passing);
        if others {
            self.edges.passed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tzero_io::{Backend, Runtime, spawn, yield_now};

    use super::*;

    #[test]
    fn a_stream_of_whole_changes_does_not_keep_a_partial_one_out() {
        Runtime::new(Backend::Auto).expect("a runtime").block_on(async {
            let edges = Rc::new(Edges::default());
            let order = Rc::new(RefCell::new(Vec::new()));
            let mut passing = Some(edges.enter(false).await);
            let mut tasks = Vec::new();
            for (number, partial) in [false, true, false, false, true].into_iter().enumerate() {
                if number == 0 {
                    drop(edges.enter(false).await);
                }
                let (edges, order) = (Rc::clone(&edges), Rc::clone(&order));
                tasks.push(spawn(async move {
                    let entered = edges.enter(partial).await;
                    order.borrow_mut().push(number);
                    yield_now().await;
                    let alone = edges.passing().whole == 0;
                    assert!(!partial || alone);
                    drop(entered);
                }));
            }
            yield_now().await;
            yield_now().await;
            assert_eq!(*order.borrow(), [0], "who came before the partial one has passed, nobody after it");
            passing.take();
            for task in tasks {
                task.await;
            }
            assert_eq!(*order.borrow(), [0, 1, 2, 3, 4]);
        });
    }
}
