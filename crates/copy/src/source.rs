//! Where a copy's bytes come from.
//!
//! A source is read in two steps, and the types keep their order (R21, R31): first the *base*, with no regard to
//! updates, by as many reads at a time as one likes; then [`Source::settle`] makes what was read the bytes of T0, a
//! batch at a time. The base's answer that a range is a hole is a read like any other and is settled like one.
//!
//! [`SnapshotSource`] is a served volume's snapshot. [`PlainSource`] is a file or device with no daemon: nothing to
//! settle.

use std::fs::File;
use std::future::{Future, ready};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tzero_api::mover::Begun;
use tzero_block::{BlockDevice, ByteRange, Concat};
use tzero_io::{Buffer, MappedFile};
use tzero_nbd::AnyDevice;
use tzero_originals::{Epoch, OriginalsReader, SnapshotId, SnapshotRef};

use crate::error::{DaemonFault, SourceFault};
use crate::released::Released;

mod devices;

/// Bytes of a range, or the knowledge that all are zero.
#[derive(Debug)]
pub(crate) enum Content {
    /// Nothing is allocated there.
    Hole,
    /// As many as the range has.
    Bytes(Buffer),
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

    /// Bytes to copy.
    fn size(&self) -> u64;

    /// Turns what the base gave, by reads that have all completed, into the bytes of T0.
    fn settle(&mut self, parts: Vec<Part>) -> impl Future<Output = Settled>;

    /// Fails unless everything settled so far is still vouched for.
    fn check(&self) -> Result<(), SourceFault>;
}

/// A file or device as it is.
pub(crate) struct PlainSource<D> {
    device: Arc<D>,
    size: u64,
}

impl<D: BlockDevice> PlainSource<D> {
    /// The first `size` bytes of `device`.
    pub(crate) fn new(device: Arc<D>, size: u64) -> Self {
        Self { device, size }
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

    fn settle(&mut self, parts: Vec<Part>) -> impl Future<Output = Settled> {
        ready(Ok((parts, 0)))
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
    released: Released,
}

impl SnapshotSource {
    /// Takes over what came with [`Begun`].
    ///
    /// # Errors
    /// When it is not what it should be.
    pub(crate) fn open(begun: &Begun, descriptors: Vec<OwnedFd>, released: Released) -> Result<Self, DaemonFault> {
        let devices = devices::open(begun, descriptors)?;
        let originals = OriginalsReader::open(devices.map, devices.table, devices.cache, begun.size)
            .map_err(DaemonFault::Originals)?;
        let id = SnapshotId::parse(&begun.snapshot_id).ok_or(DaemonFault::Protocol)?;
        let has = devices.base.geometry().size;
        if has < begun.size {
            return Err(DaemonFault::Cut { has, needs: begun.size });
        }
        let snapshot = SnapshotRef { slot: begun.slot, id, epoch: Epoch(begun.epoch) };
        Ok(Self { base: Arc::new(devices.base), originals, snapshot, size: begun.size, released })
    }

    /// Lays originals over what the base gave.
    async fn overlay(&mut self, mut parts: Vec<Part>) -> Settled {
        let snapshot = self.snapshot;
        let whole = parts.first().map_or(ByteRange::new(0, 0), |(range, _)| *range);
        let originals = self.originals.catch_up().await.map_err(|error| (whole, SourceFault::Snapshot(error)))?;
        let mut from_originals = 0;
        for (range, content) in &mut parts {
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

    async fn settle(&mut self, parts: Vec<Part>) -> Settled {
        let ranges: Vec<ByteRange> = parts.iter().map(|(range, _)| *range).collect();
        let settled = self.overlay(parts).await;
        // Asked last, as a view does, and it counts more than a fault: an original may be missing because it was released.
        match ranges.into_iter().find(|range| self.released.overlaps(*range)) {
            Some(range) => Err((range, SourceFault::Released)),
            None => settled,
        }
    }

    fn check(&self) -> Result<(), SourceFault> {
        self.originals.check(&self.snapshot).map_err(SourceFault::Snapshot)
    }
}

#[cfg(test)]
mod tests;
