//! Any sectors of a device that takes whole blocks only.
//!
//! A device with blocks of more than 512 bytes still gets requests of 512: what is narrower than a block is widened, and kept apart from
//! every other change (see [`Edges`]). Where the blocks are no larger, nothing of this happens. [`crate::FileDevice`] has the same within itself.
//!
//! The blocks must belong to this device alone: another opener's change to the same block may be undone.

use std::sync::Arc;

use tzero_io::{Buffer, spawn};

use crate::edges::{Edges, Entered};
use crate::{Action, BlockDevice, ByteRange, Error, Extent, Fault, Geometry, Zeroes};

/// Requests of this alignment are served whatever the blocks, in bytes.
const SECTOR: u32 = 512;

/// A device whose alignment is at most 512 bytes, over one with any.
#[derive(Debug)]
pub struct Sectors<D>(Arc<Inner<D>>);

#[derive(Debug)]
struct Inner<D> {
    device: D,
    /// Its alignment, in bytes.
    block: u64,
    edges: Edges,
}

impl<D: BlockDevice> Inner<D> {
    fn has_edges(&self) -> bool {
        self.block > u64::from(SECTOR)
    }

    async fn pass(&self) -> Option<Entered<'_>> {
        if self.has_edges() { Some(self.edges.enter(false).await) } else { None }
    }

    fn is_whole(&self, range: ByteRange) -> bool {
        !self.has_edges() || (range.start() | range.len()).is_multiple_of(self.block)
    }

    /// The blocks that `range` touches.
    fn widened(&self, range: ByteRange) -> ByteRange {
        ByteRange::between(range.start() / self.block * self.block, range.end().next_multiple_of(self.block))
    }

    /// The whole blocks of `range`, and what is left before and after them.
    fn blocks(&self, range: ByteRange) -> (ByteRange, [ByteRange; 2]) {
        if self.is_whole(range) {
            return (range, [ByteRange::new(range.start(), 0); 2]);
        }
        let start = range.start().next_multiple_of(self.block).min(range.end());
        let end = (range.end() / self.block * self.block).max(start);
        (
            ByteRange::between(start, end),
            [ByteRange::between(range.start(), start), ByteRange::between(end, range.end())],
        )
    }

    async fn write_partly(&self, range: ByteRange, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        let entered = self.edges.enter(true).await;
        let wide = self.widened(range);
        let (mut blocks, read) = self.device.read(wide.start(), Buffer::uncleared(wide.len() as usize)).await;
        let result = match read {
            Ok(()) => {
                let skip = (range.start() - wide.start()) as usize;
                blocks[skip..skip + buffer.len()].copy_from_slice(&buffer);
                self.device.write(wide.start(), blocks, fua).await.1
            }
            Err(error) => Err(error),
        };
        drop(entered);
        (buffer, result.map_err(|error| Error::new(Action::Write, range.start(), range.len(), error.fault)))
    }
}

impl<D: BlockDevice> Sectors<D> {
    /// Any sectors of `device`.
    ///
    /// # Errors
    /// The device itself, if its size is no multiple of its blocks: then its last bytes cannot be had.
    pub fn new(device: D) -> Result<Self, D> {
        let Geometry { size, alignment } = device.geometry();
        let block = u64::from(alignment);
        if alignment > SECTOR && !size.is_multiple_of(block) {
            return Err(device);
        }
        Ok(Self(Arc::new(Inner { device, block, edges: Edges::default() })))
    }

    /// The device inside.
    pub fn inner(&self) -> &D {
        &self.0.device
    }

    async fn write_any(&self, range: ByteRange, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        if self.0.is_whole(range) {
            let _entered = self.0.pass().await;
            return self.0.device.write(range.start(), buffer, fua).await;
        }
        // A task of its own: were it given up while its blocks are on their way, others would pass and be undone.
        let own = Arc::clone(&self.0);
        spawn(async move { own.write_partly(range, buffer, fua).await }).await
    }
}

impl<D: BlockDevice> BlockDevice for Sectors<D> {
    fn geometry(&self) -> Geometry {
        let Geometry { size, alignment } = self.0.device.geometry();
        Geometry { size, alignment: alignment.min(SECTOR) }
    }

