//! One entry of the modified map (R17): 64 bytes, eight words.
//!
//! | word | content |
//! |---|---|
//! | 0 | first 512-byte block of the grain, within its component |
//! | 1 | unit id of the component (high 32 bits), length in bytes (low 32) |
//! | 2 | offset of the payload in the cache, or all ones: none |
//! | 3 | tag: the epoch whose first change this is the original of |
//! | 4 | sequence |
//! | 5 | flags (high 32: 1 zero, 2 bad), CRC-32C of the payload (low 32) |
//! | 6 | CRC-32C of words 0-5 (low 32) |
//! | 7 | state: free 0, else the mark and `unread` 1 or `read` 2 |
//!
//! Word 7 is published last and cleared first, so an entry is there whole or not at all (INV-2).

use std::io;

use tzero_io::Mapping;

use crate::components::Components;
use crate::units::{Epoch, Sequence};

/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: u64 = 64;
/// Bytes of a block in word 0.
pub(crate) const BLOCK: u64 = 512;

const NO_PAYLOAD: u64 = u64::MAX;
const MARK: u64 = 0x545A_4F52_4947_0000;
const ZERO: u64 = 1 << 32;
const BAD: u64 = 2 << 32;
const STATE: u64 = 7 * 8;
/// Byte of an entry at which its sequence is.
pub(crate) const SEQUENCE: u64 = 4 * 8;

/// What is known of a grain's original bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// In the cache, at `offset`, with this CRC-32C.
    Stored {
        /// Byte offset in the cache.
        offset: u64,
        /// CRC-32C of the bytes.
        checksum: u32,
    },
    /// All zero; nothing is stored.
    Zero,
    /// The base could not be read: lost for ever. Reading the grain is an error.
    Bad,
}

/// Whether the consumer of the original has had it (R17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// Still wanted: its slot must not be overwritten (INV-4).
    Unread,
    /// Delivered.
    Read,
}

/// An original, and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First byte of the grain on the volume. A multiple of 512.
    pub offset: u64,
    /// Bytes of the grain.
    pub len: u32,
    /// Epoch of the change that it is the original of.
    pub tag: Epoch,
    /// When it was published.
    pub sequence: Sequence,
    /// The bytes.
    pub payload: Payload,
    /// Whether it was consumed.
    pub state: EntryState,
}

impl Entry {
    /// Whether `bytes` are what was stored of it, as far as a checksum can tell (INV-11). Nothing is where nothing was stored.
    pub fn is_payload(&self, bytes: &[u8]) -> bool {
        matches!(self.payload, Payload::Stored { checksum, .. } if crc32c::crc32c(bytes) == checksum)
    }

    pub(crate) fn words(&self, components: &Components) -> [u64; 7] {
        let (unit, within) = components.place(self.offset);
        let (place, sum) = match self.payload {
            Payload::Stored { offset, checksum } => (offset, u64::from(checksum)),
            Payload::Zero => (NO_PAYLOAD, ZERO),
            Payload::Bad => (NO_PAYLOAD, BAD),
        };
        let mut words =
            [within / BLOCK, u64::from(unit) << 32 | u64::from(self.len), place, self.tag.0, self.sequence.0, sum, 0];
        words[6] = u64::from(checksum_of(&words[..6]));
        words
    }

    /// Writes the entry at byte `at` and publishes it.
    pub(crate) fn publish<M: Mapping>(&self, map: &M, components: &Components, at: u64) -> io::Result<()> {
        map.store_all(at, &self.words(components))?;
        map.publish(at + STATE, state_word(self.state))
    }

    /// Says that the entry at byte `at`, which stands, was consumed.
    pub(crate) fn mark_read<M: Mapping>(map: &M, at: u64) -> io::Result<()> {
        map.publish(at + STATE, state_word(EntryState::Read))
    }

    /// Makes the place at byte `at` free.
    pub(crate) fn withdraw<M: Mapping>(map: &M, at: u64) -> io::Result<()> {
        map.publish(at + STATE, 0)
    }

    /// The published entry at byte `at`; `None` if the place is free, is being rewritten, or its words do not fit their checksum or the
    /// components.
    pub(crate) fn load<M: Mapping>(map: &M, components: &Components, at: u64) -> Option<Self> {
        let state = match map.load(at + STATE) {
            word if word == state_word(EntryState::Unread) => EntryState::Unread,
            word if word == state_word(EntryState::Read) => EntryState::Read,
            _ => return None,
        };
        let words: [u64; 7] = std::array::from_fn(|index| map.load(at + 8 * index as u64));
        if u64::from(checksum_of(&words[..6])) != words[6] {
            return None;
        }
        Self::from_words(&words, state, components)
    }

    /// What the first six words say; `None` where that makes no sense.
    pub(crate) fn from_words(words: &[u64], state: EntryState, components: &Components) -> Option<Self> {
        let payload = match words[5] & !0xFFFF_FFFF {
            0 => Payload::Stored { offset: words[2], checksum: words[5] as u32 },
            ZERO => Payload::Zero,
            BAD => Payload::Bad,
            _ => return None,
        };
        Some(Self {
            offset: components.offset((words[1] >> 32) as u32, words[0].checked_mul(BLOCK)?)?,
            len: words[1] as u32,
            tag: Epoch(words[3]),
            sequence: Sequence(words[4]),
            payload,
            state,
        })
    }

    /// Whether the place at byte `at` says that it holds an entry, readable or not.
    pub(crate) fn is_published<M: Mapping>(map: &M, at: u64) -> bool {
        map.load(at + STATE) != 0
    }
}

fn state_word(state: EntryState) -> u64 {
    MARK | match state {
        EntryState::Unread => 1,
        EntryState::Read => 2,
    }
}

/// CRC-32C of words as little-endian bytes.
pub(crate) fn checksum_of(words: &[u64]) -> u32 {
    words.iter().fold(0, |sum, word| crc32c::crc32c_append(sum, &word.to_le_bytes()))
}
