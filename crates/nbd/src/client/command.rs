//! Requests and how they end, as values. Pure.

use tzero_block::ByteRange;
use tzero_io::Buffer;

use super::error::Shared;
use crate::contexts::Descriptor;
use crate::wire::{REQUEST_MAGIC, command, command_flag as flag};

/// What is asked of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    /// Has no answer.
    Disconnect,
}

/// A request without its payload. It is not empty, aligned, within the export, and no longer than the server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) kind: Kind,
    pub(crate) flags: u16,
    pub(crate) range: ByteRange,
}

impl Command {
    pub(crate) const HEAD: usize = 28;

    pub(crate) fn new(kind: Kind, flags: u16, range: ByteRange) -> Self {
        Self { kind, flags, range }
    }

    /// Its first bytes on the wire.
    pub(crate) fn head(&self, cookie: u64) -> [u8; Self::HEAD] {
        let kind = match self.kind {
            Kind::Read => command::READ,
            Kind::Write => command::WRITE,
            Kind::Flush => command::FLUSH,
            Kind::Trim => command::TRIM,
            Kind::Cache => command::CACHE,
            Kind::WriteZeroes => command::WRITE_ZEROES,
            Kind::BlockStatus => command::BLOCK_STATUS,
            Kind::Disconnect => command::DISC,
        };
        let mut head = [0; Self::HEAD];
        head[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&self.flags.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&cookie.to_be_bytes());
        head[16..24].copy_from_slice(&self.range.start().to_be_bytes());
        head[24..].copy_from_slice(&(self.range.len() as u32).to_be_bytes());
        head
    }

    /// Whether its success leaves something to be flushed.
    pub(crate) fn leaves_dirt(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::WriteZeroes | Kind::Trim) && self.flags & flag::FUA == 0
    }

    /// Payload of its reply, in bytes.
    pub(crate) fn reply_len(&self) -> u64 {
        if self.kind == Kind::Read { self.range.len() } else { 0 }
    }
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The server said so: an error number of this system.
    Server(i32),
    /// There is no connection, and has not been for too long.
    Connection(Shared),
    /// A flush that cannot claim what it was asked for.
    LostChanges,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The one that came with the request.
    pub(crate) buffer: Option<Buffer>,
    /// Of a block status.
    pub(crate) descriptors: Vec<Descriptor>,
    pub(crate) result: Result<(), Failure>,
}

/// An error number of the protocol as one of this system; what is not known there means `EINVAL`.
pub(crate) fn system_error(number: u32) -> i32 {
    const KNOWN: [u32; 8] = [1, 5, 12, 22, 28, 75, 95, 108];
    const EINVAL: i32 = 22;
    // The protocol took its numbers from Linux.
    if KNOWN.contains(&number) { number as i32 } else { EINVAL }
}
