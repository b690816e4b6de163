//! What an image's bytes are kept on.
//!
//! One type for whatever is written, read again, made durable and dropped from memory, so that nobody above asks which it is.
//!
//! | | a file or block device | an export of an NBD server |
//! |---|---|---|
//! | flush | the system makes its bytes durable | so does the server, for all that it has acknowledged |
//! | forget | its clean pages leave the page cache, so that the next read is of the medium | nothing: the server's caches are its own |

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use tzero_block::{Action, BlockDevice, ByteRange, FileDevice};
use tzero_io::{Buffer, system};
use tzero_nbd::{AnyDevice, NbdDevice};

use crate::{durable, unaligned};

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

    /// The same bytes past the page cache, where the system does that for them. What is written there is on its way to the medium at once, as much at a
    /// time as its writer has in flight; a cache would send it later, all at once, and hold up everybody else who uses the medium.
    pub(crate) fn past_cache(&self) -> Arc<AnyDevice> {
        let direct = self.file().map(|file| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let file = OpenOptions::new().read(true).write(true).custom_flags(system::DIRECT).open(path)?;
            FileDevice::from_file(file, true)
        });
        match direct {
            Some(Ok(device)) => Arc::new(device.into()),
            Some(Err(_)) | None => Arc::clone(&self.device),
        }
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

    /// Reads any bytes.
    pub(crate) async fn read(&self, range: ByteRange) -> Result<Buffer, tzero_block::Error> {
        unaligned::read(self.device.as_ref(), range).await
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
