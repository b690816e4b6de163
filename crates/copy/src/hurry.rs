//! What a mover does when the original cache is short of space: it goes first where originals are.
//!
//! The daemon says so with every report. As long as it does, chunks are taken by how much the cache would get back for them, not by
//! their place, and each is reported as soon as it is safe.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Originals are counted again after so long.
const COUNT_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct State {
    needed: Cell<bool>,
    never: Cell<bool>,
    /// How many originals each chunk has.
    originals: RefCell<BTreeMap<u64, u64>>,
    counted: Cell<Option<Instant>>,
}

/// Whether there is need to hurry, and where. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hurry(Rc<State>);

impl Hurry {
    /// What the daemon said last.
    pub(crate) fn set(&self, needed: bool) {
        self.0.needed.set(needed && !self.0.never.get());
    }

    /// Whatever the daemon says.
    pub(crate) fn never(&self) {
        self.0.never.set(true);
    }

    pub(crate) fn is_needed(&self) -> bool {
        self.0.needed.get()
    }

    /// Whether somebody should say where originals are.
    pub(crate) fn wants_count(&self) -> bool {
        self.is_needed() && self.0.counted.get().is_none_or(|counted| counted.elapsed() > COUNT_AGAIN)
    }

    /// How many originals each chunk has.
    pub(crate) fn count(&self, originals: BTreeMap<u64, u64>) {
        *self.0.originals.borrow_mut() = originals;
        self.0.counted.set(Some(Instant::now()));
    }

    /// The next of the chunks that are left: the one with the most originals if there is need to hurry, else the first.
    fn next(&self, left: &mut BTreeSet<u64>) -> Option<u64> {
        let originals = self.0.originals.borrow();
        let most = originals.iter().filter(|(chunk, _)| left.contains(chunk)).max_by_key(|(_, count)| **count);
        match most.filter(|_| self.is_needed()) {
            Some((chunk, _)) => left.take(chunk),
            None => left.pop_first(),
        }
    }

    /// All of these chunks, in the order in which they are best taken at the time.
    pub(crate) fn order(&self, mut left: BTreeSet<u64>) -> impl Iterator<Item = u64> + use<> {
        let hurry = self.clone();
        std::iter::from_fn(move || hurry.next(&mut left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_with_originals_come_first_when_it_is_needed() {
        let hurry = Hurry::default();
        let mut order = hurry.order((0..8).collect());
        assert_eq!([order.next(), order.next()], [Some(0), Some(1)]);
        hurry.count(BTreeMap::from([(0, 99), (5, 3), (6, 7)]));
        assert_eq!(order.next(), Some(2), "nobody is in a hurry");
        hurry.set(true);
        assert_eq!([order.next(), order.next(), order.next()], [Some(6), Some(5), Some(3)]);
        hurry.set(false);
        assert_eq!(order.collect::<Vec<_>>(), [4, 7]);
    }
}
