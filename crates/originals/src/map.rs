//! The modified map: a header, a ring of recent publications, and entries.
//!
//! | offset | content |
//! |---|---|
//! | 0 | magic `TZEROMAP` |
//! | 8 | version (low 32), bytes of an entry (high 32) |
//! | 16 | grain in bytes |
//! | 24, 32 | volume id |
//! | 40 | how many entry positions there are (published after growing) |
//! | 48 | head: sequence of the newest published entry |
//! | 56 | words of the ring |
//! | 64 | where the second, third, … component of the volume begins, in bytes; 0 after the last |
//! | 4096 | ring: word `s % words` = position (low 32) and low 32 bits of sequence `s` (high 32) |
//! | after the ring | entries |
//!
//! # Write order
//! Entry (see [`Entry`]), ring word, head. A death between them leaves an entry that recovery finds by its state word; the head is then
//! raised to the largest sequence seen. A reader that follows the ring sees whatever was published before the head it
//! loaded; one that fell behind the ring scans all entries.
//!
//! # Versions
//! 2 is what is written. 1 had nothing at 64, which says the same as one component: such a map is read as it is, and its writer makes it one
//! of version 2 by a single store.
//!
//! # Invariants
//! 1. One writer. Publications are in sequence order: all up to the head are visible (INV-2).
//! 2. A position is rewritten only after its entry was withdrawn.

use std::io;
use std::ops::Range;

use tzero_io::Mapping;

use crate::components::Components;
use crate::entry::{ENTRY_BYTES, Entry, SEQUENCE};
use crate::units::Sequence;

pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"TZEROMAP");
pub(crate) const VERSION: u32 = 2;
/// The version before components.
const VERSION_ONE: u32 = 1;
const HEADER: u64 = 4096;
/// Words of a ring: bounds of what is believed from a file.
const RING_WORDS: std::ops::RangeInclusive<u64> = 16..=1 << 20;
/// Growth doubles the file up to this many entries at a time.
const MOST_GROWTH: u64 = 1 << 16;
/// Positions are 32 bits.
const MOST_ENTRIES: u64 = u32::MAX as u64;

const WORD_VERSION: u64 = 8;
const WORD_GRAIN: u64 = 16;
const WORD_VOLUME: u64 = 24;
const WORD_CAPACITY: u64 = 40;
const WORD_HEAD: u64 = 48;
const WORD_RING: u64 = 56;
const WORD_COMPONENTS: u64 = 64;

/// Why a map was refused.
#[derive(Debug)]
pub enum MapError {
    /// It is not a modified map of this version.
    Format,
    /// It belongs to another volume, or has another grain or other components.
    Foreign,
    /// It cannot be written.
    Io(io::Error),
}

impl std::fmt::Display for MapError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Format => f.write_str("the modified map is damaged or of another version"),
            Self::Foreign => {
                f.write_str("the modified map belongs to another volume, or has another grain or other components")
            }
            Self::Io(source) => write!(f, "the modified map cannot be written: {source}"),
        }
    }
}

impl std::error::Error for MapError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(source) => Some(source),
            _ => None,
        }
    }
}

/// How large a new map is. One that exists keeps its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Words of the ring: publications that a reader can fall behind without looking at all entries. A power of two from 16 to 2²⁰.
    pub ring_words: u64,
    /// Entries before it grows for the first time.
    pub first_entries: u64,
}

impl MapShape {
    /// Room for a tenth of a second of a fast host's first writes, in less than 200 KiB.
    pub const DEFAULT: Self = Self { ring_words: 1 << 14, first_entries: 1024 };

    /// Length of the file in bytes.
    pub const fn len(self) -> u64 {
        HEADER + self.ring_words * 8 + self.first_entries * ENTRY_BYTES
    }

    /// Never: there is a header.
    pub const fn is_empty(self) -> bool {
        false
    }
}

impl Default for MapShape {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The map's file, as its writer or a reader sees it.
pub struct ModifiedMap<M> {
    mapping: M,
    ring_words: u64,
    components: Components,
}

impl<M: Mapping> ModifiedMap<M> {
    /// Length of a new map of the default shape in bytes.
    pub const NEW_LEN: u64 = MapShape::DEFAULT.len();

    /// [`Self::create_or_open_shaped`] with the default shape, for a volume of one component.
    ///
    /// # Errors
    /// As there.
    pub fn create_or_open(mapping: M, grain: u32, volume: [u8; 16]) -> Result<Self, MapError> {
        Self::create_or_open_shaped(mapping, grain, volume, &Components::one(), MapShape::DEFAULT)
    }

