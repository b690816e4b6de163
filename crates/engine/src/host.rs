//! What the host does to a volume: reads pass through (R23), changes are admitted, save what snapshots need, and go to the base (R62).
//!
//! # Invariants
//! 1. A change registers before anything about it is decided, and leaves when its base write is done.
//! 2. The only error a host sees is its base's; and, where a snapshot was explicitly made so, that there is no space for its original.
//! 3. Trim is advice: over pending grains it is not taken, so that it saves nothing and changes nothing.
//!
//! A front-end drives every change to its end, even if its client is gone: a change that is dropped half-way would leave while the base write is
//! still under way.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use tzero_block::{BlockDevice, ByteRange, Error, Export, ExportError, ExportInfo, Extent, Fault, Zeroes};
use tzero_io::{Buffer, yield_now};
use tzero_originals::{Epoch, GrainIndex};

use crate::admission::{Lane, Ticket};
use crate::confirm::Told;
use crate::ladder::Patience;
use crate::platform::Platform;
use crate::points::{Event, Planted, Point};
use crate::save::{MOST_LOOKED_AT, MustFail};
use crate::volume::Volume;

/// Requests of this size are served best, in bytes.
const PREFERRED: u32 = 4096;

/// One client's use of a volume.
pub struct HostSession<P: Platform> {
    volume: Arc<Volume<P>>,
    lane: Arc<Lane>,
    info: ExportInfo,
    told: Told,
}

impl<P: Platform> HostSession<P> {
    fn new(volume: Arc<Volume<P>>) -> Self {
        let info = ExportInfo {
            name: volume.name.clone(),
            description: String::new(),
            size: volume.size(),
            read_only: false,
            shared: true,
            counts_deliveries: false,
            minimum_block: volume.base.geometry().alignment.min(512),
            preferred_block: PREFERRED,
        };
        Self { lane: volume.admission.lane(), told: volume.confirming.session(), volume, info }
    }

    async fn admit(&self, range: ByteRange) -> Ticket<'_> {
        let platform = &self.volume.platform;
        platform.point(Point::Arrived).await;
        let ticket = self.volume.admission.admit(&self.lane, range).await;
        platform.observe(Event::Admitted { tag: ticket.tag() });
        ticket
    }

    /// Admits a change and saves what it would destroy. The ticket must live until the base write is done.
    ///
    /// # Errors
    /// As [`Self::save`].
    async fn prepare(
        &self,
        range: ByteRange,
        spare_holes: bool,
        watch: &Watch<'_, P>,
    ) -> Result<Ticket<'_>, ExportError> {
        let volume = &self.volume;
        if volume.platform.planted(Planted::BitsTestedBeforeRegistering) {
            let pending = volume.pending.any(volume.grains().touched(range));
            volume.platform.point(Point::Arrived).await;
            let ticket = self.admit(range).await;
            if pending {
                volume.save(range, ticket.tag(), &[], &Patience::default()).await.map_err(must_fail)?;
            }
            return Ok(ticket);
        }
        let ticket = self.admit(range).await;
        volume.platform.point(Point::Admitted).await;
        if volume.pending.any(volume.grains().touched(range)) {
            let patience = Patience::default();
            volume.slow_down(&patience).await;
            let saved = self.save(range, ticket.tag(), spare_holes, &patience).await;
            watch.excuse(&patience);
            saved?;
        }
        volume.platform.point(Point::BaseWrite).await;
        Ok(ticket)
    }

    /// Saves what a change would destroy in `range`, which is all of it or an increment.
    ///
    /// # Errors
    /// No space, where a snapshot was made to fail writes, and where the base is out of reach: nothing of this range may then reach the base.
    async fn save(
        &self,
        range: ByteRange,
        tag: Epoch,
        spare_holes: bool,
        patience: &Patience,
    ) -> Result<(), ExportError> {
        let spared = if spare_holes { self.volume.holes(range, tag).await } else { Vec::new() };
        self.volume.save(range, tag, &spared, patience).await.map_err(must_fail)
    }

    /// What the host is told of a change of the base, before which so many flushes of our own had failed. One that was to be durable at once and
    /// is not leaves doubt; one that was may have lost its bytes to a flush of our own.
    async fn told_of(&self, result: Result<(), Error>, fua: bool, before: u64) -> Result<(), ExportError> {
        match &result {
            Err(error) if fua => self.volume.doubt(error),
            Ok(()) if fua && self.volume.confirming.failures().await > before => return Err(ExportError::Io),
            _ => {}
        }
        result.map_err(host_error)
    }

    /// Does a large change increment by increment.
    async fn change_in_increments(
        &self,
        range: ByteRange,
        spare_holes: bool,
        watch: &Watch<'_, P>,
        change: impl AsyncFn(ByteRange) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let volume = &self.volume;
        let ticket = self.admit(range).await;
        volume.platform.point(Point::Admitted).await;
        // The change is slowed down once, however long it is, and its increments wait together as long as one change may.
        let patience = Patience::default();
        volume.slow_down(&patience).await;
        let changed = volume
            .in_increments(range, &ticket, async |piece| {
                let anew = volume.platform.planted(Planted::IncrementAdmittedAnew);
                let other = if anew { Some(self.admit(piece).await) } else { None };
                if volume.pending.any(volume.grains().touched(piece)) {
                    self.save(piece, other.as_ref().unwrap_or(&ticket).tag(), spare_holes, &patience).await?;
                }
                volume.platform.point(Point::BaseWrite).await;
                let result = change(piece).await;
                volume.platform.point(Point::BaseWritten).await;
                result
            })
            .await;
        watch.excuse(&patience);
        changed
    }
}

