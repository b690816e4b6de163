//! Saving originals: what a host change does for grains that may be pending.
//!
//! ```text
//!  bit set ──▶ wait for straddlers and for another's save ──▶ needed? ──no──▶ clear the bit if nobody needs the grain
//!                                                               │yes
//!                                                             claim ──▶ read base ──▶ reserve ──▶ payload ──▶ entry ──▶ index ──▶ bit, claim back
//!                                                                                       └── cannot be kept ──▶ mark snapshots broken ──▶ claim back
//! ```
//!
//! # Invariants
//! 1. INV-3: a grain is claimed by one save at a time, and only after straddlers on it have landed.
//! 2. Nobody waits while holding a claim that another could wait for: what could be claimed is saved before waiting for the rest.
//!    With that, and because nobody waits for a request of a later epoch, there is no deadlock.
//! 3. A save never fails its host change (INV-10): what cannot be kept breaks snapshots, on record, before the change goes on. With
//!    `durability = power` the record is durable by then.
//! 4. A bit is cleared under the volume's lock, by a look at the snapshots under the same hold.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tzero_block::{BlockDevice, ByteRange, Error, Fault};
use tzero_io::{Buffer, is_zero, yield_now};
use tzero_originals::{BrokenReason, CacheError, Epoch, GrainIndex, Grains, Original, Payload, Reservation};

use crate::commit::{Published, Saving, cut_out};
use crate::first::within;
use crate::ladder::{Patience, Room};
use crate::platform::Platform;
use crate::points::{Event, Planted, Point};
use crate::volume::{Durability, Volume};

/// Most bytes that are saved together.
const MOST_BYTES: u64 = 1 << 20;

/// Most grains that are looked at under one hold of the volume's lock: what a host change elsewhere may have to wait for.
pub(crate) const MOST_LOOKED_AT: usize = 1024;

/// Why the host's change must fail.
pub(crate) enum MustFail {
    /// A snapshot was made so, and there is no room for its original.
    NoSpace,
    /// The base is out of reach, for the change as for its originals: those are there still, and stay needed.
    OutOfReach(Error),
}

/// Why originals are saved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A host change would destroy them.
    Change,
    /// One may, some day.
    Ahead,
}

/// Originals that the base did not give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BadOriginals {
    /// How many grains since the volume was opened.
    pub grains: u64,
    /// Where the newest is, in bytes of the volume.
    pub newest: u64,
}

/// What was saved ahead of any change.
#[derive(Debug, Default)]
pub struct SavedAhead {
    bytes: AtomicU64,
    stored: AtomicU64,
}

impl SavedAhead {
    /// Bytes of originals.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the cache that they took: zeroes take none.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: u64, stored: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.stored.fetch_add(stored, Ordering::Relaxed);
    }
}

enum Collected {
    /// These grains are claimed, if any; the rest starts at `rest`.
    Claimed { grains: Vec<GrainIndex>, rest: u64 },
    /// The grain `at` has to be waited for.
    Blocked { at: u64 },
}

impl<P: Platform> Volume<P> {
    /// Saves what a change with this tag would destroy in `range`, except grains in the ascending runs of `spared`.
    ///
    /// # Errors
    /// Where a snapshot was made to fail writes rather than break, and there is no room; where the base cannot be reached.
    pub(crate) async fn save(
        &self,
        range: ByteRange,
        tag: Epoch,
        spared: &[Range<u64>],
        patience: &Patience,
    ) -> Result<(), MustFail> {
        self.save_for(Cause::Change, range, tag, spared, patience).await
    }

    /// Saves originals of a range before any change asks for them (R14), until the cache is half full. The next change there then waits for
    /// nothing. Says how far it came: where to go on, or the range's end. [`Self::saved_ahead`] counts.
    ///
    /// What cannot be kept is left as it was: nothing breaks because of it.
    pub async fn save_ahead(&self, range: ByteRange) -> u64 {
        // As a change of this moment would: an epoch that begins meanwhile finds an original that does not serve it.
        let tag = self.admission.epoch();
        for piece in range.pieces(MOST_BYTES) {
            if !self.has_room_ahead() {
                return piece.start();
            }
            let pending = self.pending.any(self.grains().touched(piece));
            if pending && self.save_for(Cause::Ahead, piece, tag, &[], &Patience::default()).await.is_err() {
                return piece.start();
            }
            yield_now().await;
        }
        range.end()
    }

