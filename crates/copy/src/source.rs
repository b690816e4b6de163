//! Where a copy's bytes come from.
//!
//! A source is read in two steps, and the types keep their order (R21, R31): first the *base*, with no regard to
//! updates, by as many reads at a time as one likes; then [`Source::settle`] makes what was read the bytes of T0. The
//! base's answer that a range is a hole is a read like any other and is settled like one.
//!
//! [`SnapshotSource`] is a served volume's snapshot. [`PlainSource`] is a file or device with no daemon: nothing to
//! settle.

use std::fs::File;
use std::future::{Future, ready};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tzero_api::mover::{Begun, Descriptors};
use tzero_block::{BlockDevice, ByteRange, FileDevice};
use tzero_io::{Buffer, MappedFile};
use tzero_originals::{Epoch, OriginalsReader, SnapshotId, SnapshotRef};

use crate::error::{DaemonFault, SourceFault};

/// The cache grows while it is read; nothing in it lies beyond this many bytes.
const CACHE_REACH: u64 = 1 << 56;

/// Bytes of a range, or the knowledge that all are zero.
#[derive(Debug)]
pub(crate) enum Content {
    /// Nothing is allocated there.
    Hole,
    /// As many as the range has.
    Bytes(Buffer),
}

/// What a copy is made of. See the module's documentation.
pub(crate) trait Source {
    /// What is read first.
    type Base: BlockDevice;

    /// The device to read first. Its size may exceed the source's.
    fn base(&self) -> &Arc<Self::Base>;

    /// Bytes to copy.
    fn size(&self) -> u64;

    /// Turns what the base gave for the range at `offset`, by a read that has completed, into the bytes of T0. Tells
    /// how many bytes came from originals.
    fn settle(
        &mut self,
        range: ByteRange,
        content: Content,
    ) -> impl Future<Output = Result<(Content, u64), SourceFault>>;

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

    fn settle(
        &mut self,
        _range: ByteRange,
        content: Content,
    ) -> impl Future<Output = Result<(Content, u64), SourceFault>> {
        ready(Ok((content, 0)))
    }

    fn check(&self) -> Result<(), SourceFault> {
        Ok(())
    }
}

/// A snapshot of a served volume: its base, and over it the originals.
pub(crate) struct SnapshotSource {
    base: Arc<FileDevice>,
    originals: OriginalsReader<MappedFile, FileDevice>,
    snapshot: SnapshotRef,
    size: u64,
}

impl SnapshotSource {
    /// Takes over what came with [`Begun`].
    ///
    /// # Errors
    /// When it is not what it should be.
    pub(crate) fn open(begun: &Begun, descriptors: Vec<OwnedFd>) -> Result<Self, DaemonFault> {
        let files: Vec<File> = descriptors.into_iter().map(File::from).collect();
        let Ok([base, cache, map, snapshots]) = <[File; Descriptors::COUNT]>::try_from(files) else {
            return Err(DaemonFault::Protocol);
        };
        let base = FileDevice::from_file(base, begun.direct).map_err(DaemonFault::Files)?;
        let cache = FileDevice::from_file(cache, false).map_err(DaemonFault::Files)?.growing_to(CACHE_REACH);
        let map = MappedFile::from_file(map, false).map_err(DaemonFault::Files)?;
        let snapshots = MappedFile::from_file(snapshots, false).map_err(DaemonFault::Files)?;
        let originals = OriginalsReader::open(map, snapshots, cache, begun.size).map_err(DaemonFault::Originals)?;
        let id = SnapshotId::parse(&begun.snapshot_id).ok_or(DaemonFault::Protocol)?;
        if base.geometry().size < begun.size {
            return Err(DaemonFault::Protocol);
        }
        let snapshot = SnapshotRef { slot: begun.slot, id, epoch: Epoch(begun.epoch) };
        Ok(Self { base: Arc::new(base), originals, snapshot, size: begun.size })
    }

    /// The open base, to tell what it is.
    pub(crate) fn base_file(&self) -> &File {
        self.base.file().get()
    }
}

impl Source for SnapshotSource {
    type Base = FileDevice;

    fn base(&self) -> &Arc<FileDevice> {
        &self.base
    }

    fn size(&self) -> u64 {
        self.size
    }

    async fn settle(&mut self, range: ByteRange, content: Content) -> Result<(Content, u64), SourceFault> {
        let mut buffer = match content {
            Content::Bytes(buffer) => buffer,
            Content::Hole => {
                let changed = self.originals.changed(&self.snapshot, range).map_err(SourceFault::Snapshot)?;
                if changed.iter().all(|(_, zero)| *zero) {
                    return Ok((Content::Hole, 0));
                }
                Buffer::zeroed(range.len() as usize)
            }
        };
        let reconciled = self.originals.reconcile(&self.snapshot, range.start(), &mut buffer).await;
        let reconciled = reconciled.map_err(SourceFault::Snapshot)?;
        Ok((Content::Bytes(buffer), reconciled.cache_bytes))
    }

    fn check(&self) -> Result<(), SourceFault> {
        self.originals.check(&self.snapshot).map_err(SourceFault::Snapshot)
    }
}
