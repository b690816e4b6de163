//! Which originals a grain has, in memory; derived from the map.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::units::{Epoch, GrainIndex};

/// An entry's tag and its place in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The entry's tag.
    pub tag: Epoch,
    /// The entry's position in the map.
    pub position: u32,
}

#[derive(Clone, Debug)]
enum Chain {
    One(Located),
    /// By ascending tag.
    Many(Vec<Located>),
}

/// Spreads grain numbers over a table. Not for keys that an adversary chooses freely: grains are bounded by the volume.
#[derive(Default)]
pub(crate) struct GrainHasher(u64);

impl Hasher for GrainHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ (product >> 29);
    }
}

/// Originals by grain.
#[derive(Clone, Debug, Default)]
pub struct Index {
    grains: HashMap<u64, Chain, BuildHasherDefault<GrainHasher>>,
}

impl Index {
    /// Adds an original. INV-3: the first of a grain and tag wins; `false` says that there was one.
    pub fn insert(&mut self, grain: GrainIndex, located: Located) -> bool {
        let Some(chain) = self.grains.get_mut(&grain.0) else {
            self.grains.insert(grain.0, Chain::One(located));
            return true;
        };
        let mut entries = match chain {
            Chain::One(first) => vec![*first],
            Chain::Many(entries) => std::mem::take(entries),
        };
        let place = entries.partition_point(|entry| entry.tag < located.tag);
        let fresh = entries.get(place).is_none_or(|entry| entry.tag != located.tag);
        if fresh {
            entries.insert(place, located);
        }
        *chain = Chain::Many(entries);
        fresh
    }

    /// Forgets an original; `false` if it was not there.
    pub fn remove(&mut self, grain: GrainIndex, located: Located) -> bool {
        match self.grains.get_mut(&grain.0) {
            Some(Chain::One(entry)) if *entry == located => {
                self.grains.remove(&grain.0);
                true
            }
            Some(Chain::Many(entries)) => {
                let Some(place) = entries.iter().position(|entry| *entry == located) else { return false };
                entries.remove(place);
                if let [last] = entries[..] {
                    self.grains.insert(grain.0, Chain::One(last));
                } else if entries.is_empty() {
                    self.grains.remove(&grain.0);
                }
                true
            }
            _ => false,
        }
    }

    /// All originals of a grain by ascending tag.
    pub fn of(&self, grain: GrainIndex) -> &[Located] {
        match self.grains.get(&grain.0) {
            None => &[],
            Some(Chain::One(entry)) => std::slice::from_ref(entry),
            Some(Chain::Many(entries)) => entries,
        }
    }

    /// The newest tag of a grain: every snapshot of an epoch up to it has its original.
    pub fn newest(&self, grain: GrainIndex) -> Option<Epoch> {
        self.of(grain).last().map(|entry| entry.tag)
    }

    /// The one rule of resolution: of the originals of a grain, a snapshot of `epoch` reads the one with the smallest tag that
    /// is not below its epoch.
    pub fn resolve(&self, grain: GrainIndex, epoch: Epoch) -> Option<Located> {
        let entries = self.of(grain);
        entries.get(entries.partition_point(|entry| entry.tag < epoch)).copied()
    }

    /// Every original, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (GrainIndex, Located)> {
        self.grains.iter().flat_map(|(grain, chain)| {
            let entries = match chain {
                Chain::One(entry) => std::slice::from_ref(entry),
                Chain::Many(entries) => entries,
            };
            entries.iter().map(|entry| (GrainIndex(*grain), *entry))
        })
    }

    /// Grains that have originals, in no order.
    pub fn grains(&self) -> impl Iterator<Item = GrainIndex> {
        self.grains.keys().map(|grain| GrainIndex(*grain))
    }

    /// How many originals there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.grains.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolution_takes_the_smallest_tag_that_serves() {
        let mut index = Index::default();
        let grain = GrainIndex(9);
        for (tag, position) in [(7, 1), (3, 2), (5, 3)] {
            assert!(index.insert(grain, Located { tag: Epoch(tag), position }));
        }
        assert!(!index.insert(grain, Located { tag: Epoch(5), position: 99 }), "the first wins");
        let resolved = |epoch| index.resolve(grain, Epoch(epoch)).map(|located| located.position);
        assert_eq!([1, 3, 4, 6, 7, 8].map(resolved), [Some(2), Some(2), Some(3), Some(1), Some(1), None]);
        assert_eq!(index.newest(grain), Some(Epoch(7)));
        assert!(index.remove(grain, Located { tag: Epoch(5), position: 3 }));
        assert!(!index.remove(grain, Located { tag: Epoch(5), position: 3 }));
        assert_eq!(index.resolve(grain, Epoch(4)).map(|located| located.position), Some(1));
        assert_eq!(index.len(), 2);
    }
}
