//! An export of an NBD server, used from threads that may block as well as from data threads.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tzero_block::BlockDevice;
use tzero_io::{Buffer, timeout};
use tzero_nbd::{ClientError, ClientOptions, NbdDevice, Reconnect, Uri, UriError};

use crate::threads::DataThreads;

/// How long a host's requests wait for the server of a base to come back before they fail.
pub(crate) const BASE_OUTAGE: Duration = Duration::from_secs(30);
/// How long requests wait for the server of originals. Longer than the engine waits for a save (ten seconds): so it is the engine that gives
/// up on one, and knows that it may still land.
const CACHE_OUTAGE: Duration = Duration::from_secs(20);
/// Longest time for a request of the daemon's own, which no host waits for.
const OWN: Duration = Duration::from_secs(30);
/// Longest time for connecting and negotiating.
const CONNECT: Duration = Duration::from_secs(10);
/// Connections at most, to a server whose connections see each other's changes.
const CONNECTIONS: usize = 4;

/// Why an export cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error("{uri} is no export that can be used: {source}")]
    Uri { uri: String, source: UriError },
    #[error("the export {uri} cannot be used: {source}")]
    Client { uri: String, source: ClientError },
    #[error("the export {0} is read-only and must be writable")]
    ReadOnly(String),
    #[error("the daemon is stopping: try again when it runs")]
    Stopping,
}

/// What an export is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Base,
    Cache,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    device: Arc<NbdDevice>,
    threads: Arc<DataThreads>,
}

/// The URI that a place means.
pub(crate) fn parse(uri: &str) -> Result<Uri, RemoteError> {
    uri.parse().map_err(|source| RemoteError::Uri { uri: uri.into(), source })
}

/// The same export by the path that its socket really has, to compare it with others.
pub(crate) fn resolved(uri: &Uri) -> Uri {
    let socket = uri.socket().and_then(|socket| std::fs::canonicalize(socket).ok());
    socket.and_then(|socket| Uri::unix(&socket, uri.export()).ok()).unwrap_or_else(|| uri.clone())
}

impl Remote {
    /// Connects, once. Blocking.
    pub(crate) fn open(threads: &Arc<DataThreads>, uri: &str, purpose: Purpose) -> Result<Self, RemoteError> {
        let parsed = parse(uri)?;
        let within = match purpose {
            Purpose::Base => BASE_OUTAGE,
            Purpose::Cache => CACHE_OUTAGE,
        };
        let options = ClientOptions {
            connections: CONNECTIONS,
            connect: CONNECT,
            reconnect: Reconnect { within },
            ..ClientOptions::default()
        };
        let opened = threads.run(move || NbdDevice::open(parsed, options)).blocking_recv();
        let device = opened
            .map_err(|_| RemoteError::Stopping)?
            .map_err(|source| RemoteError::Client { uri: uri.into(), source })?;
        if device.is_read_only() {
            return Err(RemoteError::ReadOnly(uri.into()));
        }
        Ok(Self { device: Arc::new(device), threads: Arc::clone(threads) })
    }

    /// The export itself.
    pub(crate) fn device(&self) -> &Arc<NbdDevice> {
        &self.device
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.device.geometry().size
    }

    /// Reads from a thread that may block.
    pub(crate) fn read(&self, offset: u64, len: usize) -> io::Result<Buffer> {
        let device = Arc::clone(&self.device);
        let read = self.threads.run(move || async move {
            timeout(OWN, async { device.read(offset, Buffer::uncleared(len)).await }).await
        });
        let read = read.blocking_recv().map_err(|_| io::ErrorKind::Interrupted)?;
        let (buffer, result) = read.ok_or_else(unanswered)?;
        result.map_err(io::Error::other)?;
        Ok(buffer)
    }

    /// Writes, durably, from a thread that may block.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (device, bytes) = (Arc::clone(&self.device), Buffer::copy_of(bytes));
        let written = self
            .threads
            .run(move || async move { timeout(OWN, async { device.write(offset, bytes, true).await.1 }).await });
        let written = written.blocking_recv().map_err(|_| io::ErrorKind::Interrupted)?;
        written.ok_or_else(unanswered)?.map_err(io::Error::other)
    }
}

fn unanswered() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("its server did not answer within {} seconds", OWN.as_secs()))
}
