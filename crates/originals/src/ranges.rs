//! Sets of ranges, in memory and on record: what a snapshot has released, what its scope is.
//!
//! File: word 0 magic `TZERORLS`, word 1 version, word 2 count, then records of two words (start byte, end byte).
//! A record is written before the count that covers it, its start before its end; a record that continues the last one replaces its end in one
//! store.

use std::collections::BTreeMap;
use std::io;

use tzero_block::ByteRange;
use tzero_io::{Mapping, Storage};

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

    /// Takes a range out.
    pub fn remove(&mut self, range: ByteRange) {
        while let Some((&start, &end)) = self.ranges.range(..range.end()).next_back() {
            if end <= range.start() {
                break;
            }
            self.ranges.remove(&start);
            if start < range.start() {
                self.ranges.insert(start, range.start());
            }
            if range.end() < end {
                self.ranges.insert(range.end(), end);
            }
        }
    }

    /// Whether a byte of `range` is in the set.
    pub fn overlaps(&self, range: ByteRange) -> bool {
        !range.is_empty() && self.ranges.range(..range.end()).next_back().is_some_and(|(_, end)| *end > range.start())
    }

    /// Whether all of `range` is in the set.
    pub fn contains(&self, range: ByteRange) -> bool {
        self.ranges.range(..=range.start()).next_back().is_some_and(|(_, end)| *end >= range.end())
    }

    /// The parts of `range` that are not in the set, ascending.
    pub fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut missing = Vec::new();
        let mut at = range.start();
        let before = self.ranges.range(..=at).next_back();
        for (start, end) in before.into_iter().chain(self.ranges.range(at + 1..range.end().max(at + 1))) {
            if at < *start {
                missing.push(ByteRange::between(at, *start));
            }
            at = at.max(*end);
        }
        if at < range.end() {
            missing.push(ByteRange::between(at, range.end()));
        }
        missing
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

/// The persistent form of a set of ranges.
pub struct RangeLog<M> {
    mapping: M,
}

impl<M: Mapping> RangeLog<M> {
    /// Opens the log `name`, or makes an empty one.
    ///
    /// # Errors
    /// When there is no space, or what is there is not such a log (`InvalidData`).
    pub fn open_or_create<S: Storage<Mapping = M>>(storage: &S, name: &str) -> io::Result<Self> {
        let mapping = storage.open(name, HEADER + FIRST_RECORDS * RECORD)?;
        if mapping.len() >= HEADER && mapping.load(0) == 0 {
            mapping.store(8, VERSION)?;
            mapping.publish(0, MAGIC)?;
        }
        let fits = mapping.len() >= HEADER && mapping.load(0) == MAGIC && mapping.load(8) == VERSION;
        let log = Self { mapping };
        if fits { Ok(log) } else { Err(invalid()) }
    }

    /// The set. A record that is not there whole was never relied upon, and counts as none.
    ///
    /// # Errors
    /// When a record is malformed (`InvalidData`).
    pub fn load(&self) -> io::Result<RangeSet> {
        if self.count() > self.capacity() {
            return Err(invalid());
        }
        let mut set = RangeSet::default();
        for index in 0..self.count() {
            let at = HEADER + index * RECORD;
            match (self.mapping.load(at), self.mapping.load(at + 8)) {
                (_, 0) => {}
                (start, end) if start > end => return Err(invalid()),
                (start, end) => set.insert(ByteRange::between(start, end)),
            }
        }
        Ok(set)
    }

    /// Makes of what a loss of power has left a log: records that the file has lost were not relied upon.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn mend(&self) -> io::Result<()> {
        if self.count() > self.capacity() { self.mapping.publish(16, self.capacity()) } else { Ok(()) }
    }

    /// How many records the file has room for.
    fn capacity(&self) -> u64 {
        (self.mapping.len() - HEADER) / RECORD
    }

    /// Adds a range. From its return on this survives the process.
    ///
    /// # Errors
    /// When there is no space: the range is then not in the set.
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
        // Each a store of its own, in this order: whatever a loss of power leaves, an end belongs to its start.
        if self.mapping.load(at + 8) != 0 {
            self.mapping.publish(at + 8, 0)?;
        }
        self.mapping.publish(at, range.start())?;
        self.mapping.publish(at + 8, range.end())?;
        self.mapping.publish(16, count + 1)
    }

    /// Makes what was added durable against power loss.
    ///
    /// # Errors
    /// When the device says so.
    pub async fn durable(&self) -> io::Result<()> {
        self.mapping.durable().await
    }

    fn count(&self) -> u64 {
        self.mapping.load(16)
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a log of ranges")
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

    #[test]
    fn what_is_taken_out_leaves_the_rest() {
        let mut set = RangeSet::default();
        for (start, end) in [(0, 10), (20, 30), (40, 50)] {
            set.insert(ByteRange::between(start, end));
        }
        let mut take = |start, end| {
            set.remove(ByteRange::between(start, end));
            set.iter().map(|range| (range.start(), range.end())).collect::<Vec<_>>()
        };
        assert_eq!(take(10, 20), [(0, 10), (20, 30), (40, 50)]);
        assert_eq!(take(3, 5), [(0, 3), (5, 10), (20, 30), (40, 50)]);
        assert_eq!(take(8, 45), [(0, 3), (5, 8), (45, 50)]);
        assert_eq!(take(0, 99), []);
    }

    #[test]
    fn what_is_missing_is_the_rest() {
        let mut random = 1_u64;
        for _ in 0..2000 {
            let mut draw = |bound: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 33) % bound
            };
            let (mut set, mut has) = (RangeSet::default(), [false; 64]);
            for _ in 0..draw(6) {
                let (start, len) = (draw(60), draw(5));
                set.insert(ByteRange::new(start, len));
                has[start as usize..(start + len) as usize].fill(true);
            }
            let start = draw(64);
            let range = ByteRange::new(start, draw(65 - start));
            let missing = set.missing(range);
            assert!(
                missing.iter().all(|part| !part.is_empty())
                    && missing.windows(2).all(|two| two[0].end() < two[1].start())
            );
            for byte in 0..64 {
                let said = missing.iter().any(|part| part.start() <= byte && byte < part.end());
                let inside = range.start() <= byte && byte < range.end();
                assert_eq!(said, inside && !has[byte as usize], "byte {byte} of {range} in {set:?}: {missing:?}");
            }
        }
    }
}