    async fn read(&self, offset: u64, mut buffer: Buffer) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry().check(Action::Read, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        if self.0.is_whole(range) {
            return self.0.device.read(offset, buffer).await;
        }
        let wide = self.0.widened(range);
        let (blocks, result) = self.0.device.read(wide.start(), Buffer::uncleared(wide.len() as usize)).await;
        let skip = (range.start() - wide.start()) as usize;
        let len = buffer.len();
        buffer.copy_from_slice(&blocks[skip..skip + len]);
        (buffer, result.map_err(|error| Error::new(Action::Read, offset, range.len(), error.fault)))
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        match self.geometry().check(Action::Write, offset, buffer.len() as u64) {
            Ok(range) => self.write_any(range, buffer, fua).await,
            Err(error) => (buffer, Err(error)),
        }
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.geometry().check(Action::WriteZeroes, range.start(), range.len())?;
        let (whole, ends) = self.0.blocks(range);
        if !whole.is_empty() {
            let _entered = self.0.pass().await;
            self.0.device.write_zeroes(whole, zeroes).await?;
        } else if zeroes.fast && !range.is_empty() {
            return Err(Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported));
        }
        for end in ends.into_iter().filter(|end| !end.is_empty()) {
            let (_, result) = self.write_any(end, Buffer::zeroed(end.len() as usize), zeroes.fua).await;
            result.map_err(|error| Error::new(Action::WriteZeroes, end.start(), end.len(), error.fault))?;
        }
        Ok(())
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.geometry().check(Action::Discard, range.start(), range.len())?;
        let (whole, _) = self.0.blocks(range);
        if whole.is_empty() {
            return Ok(());
        }
        let _entered = self.0.pass().await;
        self.0.device.discard(whole).await
    }

    async fn flush(&self) -> Result<(), Error> {
        self.0.device.flush().await
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.geometry().check(Action::Extents, range.start(), range.len())?;
        if self.0.is_whole(range) {
            return self.0.device.extents(range).await;
        }
        let found = self.0.device.extents(self.0.widened(range)).await?;
        let clipped = |extent: Extent| extent.range.intersection(range).map(|range| Extent { range, ..extent });
        Ok(found.into_iter().filter_map(clipped).collect())
    }

    async fn prefetch(&self, range: ByteRange) {
        if self.geometry().check(Action::Read, range.start(), range.len()).is_ok() {
            self.0.device.prefetch(self.0.widened(range)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tzero_io::{Backend, Runtime, timeout};

    use super::*;
    use crate::MemoryDevice;

    fn bytes() -> Vec<u8> {
        (0..32768u32).map(|index| (index % 251) as u8 + 1).collect()
    }

    fn sectors() -> Sectors<MemoryDevice> {
        Sectors::new(MemoryDevice::from_bytes(bytes()).aligned(4096)).expect("whole blocks")
    }

    fn run<T>(test: impl AsyncFnOnce() -> T) -> T {
        Runtime::new(Backend::Auto).expect("a runtime").block_on(test())
    }

    #[test]
    fn every_sector_is_served() {
        run(async || {
            let device = sectors();
            assert_eq!(device.geometry(), Geometry { size: 32768, alignment: 512 });
            let mut model = bytes();
            for (offset, len) in [(0, 512), (512, 4096), (4096, 4096), (8192, 8192), (7680, 1024), (32256, 512)] {
                let fresh = Buffer::copy_of(&vec![(offset / 512) as u8 ^ 0xA5; len]);
                model[offset..offset + len].copy_from_slice(&fresh);
                device.write(offset as u64, fresh, false).await.1.expect("written");
                let (read, result) = device.read(offset as u64, Buffer::uncleared(len)).await;
                result.expect("read");
                assert!(read[..] == model[offset..offset + len]);
            }
            let range = ByteRange::new(1536, 10240);
            model[1536..11776].fill(0);
            device.write_zeroes(range, Zeroes::default()).await.expect("zeroed");
            device.discard(ByteRange::new(512, 512)).await.expect("advice");
            assert!(device.inner().to_vec() == model);
            let extents = device.extents(ByteRange::new(512, 1024)).await.expect("extents");
            assert_eq!(extents, [Extent { range: ByteRange::new(512, 1024), hole: false }]);
            let refused = device.read(100, Buffer::uncleared(512)).await.1.expect_err("unaligned");
            assert!(matches!(refused.fault, Fault::Unaligned));
        });
    }

    #[test]
    fn a_tail_that_cannot_be_had_is_refused() {
        assert!(Sectors::new(MemoryDevice::new(4096 + 512).aligned(4096)).is_err());
        assert!(Sectors::new(MemoryDevice::new(4096 + 7).aligned(1)).is_ok());
    }

    #[test]
    fn a_partial_write_that_is_given_up_still_ends() {
        run(async || {
            let device = sectors();
            let held = device.0.edges.enter(true).await;
            let write = device.write(512, Buffer::copy_of(&[7; 512]), false);
            assert!(timeout(Duration::from_millis(1), write).await.is_none());
            drop(held);
            // Whoever comes next waits for it.
            device.write(4096, Buffer::copy_of(&[8; 4096]), false).await.1.expect("written");
            assert!(device.inner().to_vec()[512..1024].iter().all(|byte| *byte == 7));
        });
    }
}