    /// Takes over the mapping, and makes a map of it if it is all new (its magic is zero): then its length must be that of the shape.
    ///
    /// # Errors
    /// When it holds something else, or cannot be written.
    pub fn create_or_open_shaped(
        mapping: M,
        grain: u32,
        volume: [u8; 16],
        components: &Components,
        shape: MapShape,
    ) -> Result<Self, MapError> {
        if mapping.len() < HEADER {
            return Err(MapError::Format);
        }
        if mapping.load(0) == 0 {
            if mapping.len() < shape.len() {
                return Err(MapError::Format);
            }
            initialise(&mapping, grain, volume, components, shape).map_err(MapError::Io)?;
        }
        let map = Self::open(mapping)?;
        map.check(grain, volume, components)?;
        if map.mapping.load(WORD_VERSION) != version_word(VERSION) {
            map.mapping.publish(WORD_VERSION, version_word(VERSION)).map_err(MapError::Io)?;
        }
        Ok(map)
    }

    /// Whether it is the map of this volume.
    ///
    /// # Errors
    /// [`MapError::Foreign`] where it is not.
    pub fn check(&self, grain: u32, volume: [u8; 16], components: &Components) -> Result<(), MapError> {
        let is_own = self.grain() == grain && self.volume() == volume && self.components == *components;
        if is_own { Ok(()) } else { Err(MapError::Foreign) }
    }

    /// Takes over a mapping that holds a map.
    ///
    /// # Errors
    /// When it does not, or lengths in it do not fit.
    pub fn open(mapping: M) -> Result<Self, MapError> {
        if mapping.len() < HEADER || mapping.load(0) != MAGIC {
            return Err(MapError::Format);
        }
        let further = match mapping.load(WORD_VERSION) {
            version if version == version_word(VERSION) => Components::MOST as u64,
            version if version == version_word(VERSION_ONE) => 0,
            _ => return Err(MapError::Format),
        };
        let starts =
            (0..further).map(|index| mapping.load(WORD_COMPONENTS + 8 * index)).take_while(|start| *start != 0);
        let components = Components::from_starts(starts, mapping.load(WORD_GRAIN) as u32).ok_or(MapError::Format)?;
        let ring_words = mapping.load(WORD_RING);
        let map = Self { ring_words, components, mapping };
        let ring_fits = ring_words.is_power_of_two() && RING_WORDS.contains(&ring_words);
        if !ring_fits || map.stated_capacity() == 0 || map.stated_capacity() > MOST_ENTRIES {
            return Err(MapError::Format);
        }
        map.follow_growth().map_err(|_| MapError::Format)?;
        Ok(map)
    }

    /// Grain in bytes.
    pub fn grain(&self) -> u32 {
        self.mapping.load(WORD_GRAIN) as u32
    }

    /// Volume that it belongs to.
    pub fn volume(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.mapping.load(WORD_VOLUME).to_le_bytes());
        id[8..].copy_from_slice(&self.mapping.load(WORD_VOLUME + 8).to_le_bytes());
        id
    }

    /// Where the volume's components begin.
    pub fn components(&self) -> &Components {
        &self.components
    }

    /// How many positions there are, as far as growth by the writer has been followed. What was published before that lies in them: the file
    /// grows first, then the header says so, then a new position is used.
    pub fn capacity(&self) -> u64 {
        let reached = self.mapping.len().saturating_sub(self.at(0)) / ENTRY_BYTES;
        self.stated_capacity().min(reached)
    }

    fn stated_capacity(&self) -> u64 {
        self.mapping.load(WORD_CAPACITY)
    }

    /// The newest published sequence.
    pub fn head(&self) -> Sequence {
        Sequence(self.mapping.load(WORD_HEAD))
    }

    /// The published entry at a position.
    pub fn entry(&self, position: u32) -> Option<Entry> {
        (u64::from(position) < self.capacity())
            .then(|| Entry::load(&self.mapping, &self.components, self.at(u64::from(position))))?
    }

    /// The sequence at a position that exists, whether its entry stands, is free, or is being rewritten: one word, to tell what is
    /// worth a look by [`Self::entry`].
    pub fn sequence_at(&self, position: u32) -> Sequence {
        Sequence(self.mapping.load(self.at(u64::from(position)) + SEQUENCE))
    }

