//! An export of an NBD server as a device of this process.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tzero_block::{BlockDevice, ByteRange, Error, Extent, Geometry, Sectors, Zeroes};
use tzero_io::{Buffer, timeout};

use super::connection::Connection;
use super::error::ClientError;
use super::lane::{Common, Lane};
use super::options::ClientOptions;
use super::remote::Remote;
use super::uri::Uri;

/// An export of an NBD server. May be used from any number of threads, each with its runtime; see [`crate::client`] for what it
/// promises when the connection breaks.
///
/// Requests of any sector are served, whatever the server's blocks. Extents are holes where the server says that they read as zeroes. A server that
/// offers no flush is taken to need none. Its errors come as the system's error numbers; those of the connection as a
/// [`ClientError`]: see [`ClientError::of`].
pub struct NbdDevice {
    sectors: Sectors<Remote>,
}

impl NbdDevice {
    /// Connects to the export once.
    ///
    /// # Errors
    /// When it cannot be reached, is not given, or cannot be used. There is no second attempt.
    ///
    /// # Panics
    /// Outside a runtime.
    pub async fn open(uri: Uri, options: ClientOptions) -> Result<Self, ClientError> {
        let established = timeout(options.connect, Connection::establish(&uri)).await;
        let (connection, agreed) = established.ok_or(ClientError::TimedOut)??;
        let lanes = if agreed.can_share() { options.connections.max(1) } else { 1 };
        let common = Arc::new(Common { uri, options, agreed, breaks: AtomicU64::new(0) });
        let mut connection = Some(connection);
        let lanes = (0..lanes).map(|_| Lane::new(Arc::clone(&common), connection.take())).collect();
        match Sectors::new(Remote { common, lanes }) {
            Ok(sectors) => Ok(Self { sectors }),
            Err(_) => unreachable!("an export whose length does not fit its blocks was refused"),
        }
    }

    fn remote(&self) -> &Remote {
        self.sectors.inner()
    }

    /// Where it is.
    pub fn uri(&self) -> &Uri {
        &self.remote().common.uri
    }

    /// Whether every change is refused with `EROFS`.
    pub fn is_read_only(&self) -> bool {
        self.remote().common.agreed.is_read_only()
    }

    /// Whether the server has a flush. Without, nothing is known of what outlives a loss of its power.
    pub fn can_flush(&self) -> bool {
        self.remote().common.agreed.can_flush()
    }

    /// Whether the server says that its connections see each other's completed changes: then another program may read beside this one.
    pub fn is_coherent(&self) -> bool {
        self.remote().common.agreed.can_share()
    }

    /// How many connections are used at most.
    pub fn connections(&self) -> usize {
        self.remote().lanes.len()
    }

    /// How many breaks may have lost changes that the server had acknowledged. Whoever compares this before and after
    /// [`Self::settle`] knows of its own changes what a flush tells only one of several users.
    pub fn losses(&self) -> u64 {
        self.remote().losses()
    }

    /// Makes completed changes durable, as a flush does, but tells nobody of earlier losses: that is left to the next flush.
    ///
    /// # Errors
    /// When the server says so, or changes may have been lost since this began.
    pub async fn settle(&self) -> Result<(), Error> {
        self.remote().settle().await
    }

    /// How many connections have broken so far.
    pub fn breaks(&self) -> u64 {
        self.remote().common.breaks.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for NbdDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdDevice").field("uri", &self.uri().to_string()).finish_non_exhaustive()
    }
}

impl BlockDevice for NbdDevice {
    fn geometry(&self) -> Geometry {
        self.sectors.geometry()
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        self.sectors.read(offset, buffer).await
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        self.sectors.write(offset, buffer, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.sectors.write_zeroes(range, zeroes).await
    }

    fn can_zero_fast(&self, _range: ByteRange, _zeroes: Zeroes) -> bool {
        self.remote().common.agreed.can_zero_fast()
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.sectors.discard(range).await
    }

    async fn flush(&self) -> Result<(), Error> {
        self.sectors.flush().await
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.sectors.extents(range).await
    }

    async fn prefetch(&self, range: ByteRange) {
        self.sectors.prefetch(range).await;
    }
}
