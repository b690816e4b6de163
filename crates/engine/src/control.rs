//! The life of snapshots: create, release, end, delete.
//!
//! # What is durable, and when
//! A sync of a file waits for whatever the machine has under way, a minute and more under heavy load. So it is paid only where somebody relies on what it
//! makes durable:
//!
//! | | `durability = process` | `power` |
//! |---|---|---|
//! | a user's snapshot is created | before it is acknowledged: the name is somebody's to rely on, and after a loss of power it is listed as broken | the same |
//! | a private snapshot is created | never. A loss of power breaks it, and its backup begins anew, whether the record says *broken* or is gone; a death of the process keeps the page cache; a clean stop syncs | before it is acknowledged |
//! | release, end, delete | never: the same | before anything relies on them |
//!
//! An epoch is given once, though: a number that a lost record had must not come again. After a loss of power epochs go on [`LEAP`] further.

use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tzero_block::ByteRange;
use tzero_io::{Storage, yield_now};
use tzero_originals::{
    Epoch, GrainIndex, MOST_SNAPSHOTS, NAME_BYTES, OnFull, OriginalCache, Originals, RangeLog, RangeSet, Record,
    RecordState, Sequence, SnapshotId,
};

use crate::platform::Platform;
use crate::points::{Event, Planted, Point};
use crate::save::MOST_LOOKED_AT;
use crate::scope;
use crate::snapshots::{Snapshot, SnapshotInfo};
use crate::volume::{Durability, SnapshotError, StateOf, Volume, released_name};

/// So much further epochs go on after a loss of power, where those of private snapshots may have been lost: more than anybody takes between two
/// syncs of the table.
pub(crate) const LEAP: u64 = 1 << 20;

/// What one snapshot has released, on record.
pub(crate) struct ReleasedLog<M> {
    log: RangeLog<M>,
    /// Its name is durable.
    named: AtomicBool,
}

/// What a new snapshot is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotKind {
    /// Keeps or releases its originals.
    pub originals: Originals,
    /// Belongs to one copy and goes with it.
    pub private: bool,
    /// What gives when the cache is full.
    pub on_full: OnFull,
}

impl SnapshotKind {
    /// A user's: keeps everything until it is deleted.
    pub const KEPT: Self = Self { originals: Originals::Keep, private: false, on_full: OnFull::Break };
    /// A copy's own: releases what was captured.
    pub const PRIVATE: Self = Self { originals: Originals::Release, private: true, on_full: OnFull::Break };
}

