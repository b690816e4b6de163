//! What the engine saves: each grain once for an epoch (INV-3), each slot for one original at a time (INV-4).
//!
//! Told by the engine's events, within one incarnation; what an earlier one saved is judged by what is read.
//! And nothing is saved of what no snapshot had at its T0, which is known over all incarnations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tzero_engine::Event;

use crate::executor::fail;

#[derive(Default)]
struct Held {
    originals: BTreeSet<(u64, u64)>,
    slots: BTreeSet<u64>,
}

/// What one incarnation holds.
#[derive(Clone, Default)]
pub struct Savings(Arc<Mutex<Held>>);

impl Savings {
    /// The engine says what it does.
    pub fn observe(&self, event: Event) {
        let mut held = self.0.lock().expect("nothing panics while it holds the savings");
        match event {
            Event::Published { grain, tag, cache_offset, .. } => {
                if !held.originals.insert((grain.0, tag.0)) {
                    fail(format!("INV-3: a second original of grain {} in epoch {}", grain.0, tag.0));
                }
                if cache_offset.is_some_and(|offset| !held.slots.insert(offset)) {
                    fail(format!("INV-4: the slot at {cache_offset:?} holds two originals"));
                }
            }
            Event::Freed { grain, cache_offset } => {
                // Which of the grain's originals it was is not said.
                let all: Vec<_> = held.originals.range((grain.0, 0)..=(grain.0, u64::MAX)).copied().collect();
                all.iter().for_each(|original| {
                    held.originals.remove(original);
                });
                if let Some(offset) = cache_offset {
                    held.slots.remove(&offset);
                }
            }
            _ => {}
        }
    }
}

/// How long the volume was at each T0, by epoch.
#[derive(Clone, Default)]
pub struct Sizes(Arc<Mutex<BTreeMap<u64, u64>>>);

impl Sizes {
    /// A snapshot begins this epoch.
    pub fn armed(&self, epoch: u64, size: u64) {
        let mut sizes = self.0.lock().expect("nothing panics while it holds the sizes");
        // After a loss of power an epoch may come again.
        let known = sizes.entry(epoch).or_default();
        *known = size.max(*known);
    }

    /// An original is saved of the grain that begins here.
    pub fn saved(&self, start: u64, tag: u64) {
        let sizes = self.0.lock().expect("nothing panics while it holds the sizes");
        if sizes.range(..=tag).all(|(_, size)| *size <= start) {
            fail(format!("an original of byte {start} is saved, and no snapshot up to epoch {tag} had it"));
        }
    }

    /// No snapshot stands.
    pub fn forget(&self) {
        self.0.lock().expect("nothing panics while it holds the sizes").clear();
    }
}

#[cfg(test)]
mod tests {
    use tzero_originals::{Epoch, GrainIndex, Sequence};

    use super::*;
    use crate::executor::{Chaos, Executor, Process, spawn};

    fn judged(slots: [u64; 2], tags: [u64; 2], freed: bool) -> bool {
        let executor = Executor::new(1, Chaos::default());
        spawn(Process::WORLD, "events".into(), true, async move {
            let savings = Savings::default();
            for (slot, tag) in slots.into_iter().zip(tags) {
                let (grain, sequence) = (GrainIndex(7), Sequence(1));
                savings.observe(Event::Published { grain, tag: Epoch(tag), sequence, cache_offset: Some(slot) });
                if freed {
                    savings.observe(Event::Freed { grain, cache_offset: Some(slot) });
                }
            }
        });
        executor.run(10).is_ok()
    }

    #[test]
    fn once_for_each_epoch_and_slot() {
        assert!(judged([0, 1], [1, 2], false));
        assert!(!judged([0, 1], [1, 1], false));
        assert!(!judged([0, 0], [1, 2], false));
        assert!(judged([0, 0], [1, 1], true));
    }
}
