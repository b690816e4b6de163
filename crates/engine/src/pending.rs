//! The pending bitmap: "some snapshot may still need what the base holds here".
//!
//! A clear bit is certain, a set bit is not: whoever meets one asks the snapshots and the index. The bitmap lives in ordinary memory and
//! is derived from them.
//!
//! # Invariants
//! 1. A clear bit in a chunk whose stamp is current: no snapshot needs the grain from the base.
//! 2. Arming costs one store: it makes every chunk stale, and a stale chunk counts as all pending until it is
//!    filled.
//! 3. Filling, clearing, arming and growing happen under the volume's lock, testing does not.
//! 4. Grains that a growth adds are pending for no snapshot that stands, and for the next one, as all are. Bits never move: a growth adds a
//!    segment of chunks behind those that are there.
//!
//! | | test | fill | clear | arm | grow |
//! |---|---|---|---|---|---|
//! | **test** | | bits first, stamp last | a bit seen set costs a look, no more | before the epoch starts: a request of the new epoch sees it | before anybody hears of the new size: who asks for a grain has one |
//! | **fill, clear, arm, grow** | | lock | lock | lock | lock |

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Grains of a chunk.
const CHUNK: u64 = 4096;
const WORDS: usize = (CHUNK / 64) as usize;
/// Most segments. Each further one is at least a quarter as long as all before it, so that more than these would be more grains than there
/// are bytes.
const SEGMENTS: usize = 160;

/// There is no memory for so many bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    /// What they would take, in bytes.
    pub needed: u64,
}

impl NoMemory {
    fn of(chunks: u64) -> Self {
        Self { needed: chunks.saturating_mul(size_of::<Chunk>() as u64) }
    }
}

impl std::fmt::Display for NoMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a bit for each of its grains takes {} bytes of memory, which the machine does not have", self.needed)
    }
}

impl std::error::Error for NoMemory {}

/// What a volume of `size` bytes takes of memory for the bits of its grains of `grain` bytes, in bytes.
pub fn memory_of_bits(size: u64, grain: u32) -> u64 {
    NoMemory::of(size.div_ceil(u64::from(grain.max(1))).div_ceil(CHUNK)).needed
}

