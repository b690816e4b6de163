//! What a front-end offers to its clients, seen from the front-end.
//!
//! `engine` implements these traits, `nbd` (and later front-ends) call them; neither knows the other (R8).

use std::fmt;
use std::future::Future;

use tzero_io::Buffer;

use crate::{ByteRange, Extent, Zeroes};

/// A set of named exports.
pub trait Exports: Send + Sync + 'static {
    /// One client's use of one export.
    type Session: Export;

    /// Every export there is now, in the order in which to list them.
    fn list(&self) -> Vec<ExportSummary>;

    /// Opens `name` for one client. Dropping the session ends its use.
    ///
    /// # Errors
    /// [`ExportError::Unknown`] when there is none.
    fn open(&self, name: &str) -> Result<Self::Session, ExportError>;
}

/// A line of a list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSummary {
    /// `VOLUME` or `VOLUME@SNAPSHOT`.
    pub name: String,
    /// One line for people.
    pub description: String,
}

/// What a client may know of an export before it uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// As it was opened.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Length in bytes.
    pub size: u64,
    /// Every change is refused with [`ExportError::ReadOnly`].
    pub read_only: bool,
    /// It may be opened by several connections at a time, which then see each other's changes.
    pub shared: bool,
    /// It wants to hear what its client was given: [`Export::delivered`].
    pub counts_deliveries: bool,
    /// Offsets and lengths must be multiples of this many bytes: a power of two, at most 512.
    pub minimum_block: u32,
    /// Requests of this size and alignment are served best, in bytes: a power of two.
    pub preferred_block: u32,
}

/// One client's use of one export. Requests may be in flight together; each takes its buffer and gives it back.
/// The front-end has checked that the range lies within [`ExportInfo::size`] and is not empty.
pub trait Export: 'static {
    /// What was opened.
    fn info(&self) -> &ExportInfo;

    /// Fills `buffer`.
    fn read(&self, offset: u64, buffer: Buffer) -> impl Future<Output = (Buffer, Result<(), ExportError>)>;

    /// The bytes of a range, as [`Export::read`] gave them, were all handed to the client. Called only where
    /// [`ExportInfo::counts_deliveries`] says so.
    fn delivered(&self, _range: ByteRange) {}

    /// Writes `buffer`; with `fua` it is durable when this completes.
    fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> impl Future<Output = (Buffer, Result<(), ExportError>)>;

    /// Makes the range read as zeroes.
    fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> impl Future<Output = Result<(), ExportError>>;

    /// Advice that the bytes are not needed.
    fn trim(&self, range: ByteRange, fua: bool) -> impl Future<Output = Result<(), ExportError>>;

    /// Makes completed changes durable.
    fn flush(&self) -> impl Future<Output = Result<(), ExportError>>;

    /// Advice that the bytes will be read soon.
    fn prefetch(&self, range: ByteRange) -> impl Future<Output = Result<(), ExportError>>;

    /// Consecutive extents that start at the range's start; they may end early, but not before one extent, and never
    /// pass its end.
    fn block_status(&self, range: ByteRange) -> impl Future<Output = Result<Vec<Extent>, ExportError>>;
}

/// Why a request of a client failed; a front-end turns it into its protocol's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportError {
    /// There is no such export.
    Unknown,
    /// The export allows no change (R24).
    ReadOnly,
    /// The bytes cannot be had, or not be kept.
    Io,
    /// The base has no space for the client's own bytes.
    NoSpace,
    /// It has the one client that it may have.
    Busy,
    /// Malformed request.
    Invalid,
    /// Cannot be done, or not fast.
    Unsupported,
    /// The server is ending.
    ShuttingDown,
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "there is no such export",
            Self::ReadOnly => "the export is read-only",
            Self::Io => "input/output error",
            Self::NoSpace => "no space left on the base",
            Self::Busy => "the export has a client, and takes one only",
            Self::Invalid => "invalid request",
            Self::Unsupported => "not supported",
            Self::ShuttingDown => "the server is ending",
        })
    }
}

impl std::error::Error for ExportError {}
