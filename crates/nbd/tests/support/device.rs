//! Exports over one device, and a device in memory that tests can watch, stop and break.

use std::sync::{Arc, Mutex};

use tzero_block::{
    Action, BlockDevice, ByteRange, Error, Export, ExportError, ExportInfo, ExportSummary, Exports, Extent, Fault,
    Faulty, Geometry, MemoryDevice, Zeroes,
};
use tzero_io::{Buffer, Notify, is_zero};

/// `vol` for reading and writing, `vol@ro` for reading.
pub(crate) struct DeviceExports<D> {
    pub(crate) device: Arc<D>,
    pub(crate) minimum_block: u32,
}

/// One client's use of one of them.
pub(crate) struct DeviceSession<D> {
    device: Arc<D>,
    info: ExportInfo,
}

impl<D: BlockDevice> Exports for DeviceExports<D> {
    type Session = DeviceSession<D>;

    fn list(&self) -> Vec<ExportSummary> {
        ["vol", "vol@ro"].map(|name| ExportSummary { name: name.into(), description: format!("{name} itself") }).into()
    }

    fn open(&self, name: &str) -> Result<Self::Session, ExportError> {
        if !self.list().iter().any(|export| export.name == name) {
            return Err(ExportError::Unknown);
        }
        let info = ExportInfo {
            name: name.into(),
            description: format!("{name} itself"),
            size: self.device.geometry().size,
            read_only: name == "vol@ro",
            shared: true,
            counts_deliveries: false,
            minimum_block: self.minimum_block,
            preferred_block: 4096,
        };
        Ok(DeviceSession { device: Arc::clone(&self.device), info })
    }
}

fn export_error(error: Error) -> ExportError {
    match error.fault {
        _ if error.is_no_space() => ExportError::NoSpace,
        Fault::OutOfRange | Fault::Unaligned => ExportError::Invalid,
        Fault::Unsupported => ExportError::Unsupported,
        Fault::System(_) | Fault::Link(_) => ExportError::Io,
    }
}

impl<D: BlockDevice> Export for DeviceSession<D> {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), ExportError>) {
        let (buffer, result) = self.device.read(offset, buffer).await;
        (buffer, result.map_err(export_error))
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), ExportError>) {
        assert!(!self.info.read_only, "a change reached a read-only export");
        let (buffer, result) = self.device.write(offset, buffer, fua).await;
        (buffer, result.map_err(export_error))
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), ExportError> {
        assert!(!self.info.read_only, "a change reached a read-only export");
        self.device.write_zeroes(range, zeroes).await.map_err(export_error)
    }

    async fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ExportError> {
        assert!(!self.info.read_only, "a change reached a read-only export");
        self.device.discard(range).await.map_err(export_error)?;
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.device.flush().await.map_err(export_error)
    }

    async fn prefetch(&self, range: ByteRange) -> Result<(), ExportError> {
        let (_, result) = self.device.read(range.start(), Buffer::uncleared(range.len().min(1 << 20) as usize)).await;
        result.map_err(export_error)
    }

    async fn block_status(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        self.device.extents(range).await.map_err(export_error)
    }
}

/// What reached the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) action: Action,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// `fua` of a write.
    pub(crate) fua: bool,
    /// Of `write_zeroes`.
    pub(crate) zeroes: Option<Zeroes>,
}

/// Memory that records calls, holds those on chosen ranges until they are let go, and fails by rule. Blocks of
/// [`HOLE`] zero bytes are holes.
pub(crate) struct TestDevice {
    pub(crate) faulty: Faulty<MemoryDevice>,
    held: Mutex<Vec<ByteRange>>,
    let_go: Notify,
    calls: Mutex<Vec<Call>>,
}

/// Granularity of holes in bytes.
pub(crate) const HOLE: u64 = 4096;

impl TestDevice {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            faulty: Faulty::new(MemoryDevice::from_bytes(bytes)),
            held: Mutex::default(),
            let_go: Notify::default(),
            calls: Mutex::default(),
        }
    }

    /// Requests that touch `range` do nothing and do not end until [`TestDevice::let_go`].
    pub(crate) fn hold(&self, range: ByteRange) {
        self.held.lock().expect("unpoisoned").push(range);
    }

    pub(crate) fn let_go(&self) {
        self.held.lock().expect("unpoisoned").clear();
        self.let_go.notify_all();
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.faulty.inner().to_vec()
    }

    /// Every call so far, in order of arrival.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("unpoisoned").clone()
    }

    async fn arrive(&self, call: Call) {
        self.calls.lock().expect("unpoisoned").push(call);
        let range = ByteRange::new(call.offset, call.len);
        loop {
            let let_go = self.let_go.listen();
            if !self.held.lock().expect("unpoisoned").iter().any(|held| held.overlaps(range)) {
                return;
            }
            let_go.await;
        }
    }
}

fn call(action: Action, offset: u64, len: u64) -> Call {
    Call { action, offset, len, fua: false, zeroes: None }
}

impl BlockDevice for TestDevice {
    fn geometry(&self) -> Geometry {
        self.faulty.geometry()
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        self.arrive(call(Action::Read, offset, buffer.len() as u64)).await;
        self.faulty.read(offset, buffer).await
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        self.arrive(Call { fua, ..call(Action::Write, offset, buffer.len() as u64) }).await;
        self.faulty.write(offset, buffer, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.arrive(Call { zeroes: Some(zeroes), ..call(Action::WriteZeroes, range.start(), range.len()) }).await;
        if zeroes.fast && !zeroes.may_unmap {
            return Err(Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported));
        }
        self.faulty.write_zeroes(range, zeroes).await
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.arrive(call(Action::Discard, range.start(), range.len())).await;
        self.faulty.discard(range).await
    }

    async fn flush(&self) -> Result<(), Error> {
        self.arrive(call(Action::Flush, 0, 0)).await;
        self.faulty.flush().await
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.arrive(call(Action::Extents, range.start(), range.len())).await;
        self.faulty.extents(range).await?;
        let bytes = self.bytes();
        let hole = |piece: &ByteRange| is_zero(&bytes[piece.start() as usize..piece.end() as usize]);
        Ok(range.pieces(HOLE).map(|range| Extent { range, hole: hole(&range) }).collect())
    }
}
