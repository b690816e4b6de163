//! Exports of NBD servers, opened to read or write a copy.
//!
//! A link that breaks is tried again for [`WITHIN`], and what was not answered is sent again: all that is written here goes to fixed
//! places, so twice is as good as once. After that the run ends, resumable. What the server had acknowledged and not flushed when its
//! link broke may be gone: then a flush fails, and the run that goes on reads everything again.

use std::time::Duration;

use tzero_nbd::{ClientOptions, NbdDevice, Reconnect, Uri};

use crate::Error;
use crate::error::Refusal;
use crate::medium::Medium;

/// Longest time for connecting and negotiating.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a broken link is tried again.
const WITHIN: Duration = Duration::from_secs(10);
/// A request that is not answered for so long counts as a broken link. Far above what a server needs for the 64 MiB between two flushes.
const ANSWER: Duration = Duration::from_secs(120);

/// What is known of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// The daemon of this state directory: what it has acknowledged outlives its process.
    Ours,
    /// Anybody's.
    Foreign,
}

/// An export that is only read.
pub(crate) async fn open(uri: &Uri) -> Result<Medium, Error> {
    connect(uri, Server::Foreign).await.map(Medium::of_export)
}

/// An export to be written that has `needs` bytes at least.
pub(crate) async fn open_for_writing(uri: &Uri, server: Server, needs: u64) -> Result<Medium, Error> {
    let device = connect(uri, server).await?;
    let refused = |refusal| Error::refused(uri.to_string().as_ref(), refusal);
    if device.is_read_only() {
        return Err(refused(Refusal::ReadOnlyExport));
    }
    if !device.can_flush() {
        return Err(refused(Refusal::CannotFlush));
    }
    let medium = Medium::of_export(device);
    match medium.size() {
        has if has < needs => Err(refused(Refusal::TooSmall { has, needs })),
        _ => Ok(medium),
    }
}

async fn connect(uri: &Uri, server: Server) -> Result<NbdDevice, Error> {
    let options = ClientOptions {
        connections: 1,
        connect: CONNECT,
        request: Some(ANSWER),
        reconnect: Reconnect { within: WITHIN },
        keeps_acknowledged: server == Server::Ours,
    };
    let opened = NbdDevice::open(uri.clone(), options).await;
    opened.map_err(|source| Error::Export { uri: uri.to_string(), source })
}
