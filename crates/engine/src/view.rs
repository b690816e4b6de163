//! Snapshot views: the bytes of T0, read-only, while the host goes on.
//!
//! Base first, then the map (R21): the base is read into the buffer, then every grain is resolved and originals are laid over. An
//! original is published before its write touches the base, so a grain without one after the read was read untouched.
//! Reading a view never makes a host change wait.
//!
//! # Invariants
//! 1. INV-1: T0's bytes or an error. The last thing before delivery is a check that the snapshot stands unbroken and nothing of the range
//!    was released.
//! 2. A view starts only when the straddlers of its range have landed.

use std::cell::RefCell;
use std::sync::Arc;

use tzero_block::{BlockDevice, ByteRange, Export, ExportError, ExportInfo, Extent, Zeroes};
use tzero_io::Buffer;
use tzero_originals::{GrainIndex, Originals, Overlay, OverlayError, Payload, overlay};

use crate::platform::Platform;
use crate::points::{Event, Planted, Point};
use crate::reuse::Parts;
use crate::snapshots::Snapshot;
use crate::volume::{SnapshotError, Volume};

/// Requests of this size are served best, in bytes.
const PREFERRED: u32 = 64 << 10;
/// Most bytes that one answer about holes covers.
const STATUS_BYTES: u64 = 64 << 20;

/// One client's view of a snapshot.
pub struct View<P: Platform> {
    volume: Arc<Volume<P>>,
    snapshot: Arc<Snapshot>,
    info: ExportInfo,
    /// Of grains that were delivered in part.
    delivered: RefCell<Parts>,
}

impl<P: Platform> Volume<P> {
    /// A read-only view of a snapshot.
    ///
    /// # Errors
    /// When there is none of this name, or it does not stand.
    pub fn view(self: &Arc<Self>, snapshot: &str) -> Result<View<P>, SnapshotError> {
        let snapshot = self.snapshots.find(|other| other.name == snapshot).ok_or(SnapshotError::Unknown)?;
        if snapshot.is_live() { Ok(View::new(Arc::clone(self), snapshot)) } else { Err(SnapshotError::NotLive) }
    }
}

impl<P: Platform> View<P> {
    fn new(volume: Arc<Volume<P>>, snapshot: Arc<Snapshot>) -> Self {
        let info = ExportInfo {
            name: format!("{}@{}", volume.name, snapshot.name),
            description: String::new(),
            size: snapshot.size,
            read_only: true,
            // What releases has one consumer.
            shared: snapshot.originals == Originals::Keep,
            counts_deliveries: snapshot.originals == Originals::Release,
            minimum_block: volume.base.geometry().alignment.min(512),
            preferred_block: PREFERRED,
        };
        Self { volume, snapshot, info, delivered: RefCell::default() }
    }

    fn check(&self, range: ByteRange) -> Result<(), ExportError> {
        let good = self.snapshot.is_live() && self.snapshot.has_in_scope(range) && !self.snapshot.has_released(range);
        if good { Ok(()) } else { Err(ExportError::Io) }
    }

    async fn arrive(&self, range: ByteRange) -> Result<(), ExportError> {
        let volume = &self.volume;
        volume.platform.point(Point::ViewArrived).await;
        if !volume.platform.planted(Planted::ReleasedServedFromBase) {
            self.check(range)?;
        }
        self.wait_for_straddlers(range).await;
        Ok(())
    }

    async fn wait_for_straddlers(&self, range: ByteRange) {
        let volume = &self.volume;
        if !volume.platform.planted(Planted::ViewIgnoresStraddlers)
            && volume.admission.landed(range, self.snapshot.epoch).await
        {
            volume.platform.observe(Event::ViewWaited);
        }
    }

    /// What `range` has that is not as in the base. What is not shown is no hole: whoever took it for one would have zeroes and no error.
    fn laid(&self, range: ByteRange) -> Vec<Extent> {
        let mut laid = Vec::new();
        for grain in self.volume.grains().touched(range).map(GrainIndex) {
            let Some(place) = self.volume.grains().range(grain).intersection(range) else { continue };
            let original = self.volume.originals.resolve(grain, self.snapshot.epoch);
            // Afterwards: what is released now had its original a moment ago.
            let shown = self.snapshot.needs(self.volume.grains(), grain) && self.snapshot.has_in_scope(place);
            match original.filter(|_| shown) {
                None if shown => {}
                Some(Some(entry)) => laid.extend(
                    ByteRange::new(entry.offset, entry.len.into())
                        .intersection(place)
                        .map(|range| Extent { range, hole: entry.payload == Payload::Zero }),
                ),
                _ => laid.push(Extent { range: place, hole: false }),
            }
        }
        laid
    }

    /// The originals that lie in `range`.
    fn originals(&self, range: ByteRange) -> Result<Vec<Overlay>, ExportError> {
        let mut overlays = Vec::new();
        for grain in self.volume.grains().touched(range).map(GrainIndex) {
            match self.volume.originals.resolve(grain, self.snapshot.epoch) {
                None => {}
                Some(Some(entry)) => overlays.extend(Overlay::of(entry, range.start(), range.len() as usize)),
                // Freed while we looked: the snapshot does not need it, or does not stand.
                Some(None) => return Err(ExportError::Io),
            }
        }
        Ok(overlays)
    }

