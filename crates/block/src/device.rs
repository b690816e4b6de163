//! What a block device is.

use std::fmt;
use std::future::Future;
use std::io;

use tzero_io::Buffer;

use crate::ByteRange;

/// A random-access array of bytes that some other party may cache.
///
/// # Contract
/// 1. A completed write is seen by every read that starts afterwards, through this device or another opener in the same
///    I/O mode. It survives the death of the process, not of the machine.
/// 2. A completed [`flush`](BlockDevice::flush) makes every write durable that had completed when the flush was *begun*.
///    Completion of a write is not durability, unless it asked for `fua`.
/// 3. Requests in flight at the same time have no order. Where they overlap, each byte ends as one of them
///    left it; a read that overlaps a write may see any mixture.
/// 4. An error leaves each byte of a written range old or new. A read error leaves the buffer's contents arbitrary.
/// 5. A request that reaches past [`Geometry::size`] fails with [`Fault::OutOfRange`] and does nothing.
/// 6. Any offset and length is allowed for devices with `alignment` 1; otherwise offsets and lengths are multiples of it.
/// 7. The future of a request may be dropped: the request then still runs to its end, unseen.
pub trait BlockDevice: Send + Sync + 'static {
    /// Size and granularity. Cheap; the size does not change behind the back of whoever has the device: that one alone may make it longer, by
    /// means of its own.
    fn geometry(&self) -> Geometry;

    /// Fills `buffer` (its whole length) from `offset`. Always gives the buffer back.
    fn read(&self, offset: u64, buffer: Buffer) -> impl Future<Output = (Buffer, Result<(), Error>)>;

    /// Writes `buffer` (its whole length) at `offset`; with `fua` it is durable when this completes.
    fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> impl Future<Output = (Buffer, Result<(), Error>)>;

    /// Makes the range read as zeroes.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] where `zeroes.fast` was asked for and it would be no faster than writing.
    fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> impl Future<Output = Result<(), Error>>;

    /// Whether [`Self::write_zeroes`] with `zeroes.fast` may succeed there. Cheap; `true` is no promise.
    fn can_zero_fast(&self, _range: ByteRange, _zeroes: Zeroes) -> bool {
        true
    }

    /// Tells the device that the bytes are not needed. Advice: afterwards they read as old bytes or zeroes,
    /// and stay what they are until written. Unsupported is success.
    fn discard(&self, range: ByteRange) -> impl Future<Output = Result<(), Error>>;

    /// Makes completed writes durable against power loss.
    fn flush(&self) -> impl Future<Output = Result<(), Error>>;

    /// What of `range` is allocated, as consecutive extents that cover it exactly. A device that cannot tell says data.
    /// Only a hint: it may be stale by the time it arrives.
    fn extents(&self, range: ByteRange) -> impl Future<Output = Result<Vec<Extent>, Error>>;

    /// Advice that the bytes will be read soon. A device without a cache has no use for it.
    fn prefetch(&self, _range: ByteRange) -> impl Future<Output = ()> {
        std::future::ready(())
    }
}

/// Size and granularity of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Length in bytes.
    pub size: u64,
    /// Offsets and lengths of requests are multiples of this many bytes; a power of two.
    pub alignment: u32,
}

impl Geometry {
    /// Checks a request against the contract.
    ///
    /// # Errors
    /// [`Fault::OutOfRange`] past the end, [`Fault::Unaligned`] off the alignment.
    pub fn check(&self, action: Action, offset: u64, len: u64) -> Result<ByteRange, Error> {
        let range = ByteRange::checked(offset, len)
            .filter(|range| range.end() <= self.size)
            .ok_or_else(|| Error::new(action, offset, len, Fault::OutOfRange))?;
        if !(offset | len).is_multiple_of(u64::from(self.alignment)) {
            return Err(Error::new(action, offset, len, Fault::Unaligned));
        }
        Ok(range)
    }
}

/// How a range is to be zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroes {
    /// The range may be deallocated.
    pub may_unmap: bool,
    /// Fail with [`Fault::Unsupported`] rather than write out zeroes.
    pub fast: bool,
    /// Durable on completion.
    pub fua: bool,
}

/// A stretch of a device that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where.
    pub range: ByteRange,
    /// Not allocated; reads as zeroes.
    pub hole: bool,
}

/// What a device was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// [`BlockDevice::read`]
    Read,
    /// [`BlockDevice::write`]
    Write,
    /// [`BlockDevice::write_zeroes`]
    WriteZeroes,
    /// [`BlockDevice::discard`]
    Discard,
    /// [`BlockDevice::flush`]
    Flush,
    /// [`BlockDevice::extents`]
    Extents,
}

/// Why a request failed.
#[derive(Debug)]
pub enum Fault {
    /// Reaches past the end.
    OutOfRange,
    /// Not a multiple of the alignment.
    Unaligned,
    /// The device cannot do this, or not fast.
    Unsupported,
    /// What the operating system said (`ENOSPC`, `EIO`, …).
    System(io::Error),
    /// The connection to the device broke. What was acknowledged before, and not flushed, may be lost, which is said once; what succeeds later is
    /// as good as ever.
    Link(io::Error),
}

/// A request that failed, and where.
#[derive(Debug)]
pub struct Error {
    /// What was asked.
    pub action: Action,
    /// First byte, or 0 for a flush.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Why.
    pub fault: Fault,
}

impl Error {
    /// An error of the request.
    pub fn new(action: Action, offset: u64, len: u64, fault: Fault) -> Self {
        Self { action, offset, len, fault }
    }

    /// An error that the operating system reported.
    pub fn system(action: Action, offset: u64, len: u64, source: io::Error) -> Self {
        Self::new(action, offset, len, Fault::System(source))
    }

    /// Whether space ran out.
    pub fn is_no_space(&self) -> bool {
        matches!(&self.fault, Fault::System(source)
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Whether a flush that failed so leaves it unknown for good what is on the medium, whatever flushes succeed later: Linux's page cache says once
    /// that it could not write something, and forgets it.
    pub fn leaves_doubt(&self) -> bool {
        matches!(self.fault, Fault::System(_))
    }

    /// Whether the device cannot do this.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.fault, Fault::Unsupported)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.action {
            Action::Read => "read",
            Action::Write => "write",
            Action::WriteZeroes => "zero",
            Action::Discard => "discard",
            Action::Flush => return write!(f, "cannot flush: {}", self.fault),
            Action::Extents => "map",
        };
        write!(f, "cannot {verb} {} bytes at {}: {}", self.len, self.offset, self.fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange => f.write_str("past the end of the device"),
            Self::Unaligned => f.write_str("not aligned to the device's blocks"),
            Self::Unsupported => f.write_str("the device does not support it"),
            Self::System(source) | Self::Link(source) => source.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            Fault::System(source) | Fault::Link(source) => Some(source),
            _ => None,
        }
    }
}
