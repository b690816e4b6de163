//! A device in memory, for tests and small things.

use std::sync::RwLock;

use tzero_io::Buffer;

use crate::{Action, BlockDevice, ByteRange, Error, Extent, Geometry, Zeroes};

/// Bytes in memory. Everything is durable as long as the process lives.
#[derive(Debug)]
pub struct MemoryDevice {
    bytes: RwLock<Vec<u8>>,
    alignment: u32,
}

impl MemoryDevice {
    /// `size` zero bytes.
    pub fn new(size: u64) -> Self {
        Self::from_bytes(vec![0; size as usize])
    }

    /// A device that holds `bytes`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes), alignment: 1 }
    }

    /// The same with an alignment of `alignment` bytes.
    pub fn aligned(self, alignment: u32) -> Self {
        Self { alignment, ..self }
    }

    /// Makes it `size` bytes long, with zeroes at its end, if it is shorter.
    ///
    /// # Panics
    /// If a thread panicked inside the device.
    pub fn grow_to(&self, size: u64) {
        let mut bytes = self.bytes.write().expect("nothing panics under this lock");
        let len = bytes.len().max(size as usize);
        bytes.resize(len, 0);
    }

    /// A copy of all bytes.
    ///
    /// # Panics
    /// If a thread panicked inside the device.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().expect("nothing panics under this lock").clone()
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        let size = self.bytes.read().expect("nothing panics under this lock").len() as u64;
        Geometry { size, alignment: self.alignment }
    }

    async fn read(&self, offset: u64, mut buffer: Buffer) -> (Buffer, Result<(), Error>) {
        let result = self.geometry().check(Action::Read, offset, buffer.len() as u64).map(|range| {
            let bytes = self.bytes.read().expect("nothing panics under this lock");
            buffer.copy_from_slice(&bytes[range.start() as usize..range.end() as usize]);
        });
        (buffer, result)
    }

    async fn write(&self, offset: u64, buffer: Buffer, _fua: bool) -> (Buffer, Result<(), Error>) {
        let result = self.geometry().check(Action::Write, offset, buffer.len() as u64).map(|range| {
            let mut bytes = self.bytes.write().expect("nothing panics under this lock");
            bytes[range.start() as usize..range.end() as usize].copy_from_slice(&buffer);
        });
        (buffer, result)
    }

    async fn write_zeroes(&self, range: ByteRange, _zeroes: Zeroes) -> Result<(), Error> {
        self.geometry().check(Action::WriteZeroes, range.start(), range.len())?;
        let mut bytes = self.bytes.write().expect("nothing panics under this lock");
        bytes[range.start() as usize..range.end() as usize].fill(0);
        Ok(())
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.geometry().check(Action::Discard, range.start(), range.len()).map(drop)
    }

    async fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.geometry().check(Action::Extents, range.start(), range.len())?;
        Ok(vec![Extent { range, hole: false }])
    }
}