    async fn read_base(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), tzero_block::Error>) {
        let (buffer, result) = self.volume.base.read(offset, buffer).await;
        self.volume.platform.point(Point::ViewBaseRead).await;
        (buffer, result)
    }

    async fn read_t0(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), ExportError>) {
        let range = ByteRange::new(offset, buffer.len() as u64);
        if let Err(error) = self.arrive(range).await {
            return (buffer, Err(error));
        }
        let platform = &self.volume.platform;
        let early = if platform.planted(Planted::MapLookedUpFirst) { Some(self.originals(range)) } else { None };
        let before = self.volume.originals.head();
        let (mut buffer, read) = self.read_base(offset, buffer).await;
        let overlays = match early.unwrap_or_else(|| self.originals(range)) {
            Ok(overlays) => overlays,
            Err(error) => return (buffer, Err(error)),
        };
        if overlays.iter().any(|overlay| overlay.entry.sequence > before) {
            platform.observe(Event::ViewCaught);
        }
        platform.point(Point::ViewResolved).await;
        // A base that cannot be read does not matter where everything has an original.
        let covered: u64 = overlays.iter().map(|overlay| overlay.part.len() as u64).sum();
        if read.is_err() && covered < range.len() {
            return (buffer, Err(ExportError::Io));
        }
        let laid = overlay(self.volume.originals.device(), &overlays, &mut buffer).await;
        platform.point(Point::ViewOverlaid).await;
        if platform.planted(Planted::ViewWithoutLastCheck) || platform.planted(Planted::ReleasedServedFromBase) {
            return (buffer, laid.map(drop).map_err(|_| ExportError::Io));
        }
        let result = self.check(range);
        if result.is_err() {
            platform.observe(Event::ViewRefused);
        } else if let Err(OverlayError::Checksum(original)) = &laid {
            // The snapshot needed it all the while: nobody else has got its slot.
            self.snapshot.note_damaged(*original);
        }
        (buffer, result.and(laid.map(drop).map_err(|_| ExportError::Io)))
    }
}

impl<P: Platform> Export for View<P> {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), ExportError>) {
        self.read_t0(offset, buffer).await
    }

    fn delivered(&self, range: ByteRange) {
        for whole in self.delivered.borrow_mut().add(range, self.volume.grains_of(&self.snapshot)) {
            // Where it cannot be marked the slot stays: that costs space.
            let _ = self.volume.mark_read(self.snapshot.id, &[whole]);
        }
    }

    async fn write(&self, _offset: u64, buffer: Buffer, _fua: bool) -> (Buffer, Result<(), ExportError>) {
        (buffer, Err(ExportError::ReadOnly))
    }

    async fn write_zeroes(&self, _range: ByteRange, _zeroes: Zeroes) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }

    async fn trim(&self, _range: ByteRange, _fua: bool) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn prefetch(&self, range: ByteRange) -> Result<(), ExportError> {
        // Most of a view is the base's. Originals were written lately and are cached as it is.
        self.check(range)?;
        self.volume.base.prefetch(range).await;
        Ok(())
    }

    async fn block_status(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        let range = ByteRange::new(range.start(), range.len().min(STATUS_BYTES));
        self.volume.platform.point(Point::ViewArrived).await;
        self.wait_for_straddlers(range).await;
        let base = self.volume.base.extents(range).await.map_err(|_| ExportError::Io)?;
        self.volume.platform.point(Point::ViewBaseRead).await;
        let laid = self.laid(range);
        if self.snapshot.is_live() { Ok(merge(range, &base, &laid)) } else { Err(ExportError::Io) }
    }
}

/// The base's extents with others laid over.
fn merge(range: ByteRange, base: &[Extent], laid: &[Extent]) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::new();
    let mut put = |start: u64, end: u64, hole: bool| match merged.last_mut() {
        _ if start >= end => {}
        Some(last) if last.hole == hole && last.range.end() == start => {
            last.range = ByteRange::between(last.range.start(), end);
        }
        _ => merged.push(Extent { range: ByteRange::between(start, end), hole }),
    };
    let mut at = range.start();
    let put_base = |put: &mut dyn FnMut(u64, u64, bool), from: u64, to: u64| {
        for extent in base {
            if let Some(part) = extent.range.intersection(ByteRange::between(from, to.max(from))) {
                put(part.start(), part.end(), extent.hole);
            }
        }
    };
    for Extent { range, hole } in laid {
        put_base(&mut put, at, range.start());
        put(range.start(), range.end(), *hole);
        at = range.end();
    }
    put_base(&mut put, at, range.end());
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn originals_cover_the_base() {
        let range = ByteRange::new(0, 4096);
        let base = [
            Extent { range: ByteRange::between(0, 1024), hole: false },
            Extent { range: ByteRange::between(1024, 4096), hole: true },
        ];
        let laid = |start, hole| Extent { range: ByteRange::new(start, 512), hole };
        let merged: Vec<_> = merge(range, &base, &[laid(512, true), laid(1536, false)])
            .iter()
            .map(|e| (e.range.start(), e.hole))
            .collect();
        assert_eq!(merged, [(0, false), (512, true), (1536, false), (2048, true)]);
    }
}
