//! What an image's bytes are kept on.
//!
//! One type for whatever is written, read again, made durable and dropped from memory, so that nobody above asks which it is.
//!
//! | | a file or block device | an export of an NBD server |
//! |---|---|---|
//! | flush | the system makes its bytes durable | so does the server, for all that it has acknowledged |
//! | forget | its clean pages leave the page cache, so that the next read is of the medium | nothing: the server's caches are its own |

use std::fs::File;
use std::io;
use std::sync::Arc;

use tzero_block::{Action, BlockDevice, ByteRange, FileDevice};
use tzero_io::{Buffer, system};
use tzero_nbd::{AnyDevice, NbdDevice};

use crate::durable;

/// A file, a block device, or an export. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Medium {
    device: Arc<AnyDevice>,
}

impl Medium {
    /// An open file or block device, through the page cache.
    pub(crate) fn over(file: File) -> io::Result<Self> {
        FileDevice::from_file(file, false).map(|device| Self { device: Arc::new(device.into()) })
    }

    /// An export of an NBD server.
    pub(crate) fn of_export(device: NbdDevice) -> Self {
        Self { device: Arc::new(device.into()) }
    }

    /// What is read and written.
    pub(crate) fn device(&self) -> &Arc<AnyDevice> {
        &self.device
    }

    /// Bytes that it has.
    pub(crate) fn size(&self) -> u64 {
        self.device.geometry().size
    }

    /// The open file or block device.
    pub(crate) fn file(&self) -> Option<&File> {
        match self.device.as_ref() {
            AnyDevice::File(device) => Some(device.file().get()),
            AnyDevice::Nbd(_) => None,
        }
    }

    /// All of it.
    pub(crate) fn whole(&self) -> ByteRange {
        ByteRange::new(0, self.size())
    }

    /// The smallest range that can be read and holds `range`.
    fn widened(&self, range: ByteRange) -> ByteRange {
        let unit = u64::from(self.device.geometry().alignment);
        ByteRange::between(range.start() / unit * unit, range.end().next_multiple_of(unit))
    }

    /// Reads any bytes.
    pub(crate) async fn read(&self, range: ByteRange) -> Result<Buffer, tzero_block::Error> {
        let wide = self.widened(range);
        let (buffer, result) = self.device.read(wide.start(), Buffer::uncleared(wide.len() as usize)).await;
        result?;
        if wide == range {
            return Ok(buffer);
        }
        let at = (range.start() - wide.start()) as usize;
        Ok(Buffer::copy_of(&buffer[at..at + range.len() as usize]))
    }

    /// The part of a range that can be written by itself, and what is left before and after it.
    pub(crate) fn split(&self, range: ByteRange) -> (ByteRange, [ByteRange; 2]) {
        let unit = u64::from(self.device.geometry().alignment);
        let start = range.start().next_multiple_of(unit).min(range.end());
        let end = (range.end() / unit * unit).max(start);
        let between = ByteRange::between;
        (between(start, end), [between(range.start(), start), between(end, range.end())])
    }

    /// Writes any bytes. What cannot be written by itself is read with its neighbours and written back with them, which undoes what
    /// somebody else does to those meanwhile.
    pub(crate) async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), tzero_block::Error> {
        let range = ByteRange::new(offset, bytes.len() as u64);
        let wide = self.widened(range);
        if wide == range {
            return self.device.write(offset, Buffer::copy_of(bytes), false).await.1;
        }
        let mut whole = self.read(wide).await?;
        let at = (offset - wide.start()) as usize;
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        self.device.write(wide.start(), whole, false).await.1
    }

    /// Makes durable what was written. A failure is reported once, and what could not be written is then lost.
    pub(crate) async fn flush(&self) -> Result<(), tzero_block::Error> {
        durable::flushes().map_err(|source| tzero_block::Error::system(Action::Flush, 0, 0, source))?;
        self.device.flush().await
    }

    /// Drops what memory has of a range, or of all of it, so that the medium is read. Flush first: what is not durable stays.
    pub(crate) fn forget(&self, range: Option<ByteRange>) {
        if let Some(file) = self.file() {
            let (offset, len) = range.map_or((0, 0), |range| (range.start(), range.len()));
            system::drop_cache(file, offset, len);
        }
    }
}