/// Says how long a request took, if somebody wants to know.
struct Watch<'a, P: Platform> {
    platform: &'a P,
    begun: Option<u64>,
    excused: Cell<bool>,
}

impl<'a, P: Platform> Watch<'a, P> {
    fn begin(platform: &'a P) -> Self {
        let begun = platform.is_watched().then(|| {
            platform.begun();
            platform.monotonic_ns()
        });
        Self { platform, begun, excused: Cell::new(false) }
    }

    /// What waited for space says nothing of the disk. The mover has to make it, not to hold back.
    fn excuse(&self, patience: &Patience) {
        if patience.was_used() {
            self.excused.set(true);
        }
    }
}

impl<P: Platform> Drop for Watch<'_, P> {
    fn drop(&mut self) {
        if let Some(begun) = self.begun {
            let took = self.platform.monotonic_ns().saturating_sub(begun);
            self.platform.answered((!self.excused.get()).then_some(took));
        }
    }
}

impl<P: Platform> Export for HostSession<P> {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), ExportError>) {
        let _watch = Watch::begin(&self.volume.platform);
        let (buffer, result) = self.volume.base.read(offset, buffer).await;
        (buffer, result.map_err(host_error))
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), ExportError>) {
        let watch = Watch::begin(&self.volume.platform);
        let range = ByteRange::new(offset, buffer.len() as u64);
        if self.volume.goes_in_increments(range) {
            let write = async |piece: ByteRange| {
                let at = (piece.start() - offset) as usize;
                let bytes = Buffer::copy_of(&buffer[at..at + piece.len() as usize]);
                let before = self.volume.confirming.failures_now();
                let result = self.volume.base.write(piece.start(), bytes, fua).await.1;
                self.told_of(result, fua, before).await
            };
            let result = self.change_in_increments(range, false, &watch, write).await;
            return (buffer, result);
        }
        let ticket = match self.prepare(range, false, &watch).await {
            Ok(ticket) => ticket,
            Err(error) => return (buffer, Err(error)),
        };
        let before = self.volume.confirming.failures_now();
        let (buffer, result) = self.volume.base.write(offset, buffer, fua).await;
        self.volume.platform.point(Point::BaseWritten).await;
        drop(ticket);
        (buffer, self.told_of(result, fua, before).await)
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), ExportError> {
        let watch = Watch::begin(&self.volume.platform);
        // Before anything is saved for it.
        if zeroes.fast && !self.volume.base.can_zero_fast(range, zeroes) {
            return Err(ExportError::Unsupported);
        }
        // One that has to be fast is done whole or not at all.
        if self.volume.goes_in_increments(range)
            && !zeroes.fast
            && !self.volume.platform.planted(Planted::ZeroesNotSaved)
        {
            let zero = async |piece| {
                let before = self.volume.confirming.failures_now();
                let result = self.volume.base.write_zeroes(piece, zeroes).await;
                self.told_of(result, zeroes.fua, before).await
            };
            return self.change_in_increments(range, true, &watch, zero).await;
        }
        let ticket = if self.volume.platform.planted(Planted::ZeroesNotSaved) {
            self.admit(range).await
        } else {
            self.prepare(range, true, &watch).await?
        };
        let before = self.volume.confirming.failures_now();
        let result = self.volume.base.write_zeroes(range, zeroes).await;
        self.volume.platform.point(Point::BaseWritten).await;
        drop(ticket);
        self.told_of(result, zeroes.fua, before).await
    }

    async fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ExportError> {
        let ticket = self.admit(range).await;
        self.volume.platform.point(Point::Admitted).await;
        for free in self.volume.not_pending(range, ticket.tag()).await {
            self.volume.platform.point(Point::BaseWrite).await;
            self.volume.base.discard(free).await.map_err(host_error)?;
        }
        self.volume.platform.point(Point::BaseWritten).await;
        drop(ticket);
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), ExportError> {
        let _watch = Watch::begin(&self.volume.platform);
        let result = self.volume.flush_base().await;
        let owed = self.volume.owes_failure(&self.told).await;
        result.map_err(host_error).and(if owed { Err(ExportError::Io) } else { Ok(()) })
    }

    async fn prefetch(&self, range: ByteRange) -> Result<(), ExportError> {
        self.volume.base.prefetch(range).await;
        Ok(())
    }

    async fn block_status(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        self.volume.base.extents(range).await.map_err(host_error)
    }
}

