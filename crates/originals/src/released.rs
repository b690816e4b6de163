//! Which ranges a snapshot no longer needs because its consumer has them.
//!
//! File `released-<snapshot id>`: word 0 magic `TZERORLS`, word 1 version, word 2 count, then records of two words (start byte, end byte).
//! A record is written before the count that covers it; a record that continues the last one replaces its end in one store.
//! The file is made at the first release.

use std::collections::BTreeMap;
use std::io;

use tzero_block::ByteRange;
use tzero_io::{Mapping, Storage};

use crate::units::SnapshotId;

const MAGIC: u64 = u64::from_le_bytes(*b"TZERORLS");
const VERSION: u64 = 1;
const HEADER: u64 = 64;
const RECORD: u64 = 16;
const FIRST_RECORDS: u64 = 252;

/// A set of bytes as disjoint ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds a range.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start(), range.end());
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            start = start.min(other_start);
            end = end.max(other_end);
            self.ranges.remove(&other_start);
        }
        self.ranges.insert(start, end);
    }

    /// Whether a byte of `range` is in the set.
    pub fn overlaps(&self, range: ByteRange) -> bool {
        !range.is_empty() && self.ranges.range(..range.end()).next_back().is_some_and(|(_, end)| *end > range.start())
    }

    /// Whether all of `range` is in the set.
    pub fn contains(&self, range: ByteRange) -> bool {
        self.ranges.range(..=range.start()).next_back().is_some_and(|(_, end)| *end >= range.end())
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ByteRange> {
        self.ranges.iter().map(|(start, end)| ByteRange::between(*start, *end))
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.iter().map(ByteRange::len).sum()
    }
}

/// The persistent form of a snapshot's released set.
pub struct ReleasedLog<M> {
    mapping: M,
}

impl<M: Mapping> ReleasedLog<M> {
    /// Name of the file of a snapshot.
    pub fn name(snapshot: SnapshotId) -> String {
        format!("released-{snapshot}")
    }

    /// Opens the log of a snapshot, or makes an empty one.
    ///
    /// # Errors
    /// When there is no space, or what is there is not such a log (`InvalidData`).
    pub fn open_or_create<S: Storage<Mapping = M>>(storage: &S, snapshot: SnapshotId) -> io::Result<Self> {
        let mapping = storage.open(&Self::name(snapshot), HEADER + FIRST_RECORDS * RECORD)?;
        if mapping.len() >= HEADER && mapping.load(0) == 0 {
            mapping.store(8, VERSION)?;
            mapping.publish(0, MAGIC)?;
        }
        let fits = mapping.len() >= HEADER && mapping.load(0) == MAGIC && mapping.load(8) == VERSION;
        let log = Self { mapping };
        if fits && log.count() <= (log.mapping.len() - HEADER) / RECORD { Ok(log) } else { Err(invalid()) }
    }

    /// What has been released.
    ///
    /// # Errors
    /// When a record is malformed (`InvalidData`).
    pub fn load(&self) -> io::Result<RangeSet> {
        let mut set = RangeSet::default();
        for index in 0..self.count() {
            let at = HEADER + index * RECORD;
            let (start, end) = (self.mapping.load(at), self.mapping.load(at + 8));
            if start > end {
                return Err(invalid());
            }
            set.insert(ByteRange::between(start, end));
        }
        Ok(set)
    }

    /// Records that a range is released. From its return on this survives the process.
    ///
    /// # Errors
    /// When there is no space: the range then still counts as needed.
    pub fn append(&self, range: ByteRange) -> io::Result<()> {
        let count = self.count();
        if let Some(last) = count.checked_sub(1) {
            let at = HEADER + last * RECORD;
            if self.mapping.load(at + 8) == range.start() {
                return self.mapping.publish(at + 8, range.end());
            }
        }
        let at = HEADER + count * RECORD;
        if self.mapping.len() < at + RECORD {
            self.mapping.grow(self.mapping.len() * 2)?;
        }
        self.mapping.store(at, range.start())?;
        self.mapping.store(at + 8, range.end())?;
        self.mapping.publish(16, count + 1)
    }

    fn count(&self) -> u64 {
        self.mapping.load(16)
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a log of released ranges")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge() {
        let mut set = RangeSet::default();
        for (start, end) in [(10, 20), (30, 40), (0, 5), (20, 25), (24, 31)] {
            set.insert(ByteRange::between(start, end));
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [ByteRange::between(0, 5), ByteRange::between(10, 40)]);
        assert!(set.contains(ByteRange::between(12, 40)) && !set.contains(ByteRange::between(4, 11)));
        assert!(set.overlaps(ByteRange::between(4, 10)) && !set.overlaps(ByteRange::between(5, 10)));
        assert_eq!(set.bytes(), 35);
    }
}