    /// Originals that could not be read when a change was about to destroy them: whoever needs them gets an error there, for ever.
    pub fn bad_originals(&self) -> BadOriginals {
        *self.bad.lock().expect("nothing panics under this lock")
    }

    /// What was saved ahead of any change since the volume was opened.
    pub fn saved_ahead(&self) -> &SavedAhead {
        &self.ahead
    }

    async fn save_for(
        &self,
        cause: Cause,
        range: ByteRange,
        tag: Epoch,
        spared: &[Range<u64>],
        patience: &Patience,
    ) -> Result<(), MustFail> {
        let touched = self.grains().touched(range);
        let mut next = touched.start;
        while next < touched.end {
            match self.collect(next, touched.end, tag, spared) {
                Collected::Claimed { grains, rest } if grains.is_empty() => {
                    next = rest;
                    if next < touched.end {
                        yield_now().await;
                    }
                }
                Collected::Claimed { grains, rest } => {
                    next = rest;
                    let claims = Claims { volume: self, grains: &grains };
                    self.save_claimed(cause, &grains, tag, patience).await?;
                    drop(claims);
                }
                Collected::Blocked { at } => {
                    next = at;
                    self.admission.wait_unless(|| !self.is_blocked(at, tag)).await;
                }
            }
        }
        Ok(())
    }

    fn collect(&self, from: u64, end: u64, tag: Epoch, spared: &[Range<u64>]) -> Collected {
        let most = (MOST_BYTES / self.grains().grain()).max(1) as usize;
        let forget = self.platform.planted(Planted::LastGrainForgotten);
        let mut claims = self.lock();
        let mut grains = Vec::new();
        let mut looked_at = 0;
        let mut next = from;
        while let Some(grain) = self.pending.first(next..end) {
            if let Some(run) =
                spared.get(spared.partition_point(|run| run.end <= grain)).filter(|run| run.start <= grain)
            {
                next = run.end;
                continue;
            }
            if grains.len() == most || looked_at == MOST_LOOKED_AT {
                return self.claim(&mut claims, grains, grain);
            }
            looked_at += 1;
            next = grain + 1;
            if !self.pending.test_filled(grain, forget) {
                continue;
            }
            if let Some(blocked) = self.blocked(&claims, grain, tag) {
                if grains.is_empty() {
                    self.platform.observe(blocked);
                    return Collected::Blocked { at: grain };
                }
                return self.claim(&mut claims, grains, grain);
            }
            if self.is_needed(GrainIndex(grain), tag) {
                grains.push(GrainIndex(grain));
            } else {
                self.clear_unless_needed(grain);
            }
        }
        self.claim(&mut claims, grains, end)
    }

    fn claim(&self, claims: &mut BTreeSet<u64>, grains: Vec<GrainIndex>, rest: u64) -> Collected {
        claims.extend(grains.iter().map(|grain| grain.0));
        Collected::Claimed { grains, rest }
    }

    fn is_blocked(&self, grain: u64, tag: Epoch) -> bool {
        let claims = self.lock();
        self.blocked(&claims, grain, tag).is_some()
    }

    fn blocked(&self, claims: &BTreeSet<u64>, grain: u64, tag: Epoch) -> Option<Event> {
        let range = self.grains().range(GrainIndex(grain));
        if claims.contains(&grain) && !self.platform.planted(Planted::SecondWriterDoesNotWait) {
            return Some(Event::WaitedForSave { grain: GrainIndex(grain) });
        }
        let straddled = self.admission.straddles(range, tag) && !self.platform.planted(Planted::SaveIgnoresStraddlers);
        straddled.then_some(Event::WaitedForStraddler { grain: GrainIndex(grain) })
    }

