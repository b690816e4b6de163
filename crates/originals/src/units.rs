//! Units that must not be mixed up.

use std::fmt;
use std::ops::Range;

use tzero_block::ByteRange;

/// Number of a stretch of time between two snapshots of a volume. Starts at 1 and only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Place of a published entry in the order of publication. Starts at 1 and only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// Number of a grain within its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrainIndex(pub u64);

/// Stable identity of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub [u8; 16]);

impl SnapshotId {
    /// The id that 32 hexadecimal digits stand for.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten().map(|id| Self(id.to_be_bytes()))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a volume is cut into grains. The last one may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grains {
    shift: u32,
    size: u64,
}

impl Grains {
    /// Smallest and largest grain in bytes (R7).
    pub const LIMITS: std::ops::RangeInclusive<u32> = 512..=1 << 20;

    /// Grains of `grain` bytes over `size` bytes; `None` where the grain is no power of two within the limits.
    pub fn new(grain: u32, size: u64) -> Option<Self> {
        (grain.is_power_of_two() && Self::LIMITS.contains(&grain)).then(|| Self { shift: grain.trailing_zeros(), size })
    }

    /// The same grains over another number of bytes.
    pub const fn over(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// Bytes of a whole grain.
    pub const fn grain(self) -> u64 {
        1 << self.shift
    }

    /// Bytes of the volume.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// How many grains there are, the short last one included.
    pub const fn count(self) -> u64 {
        self.size.div_ceil(self.grain())
    }

    /// The grain that holds byte `offset`.
    pub const fn at(self, offset: u64) -> GrainIndex {
        GrainIndex(offset >> self.shift)
    }

    /// The bytes of a grain, cut at the volume's end.
    pub fn range(self, grain: GrainIndex) -> ByteRange {
        let start = grain.0 << self.shift;
        ByteRange::between(start, start.saturating_add(self.grain()).min(self.size.max(start)))
    }

    /// The bytes of neighbouring grains, cut at the volume's end.
    pub fn range_of(self, grains: &Range<u64>) -> ByteRange {
        let start = grains.start << self.shift;
        ByteRange::between(start, (grains.end << self.shift).min(self.size).max(start))
    }

    /// Indices of the grains that `range` touches.
    pub const fn touched(self, range: ByteRange) -> Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        self.at(range.start()).0..self.at(range.end() - 1).0 + 1
    }

    /// Indices of the grains that `range` covers whole.
    pub fn covered(self, range: ByteRange) -> Range<u64> {
        let first = range.start().div_ceil(self.grain());
        let last = if range.end() >= self.size { self.count() } else { self.at(range.end()).0 };
        first..last.max(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_last_grain() {
        let grains = Grains::new(4096, 10_000).unwrap();
        assert_eq!(grains.count(), 3);
        assert_eq!(grains.range(GrainIndex(2)), ByteRange::between(8192, 10_000));
        assert_eq!(grains.touched(ByteRange::new(4095, 2)), 0..2);
        assert_eq!(grains.covered(ByteRange::new(1, 9_999)), 1..3);
        assert_eq!(grains.covered(ByteRange::new(1, 5_000)), 1..1);
        assert!(Grains::new(3000, 1).is_none());
        assert!(Grains::new(256, 1).is_none());
    }
}