/// Bits of neighbouring grains that are armed together.
struct Chunk {
    stamp: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Chunk {
    fn new(stamp: u64) -> Self {
        Self { stamp: AtomicU64::new(stamp), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// Chunks that came with one growth.
struct Segment {
    /// The number of its first chunk.
    start: u64,
    chunks: Box<[Chunk]>,
}

impl Segment {
    fn new(chunks: Range<u64>, stamp: u64) -> Result<Self, NoMemory> {
        let start = chunks.start;
        let none = NoMemory::of(chunks.end - start);
        let mut all = Vec::new();
        all.try_reserve_exact(usize::try_from(chunks.end - start).map_err(|_| none)?).map_err(|_| none)?;
        all.extend(chunks.map(|_| Chunk::new(stamp)));
        Ok(Self { start, chunks: all.into_boxed_slice() })
    }

    fn end(&self) -> u64 {
        self.start + self.chunks.len() as u64
    }

    fn chunk(&self, chunk: u64) -> Option<&Chunk> {
        self.chunks.get(usize::try_from(chunk.checked_sub(self.start)?).ok()?)
    }
}

/// One bit for each grain of a volume.
pub(crate) struct Pending {
    /// Under the volume's lock.
    count: AtomicU64,
    first: Segment,
    further: Box<[OnceLock<Segment>; SEGMENTS]>,
    /// Stamp of the newest arming.
    armed: AtomicU64,
    /// No snapshot stands: nothing is pending, whatever the bits say.
    idle: AtomicBool,
}

impl Pending {
    /// Nothing is pending in `count` grains.
    ///
    /// # Errors
    /// Where there is no memory for their bits.
    pub(crate) fn new(count: u64) -> Result<Self, NoMemory> {
        Ok(Self {
            count: AtomicU64::new(count),
            first: Segment::new(0..count.div_ceil(CHUNK), 0)?,
            further: Box::new([const { OnceLock::new() }; SEGMENTS]),
            armed: AtomicU64::new(0),
            idle: AtomicBool::new(true),
        })
    }

    /// Makes sure that there are bits for so many grains. Under the volume's lock.
    ///
    /// # Errors
    /// Where there is no memory for them: then nothing has changed.
    pub(crate) fn reserve(&self, count: u64) -> Result<(), NoMemory> {
        let needed = count.div_ceil(CHUNK);
        let known = self.further.iter().map_while(OnceLock::get);
        let end = known.last().map_or(self.first.end(), Segment::end);
        if needed > end {
            let armed = self.armed.load(Ordering::Acquire);
            let place = self.further.iter().find(|place| place.get().is_none());
            let segment = Segment::new(end..needed.max(end + end / 4), armed)?;
            let taken = place.is_some_and(|place| place.set(segment).is_ok());
            assert!(taken, "there is always a place for one more");
        }
        Ok(())
    }

    /// More grains, which are pending for nobody. Under the volume's lock, before anybody hears of them.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub(crate) fn grow(&self, count: u64) -> Result<(), NoMemory> {
        self.reserve(count)?;
        self.count.store(count, Ordering::Release);
        Ok(())
    }

    /// The chunk of a grain that the volume has.
    fn chunk_of(&self, grain: u64) -> &Chunk {
        let chunk = grain / CHUNK;
        let further = || self.further.iter().map_while(OnceLock::get).find_map(|segment| segment.chunk(chunk));
        self.first.chunk(chunk).or_else(further).expect("nobody asks for grains that the volume does not have")
    }

    /// Whether a grain of the range may be pending.
    pub(crate) fn any(&self, grains: Range<u64>) -> bool {
        self.first(grains).is_some()
    }

    /// The first grain of the range that may be pending. The settled path's whole cost: a load for the volume, one for each chunk, one for
    /// each 64 grains. No lock, no allocation.
    pub(crate) fn first(&self, grains: Range<u64>) -> Option<u64> {
        if self.idle.load(Ordering::Acquire) {
            return None;
        }
        let armed = self.armed.load(Ordering::Acquire);
        let mut at = grains.start;
        while at < grains.end {
            let chunk = self.chunk_of(at);
            if chunk.stamp.load(Ordering::Acquire) != armed {
                return Some(at);
            }
            let last = (at / CHUNK * CHUNK + CHUNK).min(grains.end);
            while at < last {
                let end = (at / 64 * 64 + 64).min(last);
                let set = chunk.words[word_of(at)].load(Ordering::Acquire) & mask(at, end);
                if set != 0 {
                    return Some(at / 64 * 64 + u64::from(set.trailing_zeros()));
                }
                at = end;
            }
        }
        None
    }

    /// Whether the grain may be pending; fills its chunk first. Under the volume's lock.
    pub(crate) fn test_filled(&self, grain: u64, forget_last: bool) -> bool {
        if self.idle.load(Ordering::Acquire) {
            return false;
        }
        self.fill(grain, forget_last);
        self.chunk_of(grain).words[word_of(grain)].load(Ordering::Acquire) & 1 << (grain % 64) != 0
    }

    /// Clears a bit. Under the volume's lock, by a decision made under the same hold of it.
    pub(crate) fn clear(&self, grain: u64) {
        self.chunk_of(grain).words[word_of(grain)].fetch_and(!(1 << (grain % 64)), Ordering::Release);
    }

    /// Clears the bits of a range, as by [`Self::clear`] for each.
    pub(crate) fn clear_all(&self, grains: Range<u64>) {
        let mut at = grains.start;
        while at < grains.end {
            if at.is_multiple_of(CHUNK) || at == grains.start {
                self.fill(at, false);
            }
            let end = (at / 64 * 64 + 64).min(grains.end);
            self.chunk_of(at).words[word_of(at)].fetch_and(!mask(at, end), Ordering::Release);
            at = end;
        }
    }

    /// Everything is pending again. Under the volume's lock, before the epoch starts.
    pub(crate) fn arm(&self) {
        self.armed.fetch_add(1, Ordering::AcqRel);
        self.idle.store(false, Ordering::Release);
    }

    /// No snapshot stands any more. Under the volume's lock.
    pub(crate) fn disarm(&self) {
        self.idle.store(true, Ordering::Release);
    }

    /// Fills the chunk of a grain. `forget_last` is the planted fault that leaves out the last grain.
    fn fill(&self, grain: u64, forget_last: bool) {
        let armed = self.armed.load(Ordering::Acquire);
        let chunk = self.chunk_of(grain);
        if chunk.stamp.load(Ordering::Acquire) == armed {
            return;
        }
        let count = self.count.load(Ordering::Acquire);
        let end = if forget_last { count - 1 } else { count };
        for (start, word) in (grain / CHUNK * CHUNK..).step_by(64).zip(&chunk.words) {
            word.store(mask_within(start, end), Ordering::Release);
        }
        chunk.stamp.store(armed, Ordering::Release);
    }
}

/// Where in its chunk the word of a grain is.
fn word_of(grain: u64) -> usize {
    (grain % CHUNK / 64) as usize
}

/// Bits of the grains `from .. to`, which lie in one word.
fn mask(from: u64, to: u64) -> u64 {
    let count = to - from;
    let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
    ones << (from % 64)
}

/// Bits of the word that starts at grain `from`, up to grain `end`.
fn mask_within(from: u64, end: u64) -> u64 {
    if from >= end { 0 } else { mask(from, end.min(from + 64)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arming_makes_all_pending_and_clearing_is_exact() {
        let pending = Pending::new(10_000).unwrap();
        assert!(!pending.any(0..10_000));
        pending.arm();
        assert!(pending.any(9_999..10_000));
        for grain in 4_000..4_200 {
            assert!(pending.test_filled(grain, false));
            pending.clear(grain);
        }
        assert!(!pending.any(4_000..4_200));
        assert!(pending.any(3_999..4_200) && pending.any(4_000..4_201));
        pending.arm();
        assert!(pending.any(4_000..4_001));
        assert!(pending.test_filled(4_000, false));
        pending.clear_all(4_000..9_000);
        assert_eq!(pending.first(4_000..10_000), Some(9_000));
        assert_eq!(pending.first(3_990..4_010), Some(3_990));
        assert_eq!(pending.first(4_000..9_000), None);
        pending.disarm();
        assert!(!pending.any(0..10_000));
    }

    #[test]
    fn grains_that_are_added_are_pending_for_whoever_comes_next() {
        let pending = Pending::new(10).unwrap();
        pending.arm();
        assert!(pending.test_filled(9, false));
        let mut count = 10;
        for more in [11, 4096, 4097, 50_000, 50_001, 3_000_000] {
            pending.grow(more).unwrap();
            // The chunk of the old end may be stale; what is filled says only what is there.
            for grain in [count, more - 1].into_iter().filter(|grain| grain / CHUNK > (count - 1) / CHUNK) {
                assert_eq!(pending.first(grain..grain + 1), None, "{grain} of {more}");
            }
            assert!(pending.any(0..more), "the old ones stay");
            pending.arm();
            for grain in std::collections::BTreeSet::from([0, count, more / 2, more - 1]) {
                assert!(pending.any(grain..grain + 1) && pending.test_filled(grain, false), "{grain} of {more}");
                pending.clear(grain);
                assert!(!pending.any(grain..grain + 1));
            }
            count = more;
        }
        pending.clear_all(0..count);
        assert_eq!(pending.first(0..count), None);
        assert!(pending.reserve(u64::MAX / 512).is_err_and(|none| none.needed > u64::MAX / 512 / 8));
        pending.grow(count + 1).unwrap();
        assert_eq!(pending.first(0..count + 1), None, "the last chunk is filled, and its new grain is nobody's");
    }
}