    /// Whether a snapshot from before the tag has no original of the grain yet.
    fn is_needed(&self, grain: GrainIndex, tag: Epoch) -> bool {
        let newest = self.originals.newest(grain).filter(|_| !self.platform.planted(Planted::LastOriginalWins));
        if self.platform.planted(Planted::GrownForAll) && newest.is_none() && self.snapshots.any_live() {
            return true;
        }
        self.snapshots.any_needing(self.grains(), grain, newest, tag)
    }

    /// Clears the bit of a grain that no snapshot, however young, needs from the base. Under the volume's lock.
    pub(crate) fn clear_unless_needed(&self, grain: u64) {
        let newest = self.originals.newest(GrainIndex(grain));
        if self.snapshots.any_needing(self.grains(), GrainIndex(grain), newest, Epoch(u64::MAX)) {
            self.platform.observe(Event::ClearRefused { grain: GrainIndex(grain) });
        } else if !self.platform.planted(Planted::LastOriginalWins) {
            self.pending.clear(grain);
            self.platform.observe(Event::BitCleared { grain: GrainIndex(grain) });
        }
    }

    async fn save_claimed(
        &self,
        cause: Cause,
        grains: &[GrainIndex],
        tag: Epoch,
        patience: &Patience,
    ) -> Result<(), MustFail> {
        // A save is of the bytes that the volume has now: who has a tag that this one serves came before what is added meanwhile.
        let cut = self.grains();
        self.platform.point(Point::Claimed).await;
        if self.platform.planted(Planted::BitClearedBeforeEntry) {
            let _claims = self.lock();
            grains.iter().for_each(|grain| self.pending.clear(grain.0));
        }
        let mut runs: VecDeque<&[GrainIndex]> = grains.chunk_by(|before, after| before.0 + 1 == after.0).collect();
        while let Some(run) = runs.pop_front() {
            let originals = match self.read_originals(cut, run).await {
                Ok(originals) => originals,
                Err(error) => {
                    self.settle_bits(grains).await;
                    return Err(MustFail::OutOfReach(error));
                }
            };
            self.platform.point(Point::OriginalRead).await;
            if cause == Cause::Ahead && !originals.bad.is_empty() {
                // The change that needs such a one tries again. Its neighbours are saved each by itself.
                runs.extend(run.chunks(1).filter(|_| run.len() > 1));
                continue;
            }
            loop {
                let reason = match self.keep(cut, run, tag, &originals).await {
                    Err(reason) => reason,
                    Ok(slots) => {
                        if cause == Cause::Ahead {
                            self.ahead.count(run_range(cut, run).len(), slots * cut.grain());
                        }
                        break;
                    }
                };
                let room = match reason {
                    _ if cause == Cause::Ahead && !self.platform.planted(Planted::AheadBreaks) => break,
                    BrokenReason::CacheFull | BrokenReason::MapFull => self.make_room(reason, run, tag, patience).await,
                    _ => Room::None,
                };
                match room {
                    Room::Try if self.platform.planted(Planted::RoomMadeNotUsed) => break,
                    // It may have been for the one that broke.
                    Room::Try if run.iter().all(|grain| !self.is_needed(*grain, tag)) => break,
                    Room::Try => {}
                    Room::None => {
                        self.lose(run, tag, reason).await;
                        break;
                    }
                    Room::FailWrite => {
                        self.platform.observe(Event::WriteFailed);
                        self.settle_bits(grains).await;
                        return Err(MustFail::NoSpace);
                    }
                }
            }
        }
        self.settle_bits(grains).await;
        Ok(())
    }

