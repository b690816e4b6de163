//! Where a copy's bytes come from.
//!
//! A source is read in two steps, and the types keep their order (R21, R31): first the *base*, with no regard to
//! updates, by as many reads at a time as one likes; then [`Source::settle`] makes what was read the bytes of T0, a
//! batch at a time. The base's answer that a range is a hole is a read like any other and is settled like one.
//!
//! [`SnapshotSource`] is a served volume's snapshot. [`PlainSource`] is a file or device with no daemon: nothing to
//! settle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::future::{Future, ready};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tzero_api::control;
use tzero_api::mover::Begun;
use tzero_block::{BlockDevice, ByteRange, Concat};
use tzero_io::{Buffer, Gauge, MappedFile};
use tzero_nbd::AnyDevice;
use tzero_originals::{CaughtUp, Epoch, OriginalsReader, Sequence, SnapshotId, SnapshotRef};

use crate::digests::CHUNK;
use crate::error::{DaemonFault, SourceFault};
use crate::governor::{Restraint, govern};
use crate::hurry::Hurry;
use crate::manifest::Transport;
use crate::pace::Pace;
use crate::released::Released;
use crate::scope::{InvalidScope, Scope};

mod devices;

/// Bytes of a range, or the knowledge that all are zero.
#[derive(Debug)]
pub(crate) enum Content {
    /// Nothing is allocated there.
    Hole,
    /// As many as the range has.
    Bytes(Buffer),
    /// It is outside the scope: nobody looks, it counts as zero, and it is not written.
    Outside,
}

/// A range and what is there.
pub(crate) type Part = (ByteRange, Content);
/// Parts as of T0 and how many of their bytes came from originals; or where, and why, they cannot be had.
pub(crate) type Settled = Result<(Vec<Part>, u64), (ByteRange, SourceFault)>;

/// What a copy is made of. See the module's documentation.
pub(crate) trait Source {
    /// What is read first.
    type Base: BlockDevice;

    /// The device to read first. Its size may exceed the source's.
    fn base(&self) -> &Arc<Self::Base>;

    /// Bytes of the volume.
    fn size(&self) -> u64;

    /// What of them is to be read.
    fn scope(&self) -> &Scope;

    /// Turns what the base gave, by reads that have all completed, into the bytes of T0.
    fn settle(&mut self, parts: Vec<Part>) -> impl Future<Output = Settled>;

    /// Who is told when the original cache is short of space.
    fn hurry(&self) -> Hurry {
        Hurry::default()
    }

    /// What bounds those who read it.
    fn pace(&self) -> Pace {
        Pace::default()
    }

    /// Fails unless everything settled so far is still vouched for.
    fn check(&self) -> Result<(), SourceFault>;
}

/// A file or device as it is.
pub(crate) struct PlainSource<D> {
    device: Arc<D>,
    size: u64,
    scope: Scope,
    pace: Pace,
}

impl<D: BlockDevice> PlainSource<D> {
    /// The first `size` bytes of `device`.
    pub(crate) fn new(device: Arc<D>, size: u64) -> Self {
        Self { device, size, scope: Scope::default(), pace: Pace::default() }
    }

    /// Only what of it is in `scope`.
    pub(crate) fn scoped(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// So many bytes of data are read a second, at most.
    pub(crate) fn at_rate(self, rate: Option<u64>) -> Self {
        self.pace.set_rate(rate);
        self
    }

    /// Bounded together with another source.
    pub(crate) fn paced(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }
}

impl<D: BlockDevice> Source for PlainSource<D> {
    type Base = D;

