//! Slots of originals that their consumer has had: preferred over growth, the longest had first (R20).
//!
//! A view of a `release` snapshot, or a mover in mode `reconciled`, says what was delivered. That alone changes nothing: what was delivered can
//! be read again, as long as no slot is wanted. When a save would make the cache grow, and when it is full, the slots are taken. Before one
//! is, its grain leaves what the snapshot needs, on record: from then on reading it is an error, never another's bytes.
//!
//! No more are taken than are wanted, but for a full cache, where many are.
//!
//! A slot that several snapshots resolve to is taken when each of them has had it: before, there would be an error and no slot.
//!
//! The queue is not on record. After a start what was delivered before counts as wanted again, until it is delivered once more. It has a grain
//! once, however often it is delivered.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tzero_block::ByteRange;
use tzero_originals::{GrainIndex, Grains, Originals, RangeSet, SnapshotId};

use crate::ladder::Rung;
use crate::platform::Platform;
use crate::points::Event;
use crate::volume::{SnapshotError, Volume};

/// Most grains whose slots are taken at once in a full cache: each time costs a record.
const AT_ONCE: usize = 256;
/// A save takes slots so many times at most before it lets the cache grow: others may hold all of them.
const MOST_TRIES: u32 = 8;

/// What was delivered.
#[derive(Default)]
pub(crate) struct Delivered {
    queue: Mutex<Queue>,
    /// How many may be taken.
    takable: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    /// What may be taken, the oldest first.
    order: VecDeque<(SnapshotId, GrainIndex)>,
    /// What was delivered and is not released, each once.
    had: HashSet<(SnapshotId, GrainIndex)>,
    /// Those of them whose slots others hold who have not had them.
    shared: Vec<(SnapshotId, GrainIndex)>,
}

impl Delivered {
    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue.lock().expect("nothing panics under this lock");
        let result = change(&mut queue);
        self.takable.store(queue.order.len(), Ordering::Relaxed);
        result
    }

    fn push(&self, id: SnapshotId, grain: GrainIndex) {
        self.change(|queue| {
            if queue.had.insert((id, grain)) {
                queue.order.push_back((id, grain));
            }
        });
    }

    fn take(&self, most: usize) -> Vec<(SnapshotId, GrainIndex)> {
        self.change(|queue| {
            let count = queue.order.len().min(most);
            queue.order.drain(..count).collect()
        })
    }

    /// Whether all of these snapshots have had the grain; where not, it is taken up again when one of the others goes.
    fn all_had(&self, holders: &[SnapshotId], taken: (SnapshotId, GrainIndex)) -> bool {
        self.change(|queue| {
            let all = holders.iter().all(|id| queue.had.contains(&(*id, taken.1)));
            if !all {
                queue.shared.push(taken);
            }
            all
        })
    }

    fn released(&self, id: SnapshotId, grains: &[GrainIndex]) {
        self.change(|queue| {
            for grain in grains {
                queue.had.remove(&(id, *grain));
            }
        });
    }

    /// A snapshot has released something by itself: what it held together with others may be theirs alone now.
    pub(crate) fn others_may_take(&self) {
        self.change(|queue| queue.order.extend(std::mem::take(&mut queue.shared)));
    }

    pub(crate) fn forget(&self, gone: SnapshotId) {
        self.change(|queue| {
            queue.order.extend(std::mem::take(&mut queue.shared));
            queue.order.retain(|(id, _)| *id != gone);
            queue.had.retain(|(id, _)| *id != gone);
        });
    }
}

/// Most ranges that are remembered of grains that were delivered in part.
const MOST_PARTS: usize = 4096;

/// What one consumer was given of grains that it has not had whole. Bounded: whoever reads in more pieces than that has some of its slots
/// used again later, or not at all.
#[derive(Default)]
pub(crate) struct Parts {
    ranges: RangeSet,
    count: usize,
}

impl Parts {
    /// Adds what was delivered; gives the whole grains that are complete with it.
    pub(crate) fn add(&mut self, range: ByteRange, grains: Grains) -> Vec<ByteRange> {
        let touched = grains.touched(range);
        let inner = grains.covered(range);
        let mut whole = Vec::new();
        if !inner.is_empty() {
            whole.push(grains.range_of(&inner));
        }
        let edges = [touched.start, touched.end.saturating_sub(1)];
        for grain in edges.iter().take(if edges[0] == edges[1] { 1 } else { 2 }).filter(|grain| !inner.contains(grain))
        {
            let place = grains.range(GrainIndex(*grain));
            let Some(part) = place.intersection(range) else { continue };
            if self.count >= MOST_PARTS {
                *self = Self::default();
            }
            self.ranges.insert(part);
            self.count += 1;
            if self.ranges.contains(place) {
                self.ranges.remove(place);
                whole.push(place);
            }
        }
        whole
    }
}