    /// The originals of neighbouring grains, without those that the base cannot give.
    ///
    /// # Errors
    /// Where the base cannot be reached: that says nothing of what is there.
    async fn read_originals(&self, cut: Grains, run: &[GrainIndex]) -> Result<Originals, Error> {
        let range = run_range(cut, run);
        let (buffer, result) = self.base.read(range.start(), Buffer::uncleared(range.len() as usize)).await;
        let mut originals = Originals { bytes: buffer, bad: BTreeSet::new() };
        match result {
            Ok(()) => return Ok(originals),
            Err(error) if is_out_of_reach(&error) => return Err(error),
            Err(_) => {}
        }
        // One unreadable grain must not cost its neighbours: each by itself.
        for grain in run {
            let range_of_grain = cut.range(*grain);
            let single = Buffer::uncleared(range_of_grain.len() as usize);
            let (single, result) = self.base.read(range_of_grain.start(), single).await;
            let at = (range_of_grain.start() - range.start()) as usize;
            let place = &mut originals.bytes[at..at + single.len()];
            if let Err(error) = result.as_ref()
                && is_out_of_reach(error)
            {
                return result.map(|()| originals);
            }
            if result.is_ok() {
                place.copy_from_slice(&single);
            } else if self.platform.planted(Planted::BadOriginalAsZeroes) {
                place.fill(0);
            } else {
                originals.bad.insert(grain.0);
                self.platform.observe(Event::BadOriginal { grain: *grain });
            }
        }
        Ok(originals)
    }

    /// Stores the payloads, publishes the entries, indexes them. Gives the slots that they take.
    async fn keep(
        &self,
        cut: Grains,
        run: &[GrainIndex],
        tag: Epoch,
        originals: &Originals,
    ) -> Result<u64, BrokenReason> {
        if self.durability == Durability::Power && self.originals.recording().is_none() {
            // The cache cannot be used: nothing can be kept before the next start.
            return Err(BrokenReason::SaveFailed);
        }
        let start = run_range(cut, run).start();
        let mut payloads = Vec::with_capacity(run.len());
        let mut stored = Vec::new();
        for grain in run {
            let range = cut.range(*grain);
            let at = (range.start() - start) as usize;
            let bytes = &originals.bytes[at..at + range.len() as usize];
            if originals.bad.contains(&grain.0) {
                payloads.push(Payload::Bad);
            } else if is_zero(bytes) {
                payloads.push(Payload::Zero);
            } else {
                stored.push((payloads.len(), at..at + bytes.len()));
                payloads.push(Payload::Stored { offset: 0, checksum: crc32c::crc32c(bytes) });
            }
        }
        self.reuse_before_growth(stored.len() as u64).await;
        let reservation =
            self.originals.reserve(run.len() as u64, stored.len() as u64).map_err(|error| match error {
                CacheError::Full => BrokenReason::CacheFull,
                CacheError::MapFull(_) => BrokenReason::MapFull,
            })?;
        self.platform.point(Point::Reserved).await;
        let writes = self.place(&reservation.slots, &stored, &mut payloads);
        let labelled = if self.platform.planted(Planted::SaveCutTwice) { self.grains() } else { cut };
        let line = |(grain, payload): (&GrainIndex, Payload)| Original {
            grain: *grain,
            len: labelled.range(*grain).len() as u32,
            payload,
        };
        let lines: Vec<Original> = run.iter().zip(payloads).map(line).collect();
        let published = if self.durability == Durability::Power {
            self.keep_durably(tag, lines.clone(), reservation, &writes, &originals.bytes).await?
        } else {
            self.keep_written(tag, &lines, reservation, &writes, &originals.bytes).await?
        };
        for (&Original { grain, payload, .. }, (_, _, sequence)) in lines.iter().zip(&published) {
            let cache_offset = match payload {
                Payload::Stored { offset, .. } => Some(offset),
                _ => None,
            };
            self.platform.observe(Event::Published { grain, tag, sequence: *sequence, cache_offset });
        }
        if let Some(last) = originals.bad.last() {
            let mut bad = self.bad.lock().expect("nothing panics under this lock");
            bad.grains += originals.bad.len() as u64;
            bad.newest = cut.range(GrainIndex(*last)).start();
        }
        self.originals.index(&published, self.platform.planted(Planted::LastOriginalWins));
        if self.platform.planted(Planted::PayloadAfterEntry) {
            let _ = self.store(&writes, &originals.bytes).await;
        }
        self.platform.point(Point::Indexed).await;
        Ok(stored.len() as u64)
    }