    /// The position that published `sequence`; `None` when the ring has moved on.
    pub fn position_of(&self, sequence: Sequence) -> Option<u32> {
        let word = self.mapping.load(HEADER + sequence.0 % self.ring_words * 8);
        (word >> 32 == sequence.0 & 0xFFFF_FFFF).then_some(word as u32)
    }

    /// Whether a reader that has seen `seen` can follow the ring to `head`.
    pub fn ring_reaches(&self, seen: Sequence, head: Sequence) -> bool {
        head.0 - seen.0 < self.ring_words
    }

    /// Every published entry that is readable, and the positions of those that are not (their checksum does not fit).
    pub fn scan(&self) -> (Vec<(u32, Entry)>, Vec<u32>) {
        let (mut entries, mut damaged) = (Vec::new(), Vec::new());
        for position in 0..self.capacity() {
            match Entry::load(&self.mapping, &self.components, self.at(position)) {
                Some(entry) => entries.push((position as u32, entry)),
                None if Entry::is_published(&self.mapping, self.at(position)) => damaged.push(position as u32),
                None => {}
            }
        }
        (entries, damaged)
    }

    /// Publishes `entry` at a free `position` with the next sequence, which the caller has put into it.
    ///
    /// # Errors
    /// Where stores can fail; the entry may then be visible or not.
    pub fn publish(&self, position: u32, entry: &Entry) -> io::Result<()> {
        let sequence = entry.sequence;
        entry.publish(&self.mapping, &self.components, self.at(u64::from(position)))?;
        let word = (sequence.0 & 0xFFFF_FFFF) << 32 | u64::from(position);
        self.mapping.publish(HEADER + sequence.0 % self.ring_words * 8, word)?;
        self.mapping.publish(WORD_HEAD, sequence.0)
    }

    /// Raises the head after a death between an entry and its head.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn raise_head(&self, head: Sequence) -> io::Result<()> {
        if head > self.head() { self.mapping.publish(WORD_HEAD, head.0) } else { Ok(()) }
    }

    /// Frees a position.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn withdraw(&self, position: u32) -> io::Result<()> {
        Entry::withdraw(&self.mapping, self.at(u64::from(position)))
    }

    /// Says that the entry at a position, which stands, was consumed (R17).
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn mark_read(&self, position: u32) -> io::Result<()> {
        Entry::mark_read(&self.mapping, self.at(u64::from(position)))
    }

    /// Makes positions up to `needed` exist; gives those that are new.
    ///
    /// # Errors
    /// When there is no space; the map is then as it was.
    pub fn grow(&self, needed: u64) -> io::Result<Range<u64>> {
        let old = self.capacity();
        if needed <= old {
            return Ok(old..old);
        }
        if needed > MOST_ENTRIES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let new = (old + old.min(MOST_GROWTH)).max(needed).min(MOST_ENTRIES);
        self.mapping.grow(self.at(new))?;
        self.mapping.publish(WORD_CAPACITY, new)?;
        Ok(old..new)
    }

    /// Takes in growth by the writer.
    ///
    /// # Errors
    /// When the file is shorter than its header says.
    pub fn follow_growth(&self) -> io::Result<()> {
        let needed = self.at(self.stated_capacity());
        if self.mapping.len() < needed { self.mapping.grow(needed) } else { Ok(()) }
    }

    /// Makes the map durable against power loss. Blocking.
    ///
    /// # Errors
    /// When the device says so.
    pub fn sync(&self) -> io::Result<()> {
        self.mapping.sync()
    }

    fn at(&self, position: u64) -> u64 {
        HEADER + self.ring_words * 8 + position * ENTRY_BYTES
    }
}

const fn version_word(version: u32) -> u64 {
    version as u64 | ENTRY_BYTES << 32
}

fn initialise<M: Mapping>(
    mapping: &M,
    grain: u32,
    volume: [u8; 16],
    components: &Components,
    shape: MapShape,
) -> io::Result<()> {
    let (low, high) = volume.split_at(8);
    mapping.store(WORD_VERSION, version_word(VERSION))?;
    mapping.store(WORD_GRAIN, u64::from(grain))?;
    mapping.store(WORD_VOLUME, u64::from_le_bytes(low.try_into().expect("half of an id")))?;
    mapping.store(WORD_VOLUME + 8, u64::from_le_bytes(high.try_into().expect("half of an id")))?;
    mapping.store(WORD_CAPACITY, shape.first_entries)?;
    mapping.store(WORD_RING, shape.ring_words)?;
    mapping.store_all(WORD_COMPONENTS, components.further())?;
    mapping.publish(0, MAGIC)
}