impl<P: Platform> Volume<P> {
    /// A host's session: reads and changes the base.
    pub fn session(self: &Arc<Self>) -> HostSession<P> {
        HostSession::new(Arc::clone(self))
    }

    /// Runs of grains of `range` that are a hole in the base and covered whole: zeroing them changes no byte, so there is nothing to save.
    /// The bits stay.
    ///
    /// The answer cannot grow stale in a way that matters: straddlers have landed, a change of the same or a later epoch that puts data there
    /// saves the hole first.
    async fn holes(&self, range: ByteRange, tag: Epoch) -> Vec<Range<u64>> {
        self.admission.landed(range, tag).await;
        let Ok(extents) = self.base.extents(range).await else { return Vec::new() };
        let holes = extents.iter().filter(|extent| extent.hole).map(|extent| self.grains().covered(extent.range));
        let holes: Vec<_> = holes.filter(|grains| !grains.is_empty()).collect();
        if !holes.is_empty() {
            self.platform.observe(Event::HoleLeft);
        }
        holes
    }

    /// What of `range` no snapshot can need from the base, as ranges.
    ///
    /// Found piece by piece, and still true at the end: a snapshot that is created meanwhile waits for this change, and no older one begins
    /// to need a grain again.
    async fn not_pending(&self, range: ByteRange, tag: Epoch) -> Vec<ByteRange> {
        if self.platform.planted(Planted::TrimNotHeldBack) {
            return vec![range];
        }
        let touched = self.grains().touched(range);
        let mut held_back = Vec::new();
        let mut next = touched.start;
        while let Some(rest) = self.hold_back(next..touched.end, tag, &mut held_back) {
            next = rest;
            yield_now().await;
        }
        if !held_back.is_empty() {
            self.platform.observe(Event::TrimHeldBack);
        }
        let mut free = Vec::new();
        let mut start = range.start();
        for run in held_back {
            let held =
                self.grains().range(GrainIndex(run.start)).start()..self.grains().range(GrainIndex(run.end - 1)).end();
            if start < held.start {
                free.push(ByteRange::between(start, held.start));
            }
            start = held.end;
        }
        if start < range.end() {
            free.push(ByteRange::between(start, range.end()));
        }
        free
    }

    /// Adds the runs of grains that a trim may not have; says where to go on if it was too much for one hold of the lock.
    fn hold_back(&self, grains: Range<u64>, tag: Epoch, held_back: &mut Vec<Range<u64>>) -> Option<u64> {
        let claims = self.lock();
        let mut next = grains.start;
        for _ in 0..MOST_LOOKED_AT {
            let grain = self.pending.first(next..grains.end)?;
            next = grain + 1;
            let pending = claims.contains(&grain)
                || self.pending.test_filled(grain, false)
                    && self.snapshots.any_needing(
                        self.grains(),
                        GrainIndex(grain),
                        self.originals.newest(GrainIndex(grain)),
                        tag,
                    )
                || self.admission.straddles(self.grains().range(GrainIndex(grain)), tag);
            match held_back.last_mut() {
                _ if !pending => {}
                Some(last) if last.end == grain => last.end = grain + 1,
                _ => held_back.push(grain..grain + 1),
            }
        }
        (next < grains.end).then_some(next)
    }
}

fn must_fail(reason: MustFail) -> ExportError {
    match reason {
        MustFail::NoSpace => ExportError::NoSpace,
        MustFail::OutOfReach(error) => host_error(error),
    }
}

/// What the host is told of its base's failure.
fn host_error(error: Error) -> ExportError {
    match &error.fault {
        Fault::OutOfRange | Fault::Unaligned => ExportError::Invalid,
        Fault::Unsupported => ExportError::Unsupported,
        Fault::System(_) if error.is_no_space() => ExportError::NoSpace,
        Fault::System(_) | Fault::Link(_) => ExportError::Io,
    }
}