    /// What survives the process: payloads written, then entries published.
    async fn keep_written(
        &self,
        tag: Epoch,
        lines: &[Original],
        reservation: Reservation,
        writes: &[(u64, Range<usize>)],
        bytes: &[u8],
    ) -> Result<Published, BrokenReason> {
        if !self.platform.planted(Planted::PayloadAfterEntry)
            && let Err(failed) = self.store(writes, bytes).await
        {
            return Err(self.give_up(failed, Some(reservation)));
        }
        self.platform.point(Point::Payload).await;
        let published = self.originals.publish(reservation, tag, lines, None).map_err(|_| BrokenReason::SaveFailed)?;
        self.platform.point(Point::Entry).await;
        Ok(published)
    }

    /// What survives a loss of power: see [`crate::commit`].
    async fn keep_durably(
        &self,
        tag: Epoch,
        lines: Vec<Original>,
        reservation: Reservation,
        writes: &[(u64, Range<usize>)],
        bytes: &[u8],
    ) -> Result<Published, BrokenReason> {
        let saving = Saving::new(tag, lines, reservation, cut_out(writes, bytes));
        self.commit(&saving).await.map_err(|failed| self.give_up(failed, saving.take_reservation()))
    }

    /// Why an original was not kept; what becomes of its places.
    fn give_up(&self, failed: NotStored, reservation: Option<Reservation>) -> BrokenReason {
        let reuse = failed != NotStored::Hangs || self.platform.planted(Planted::HungSlotReused);
        match reservation {
            Some(reservation) if reuse => self.originals.cancel(reservation),
            Some(reservation) => self.originals.abandon(reservation),
            None => {}
        }
        match failed {
            NotStored::Failed(reason) => reason,
            NotStored::Hangs | NotStored::Unpublished => BrokenReason::SaveFailed,
        }
    }

    /// Gives each stored payload its slot; what lies together in the buffer and in the cache becomes one write, from a slot on.
    fn place(
        &self,
        slots: &[Range<u64>],
        stored: &[(usize, Range<usize>)],
        payloads: &mut [Payload],
    ) -> Vec<(u64, Range<usize>)> {
        let mut stored = stored.iter();
        let mut writes: Vec<(u64, Range<usize>)> = Vec::new();
        for run in slots {
            let mut open: Option<(u64, Range<usize>)> = None;
            for (slot, (index, bytes)) in run.clone().zip(&mut stored) {
                if let Payload::Stored { offset, .. } = &mut payloads[*index] {
                    *offset = self.originals.offset_of(slot);
                }
                match &mut open {
                    Some((_, place)) if place.end == bytes.start => place.end = bytes.end,
                    _ => writes.extend(open.replace((slot, bytes.clone()))),
                }
            }
            writes.extend(open);
        }
        writes
    }

    async fn store(&self, writes: &[(u64, Range<usize>)], bytes: &[u8]) -> Result<(), NotStored> {
        for (slot, place) in writes {
            self.refuse_while_hanging()?;
            let buffer = Buffer::copy_of(&bytes[place.clone()]);
            let limit = self.platform.longest_save();
            let stored = within(self.originals.store(*slot, buffer), self.platform.sleep(limit)).await;
            let Some((_, result)) = stored else {
                self.hangs(limit);
                return Err(NotStored::Hangs);
            };
            result.map_err(|error| {
                NotStored::Failed(if error.is_no_space() { BrokenReason::CacheFull } else { BrokenReason::SaveFailed })
            })?;
        }
        Ok(())
    }

    /// A cache that has just cost one change its patience is not to cost the next ones theirs, too.
    pub(crate) fn refuse_while_hanging(&self) -> Result<(), NotStored> {
        let hangs = self.platform.monotonic_ns() < self.cache_hangs_until.load(Ordering::Relaxed);
        if hangs { Err(NotStored::Failed(BrokenReason::SaveFailed)) } else { Ok(()) }
    }

    pub(crate) fn hangs(&self, limit: u64) {
        self.platform.observe(Event::CacheHangs);
        self.cache_hangs_until.store(self.platform.monotonic_ns() + limit, Ordering::Relaxed);
    }

