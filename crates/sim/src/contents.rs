//! What simulated clients write: bytes that say who wrote them and where.
//!
//! A device is looked at in *cells*. Every write fills whole cells with the pattern of its version, so that one look at
//! a cell tells whose bytes it holds, and whether all of them are of one write.

use tzero_block::ByteRange;

/// Whose bytes a cell holds: the number of a write, or [`Version::ZERO`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl Version {
    /// All bytes zero.
    pub const ZERO: Self = Self(0);
    /// What was there before the simulation began.
    pub const FIRST: Self = Self(u32::MAX);
}

/// How a device is cut into cells. The last one may be short.
#[derive(Clone, Copy, Debug)]
pub struct Cells {
    /// Bytes of a cell: a multiple of 8.
    pub cell: u64,
    /// Bytes of the device.
    pub size: u64,
}

impl Cells {
    /// How many there are.
    pub fn count(self) -> usize {
        self.size.div_ceil(self.cell) as usize
    }

    /// The bytes of a cell.
    pub fn range(self, index: usize) -> ByteRange {
        let start = index as u64 * self.cell;
        ByteRange::between(start, (start + self.cell).min(self.size))
    }

    /// The cells that `range`, which begins and ends at cell boundaries, is made of.
    pub fn of(self, range: ByteRange) -> std::ops::Range<usize> {
        assert!(range.start().is_multiple_of(self.cell), "{range} does not begin at a cell");
        assert!(range.end().is_multiple_of(self.cell) || range.end() == self.size, "{range} does not end at a cell");
        (range.start() / self.cell) as usize..range.end().div_ceil(self.cell) as usize
    }

    /// The cells of `range` with their bytes, which are those of `range`.
    pub fn split(self, range: ByteRange, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
        self.of(range).map(move |index| {
            let cell = self.range(index);
            (index, &bytes[(cell.start() - range.start()) as usize..(cell.end() - range.start()) as usize])
        })
    }

    /// Fills `bytes`, which are those of `range`, with the pattern of `version`.
    pub fn fill(self, version: Version, range: ByteRange, bytes: &mut [u8]) {
        for index in self.of(range) {
            let cell = self.range(index);
            let inside = (cell.start() - range.start()) as usize..(cell.end() - range.start()) as usize;
            fill(version, index, &mut bytes[inside]);
        }
    }
}

fn first_word(version: Version, index: usize) -> u64 {
    u64::from(version.0) | (index as u64) << 32
}

fn words(version: Version, index: usize) -> impl Iterator<Item = [u8; 8]> {
    let first = if version == Version::ZERO { 0 } else { first_word(version, index) };
    (0_u64..).map(move |at| first.wrapping_mul(2 * at + 1).to_le_bytes())
}

/// Fills one cell.
pub fn fill(version: Version, index: usize, bytes: &mut [u8]) {
    for (chunk, word) in bytes.chunks_mut(8).zip(words(version, index)) {
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Whether every byte of a cell is of `version`.
pub fn holds(version: Version, index: usize, bytes: &[u8]) -> bool {
    bytes.chunks(8).zip(words(version, index)).all(|(chunk, word)| *chunk == word[..chunk.len()])
}

/// For people: what a cell seems to hold.
pub fn describe(index: usize, bytes: &[u8]) -> String {
    if bytes.iter().all(|byte| *byte == 0) {
        return "zeroes".into();
    }
    let Some(first) = bytes.first_chunk::<8>().map(|word| u64::from_le_bytes(*word)) else {
        return format!("{bytes:02x?}");
    };
    let (version, place) = (Version(first as u32), (first >> 32) as usize);
    if holds(version, place, bytes) && place == index {
        return format!("write {}", version.0);
    }
    let whole = if holds(version, place, bytes) { "all" } else { "in part" };
    format!("what write {} put into cell {place} ({whole})", version.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_tells_its_writer_to_the_last_byte() {
        let cells = Cells { cell: 16, size: 100 };
        let range = ByteRange::between(32, 100);
        let mut bytes = vec![0; 68];
        cells.fill(Version(7), range, &mut bytes);
        for (index, cell) in cells.split(range, &bytes) {
            assert!(holds(Version(7), index, cell));
            assert!(!holds(Version(8), index, cell) || cell.len() <= 4);
            assert!(!holds(Version::ZERO, index, cell));
        }
        assert_eq!(describe(2, &bytes[..16]), "write 7");
        bytes[15] ^= 1;
        assert!(!holds(Version(7), 2, &bytes[..16]));
        assert_eq!(describe(2, &bytes[..16]), "what write 7 put into cell 2 (in part)");
    }
}
