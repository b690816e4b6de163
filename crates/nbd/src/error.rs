//! How a connection ends.

use std::io;

use thiserror::Error;

/// An ending that is nobody's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client asked to disconnect (`NBD_CMD_DISC`).
    Disconnected,
    /// The client ended the handshake (`NBD_OPT_ABORT`).
    Aborted,
    /// The client closed its side between two messages.
    Left,
    /// The server is shutting down.
    Stopped,
}

/// Why a connection was cut.
#[derive(Debug, Error)]
pub enum Error {
    /// The client does not speak the protocol.
    #[error("the client broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The client asked by `NBD_OPT_EXPORT_NAME`, which has no way to refuse, for what is not there.
    #[error("the client asked for the export {name:?}, which cannot be opened: {source}")]
    NoExport {
        /// As the client sent it.
        name: Box<str>,
        /// Why it cannot be opened.
        source: tzero_block::ExportError,
    },
    /// The client took too long over the handshake.
    #[error("the client did not finish the handshake in time")]
    HandshakeTimeout,
    /// [`Limits::connections`](crate::Limits::connections) is reached.
    #[error("there are too many connections")]
    TooManyConnections,
    /// Nothing more can be received.
    #[error("receiving from the client failed: {0}")]
    Receive(#[source] io::Error),
    /// Nothing more can be sent.
    #[error("sending to the client failed: {0}")]
    Send(#[source] io::Error),
}

/// A breach of the protocol after which the two sides cannot understand each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// Flags that were not offered.
    #[error("it set the unknown handshake flags {0:#x}")]
    ClientFlags(u32),
    /// No option where one should start.
    #[error("it sent something else where an option should start")]
    OptionMagic,
    /// An option with far more data than any needs.
    #[error("it sent an option with {0} bytes of data")]
    OptionLength(u32),
    /// It haggles without end.
    #[error("it sent too many options")]
    TooManyOptions,
    /// The name in an `NBD_OPT_EXPORT_NAME` is no name.
    #[error("it sent an export name that is too long or not UTF-8")]
    ExportName,
    /// No request where one should start.
    #[error("it sent something else where a request should start: {0:#x}")]
    RequestMagic(u32),
    /// The stream ended within a message.
    #[error("it closed the connection in the middle of a message")]
    Truncated,
}

impl Error {
    pub(crate) fn receive(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Violation::Truncated.into(),
            _ => Self::Receive(source),
        }
    }
}
