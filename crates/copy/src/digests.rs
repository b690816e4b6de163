//! BLAKE3 digests of a copy's chunks.
//!
//! A stretch of chunks that are all zero is one entry, in memory and in text, so that a sparse volume's list stays
//! short and a forged length cannot ask for memory that its file does not fill.

use serde::{Deserialize, Serialize};
use tzero_block::ByteRange;
use tzero_io::is_zero;

use crate::hex;

/// Bytes that one digest covers, except at the volume's end.
pub const CHUNK: u64 = 4 << 20;

/// BLAKE3 of a chunk's bytes at T0; holes count as zeroes.
pub type Digest = [u8; 32];

/// Where chunk `index` of a volume of `size` bytes lies.
///
/// # Panics
/// If there is no such chunk.
pub(crate) fn chunk_range(index: u64, chunk: u64, size: u64) -> ByteRange {
    let start = index.checked_mul(chunk).filter(|start| *start < size).expect("a chunk starts inside its volume");
    ByteRange::between(start, size.min(start.saturating_add(chunk)))
}

/// How many chunks a volume has.
pub(crate) const fn chunk_count(chunk: u64, size: u64) -> u64 {
    size.div_ceil(chunk)
}

/// What a copy should read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkDigest {
    /// Every byte is zero.
    Zero,
    /// Some byte is not.
    Data(Digest),
}

impl ChunkDigest {
    /// Of all bytes of a chunk.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        if is_zero(bytes) { Self::Zero } else { Self::Data(*blake3::hash(bytes).as_bytes()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Zero(u64),
    Data(Digest),
}

/// The digests of consecutive chunks. In JSON a list of strings: 64 hex digits, or `0*N` for `N` chunks of zeroes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Digests {
    runs: Vec<Run>,
    count: u64,
}

/// An entry of a list of digests is neither 64 hex digits nor `0*N`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a chunk's digest is 64 hex digits, or 0*N")]
pub struct InvalidDigests;

impl Digests {
    /// Adds the next chunk's.
    pub fn push(&mut self, digest: ChunkDigest) {
        self.count += 1;
        match (digest, self.runs.last_mut()) {
            (ChunkDigest::Zero, Some(Run::Zero(count))) => *count += 1,
            (ChunkDigest::Zero, _) => self.runs.push(Run::Zero(1)),
            (ChunkDigest::Data(digest), _) => self.runs.push(Run::Data(digest)),
        }
    }

    /// How many chunks.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// One chunk after the other.
    pub fn iter(&self) -> impl Iterator<Item = ChunkDigest> {
        self.runs.iter().flat_map(|run| match *run {
            Run::Zero(count) => (0..count).map(zero as fn(u64) -> ChunkDigest).chain(None),
            Run::Data(digest) => (0..0).map(zero as fn(u64) -> ChunkDigest).chain(Some(ChunkDigest::Data(digest))),
        })
    }
}

fn zero(_: u64) -> ChunkDigest {
    ChunkDigest::Zero
}

impl FromIterator<ChunkDigest> for Digests {
    fn from_iter<T: IntoIterator<Item = ChunkDigest>>(digests: T) -> Self {
        let mut list = Self::default();
        digests.into_iter().for_each(|digest| list.push(digest));
        list
    }
}

impl TryFrom<Vec<String>> for Digests {
    type Error = InvalidDigests;

    fn try_from(texts: Vec<String>) -> Result<Self, InvalidDigests> {
        let mut list = Self::default();
        for text in texts {
            let run = match text.strip_prefix("0*") {
                Some(count) => Run::Zero(count.parse().ok().filter(|count| *count > 0).ok_or(InvalidDigests)?),
                None => Run::Data(hex::decode(&text).ok_or(InvalidDigests)?),
            };
            let count = if let Run::Zero(count) = run { count } else { 1 };
            list.count = list.count.checked_add(count).ok_or(InvalidDigests)?;
            list.runs.push(run);
        }
        Ok(list)
    }
}

impl From<Digests> for Vec<String> {
    fn from(list: Digests) -> Self {
        list.runs
            .iter()
            .map(|run| match run {
                Run::Zero(count) => format!("0*{count}"),
                Run::Data(digest) => hex::encode(digest),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_zeroes_are_one_entry() {
        let data = ChunkDigest::Data([7; 32]);
        let plain = [ChunkDigest::Zero, ChunkDigest::Zero, data, data, ChunkDigest::Zero];
        let list: Digests = plain.into_iter().collect();
        let texts: Vec<String> = list.clone().into();
        assert_eq!(texts, ["0*2".to_owned(), "07".repeat(32), "07".repeat(32), "0*1".to_owned()]);
        let back = Digests::try_from(texts).unwrap();
        assert_eq!(back, list);
        assert_eq!(back.iter().collect::<Vec<_>>(), plain);
        assert_eq!(back.len(), 5);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "0*", "0*0", "0*-1", "0*99999999999999999999", "07", &"7G".repeat(32), "*"] {
            assert_eq!(Digests::try_from(vec![text.to_owned()]), Err(InvalidDigests), "{text}");
        }
        let most = format!("0*{}", u64::MAX);
        assert_eq!(Digests::try_from(vec![most, "0*1".into()]), Err(InvalidDigests));
    }

    #[test]
    fn the_last_chunk_is_what_is_left() {
        assert_eq!(chunk_count(4, 9), 3);
        assert_eq!(chunk_range(2, 4, 9), ByteRange::new(8, 1));
        assert_eq!(chunk_range(1, 4, 9), ByteRange::new(4, 4));
        assert_eq!(chunk_count(4, 0), 0);
    }
}
