//! Taking in NBD clients, and spreading them over the data threads.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tzero_io::Listener;
use tzero_nbd::Server;

use crate::address::Address;
use crate::directory::{StateError, remove_stale};
use crate::exports::Offered;
use crate::threads::{DataThreads, off_thread};

/// How long to rest when the process has no descriptor left for a client.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket's place is taken.
    #[error("{0}")]
    Taken(#[from] StateError),
    /// The system refuses.
    #[error("NBD cannot be served on {address}: {source}")]
    Refused {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on an address, and hands clients to the server until the process ends. Gives the address as it came to be.
pub(crate) async fn listen(
    address: &Address,
    threads: &Arc<DataThreads>,
    server: &Arc<Server<Offered>>,
) -> Result<Address, ListenError> {
    if let Address::Unix(path) = address {
        // Whoever listens there may have more clients waiting than it lets in.
        let path = path.clone();
        off_thread(move || remove_stale(&path)).await?;
    }
    let refused = |source| ListenError::Refused { address: address.clone(), source };
    let (bound, is_bound) = oneshot::channel();
    let (wanted, server, spread) = (address.clone(), Arc::clone(server), Arc::clone(threads));
    threads.next().spawn(move || async move {
        let listener = match bind(&wanted) {
            Ok(listener) => listener,
            Err(error) => return drop(bound.send(Err(error))),
        };
        let _ = bound.send(Ok(listener.local_addr()));
        accept(&listener, &server, &spread).await;
    });
    let local: Option<SocketAddr> =
        is_bound.await.map_err(|_| refused(io::ErrorKind::Interrupted.into()))?.map_err(refused)?;
    Ok(local.map_or_else(|| address.clone(), Address::Tcp))
}

fn bind(address: &Address) -> io::Result<Listener> {
    match address {
        Address::Unix(path) => Listener::unix(path),
        Address::Tcp(address) => Listener::tcp(*address),
    }
}

async fn accept(listener: &Listener, server: &Arc<Server<Offered>>, threads: &DataThreads) {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let server = Arc::clone(server);
                threads.next().spawn(move || async move {
                    if let Err(error) = server.serve_connection(stream).await {
                        tracing::info!("a client's connection was ended: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("no client can be let in: {error}");
                tzero_io::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// The sockets in the file system that are removed at the end.
pub(crate) fn socket_paths(addresses: &[Address]) -> Vec<PathBuf> {
    let unix = |address: &Address| match address {
        Address::Unix(path) => Some(path.clone()),
        Address::Tcp(_) => None,
    };
    addresses.iter().filter_map(unix).collect()
}