    /// The originals of `run` cannot be kept: whoever needs one of them is broken, on record, before the host's change goes on.
    async fn lose(&self, run: &[GrainIndex], tag: Epoch, reason: BrokenReason) {
        self.platform.point(Point::SaveFailed).await;
        if self.platform.planted(Planted::FailedSaveIgnored) {
            return;
        }
        let mut lost = Vec::new();
        {
            let _claims = self.lock();
            for grain in run {
                self.platform.observe(Event::SaveFailed { grain: *grain });
                let newest = self.originals.newest(*grain);
                for snapshot in self.snapshots.needing(self.grains(), *grain, newest, tag) {
                    self.mark(&snapshot, reason, self.grains().range(*grain).start());
                    lost.push(snapshot);
                }
            }
        }
        self.break_marked(&lost).await;
        self.platform.point(Point::Broken).await;
    }

    /// Clears the bits of saved grains that no younger snapshot needs, and frees what was saved for a snapshot that went meanwhile.
    async fn settle_bits(&self, grains: &[GrainIndex]) {
        if self.platform.planted(Planted::ArmThenStaleClear) {
            let decided: Vec<_> = grains
                .iter()
                .filter(|grain| {
                    !self.snapshots.any_needing(self.grains(), **grain, self.originals.newest(**grain), Epoch(u64::MAX))
                })
                .collect();
            self.platform.point(Point::Indexed).await;
            decided.into_iter().for_each(|grain| self.pending.clear(grain.0));
        }
        {
            let _claims = self.lock();
            for grain in grains {
                // The chunk may be stale by now: a fresh arming has made everything pending, and stays.
                if self.pending.test_filled(grain.0, false) {
                    self.clear_unless_needed(grain.0);
                }
            }
        }
        for grain in grains {
            self.free_unwanted(*grain, Some(Event::SaveWasted { grain: *grain }));
        }
        self.platform.point(Point::Bit).await;
    }

    /// Frees the originals of a grain that no snapshot resolves to.
    pub(crate) fn free_unwanted(&self, grain: GrainIndex, event: Option<Event>) {
        let wanted = |before, tag, sequence| self.snapshots.any_resolving(self.grains(), grain, before, tag, sequence);
        // Where the map cannot be written the originals stay: space is lost, nothing else.
        for cache_offset in self.originals.free_unwanted(grain, wanted).unwrap_or_default() {
            self.platform.observe(Event::Freed { grain, cache_offset });
            if cache_offset.is_some() && self.movers.load(Ordering::Relaxed) > 0 {
                self.freed.notify_all();
            }
            if let Some(event) = event {
                self.platform.observe(event);
            }
        }
    }
}

/// Whether a read failed because of the way to the base, and not because of the base.
fn is_out_of_reach(error: &Error) -> bool {
    matches!(error.fault, Fault::Link(_))
}

/// The bytes of neighbouring grains.
fn run_range(cut: Grains, run: &[GrainIndex]) -> ByteRange {
    let (first, last) = (run.first().expect("a run has a grain"), run.last().expect("a run has a grain"));
    ByteRange::between(cut.range(*first).start(), cut.range(*last).end())
}

/// Why originals are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotStored {
    /// A write, or a flush, failed.
    Failed(BrokenReason),
    /// A write takes too long, and may land at any time.
    Hangs,
    /// The map could not be written; the places were given back.
    Unpublished,
}

struct Originals {
    bytes: Buffer,
    bad: BTreeSet<u64>,
}

/// Claims of a save; given back on drop, whatever happened.
struct Claims<'a, P: Platform> {
    volume: &'a Volume<P>,
    grains: &'a [GrainIndex],
}

impl<P: Platform> Drop for Claims<'_, P> {
    fn drop(&mut self) {
        let mut claims = self.volume.lock();
        self.grains.iter().for_each(|grain| {
            claims.remove(&grain.0);
        });
        drop(claims);
        self.volume.admission.announce();
    }
}
