//! Ranges of bytes on a device.

use std::fmt;

/// `offset .. offset + len`, in bytes. Never overflows: [`ByteRange::new`] checks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    offset: u64,
    len: u64,
}

impl ByteRange {
    /// The range of `len` bytes at `offset`, or `None` where its end would overflow.
    pub const fn checked(offset: u64, len: u64) -> Option<Self> {
        match offset.checked_add(len) {
            Some(_) => Some(Self { offset, len }),
            None => None,
        }
    }

    /// The range of `len` bytes at `offset`.
    ///
    /// # Panics
    /// If the end overflows; use [`ByteRange::checked`] for numbers from outside.
    pub const fn new(offset: u64, len: u64) -> Self {
        match Self::checked(offset, len) {
            Some(range) => range,
            None => panic!("the end of a byte range overflows"),
        }
    }

    /// The range from `start` to `end` (exclusive).
    ///
    /// # Panics
    /// If `end < start`.
    pub const fn between(start: u64, end: u64) -> Self {
        assert!(start <= end, "a byte range ends before it starts");
        Self { offset: start, len: end - start }
    }

    /// First byte.
    pub const fn start(self) -> u64 {
        self.offset
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Whether it holds no byte.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// What both hold, if that is not empty.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start().max(other.start());
        let end = self.end().min(other.end());
        (start < end).then(|| Self::between(start, end))
    }

    /// Whether a byte is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.intersection(other).is_some()
    }

    /// Whether every byte of `other` is in `self`.
    pub fn contains(self, other: Self) -> bool {
        self.start() <= other.start() && other.end() <= self.end()
    }

    /// Consecutive pieces of at most `len` bytes, cut at multiples of `len`.
    ///
    /// # Panics
    /// If `len` is zero.
    pub fn pieces(self, len: u64) -> impl Iterator<Item = ByteRange> {
        assert!(len > 0, "pieces of no length");
        let mut at = self.start();
        std::iter::from_fn(move || {
            (at < self.end()).then(|| {
                let end = (at / len).saturating_add(1).saturating_mul(len).min(self.end());
                let piece = Self::between(at, end);
                at = end;
                piece
            })
        })
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_multiples() {
        let pieces: Vec<_> = ByteRange::new(3, 10).pieces(4).collect();
        assert_eq!(pieces, [ByteRange::new(3, 1), ByteRange::new(4, 4), ByteRange::new(8, 4), ByteRange::new(12, 1)]);
        assert_eq!(ByteRange::new(5, 0).pieces(4).count(), 0);
    }

    #[test]
    fn overlap_needs_a_byte() {
        let range = ByteRange::new(4, 4);
        assert!(!range.overlaps(ByteRange::new(8, 4)));
        assert!(range.overlaps(ByteRange::new(7, 1)));
        assert_eq!(ByteRange::checked(u64::MAX, 1), None);
    }
}
