//! Slots of originals that their consumer has had: preferred over growth, the longest had first (R20).
//!
//! A view of a `release` snapshot, or a mover in mode `reconciled`, says what was delivered. That alone changes nothing: what was delivered can
//! be read again. Only when the cache is full are the slots taken, and before one is, its grain leaves what the snapshot needs, on record: from then on
//! reading it is an error, never another's bytes.
//!
//! The queue is not on record. After a start what was delivered before counts as wanted again, until it is delivered once more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use tzero_block::ByteRange;
use tzero_originals::{GrainIndex, Grains, Originals, RangeSet, SnapshotId};

use crate::platform::Platform;
use crate::points::Event;
use crate::volume::{SnapshotError, Volume};

/// Most grains whose slots are taken at once.
const AT_ONCE: usize = 256;

/// What was delivered, the oldest first.
#[derive(Default)]
pub(crate) struct Delivered(Mutex<VecDeque<(SnapshotId, GrainIndex)>>);

impl Delivered {
    fn push(&self, id: SnapshotId, grain: GrainIndex) {
        self.0.lock().expect("nothing panics under this lock").push_back((id, grain));
    }

    fn take(&self) -> Vec<(SnapshotId, GrainIndex)> {
        let mut queue = self.0.lock().expect("nothing panics under this lock");
        let count = queue.len().min(AT_ONCE);
        queue.drain(..count).collect()
    }

    pub(crate) fn forget(&self, gone: SnapshotId) {
        self.0.lock().expect("nothing panics under this lock").retain(|(id, _)| *id != gone);
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

    /// Takes slots of what was delivered; `false` says that there is nothing to take.
    pub(crate) async fn reuse_delivered(&self) -> bool {
        let taken = self.delivered.take();
        let mut by_snapshot: BTreeMap<SnapshotId, Vec<GrainIndex>> = BTreeMap::new();
        for (id, grain) in &taken {
            by_snapshot.entry(*id).or_default().push(*grain);
        }
        for (id, grains) in by_snapshot {
            let ranges: Vec<ByteRange> = grains.iter().map(|grain| self.grains().range(*grain)).collect();
            // A snapshot that is gone meanwhile has freed them itself; where it cannot be recorded they stay.
            if self.release(id, &ranges).await.is_ok() {
                grains.iter().for_each(|grain| self.platform.observe(Event::ReadReleased { grain: *grain }));
            }
        }
        !taken.is_empty()
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
