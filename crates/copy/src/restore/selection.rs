//! What of a copy is restored: the ranges that were asked for, else all that the copy is of.

use tzero_block::ByteRange;
use tzero_originals::RangeSet;

use crate::digests::chunk_range;
use crate::error::RangeFault;
use crate::flow::Step;
use crate::scope::Scope;
use crate::{Copy, Error, Manifest};

/// Most ranges that one restore takes.
pub const MOST_RANGES: usize = 1024;

/// Bytes of a copy, as it is cut into chunks.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    scope: Scope,
    size: u64,
    chunk: u64,
    /// Ranges were asked for.
    is_part: bool,
}

impl Selection {
    /// Checks what was asked for against the copy.
    ///
    /// # Errors
    /// When a range is empty, ends behind the volume, overlaps another, or reaches out of the copy's scope.
    pub(super) fn of(copy: &Copy, ranges: &[ByteRange]) -> Result<Self, Error> {
        let manifest = copy.manifest();
        let fault = |range: ByteRange, fault| Err(Error::Range { copy: copy.id(), range, fault });
        let mut set = RangeSet::default();
        for range in ranges {
            if range.is_empty() {
                return fault(*range, RangeFault::Empty);
            }
            if range.end() > manifest.size() {
                return fault(*range, RangeFault::PastEnd { size: manifest.size() });
            }
            if set.overlaps(*range) {
                return fault(*range, RangeFault::Overlaps);
            }
            if manifest.scope.within(*range) != [*range] {
                return fault(*range, RangeFault::OutOfScope);
            }
            set.insert(*range);
        }
        if let Some(range) = ranges.get(MOST_RANGES) {
            return fault(*range, RangeFault::TooMany);
        }
        let scope = match ranges {
            [] => manifest.scope.clone(),
            _ => Scope::of(set.iter()).expect("ranges that overlap or touch have become one"),
        };
        Ok(Self { scope, size: manifest.size(), chunk: manifest.chunk, is_part: !ranges.is_empty() })
    }

    /// Whether ranges were asked for.
    pub(super) fn is_part(&self) -> bool {
        self.is_part
    }

    /// Whether it is every byte of the copy's volume.
    pub(super) fn is_everything(&self) -> bool {
        self.scope.is_whole()
    }

    /// Where the copy's volume ends.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Where chunk `index` lies.
    pub(super) fn chunk(&self, index: u64) -> ByteRange {
        chunk_range(index, self.chunk, self.size)
    }

    /// The ranges, ascending.
    pub(super) fn ranges(&self) -> Vec<ByteRange> {
        self.scope.within(ByteRange::new(0, self.size))
    }

    /// What of `range` is selected.
    pub(super) fn within(&self, range: ByteRange) -> Vec<ByteRange> {
        self.scope.within(range)
    }

    /// Whether every byte of chunk `index` is.
    pub(super) fn is_whole(&self, index: u64) -> bool {
        let chunk = self.chunk(index);
        self.within(chunk) == [chunk]
    }

    /// Bytes that are selected.
    pub(super) fn bytes(&self) -> u64 {
        self.scope.bytes(self.size)
    }

    /// Bytes of `range` that are.
    pub(super) fn bytes_of(&self, range: ByteRange) -> u64 {
        self.within(range).into_iter().map(ByteRange::len).sum()
    }

    /// What a target must have, in bytes.
    pub(super) fn end(&self) -> u64 {
        match self.is_everything() {
            true => self.size,
            false => self.ranges().last().map_or(0, |range| range.end()),
        }
    }

    /// Steps through chunks of which something is selected and that are `wanted`, with what they must read as.
    pub(super) fn steps(&self, manifest: &Manifest, wanted: impl Fn(u64) -> bool) -> impl Iterator<Item = Step> {
        (0..).zip(manifest.digests.iter()).filter_map(move |(index, expect)| {
            let range = self.chunk(index);
            let is_in = wanted(index) && !self.within(range).is_empty();
            is_in.then_some(Step { index, range, expect: Some(expect) })
        })
    }
}
