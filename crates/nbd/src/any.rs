//! A device of any kind that a configuration can name.

use std::io;
use std::sync::Arc;

use tzero_block::{BlockDevice, ByteRange, Error, Extent, FileDevice, Geometry, Zeroes};
use tzero_io::Buffer;

use crate::client::NbdDevice;

/// A device that is here or elsewhere. One match for each request, nothing else.
#[derive(Debug)]
pub enum AnyDevice {
    /// A file or block device of this machine.
    File(FileDevice),
    /// An export of an NBD server. Shared, so that others can look at it too.
    Nbd(Arc<NbdDevice>),
}

impl AnyDevice {
    /// Looks how long it is by now, and is so long from then on, though never shorter than it was. Gives its length in bytes. Blocking.
    ///
    /// # Errors
    /// `Unsupported` for an export, whose server says only to a new client how long it is; and as [`FileDevice::grow`].
    pub fn grow(&self) -> io::Result<u64> {
        match self {
            Self::File(device) => device.grow(),
            Self::Nbd(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// What its size is a multiple of, in bytes.
    pub fn block(&self) -> u64 {
        match self {
            Self::File(device) => device.block(),
            Self::Nbd(device) => device.geometry().alignment.into(),
        }
    }
}

macro_rules! either {
    ($self:ident, $device:ident => $call:expr) => {
        match $self {
            Self::File($device) => $call,
            Self::Nbd($device) => $call,
        }
    };
}

impl From<FileDevice> for AnyDevice {
    fn from(device: FileDevice) -> Self {
        Self::File(device)
    }
}

impl From<NbdDevice> for AnyDevice {
    fn from(device: NbdDevice) -> Self {
        Self::Nbd(Arc::new(device))
    }
}

impl From<Arc<NbdDevice>> for AnyDevice {
    fn from(device: Arc<NbdDevice>) -> Self {
        Self::Nbd(device)
    }
}

impl BlockDevice for AnyDevice {
    fn geometry(&self) -> Geometry {
        either!(self, device => device.geometry())
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        either!(self, device => device.read(offset, buffer).await)
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        either!(self, device => device.write(offset, buffer, fua).await)
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        either!(self, device => device.write_zeroes(range, zeroes).await)
    }

    fn can_zero_fast(&self, range: ByteRange, zeroes: Zeroes) -> bool {
        either!(self, device => device.can_zero_fast(range, zeroes))
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        either!(self, device => device.discard(range).await)
    }

    async fn flush(&self) -> Result<(), Error> {
        either!(self, device => device.flush().await)
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        either!(self, device => device.extents(range).await)
    }

    async fn prefetch(&self, range: ByteRange) {
        either!(self, device => device.prefetch(range).await);
    }
}
