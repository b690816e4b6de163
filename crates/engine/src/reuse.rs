//! Slots of originals that their consumer has had: preferred over growth, the longest had first (R20).
//!
//! A view of a `release` snapshot, or a mover in mode `reconciled`, says what was delivered. That alone changes nothing: what was delivered can
//! be read again. Only when the cache is full are the slots taken, and before one is, its grain leaves what the snapshot needs, on record: from then on
//! reading it is an error, never another's bytes.
//!
//! The queue is not on record. After a start what was delivered before counts as wanted again, until it is delivered once more.

use std::collections::VecDeque;
use std::sync::Mutex;

use tzero_block::ByteRange;
use tzero_originals::{GrainIndex, Originals, SnapshotId};

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
        for grain in ranges.iter().flat_map(|range| self.grains.covered(*range)).map(GrainIndex) {
            let needed = snapshot.needs(self.grains, grain);
            if needed && self.originals.mark_read(grain, snapshot.epoch).map_err(SnapshotError::State)? {
                self.delivered.push(id, grain);
            }
        }
        Ok(())
    }

    /// Takes slots of what was delivered; `false` says that there is nothing to take.
    pub(crate) async fn reuse_delivered(&self) -> bool {
        let taken = self.delivered.take();
        for (id, grain) in &taken {
            // A snapshot that is gone meanwhile has freed them itself; where it cannot be recorded they stay.
            if self.release(*id, &[self.grains.range(*grain)]).await.is_ok() {
                self.platform.observe(Event::ReadReleased { grain: *grain });
            }
        }
        !taken.is_empty()
    }
}
