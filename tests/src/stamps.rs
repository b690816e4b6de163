//! Bytes that say where they belong and which write put them there.
//!
//! A unit of [`UNIT`] bytes is filled from its index and the identity of a write, so that a torn, stale, displaced or
//! foreign unit is recognised for what it is. Write 0 is the content before the first write.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::random::mix;

/// Bytes of a unit: the finest that a volume knows (R7), so that parts of grains can be written.
pub const UNIT: u64 = 512;

const WORDS: u64 = UNIT / 8;

/// The bytes of units `first..first + count` as `write` leaves them.
#[must_use]
pub fn stamp(first: u64, count: u64, write: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((count * UNIT) as usize);
    for unit in first..first + count {
        let key = mix(unit ^ mix(write));
        bytes.extend_from_slice(&write.to_le_bytes());
        bytes.extend_from_slice(&unit.to_le_bytes());
        for word in 2..WORDS {
            bytes.extend_from_slice(&(key ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
        }
    }
    bytes
}

/// The write that left `bytes` in `unit`, or what is wrong with them.
///
/// # Errors
/// When the bytes are not what any one write would have left there.
pub fn identify(unit: u64, bytes: &[u8]) -> Result<u64, Stray> {
    let word = |index: usize| u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("eight bytes"));
    let (write, found) = (word(0), word(1));
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(Stray::Zeroes { unit });
    }
    if found != unit {
        return Err(Stray::Displaced { unit, found });
    }
    if bytes != stamp(unit, 1, write) { Err(Stray::Torn { unit, write }) } else { Ok(write) }
}

/// Bytes that no write left there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    /// Nothing but zeroes.
    Zeroes {
        /// Where.
        unit: u64,
    },
    /// Bytes of another place, or of none.
    Displaced {
        /// Where.
        unit: u64,
        /// Where they say that they belong.
        found: u64,
    },
    /// Bytes of several writes.
    Torn {
        /// Where.
        unit: u64,
        /// The write that the first bytes are of.
        write: u64,
    },
}

/// Makes a file of stamped units, as write 0 leaves them.
///
/// # Panics
/// When it cannot be written.
pub fn file(path: &Path, size: u64) {
    let file = File::create(path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let units = size / UNIT;
    for first in (0..units).step_by(2048) {
        file.write_all(&stamp(first, 2048.min(units - first), 0))
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
    file.flush().unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
