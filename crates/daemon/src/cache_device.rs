//! The original cache as the engine sees it: its tiers in a row, memory first, so that slots spill from one into the next (R53).
//!
//! Its size is the limit for *new* originals. Those that were saved when the limit was higher lie past it, and are read all the same: a
//! request reaches as far as the file did when it was opened.

use std::fs::File;
use std::io;

use tzero_block::{Action, BlockDevice, ByteRange, Concat, Error, Extent, Fault, FileDevice, Geometry, Zeroes};
use tzero_io::Buffer;
use tzero_nbd::AnyDevice;

use crate::store::Store;

/// A cache.
pub(crate) struct CacheDevice {
    tiers: Concat<Tier>,
    limit: u64,
}

/// A part of it.
enum Tier {
    /// Space that is free stays allocated: it was so from the beginning, so that saving cannot fail for want of it.
    Memory(FileDevice),
    /// Memory that could not be had: so many bytes that nobody uses.
    Withheld(u64),
    Store(AnyDevice),
}

impl CacheDevice {
    /// `memory` of so many bytes, or `withheld` bytes that nobody may use, then `store` with a limit of its own. Always through the page cache: originals are small appends that are
    /// mostly read back soon, or never.
    pub(crate) fn new(memory: Option<(&File, u64)>, withheld: u64, store: Store, limit: u64) -> io::Result<Self> {
        let mut tiers = Vec::new();
        let mut size = limit;
        if let Some((memory, bytes)) = memory {
            let device = FileDevice::from_file(memory.try_clone()?, false)?.growing_to(bytes);
            tiers.push(Tier::Memory(device));
            size = size.saturating_add(bytes);
        } else if withheld > 0 {
            tiers.push(Tier::Withheld(withheld));
            size = size.saturating_add(withheld);
        }
        let device = match store {
            Store::File(file) => {
                let len = file.metadata()?.len();
                FileDevice::from_file(file, false)?.growing_to(limit.max(len)).into()
            }
            Store::Export(remote) => AnyDevice::from(remote.device().clone()),
        };
        tiers.push(Tier::Store(device));
        Ok(Self { tiers: Concat::new(tiers).map_err(io::Error::other)?, limit: size })
    }
}

impl BlockDevice for CacheDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.limit, ..self.tiers.geometry() }
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        self.tiers.read(offset, buffer).await
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        self.tiers.write(offset, buffer, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.tiers.write_zeroes(range, zeroes).await
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.tiers.discard(range).await
    }

    async fn flush(&self) -> Result<(), Error> {
        self.tiers.flush().await
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.tiers.extents(range).await
    }

    async fn prefetch(&self, range: ByteRange) {
        self.tiers.prefetch(range).await;
    }
}

/// A request to what is not there.
fn gone(action: Action, offset: u64, len: u64) -> Error {
    Error::new(action, offset, len, Fault::Unsupported)
}

impl BlockDevice for Tier {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Memory(memory) => memory.geometry(),
            Self::Withheld(size) => Geometry { size: *size, alignment: 1 },
            Self::Store(store) => store.geometry(),
        }
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        match self {
            Self::Memory(memory) => memory.read(offset, buffer).await,
            Self::Withheld(_) => {
                let error = gone(Action::Read, offset, buffer.len() as u64);
                (buffer, Err(error))
            }
            Self::Store(store) => store.read(offset, buffer).await,
        }
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        match self {
            Self::Memory(memory) => memory.write(offset, buffer, fua).await,
            Self::Withheld(_) => {
                let error = gone(Action::Write, offset, buffer.len() as u64);
                (buffer, Err(error))
            }
            Self::Store(store) => store.write(offset, buffer, fua).await,
        }
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        match self {
            Self::Memory(memory) => memory.write_zeroes(range, zeroes).await,
            Self::Withheld(_) => Err(gone(Action::WriteZeroes, range.start(), range.len())),
            Self::Store(store) => store.write_zeroes(range, zeroes).await,
        }
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        match self {
            Self::Memory(_) | Self::Withheld(_) => Ok(()),
            Self::Store(store) => store.discard(range).await,
        }
    }

    async fn flush(&self) -> Result<(), Error> {
        match self {
            Self::Memory(memory) => memory.flush().await,
            Self::Withheld(_) => Ok(()),
            Self::Store(store) => store.flush().await,
        }
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        match self {
            Self::Memory(memory) => memory.extents(range).await,
            Self::Withheld(_) => Ok(vec![Extent { range, hole: true }]),
            Self::Store(store) => store.extents(range).await,
        }
    }

    async fn prefetch(&self, range: ByteRange) {
        if let Self::Store(store) = self {
            store.prefetch(range).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use tzero_io::{Backend, Runtime};

    use super::*;

    #[test]
    fn what_lies_past_a_lowered_limit_is_read() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 8192).unwrap();
        let device = CacheDevice::new(None, 0, Store::File(file), 4096).unwrap();
        assert_eq!(device.geometry().size, 4096);
        let (bytes, result) =
            Runtime::new(Backend::Auto).unwrap().block_on(async { device.read(8192, Buffer::zeroed(4096)).await });
        result.unwrap();
        assert_eq!(bytes[..], [7; 4096]);
    }
}
