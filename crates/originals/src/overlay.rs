//! Laying originals over bytes that were read from the base.

use std::ops::Range;

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::Buffer;

use crate::entry::{Entry, Payload};

/// Payloads that lie together in the cache are read together, up to this many bytes.
const MOST_READ: u64 = 1 << 20;

/// An original and the part of it that is wanted.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// The original.
    pub entry: Entry,
    /// Which of its bytes.
    pub part: Range<usize>,
    /// Where in the buffer they go.
    pub at: usize,
}

impl Overlay {
    /// The part of `entry` that lies in a buffer of `len` bytes that starts at byte `offset` of the volume.
    pub fn of(entry: Entry, offset: u64, len: usize) -> Option<Self> {
        let whole = ByteRange::new(entry.offset, u64::from(entry.len));
        let part = whole.intersection(ByteRange::new(offset, len as u64))?;
        Some(Self {
            part: (part.start() - whole.start()) as usize..(part.end() - whole.start()) as usize,
            at: (part.start() - offset) as usize,
            entry,
        })
    }

    fn stored(&self) -> Option<(u64, u32)> {
        match self.entry.payload {
            Payload::Stored { offset, checksum } => Some((offset, checksum)),
            Payload::Zero | Payload::Bad => None,
        }
    }
}

/// Why originals could not be laid over.
#[derive(Debug)]
pub enum OverlayError {
    /// The base could not be read when the original was to be saved: these bytes are lost.
    Bad(ByteRange),
    /// What the cache holds is not what was saved (INV-11).
    Checksum(ByteRange),
    /// The cache cannot be read.
    Cache(tzero_block::Error),
}

impl std::fmt::Display for OverlayError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bad(range) => write!(f, "the original of {range} could not be read from the base when it was saved"),
            Self::Checksum(range) => write!(f, "the saved original of {range} does not match its checksum"),
            Self::Cache(source) => write!(f, "the original cache failed: {source}"),
        }
    }
}

impl std::error::Error for OverlayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Cache(source) => Some(source),
            _ => None,
        }
    }
}

/// Puts the originals into `buffer`; gives how many of its bytes came from the cache. `overlays` ascend by grain.
///
/// # Errors
/// When one of them cannot be had. The buffer's contents are then arbitrary.
pub async fn overlay<D: BlockDevice>(cache: &D, overlays: &[Overlay], buffer: &mut [u8]) -> Result<u64, OverlayError> {
    let mut bytes = 0;
    let mut rest = overlays;
    while let Some(first) = rest.first() {
        let place = first.at..first.at + first.part.len();
        let range = ByteRange::new(first.entry.offset, u64::from(first.entry.len));
        match first.entry.payload {
            Payload::Bad => return Err(OverlayError::Bad(range)),
            Payload::Zero => {
                buffer[place].fill(0);
                rest = &rest[1..];
            }
            Payload::Stored { offset, .. } => {
                let run = run_of(rest, offset);
                let len: u64 = rest[..run].iter().map(|overlay| u64::from(overlay.entry.len)).sum();
                let (payload, result) = cache.read(offset, Buffer::uncleared(len as usize)).await;
                result.map_err(OverlayError::Cache)?;
                lay(&rest[..run], &payload, buffer)?;
                bytes += len;
                rest = &rest[run..];
            }
        }
    }
    Ok(bytes)
}

/// How many of `overlays` lie one behind the other in the cache, from `offset` on.
fn run_of(overlays: &[Overlay], offset: u64) -> usize {
    let mut end = offset;
    overlays
        .iter()
        .take_while(|overlay| {
            let next = overlay.stored().is_some_and(|(start, _)| start == end)
                && end - offset + u64::from(overlay.entry.len) <= MOST_READ.max(u64::from(overlay.entry.len));
            end += u64::from(overlay.entry.len);
            next
        })
        .count()
}

fn lay(overlays: &[Overlay], payload: &[u8], buffer: &mut [u8]) -> Result<(), OverlayError> {
    let mut at = 0;
    for overlay in overlays {
        let bytes = &payload[at..at + overlay.entry.len as usize];
        at += overlay.entry.len as usize;
        let expected = overlay.stored().map(|(_, checksum)| checksum);
        if expected != Some(crc32c::crc32c(bytes)) {
            let range = ByteRange::new(overlay.entry.offset, u64::from(overlay.entry.len));
            return Err(OverlayError::Checksum(range));
        }
        buffer[overlay.at..overlay.at + overlay.part.len()].copy_from_slice(&bytes[overlay.part.clone()]);
    }
    Ok(())
}
