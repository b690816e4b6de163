//! One connection to a server, from the socket to an export that was agreed on.

use std::io::IoSlice;
use std::time::Duration;

use tzero_block::ByteRange;
use tzero_io::{Stream, resolve};

use super::agreed::Agreed;
use super::command::{Command, Kind};
use super::error::ClientError;
use super::handshake::negotiate;
use super::receiver::Receiver;
use super::sender::Sender;
use super::uri::{Server, Uri};

/// A machine that is not heard of for so long is gone.
const GONE: Duration = Duration::from_secs(20);

/// A connection, and what was begun to be sent and received on it: whoever has it can go on where another stopped.
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

impl Connection {
    /// Connects and negotiates. Takes as long as the server likes; the caller bounds it.
    pub(crate) async fn establish(uri: &Uri) -> Result<(Box<Self>, Agreed), ClientError> {
        let stream = connect(uri).await?;
        let agreed = negotiate(&stream, uri).await?;
        let receiver = Receiver::new(&agreed);
        Ok((Box::new(Self { stream, sender: Sender::default(), receiver }), agreed))
    }
}

async fn connect(uri: &Uri) -> Result<Stream, ClientError> {
    let (host, port) = match uri.server() {
        Server::Unix(path) => return Stream::connect_unix(path).await.map_err(ClientError::Connect),
        Server::Tcp { host, port } => (host, *port),
    };
    let mut failed = None;
    for address in resolve(host, port).await.map_err(ClientError::Connect)? {
        match Stream::connect_tcp(address).await {
            Ok(stream) => {
                stream.watch_peer(GONE).map_err(ClientError::Connect)?;
                return Ok(stream);
            }
            Err(error) => failed = Some(error),
        }
    }
    Err(ClientError::Connect(failed.unwrap_or_else(|| std::io::ErrorKind::NotFound.into())))
}

impl Drop for Connection {
    /// Says goodbye if nothing is half said, and if the server takes it at once.
    fn drop(&mut self) {
        if self.sender.is_empty() {
            let head = Command::new(Kind::Disconnect, 0, ByteRange::new(0, 0)).head(0);
            let _ = self.stream.try_send(&[IoSlice::new(&head)]);
        }
    }
}
