//! The life of snapshots: create, release, end, delete.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use tzero_block::ByteRange;
use tzero_io::Storage;
use tzero_originals::{
    Epoch, GrainIndex, MOST_SNAPSHOTS, NAME_BYTES, OriginalCache, Originals, RangeSet, Record, RecordState,
    ReleasedLog, SnapshotId,
};

use crate::platform::Platform;
use crate::points::{Event, Planted, Point};
use crate::snapshots::{Snapshot, SnapshotInfo};
use crate::volume::{SnapshotError, StateOf, Volume, released_name};

/// What a new snapshot is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotKind {
    /// Keeps or releases its originals.
    pub originals: Originals,
    /// Belongs to one copy and goes with it.
    pub private: bool,
}

impl SnapshotKind {
    /// A user's: keeps everything until it is deleted.
    pub const KEPT: Self = Self { originals: Originals::Keep, private: false };
    /// A copy's own: releases what was captured.
    pub const PRIVATE: Self = Self { originals: Originals::Release, private: true };
}

/// Whether `name` may name a snapshot: 1 to 64 letters, digits, `-`, `_`, `.`.
pub fn is_valid_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl<P: Platform> Volume<P> {
    /// Takes a snapshot: from the moment this returns, its view reads what the volume held at one instant during the call. Changes that had
    /// completed before are in it, changes that start afterwards are not.
    ///
    /// The pause is the arming: a few stores under the volume's lock, whatever the volume's size (R2).
    ///
    /// # Errors
    /// When the name is not allowed or taken, there are too many, or the state cannot be written.
    pub async fn create_snapshot(&self, name: &str, kind: SnapshotKind) -> Result<SnapshotInfo, SnapshotError> {
        if !is_valid_name(name) {
            return Err(SnapshotError::Name);
        }
        self.platform.point(Point::CreatePrepared).await;
        let snapshot = self.arm(name, kind)?;
        self.platform.point(Point::Create).await;
        // Informational: where it cannot be stored the figure is lost at the next start, not the snapshot.
        let pause = snapshot.pause_ns.get().copied().unwrap_or(0);
        let _ = self.table.set_pause(snapshot.slot, pause);
        Ok(snapshot.info())
    }

    fn arm(&self, name: &str, kind: SnapshotKind) -> Result<Arc<Snapshot>, SnapshotError> {
        let claims = self.lock();
        let all = self.snapshots.all();
        if all.iter().any(|snapshot| snapshot.name == name) {
            return Err(SnapshotError::Taken);
        }
        let slot = (0..MOST_SNAPSHOTS)
            .find(|slot| all.iter().all(|snapshot| snapshot.slot != *slot) && self.table.record(*slot).is_none())
            .ok_or(SnapshotError::TooMany)?;
        let begun = self.platform.monotonic_ns();
        let epoch = Epoch(self.admission.epoch().0 + 1);
        let record = Record {
            id: SnapshotId(self.platform.random_id()),
            name: name.to_owned(),
            epoch,
            created_ns: self.platform.wall_ns(),
            pause_ns: 0,
            size: self.grains.size(),
            originals: kind.originals,
            private: kind.private,
            broken_at: 0,
            state: RecordState::Live,
        };
        self.table.prepare(slot, &record).map_err(SnapshotError::State)?;
        // The epoch first: no later snapshot may ever get the same one, not even if the record's own state is lost.
        self.table.set_epoch(epoch).map_err(SnapshotError::State)?;
        self.table.set_state(slot, RecordState::Live, 0).map_err(SnapshotError::State)?;
        let snapshot = Arc::new(Snapshot {
            slot,
            id: record.id,
            name: record.name,
            epoch,
            created_ns: record.created_ns,
            pause_ns: OnceLock::new(),
            size: record.size,
            originals: kind.originals,
            private: kind.private,
            released: RwLock::default(),
            broken: OnceLock::new(),
            end: OnceLock::new(),
            deleted: AtomicBool::new(false),
            swept: AtomicBool::new(false),
        });
        self.snapshots.push(Arc::clone(&snapshot));
        self.pending.arm();
        self.admission.start(epoch);
        let pause = self.platform.monotonic_ns() - begun;
        drop(claims);
        let _ = snapshot.pause_ns.set(pause);
        self.platform.observe(Event::Armed { epoch, straddlers: self.admission.stragglers(epoch) });
        Ok(snapshot)
    }

    /// The consumer of a `release` snapshot has captured these ranges: their whole grains are not needed any more. On record before any bit
    /// is cleared, so a death in between costs a save, never a byte.
    ///
    /// For a `keep` snapshot nothing happens.
    ///
    /// # Errors
    /// When there is no such live snapshot, or it cannot be recorded: what was not recorded stays needed.
    pub async fn release(&self, id: SnapshotId, ranges: &[ByteRange]) -> Result<(), SnapshotError> {
        let snapshot = self.snapshots.find(|snapshot| snapshot.id == id).ok_or(SnapshotError::Unknown)?;
        if !snapshot.is_live() {
            return Err(SnapshotError::NotLive);
        }
        if snapshot.originals == Originals::Keep {
            return Ok(());
        }
        let mut ranges: Vec<_> =
            ranges.iter().map(|range| self.grains.covered(*range)).filter(|grains| !grains.is_empty()).collect();
        ranges.sort_unstable_by_key(|grains| grains.start);
        for grains in ranges {
            let first = self.grains.range(GrainIndex(grains.start)).start();
            let range = ByteRange::between(first, self.grains.range(GrainIndex(grains.end - 1)).end());
            let late = self.platform.planted(Planted::ReleasePersistedAfterClear);
            if !late {
                self.record_release(&snapshot, range)?;
            }
            self.platform.point(Point::Capture).await;
            snapshot.released.write().expect("nothing panics under this lock").insert(range);
            {
                let _claims = self.lock();
                for grain in grains.clone() {
                    if self.pending.test_filled(grain, false) {
                        self.clear_unless_needed(grain);
                    }
                }
            }
            self.platform.point(Point::CaptureCleared).await;
            for grain in grains {
                self.free_unwanted(GrainIndex(grain), None);
            }
            if late {
                self.record_release(&snapshot, range)?;
            }
            self.platform.point(Point::CaptureFreed).await;
        }
        Ok(())
    }

    fn record_release(&self, snapshot: &Snapshot, range: ByteRange) -> Result<(), SnapshotError> {
        // A deletion removes the log under the same lock: it must not come back.
        let _claims = self.lock();
        if snapshot.deleted.load(Ordering::Acquire) {
            return Err(SnapshotError::Unknown);
        }
        ReleasedLog::open_or_create(&self.storage, snapshot.id)
            .and_then(|log| log.append(range))
            .map_err(SnapshotError::State)
    }

    /// Ends the copy-on-write of a snapshot. What was saved for it so far is retained; it can no longer be read as a view (R35, R36).
    ///
    /// # Errors
    /// When there is no such live snapshot, or the state cannot be written.
    pub async fn end_snapshot(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        {
            let _claims = self.lock();
            let snapshot = self.snapshots.find(|snapshot| snapshot.id == id).ok_or(SnapshotError::Unknown)?;
            if !snapshot.is_live() {
                return Err(SnapshotError::NotLive);
            }
            let end = self.originals.head();
            self.table.set_state(snapshot.slot, RecordState::Ended(end), 0).map_err(SnapshotError::State)?;
            let _ = snapshot.end.set(end);
            if !self.snapshots.any_live() {
                self.pending.disarm();
            }
        }
        self.platform.point(Point::Ended).await;
        Ok(())
    }

    /// The retained original of a grain for an ended snapshot: `None` says that the copy's own outboard base has it.
    ///
    /// # Errors
    /// When there is no such ended snapshot.
    pub fn retained(&self, id: SnapshotId, grain: GrainIndex) -> Result<Option<tzero_originals::Entry>, SnapshotError> {
        let snapshot = self.snapshots.find(|snapshot| snapshot.id == id).ok_or(SnapshotError::Unknown)?;
        let end = *snapshot.end.get().filter(|_| snapshot.holds()).ok_or(SnapshotError::NotLive)?;
        let entry = self.originals.resolve(grain, snapshot.epoch).flatten();
        Ok(entry.filter(|entry| entry.sequence <= end || self.platform.planted(Planted::EndedTakesLaterEntry)))
    }

    /// Deletes a snapshot, in whatever state; readers of its view get errors. Originals that only it needed are freed before this returns.
    ///
    /// # Errors
    /// When there is none, or the state cannot be written.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        let snapshot = {
            let _claims = self.lock();
            let snapshot = self.snapshots.find(|snapshot| snapshot.id == id).ok_or(SnapshotError::Unknown)?;
            // On record first: a snapshot whose record stays must go on being saved for.
            self.table.clear(snapshot.slot).map_err(SnapshotError::State)?;
            snapshot.deleted.store(true, Ordering::Release);
            self.snapshots.remove(id);
            // The log means nothing without its record; one that stays is removed at the next start.
            let _ = self.storage.remove(&released_name::<P>(id));
            if !self.snapshots.any_live() {
                self.pending.disarm();
            }
            snapshot
        };
        self.platform.point(Point::Delete).await;
        self.sweep(&snapshot).await;
        Ok(())
    }

    /// Frees the originals that nobody needs now that `gone` does not.
    async fn sweep(&self, gone: &Snapshot) {
        let blind = self.platform.planted(Planted::SlotReusedWhileNeeded);
        for part in 0..OriginalCache::<StateOf<P>, P::Cache>::parts() {
            let grains = self.originals.part(part);
            if grains.is_empty() {
                continue;
            }
            for grain in grains {
                if blind {
                    let serving = self.originals.resolve(grain, gone.epoch).flatten().map(|entry| entry.tag);
                    let _ = self.originals.free_unwanted(grain, |_, tag| Some(tag) != serving);
                } else {
                    self.free_unwanted(grain, None);
                }
            }
            self.platform.point(Point::Swept).await;
        }
    }

    /// Frees the originals of snapshots that have broken, now and whenever one breaks. Never ends: a task for as long as the volume is
    /// served.
    pub async fn maintain(&self) {
        loop {
            let broke = self.broke.listen();
            for snapshot in self.snapshots.all() {
                if snapshot.broken.get().is_some() && !snapshot.swept.swap(true, Ordering::AcqRel) {
                    self.sweep(&snapshot).await;
                }
            }
            broke.await;
        }
    }
}

/// What a snapshot has released, as recorded; and whether it can be trusted.
pub(crate) fn load_released<P: Platform>(storage: &P::Storage, record: &Record) -> std::io::Result<RangeSet> {
    if record.originals == Originals::Keep || !storage.exists(&released_name::<P>(record.id))? {
        return Ok(RangeSet::default());
    }
    ReleasedLog::open_or_create(storage, record.id)?.load()
}
