//! The pending bitmap: "some snapshot may still need what the base holds here".
//!
//! A clear bit is certain, a set bit is not: whoever meets one asks the snapshots and the index. The bitmap lives in ordinary memory and
//! is derived from them.
//!
//! # Invariants
//! 1. A clear bit in a chunk whose stamp is current: no snapshot needs the grain from the base.
//! 2. Arming costs one store: it makes every chunk stale, and a stale chunk counts as all pending until it is
//!    filled.
//! 3. Filling, clearing and arming happen under the volume's lock, testing does not.
//!
//! | | test | fill | clear | arm |
//! |---|---|---|---|---|
//! | **test** | | bits first, stamp last | a bit seen set costs a look, no more | before the epoch starts: a request of the new epoch sees it |
//! | **fill, clear, arm** | | lock | lock | lock |

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Grains of a chunk.
const CHUNK: u64 = 4096;
const WORDS_PER_CHUNK: u64 = CHUNK / 64;

/// One bit for each grain of a volume.
pub(crate) struct Pending {
    count: u64,
    words: Box<[AtomicU64]>,
    stamps: Box<[AtomicU64]>,
    /// Stamp of the newest arming.
    armed: AtomicU64,
    /// No snapshot stands: nothing is pending, whatever the bits say.
    idle: AtomicBool,
}

fn zeroes(count: u64) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl Pending {
    /// Nothing is pending in `count` grains.
    pub(crate) fn new(count: u64) -> Self {
        let chunks = count.div_ceil(CHUNK);
        Self {
            count,
            words: zeroes(chunks * WORDS_PER_CHUNK),
            stamps: zeroes(chunks),
            armed: AtomicU64::new(0),
            idle: AtomicBool::new(true),
        }
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
            if self.stamps[(at / CHUNK) as usize].load(Ordering::Acquire) != armed {
                return Some(at);
            }
            let end = (at / 64 * 64 + 64).min(grains.end);
            let set = self.words[(at / 64) as usize].load(Ordering::Acquire) & mask(at, end);
            if set != 0 {
                return Some(at / 64 * 64 + u64::from(set.trailing_zeros()));
            }
            at = end;
        }
        None
    }

    /// Whether the grain may be pending; fills its chunk first. Under the volume's lock.
    pub(crate) fn test_filled(&self, grain: u64, forget_last: bool) -> bool {
        if self.idle.load(Ordering::Acquire) {
            return false;
        }
        self.fill(grain / CHUNK, forget_last);
        self.words[(grain / 64) as usize].load(Ordering::Acquire) & 1 << (grain % 64) != 0
    }

    /// Clears a bit. Under the volume's lock, by a decision made under the same hold of it.
    pub(crate) fn clear(&self, grain: u64) {
        self.words[(grain / 64) as usize].fetch_and(!(1 << (grain % 64)), Ordering::Release);
    }

    /// Clears the bits of a range, as by [`Self::clear`] for each.
    pub(crate) fn clear_all(&self, grains: Range<u64>) {
        let mut at = grains.start;
        while at < grains.end {
            if at.is_multiple_of(CHUNK) || at == grains.start {
                self.fill(at / CHUNK, false);
            }
            let end = (at / 64 * 64 + 64).min(grains.end);
            self.words[(at / 64) as usize].fetch_and(!mask(at, end), Ordering::Release);
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

    /// `forget_last` is the planted fault that leaves out the last grain.
    fn fill(&self, chunk: u64, forget_last: bool) {
        let armed = self.armed.load(Ordering::Acquire);
        let stamp = &self.stamps[chunk as usize];
        if stamp.load(Ordering::Acquire) == armed {
            return;
        }
        let end = if forget_last { self.count - 1 } else { self.count };
        for word in chunk * WORDS_PER_CHUNK..(chunk + 1) * WORDS_PER_CHUNK {
            let bits = mask_within(word * 64, end);
            self.words[word as usize].store(bits, Ordering::Release);
        }
        stamp.store(armed, Ordering::Release);
    }
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
        let pending = Pending::new(10_000);
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
}
