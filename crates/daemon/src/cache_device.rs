//! The original cache's file as the engine sees it.
//!
//! Its size is the limit for *new* originals. Those that were saved when the limit was higher lie past it, and are read all the same: a
//! request reaches as far as the file did when it was opened.

use std::fs::File;
use std::io;

use tzero_block::{BlockDevice, ByteRange, Error, Extent, FileDevice, Geometry, Zeroes};
use tzero_io::Buffer;

/// A cache.
pub(crate) struct CacheDevice {
    file: FileDevice,
    limit: u64,
}

impl CacheDevice {
    /// Over an open file. Always through the page cache: originals are small appends that are mostly read back soon, or never.
    pub(crate) fn new(file: File, limit: u64) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file: FileDevice::from_file(file, false)?.growing_to(limit.max(len)), limit })
    }
}

impl BlockDevice for CacheDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.limit, ..self.file.geometry() }
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        self.file.read(offset, buffer).await
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        self.file.write(offset, buffer, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.file.write_zeroes(range, zeroes).await
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.file.discard(range).await
    }

    async fn flush(&self) -> Result<(), Error> {
        self.file.flush().await
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.file.extents(range).await
    }

    async fn prefetch(&self, range: ByteRange) {
        self.file.prefetch(range).await;
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
        let device = CacheDevice::new(file, 4096).unwrap();
        assert_eq!(device.geometry().size, 4096);
        let (bytes, result) =
            Runtime::new(Backend::Auto).unwrap().block_on(async { device.read(8192, Buffer::zeroed(4096)).await });
        result.unwrap();
        assert_eq!(bytes[..], [7; 4096]);
    }
}