impl<P: Platform> Volume<P> {
    /// The consumer of a `release` snapshot was delivered every byte of these ranges. Whole grains that have an original are marked *read*;
    /// their slots may be used again. For a `keep` snapshot nothing happens: it keeps everything.
    ///
    /// # Errors
    /// When there is no such live snapshot, or a mark cannot be stored.
    pub fn mark_read(&self, id: SnapshotId, ranges: &[ByteRange]) -> Result<(), SnapshotError> {
        let snapshot = self.snapshots.find(|snapshot| snapshot.id == id).ok_or(SnapshotError::Unknown)?;
        if !snapshot.is_live() {
            return Err(SnapshotError::NotLive);
        }
        if snapshot.originals == Originals::Keep {
            return Ok(());
        }
        for grain in ranges.iter().flat_map(|range| self.grains_of(&snapshot).covered(*range)).map(GrainIndex) {
            let needed = snapshot.needs(self.grains(), grain);
            if needed && self.originals.mark_read(grain, snapshot.epoch).map_err(SnapshotError::State)? {
                self.delivered.push(id, grain);
            }
        }
        Ok(())
    }

    /// Takes slots of what was delivered, rather than let the cache grow by `slots`.
    pub(crate) async fn reuse_before_growth(&self, slots: u64) {
        for _ in 0..MOST_TRIES {
            let any = self.delivered.takable.load(Ordering::Relaxed) > 0 && self.platform.has_rung(Rung::Reuse);
            let growth = if any { self.originals.growth(slots) } else { 0 };
            if growth == 0 {
                return;
            }
            self.reuse(growth as usize).await;
        }
    }

    /// Takes slots of what was delivered, the cache being full; `false` says that there is nothing to take.
    pub(crate) async fn reuse_delivered(&self) -> bool {
        self.platform.has_rung(Rung::Reuse) && self.reuse(AT_ONCE).await
    }

    async fn reuse(&self, most: usize) -> bool {
        let taken = self.delivered.take(most);
        let mut by_snapshot: BTreeMap<SnapshotId, Vec<GrainIndex>> = BTreeMap::new();
        for &(id, grain) in &taken {
            let holders = self.holders(id, grain);
            if self.delivered.all_had(&holders, (id, grain)) {
                holders.iter().for_each(|holder| by_snapshot.entry(*holder).or_default().push(grain));
            }
        }
        for (id, grains) in by_snapshot {
            let ranges: Vec<ByteRange> = grains.iter().map(|grain| self.grains().range(*grain)).collect();
            self.delivered.released(id, &grains);
            // A snapshot that is gone meanwhile has freed them itself; where it cannot be recorded they stay.
            if self.release_ranges(id, &ranges).await.is_ok() {
                grains.iter().for_each(|grain| self.platform.observe(Event::ReadReleased { grain: *grain }));
            }
        }
        !taken.is_empty()
    }

    /// The snapshots that hold the original that this one resolves to.
    fn holders(&self, id: SnapshotId, grain: GrainIndex) -> Vec<SnapshotId> {
        let Some(snapshot) = self.snapshots.find(|snapshot| snapshot.id == id) else { return Vec::new() };
        let Some((before, entry)) = self.originals.resolve_with_before(grain, snapshot.epoch) else {
            return Vec::new();
        };
        let holders = self.snapshots.resolving(self.grains(), grain, before, entry.tag, entry.sequence);
        holders.iter().map(|snapshot| snapshot.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grain_is_delivered_when_every_byte_of_it_is() {
        let grains = Grains::new(4096, 20_000).unwrap();
        let mut parts = Parts::default();
        let mut add = |start, end| parts.add(ByteRange::between(start, end), grains);
        assert_eq!(add(0, 4096), [ByteRange::between(0, 4096)]);
        assert_eq!(add(4095, 8192 + 512), [ByteRange::between(4096, 8192)]);
        assert!(add(8192 + 512, 12_287).is_empty());
        assert_eq!(add(12_287, 12_288), [ByteRange::between(8192, 12_288)]);
        assert!(add(12_287, 12_288).is_empty(), "once");
        assert_eq!(add(16_384, 20_000), [ByteRange::between(16_384, 20_000)], "the last one is short");
        let backwards: Vec<_> =
            (0..8).rev().flat_map(|sector| add(12_288 + sector * 512, 12_288 + (sector + 1) * 512)).collect();
        assert_eq!(backwards, [ByteRange::between(12_288, 16_384)]);
    }

    #[test]
    fn what_is_remembered_of_parts_is_bounded() {
        let grains = Grains::new(4096, 1 << 40).unwrap();
        let mut parts = Parts::default();
        for grain in 0..3 * MOST_PARTS as u64 {
            assert!(parts.add(ByteRange::new(grain * 4096, 512), grains).is_empty());
        }
        assert!(parts.ranges.iter().count() <= MOST_PARTS);
    }
}