    fn base(&self) -> &Arc<D> {
        &self.device
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn settle(&mut self, parts: Vec<Part>) -> impl Future<Output = Settled> {
        ready(Ok((parts, 0)))
    }

    fn pace(&self) -> Pace {
        self.pace.clone()
    }

    fn check(&self) -> Result<(), SourceFault> {
        Ok(())
    }
}

/// A snapshot of a served volume: its base, and over it the originals.
pub(crate) struct SnapshotSource {
    base: Arc<Concat<AnyDevice>>,
    originals: OriginalsReader<MappedFile, Concat<AnyDevice>>,
    snapshot: SnapshotRef,
    size: u64,
    scope: Scope,
    released: Released,
    hurry: Hurry,
    pace: Pace,
    /// Somebody has said how it is held back.
    restrained: bool,
    gauge: Option<Gauge>,
    /// Its copy-on-write may have ended.
    retained: bool,
    /// It has: the last original that it retains.
    ended: Option<u64>,
    transport: Transport,
}

impl SnapshotSource {
    /// Takes over what came with [`Begun`].
    ///
    /// # Errors
    /// When it is not what it should be.
    pub(crate) async fn open(
        begun: &Begun,
        descriptors: Vec<OwnedFd>,
        released: Released,
    ) -> Result<Self, DaemonFault> {
        let devices = devices::open(begun, descriptors).await?;
        let originals = OriginalsReader::open(devices.map, devices.table, devices.cache, begun.size)
            .map_err(DaemonFault::Originals)?;
        let id = SnapshotId::parse(&begun.snapshot_id).ok_or(DaemonFault::Protocol)?;
        let has = devices.base.geometry().size;
        if has < begun.size {
            return Err(DaemonFault::Cut { has, needs: begun.size });
        }
        let snapshot = SnapshotRef { slot: begun.slot, id, epoch: Epoch(begun.epoch) };
        let scope = begun
            .scope
            .as_ref()
            .map(|parts| parts.iter().map(|&(offset, length)| control::Part { offset, length }).collect::<Vec<_>>());
        let scope: Scope = scope.try_into().map_err(|InvalidScope| DaemonFault::Protocol)?;
        if !scope.fits(begun.size) {
            return Err(DaemonFault::Protocol);
        }
        let hurry = Hurry::default();
        let (size, base) = (begun.size, Arc::new(devices.base));
        let (transport, ended) = (devices.transport, begun.ended);
        Ok(Self {
            base,
            originals,
            snapshot,
            size,
            scope,
            released,
            hurry,
            pace: Pace::default(),
            restrained: false,
            gauge: devices.gauge,
            retained: false,
            ended,
            transport,
        })
    }

    /// Holds those who read it back from now on. Says whether that is all that was asked for.
    pub(crate) fn restrain(&mut self, restraint: Restraint) -> bool {
        self.restrained = restraint != Restraint::default();
        self.pace.set_rate(restraint.rate);
        let has_gauge = self.gauge.is_some();
        if let Some(gauge) = self.gauge.take() {
            govern(&self.pace, self.hurry.clone(), gauge, restraint.host_p99);
        }
        has_gauge || restraint.host_p99.is_none()
    }

    /// Whether somebody has said how those who read it are held back.
    pub(crate) fn is_restrained(&self) -> bool {
        self.restrained
    }

    /// Lays originals over what the base gave.
    async fn overlay(&mut self, mut parts: Vec<Part>) -> Settled {
        if self.transport == Transport::View {
            // The daemon has reconciled them.
            return Ok((parts, 0));
        }
        let snapshot = self.snapshot;
        let whole = parts.first().map_or(ByteRange::new(0, 0), |(range, _)| *range);
        let originals = self.originals.catch_up().await.map_err(|error| (whole, SourceFault::Snapshot(error)))?;
        if self.hurry.wants_count() {
            self.hurry.count(originals_by_chunk(&originals));
        }
        let mut from_originals = 0;
        for (range, content) in parts.iter_mut().filter(|(_, content)| !matches!(content, Content::Outside)) {
            let range = *range;
            let failed = |error| (range, SourceFault::Snapshot(error));
            if let Content::Hole = content {
                if originals.changed(&snapshot, range).map_err(failed)?.iter().all(|(_, zero)| *zero) {
                    continue;
                }
                *content = Content::Bytes(Buffer::zeroed(range.len() as usize));
            }
            if let Content::Bytes(buffer) = content {
                let reconciled = originals.reconcile(&snapshot, range.start(), buffer).await;
                from_originals += reconciled.map_err(failed)?.cache_bytes;
            }
        }
        Ok((parts, from_originals))
    }

    /// From here on only what is retained counts: the copy-on-write may have ended.
    pub(crate) fn retain(&mut self) {
        self.retained = true;
    }

