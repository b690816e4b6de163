//! Why an export cannot be used, or not any more.

use std::io;

use thiserror::Error;

/// What is wrong with a connection, or with all of them.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no connection to be had.
    #[error("the NBD server cannot be reached: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection to the NBD server broke: {0}")]
    Broken(#[source] io::Error),
    /// The server closed the connection.
    #[error("the NBD server closed the connection")]
    Closed,
    /// The server said that it is ending.
    #[error("the NBD server is shutting down")]
    ShuttingDown,
    /// Connecting, the negotiation, or a request took longer than was allowed.
    #[error("the NBD server did not answer in time")]
    TimedOut,
    /// The server does not speak the protocol.
    #[error("the NBD server broke the protocol: {0}")]
    Breach(#[from] Breach),
    /// The server does not give the export.
    #[error("the NBD server refused: {0}")]
    Refused(#[from] Refused),
    /// The export is not one that can be used.
    #[error("the NBD export cannot be used: {0}")]
    Unusable(#[from] Unusable),
    /// After a reconnect the export was another one, or could do less. Permanent: what was read and written before may not be there.
    #[error("the NBD export changed while the connection was broken: {0}")]
    Changed(#[from] Changed),
    /// The connection broke after the server had acknowledged changes and before they were flushed. They may be gone.
    #[error("the connection to the NBD server broke before acknowledged changes were flushed: they may be lost")]
    LostChanges,
}

/// A breach of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Breach {
    /// Not the first bytes of an NBD server.
    #[error("it did not begin as one")]
    Greeting,
    /// A server from before fixed newstyle negotiation.
    #[error("it only knows an old style of negotiation")]
    OldStyle,
    /// No reply to the option that was sent.
    #[error("it sent something else where a reply to an option should start")]
    OptionReply,
    /// An option's reply with more data than any needs.
    #[error("it sent {0} bytes of data in reply to an option")]
    OptionLength(u32),
    /// It never comes to an end with an option.
    #[error("it sent too many replies to one option")]
    TooManyReplies,
    /// Information about the export that is malformed or missing.
    #[error("what it said about the export is malformed or incomplete")]
    Info,
    /// No reply where one should start.
    #[error("it sent something else where a reply should start: {0:#x}")]
    ReplyMagic(u32),
    /// A reply to no request, or to one that was not sent completely.
    #[error("it replied to no request of ours: {0:#x}")]
    Cookie(u64),
    /// A reply of a kind that does not belong to the request.
    #[error("it sent a reply of kind {0:#x} that does not belong to its request")]
    Kind(u16),
    /// A chunk whose length does not fit its kind.
    #[error("it sent a chunk of kind {kind:#x} with {len} bytes")]
    Length {
        /// Of the chunk.
        kind: u16,
        /// Of its payload, in bytes.
        len: u32,
    },
    /// Data of places that were not asked for, or twice.
    #[error("it sent data outside of the request, or twice")]
    Place,
    /// The last chunk came before all data had.
    #[error("it left out data of a reply")]
    Missing,
    /// A reply that is cut into ever smaller pieces.
    #[error("it cut a reply into too many pieces")]
    TooManyPieces,
    /// Extents that nobody selected, or without a length.
    #[error("it sent malformed extents")]
    Extents,
}

/// Why a server does not give an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// `NBD_REP_ERR_UNKNOWN`
    #[error("there is no such export")]
    Unknown,
    /// `NBD_REP_ERR_TLS_REQD`
    #[error("it wants an encrypted connection")]
    Encryption,
    /// `NBD_REP_ERR_POLICY`
    #[error("its policy forbids it")]
    Policy,
    /// `NBD_REP_ERR_SHUTDOWN`
    #[error("it is shutting down")]
    ShuttingDown,
    /// `NBD_REP_ERR_UNSUP` to `NBD_OPT_GO`.
    #[error("it is too old: it does not know NBD_OPT_GO")]
    TooOld,
    /// Any other error reply.
    #[error("error {0:#x}")]
    Other(u32),
}

/// Why an export cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// Longer than a file can be.
    #[error("it claims a length of {0} bytes")]
    Size(u64),
    /// Block sizes that the protocol does not allow.
    #[error("it claims blocks from {minimum} to {maximum} bytes")]
    Blocks {
        /// Smallest, in bytes.
        minimum: u32,
        /// Largest, in bytes.
        maximum: u32,
    },
    /// Its end cannot be read or written.
    #[error("its length of {size} bytes is no multiple of its blocks of {block} bytes")]
    Tail {
        /// In bytes.
        size: u64,
        /// In bytes.
        block: u32,
    },
}

/// What is different after a reconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Changed {
    /// Its length.
    #[error("it was {was} bytes long and is {is}")]
    Size {
        /// In bytes.
        was: u64,
        /// In bytes.
        is: u64,
    },
    /// It can do less than was promised: read-only, other blocks, or a command that is gone.
    #[error("it can do less than before")]
    Less,
}

impl ClientError {
    /// What the client says about a request that failed because of the connection, and not because the server said so.
    pub fn of(error: &tzero_block::Error) -> Option<&Self> {
        use tzero_block::Fault::{Link, System};
        let (System(error) | Link(error)) = &error.fault else { return None };
        Some(&error.get_ref()?.downcast_ref::<Shared>()?.0)
    }

    pub(crate) fn receive(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken(source),
        }
    }

    /// The kind that a caller can match on.
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Connect(source) | Self::Broken(source) => source.kind(),
            Self::Closed | Self::ShuttingDown => io::ErrorKind::NotConnected,
            Self::TimedOut => io::ErrorKind::TimedOut,
            Self::Breach(_) => io::ErrorKind::InvalidData,
            Self::Refused(Refused::Unknown) => io::ErrorKind::NotFound,
            Self::Refused(Refused::Policy | Refused::Encryption) => io::ErrorKind::PermissionDenied,
            Self::Refused(_) => io::ErrorKind::ConnectionRefused,
            Self::Unusable(_) => io::ErrorKind::Unsupported,
            Self::Changed(_) => io::ErrorKind::StaleNetworkFileHandle,
            Self::LostChanges => io::ErrorKind::Other,
        }
    }
}

/// An error that several requests meet.
#[derive(Clone, Debug, Error)]
#[error(transparent)]
pub(crate) struct Shared(pub(crate) std::sync::Arc<ClientError>);

impl From<ClientError> for Shared {
    fn from(error: ClientError) -> Self {
        Self(error.into())
    }
}

impl From<Shared> for io::Error {
    fn from(error: Shared) -> Self {
        Self::new(error.0.kind(), error)
    }
}