/// Whether `name` may name a snapshot: 1 to 64 letters, digits, `-`, `_`, `.`.
pub fn is_valid_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl<P: Platform> Volume<P> {
    /// Takes a snapshot: from the moment this returns, its view reads what the volume held at one instant during the call. Changes that had
    /// completed before are in it, changes that start afterwards are not.
    ///
    /// The pause is the arming: a few stores under the volume's lock, whatever the volume's size (R2). The record is durable when this returns, unless it
    /// is private and nothing relies on that (see the module).
    ///
    /// # Errors
    /// When the name is not allowed or taken, there are too many, or the state cannot be written.
    pub async fn create_snapshot(&self, name: &str, kind: SnapshotKind) -> Result<SnapshotInfo, SnapshotError> {
        self.create_snapshot_of(name, kind, None).await
    }

    /// [`Self::create_snapshot`] of a part of the volume.
    ///
    /// # Errors
    /// As there, and when a range is empty or not within the volume.
    pub async fn create_snapshot_of(
        &self,
        name: &str,
        kind: SnapshotKind,
        scope: Option<&[ByteRange]>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        if !is_valid_name(name) {
            return Err(SnapshotError::Name);
        }
        let scope = match scope {
            Some(ranges) => Some(scope::checked(ranges, self.grains().size()).ok_or(SnapshotError::Scope)?),
            None => None,
        };
        let id = SnapshotId(self.platform.random_id());
        let scoped = scope.is_some();
        let durable = self.durability == Durability::Power || !kind.private;
        let stored = match &scope {
            Some(scope) => scope::store(&self.storage, id, scope, durable).await.map_err(SnapshotError::State),
            None => Ok(()),
        };
        self.platform.point(Point::CreatePrepared).await;
        let snapshot = match stored.and_then(|()| self.arm(id, name, kind, scope)) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                if scoped {
                    // One that stays is removed at the next start.
                    let _ = self.storage.remove(&scope::name(id));
                }
                return Err(error);
            }
        };
        self.platform.point(Point::Create).await;
        if durable && let Err(error) = self.table.durable().await {
            // Nobody is told of a snapshot that may be gone tomorrow. It was never confirmed: whatever is left of it, nobody believes it.
            self.remove_snapshot(&snapshot).await;
            return Err(SnapshotError::NotDurable(error));
        }
        self.platform.point(Point::CreateDurable).await;
        self.want_confirmation();
        // Informational: where it cannot be stored the figure is lost at the next start, not the snapshot.
        let pause = snapshot.pause_ns.get().copied().unwrap_or(0);
        let _ = self.table.set_pause(snapshot.slot, pause);
        Ok(snapshot.info())
    }

    fn arm(
        &self,
        id: SnapshotId,
        name: &str,
        kind: SnapshotKind,
        scope: Option<RangeSet>,
    ) -> Result<Arc<Snapshot>, SnapshotError> {
        let leaves_out = |cut| scope.as_ref().map(|scope| scope::outside(scope, cut)).unwrap_or_default();
        let (mut cut, mut outside) = (self.grains(), leaves_out(self.grains()));
        let claims = self.lock();
        if self.grains() != cut {
            // It has grown meanwhile, which is rare: nobody's pause counts on that.
            (cut, outside) = (self.grains(), leaves_out(self.grains()));
        }
        let begun = self.platform.monotonic_ns();
        let all = self.snapshots.all();
        if all.iter().any(|snapshot| snapshot.name == name) {
            return Err(SnapshotError::Taken);
        }
        let slot = (0..MOST_SNAPSHOTS)
            .find(|slot| all.iter().all(|snapshot| snapshot.slot != *slot) && self.table.record(*slot).is_none())
            .ok_or(SnapshotError::TooMany)?;
        let epoch = Epoch(self.admission.epoch().0 + 1);
        let record = Record {
            id,
            name: name.to_owned(),
            epoch,
            created_ns: self.platform.wall_ns(),
            pause_ns: 0,
            size: cut.size(),
            originals: kind.originals,
            private: kind.private,
            scoped: scope.is_some(),
            on_full: kind.on_full,
            broken_at: 0,
            confirmed: false,
            state: RecordState::Live,
        };
        self.table.prepare(slot, &record).map_err(SnapshotError::State)?;
        // The epoch first: no later snapshot may ever get the same one, not even if the record's own state is lost.
        self.table.set_epoch(epoch).map_err(SnapshotError::State)?;
        self.table.set_state(slot, RecordState::Live, 0).map_err(SnapshotError::State)?;
        let snapshot = Arc::new(Snapshot::from_record(slot, &record, outside, scope));
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
        self.release_ranges(id, ranges).await?;
        self.delivered.others_may_take();
        Ok(())
    }

    /// As [`Self::release`].
    pub(crate) async fn release_ranges(&self, id: SnapshotId, ranges: &[ByteRange]) -> Result<(), SnapshotError> {
        let snapshot = self.snapshots.find(|snapshot| snapshot.id == id).ok_or(SnapshotError::Unknown)?;
        if !snapshot.is_live() {
            return Err(SnapshotError::NotLive);
        }
        if snapshot.originals == Originals::Keep {
            return Ok(());
        }
        let mut missing = Vec::new();
        let late = self.platform.planted(Planted::ShortEndNotReleased);
        let cut = if late { self.grains() } else { self.grains_of(&snapshot) };
        for range in ranges {
            let grains = cut.covered(*range);
            let whole = cut.range_of(&grains);
            missing.extend(snapshot.released.read().expect("nothing panics under this lock").missing(whole));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let late = self.platform.planted(Planted::ReleasePersistedAfterClear);
        if !late {
            self.record_releases(&snapshot, &missing).await?;
        }
        for range in &missing {
            self.release_range(&snapshot, *range).await;
        }
        if late {
            self.record_releases(&snapshot, &missing).await?;
        }
        Ok(())
    }

    /// Releases whole grains, in pieces: nobody waits for a hold of the volume's lock that is as long as the range.
    async fn release_range(&self, snapshot: &Snapshot, range: ByteRange) {
        self.platform.point(Point::Capture).await;
        snapshot.released.write().expect("nothing panics under this lock").insert(range);
        let grains = self.grains_of(snapshot).covered(range);
        for piece in pieces(&grains) {
            self.clear_released(piece);
            yield_now().await;
        }
        self.platform.point(Point::CaptureCleared).await;
        for piece in pieces(&grains) {
            self.free_among(piece);
            yield_now().await;
        }
        self.platform.point(Point::CaptureFreed).await;
    }

    /// Clears the bits of grains that one snapshot has released, unless another needs them.
    fn clear_released(&self, grains: Range<u64>) {
        let _claims = self.lock();
        if self.snapshots.none_needs_any(self.grains().range_of(&grains)) {
            self.pending.clear_all(grains.clone());
            grains.for_each(|grain| self.platform.observe(Event::BitCleared { grain: GrainIndex(grain) }));
            return;
        }
        let mut next = grains.start;
        while let Some(grain) = self.pending.first(next..grains.end) {
            next = grain + 1;
            if self.pending.test_filled(grain, false) {
                self.clear_unless_needed(grain);
            }
        }
    }

    /// Frees the originals of some neighbouring grains that nobody needs.
    fn free_among(&self, grains: Range<u64>) {
        if self.originals.may_have_any(&grains) {
            grains.for_each(|grain| self.free_unwanted(GrainIndex(grain), None));
        }
    }

    /// What a snapshot has released so far: its bytes of T0 there cannot be had any more. `None` if there is no such snapshot.
    pub fn released(&self, id: SnapshotId) -> Option<RangeSet> {
        let snapshot = self.snapshots.find(|snapshot| snapshot.id == id)?;
        Some(snapshot.released.read().expect("nothing panics under this lock").clone())
    }

    /// Puts releases on record; durably where a loss of power is to be outlived, for a release that is behind would give T0 up.
    async fn record_releases(&self, snapshot: &Snapshot, ranges: &[ByteRange]) -> Result<(), SnapshotError> {
        let released = {
            let mut logs = self.released_logs.lock().expect("nothing panics under this lock");
            // A deletion says so before it removes the log under the same lock: it must not come back.
            if snapshot.deleted.load(Ordering::Acquire) {
                return Err(SnapshotError::Unknown);
            }
            let released = match logs.entry(snapshot.id) {
                Entry::Occupied(open) => Arc::clone(open.get()),
                Entry::Vacant(place) => {
                    let log = RangeLog::open_or_create(&self.storage, &released_name(snapshot.id));
                    let log = log.map_err(SnapshotError::State)?;
                    Arc::clone(place.insert(Arc::new(ReleasedLog { log, named: AtomicBool::new(false) })))
                }
            };
            ranges.iter().try_for_each(|range| released.log.append(*range)).map_err(SnapshotError::State)?;
            released
        };
        if self.durability == Durability::Process || self.platform.planted(Planted::ReleaseNotDurable) {
            return Ok(());
        }
        released.log.durable().await.map_err(SnapshotError::NotDurable)?;
        if !released.named.load(Ordering::Acquire) {
            self.storage.names_durable().await.map_err(SnapshotError::NotDurable)?;
            released.named.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn remove_ranges(&self, id: SnapshotId) {
        let mut logs = self.released_logs.lock().expect("nothing panics under this lock");
        logs.remove(&id);
        // They mean nothing without the record; one that stays is removed at the next start.
        let _ = self.storage.remove(&released_name(id));
        let _ = self.storage.remove(&scope::name(id));
    }

    /// Ends the copy-on-write of a snapshot, and says which original is the last one that belongs to it. What was saved for it so far is
    /// retained, immutable, until it is deleted (INV-6); it can no longer be read as a view (R35, R36). Ended already, it stays as it is.
    ///
    /// # Errors
    /// When there is no such snapshot that stands, or the state cannot be written, or made durable where it must.
    pub async fn end_snapshot(&self, id: SnapshotId) -> Result<Sequence, SnapshotError> {
        let (snapshot, end) = {
            let _claims = self.lock();
            let snapshot = self.snapshots.find(|snapshot| snapshot.id == id).ok_or(SnapshotError::Unknown)?;
            if let Some(end) = snapshot.end.get().filter(|_| snapshot.holds()) {
                return Ok(*end);
            }
            if !snapshot.is_live() || snapshot.goes() {
                return Err(SnapshotError::NotLive);
            }
            let end = self.originals.head();
            self.table.set_state(snapshot.slot, RecordState::Ended(end), 0).map_err(SnapshotError::State)?;
            (snapshot, end)
        };
        if let Err(error) = self.relied_on().await {
            let _claims = self.lock();
            if !snapshot.goes() {
                let _ = self.table.set_state(snapshot.slot, RecordState::Live, 0);
            }
            return Err(SnapshotError::NotDurable(error));
        }
        let end = {
            let _claims = self.lock();
            if snapshot.goes() && !self.platform.planted(Planted::EndOfBroken) {
                // Until its end was durable it was as live as any: it may have been broken, or deleted.
                return Err(SnapshotError::NotLive);
            }
            // Somebody else may have ended it, too, later: what the record says is the end.
            let recorded = self.table.record(snapshot.slot).map(|record| record.state);
            let end = if let Some(RecordState::Ended(recorded)) = recorded { recorded } else { end };
            let end = *snapshot.end.get_or_init(|| end);
            if !self.snapshots.any_live() {
                self.pending.disarm();
            }
            end
        };
        self.platform.point(Point::Ended).await;
        Ok(end)
    }

    /// The sequence of the newest original that is published. Taken when the last outboard read has completed it is the marker (R34): whatever
    /// such a read saw of later changes has an original up to it, for an original is published before its change touches the base.
    pub fn marker(&self) -> Sequence {
        self.originals.head()
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
            snapshot.leaving.store(true, Ordering::Release);
            snapshot
        };
        if let Err(error) = self.relied_on().await {
            self.stay(&snapshot);
            return Err(SnapshotError::NotDurable(error));
        }
        self.remove_snapshot(&snapshot).await;
        Ok(())
    }

    /// Takes a snapshot out whose record is cleared, or is to be as far as possible.
    async fn remove_snapshot(&self, snapshot: &Arc<Snapshot>) {
        {
            let _claims = self.lock();
            let cleared = snapshot.leaving.swap(true, Ordering::AcqRel) || self.table.clear(snapshot.slot).is_ok();
            if !cleared && !self.platform.planted(Planted::FailedClearForgotten) {
                // The next start must not take it for one that was saved for.
                self.lose_mark(snapshot);
                self.uncleared().insert(snapshot.slot);
            }
            snapshot.deleted.store(true, Ordering::Release);
            self.snapshots.remove(snapshot.id);
            if !self.snapshots.any_live() {
                self.pending.disarm();
            }
        }
        self.remove_ranges(snapshot.id);
        self.delivered.forget(snapshot.id);
        self.platform.point(Point::Delete).await;
        self.sweep(snapshot).await;
    }

    /// What the table says is about to be relied on: durable first, where a loss of power is to be outlived.
    async fn relied_on(&self) -> std::io::Result<()> {
        if self.durability == Durability::Process || self.platform.planted(Planted::DeletionNotDurable) {
            return Ok(());
        }
        self.table.durable().await
    }

    /// The record of a snapshot was cleared, and that is not certain: it is put back, unless it has gone meanwhile.
    fn stay(&self, snapshot: &Snapshot) {
        let _claims = self.lock();
        if snapshot.deleted.load(Ordering::Acquire) {
            return;
        }
        let (state, at) = match (snapshot.doomed.get(), snapshot.end.get()) {
            (Some((reason, at)), _) => (RecordState::Broken(*reason), *at),
            (None, Some(end)) => (RecordState::Ended(*end), 0),
            (None, None) => (RecordState::Live, 0),
        };
        // Where it cannot be put back the next start finds it deleted, as was asked for.
        let _ = self.table.set_state(snapshot.slot, state, at);
        snapshot.leaving.store(false, Ordering::Release);
        self.want_confirmation();
    }

    /// Frees the originals that nobody needs now that `gone` does not.
    pub(crate) async fn sweep(&self, gone: &Snapshot) {
        let blind = self.platform.planted(Planted::SlotReusedWhileNeeded);
        for part in 0..OriginalCache::<StateOf<P>, P::Cache>::parts() {
            let grains = self.originals.part(part);
            if grains.is_empty() {
                continue;
            }
            for some in grains.chunks(MOST_LOOKED_AT) {
                for grain in some {
                    if blind {
                        let serving = self.originals.resolve(*grain, gone.epoch).flatten().map(|entry| entry.tag);
                        let _ = self.originals.free_unwanted(*grain, |_, tag, _| Some(tag) != serving);
                    } else {
                        self.free_unwanted(*grain, None);
                    }
                }
                yield_now().await;
            }
            self.platform.point(Point::Swept).await;
        }
    }

    /// Frees the originals of snapshots that have broken, now and whenever one breaks. Never ends: a task for as long as the volume is
    /// served.
    pub async fn maintain(&self) {
        loop {
            let broke = self.broke.listen();
            // What cannot be marked now is tried again when the next one breaks, and at the stop.
            let _ = self.mark_broken().await;
            for snapshot in self.snapshots.all() {
                if snapshot.broken.get().is_some() && !snapshot.swept.swap(true, Ordering::AcqRel) {
                    self.sweep(&snapshot).await;
                }
            }
            broke.await;
        }
    }
}

/// Neighbouring grains in pieces that one hold of the volume's lock can take.
fn pieces(grains: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = grains.end;
    (grains.start..end).step_by(MOST_LOOKED_AT).map(move |start| start..(start + MOST_LOOKED_AT as u64).min(end))
}