    /// The last original that it retains, once its copy-on-write has ended.
    pub(crate) fn ended(&self) -> Option<u64> {
        self.ended
    }

    /// Its copy-on-write has ended.
    pub(crate) fn end(&mut self, up_to: u64) {
        self.ended = Some(up_to);
    }

    /// The chunks in which something has an original, and the newest one of now.
    pub(crate) async fn chunks_with_originals(&mut self) -> Result<(BTreeSet<u64>, Sequence), SourceFault> {
        let originals = self.originals.catch_up().await.map_err(SourceFault::Snapshot)?;
        Ok((originals_by_chunk(&originals).into_keys().collect(), originals.seen()))
    }

    /// The retained originals up to a sequence that lie in a range and in scope, as their places with their bytes of T0; and how many bytes came
    /// from the cache. `base` has the bytes of the range as they were copied.
    pub(crate) async fn lay_retained(
        &mut self,
        up_to: Sequence,
        range: ByteRange,
        base: &mut Buffer,
    ) -> Result<(Vec<ByteRange>, u64), SourceFault> {
        let originals = self.originals.catch_up().await.map_err(SourceFault::Snapshot)?;
        let (mut places, mut from_originals) = (Vec::new(), 0);
        for part in self.scope.within(range) {
            let laid = originals.places_retained(&self.snapshot, up_to, part).map_err(SourceFault::Snapshot)?;
            if laid.is_empty() {
                continue;
            }
            let at = (part.start() - range.start()) as usize..(part.end() - range.start()) as usize;
            let mut bytes = Buffer::copy_of(&base[at.clone()]);
            let reconciled = originals.lay_retained(&self.snapshot, up_to, part.start(), &mut bytes).await;
            from_originals += reconciled.map_err(SourceFault::Snapshot)?.cache_bytes;
            base[at].copy_from_slice(&bytes);
            places.extend(laid);
        }
        Ok((places, from_originals))
    }

    /// The one file or device that the base is, to be copied by the kernel.
    pub(crate) fn base_file(&self) -> Option<&File> {
        self.base_files().next().filter(|_| self.base.components().len() == 1)
    }

    /// How its bytes come here. Through a view nothing but T0 can be had: no base without regard to updates.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// The files and devices that the base is made of, to tell what they are.
    pub(crate) fn base_files(&self) -> impl Iterator<Item = &File> {
        self.base.components().iter().filter_map(|component| match component {
            AnyDevice::File(device) => Some(device.file().get()),
            AnyDevice::Nbd(_) => None,
        })
    }
}

impl Source for SnapshotSource {
    type Base = Concat<AnyDevice>;

    fn base(&self) -> &Arc<Concat<AnyDevice>> {
        &self.base
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn scope(&self) -> &Scope {
        &self.scope
    }

    async fn settle(&mut self, parts: Vec<Part>) -> Settled {
        let inside = parts.iter().filter(|(_, content)| !matches!(content, Content::Outside));
        let ranges: Vec<ByteRange> = inside.map(|(range, _)| *range).collect();
        let settled = self.overlay(parts).await;
        // Asked last, as a view does, and it counts more than a fault: an original may be missing because it was released.
        match ranges.into_iter().find(|range| self.released.overlaps(*range)) {
            Some(range) => Err((range, SourceFault::Released)),
            None => settled,
        }
    }

    fn hurry(&self) -> Hurry {
        self.hurry.clone()
    }

    fn pace(&self) -> Pace {
        self.pace.clone()
    }

    fn check(&self) -> Result<(), SourceFault> {
        let stands = match self.retained {
            false => self.originals.check(&self.snapshot),
            true => self.originals.retained_up_to(&self.snapshot).map(drop),
        };
        stands.map_err(SourceFault::Snapshot)
    }
}

/// How many originals, of whatever snapshot, lie in each chunk.
fn originals_by_chunk(originals: &CaughtUp<'_, MappedFile, Concat<AnyDevice>>) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    let grain = originals.grain();
    originals.grains().for_each(|index| *counts.entry(index.0 * grain / CHUNK).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests;
