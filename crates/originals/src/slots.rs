//! Which places of a file are taken: slots of the cache, positions of the map.
//!
//! Freed places are given out again before the file grows, the longest free first (R20), in runs as long as can be had.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// Places `0 .. limit`, given out and taken back.
#[derive(Debug)]
pub(crate) struct Slots {
    free: VecDeque<Range<u64>>,
    free_count: u64,
    next: u64,
    limit: u64,
}

impl Slots {
    /// All places free.
    pub(crate) fn new(limit: u64) -> Self {
        Self { free: VecDeque::new(), free_count: 0, next: 0, limit }
    }

    /// All places free but `taken`.
    pub(crate) fn with_taken(limit: u64, taken: &BTreeSet<u64>) -> Self {
        let mut slots = Self::new(limit);
        for &place in taken {
            if place > slots.next {
                slots.put_back(slots.next..place);
            }
            slots.next = place + 1;
        }
        slots
    }

    /// `count` places as runs, or `None` (and nothing taken) if there are not as many.
    pub(crate) fn take(&mut self, count: u64) -> Option<Vec<Range<u64>>> {
        if self.free_count + self.limit.saturating_sub(self.next) < count {
            return None;
        }
        let mut runs = Vec::new();
        let mut left = count;
        while left > 0 {
            let Some(mut run) = self.free.pop_front() else {
                runs.push(self.next..self.next + left);
                self.next += left;
                break;
            };
            let taken = (run.end - run.start).min(left);
            runs.push(run.start..run.start + taken);
            run.start += taken;
            left -= taken;
            self.free_count -= taken;
            if !run.is_empty() {
                self.free.push_front(run);
            }
        }
        Some(runs)
    }

    /// Gives places back.
    pub(crate) fn put_back(&mut self, run: Range<u64>) {
        self.free_count += run.end - run.start;
        match self.free.back_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            Some(last) if run.end == last.start => last.start = run.start,
            _ => self.free.push_back(run),
        }
    }

    /// How many places are taken.
    pub(crate) fn taken(&self) -> u64 {
        self.next - self.free_count
    }

    /// How many there may be.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Changes how many there may be.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(runs: &[(u64, u64)]) -> Option<Vec<Range<u64>>> {
        Some(runs.iter().map(|(start, end)| *start..*end).collect())
    }

    #[test]
    fn oldest_free_first_then_growth_then_nothing() {
        let mut slots = Slots::new(10);
        assert_eq!(slots.take(6), runs(&[(0, 6)]));
        slots.put_back(4..5);
        slots.put_back(1..3);
        assert_eq!(slots.take(8), None);
        assert_eq!(slots.taken(), 3);
        assert_eq!(slots.take(4), runs(&[(4, 5), (1, 3), (6, 7)]));
        assert_eq!(slots.take(3), runs(&[(7, 10)]));
        assert_eq!(slots.take(1), None);
    }

    #[test]
    fn what_was_taken_stays_taken() {
        let mut slots = Slots::with_taken(8, &BTreeSet::from([1, 2, 5]));
        assert_eq!(slots.taken(), 3);
        assert_eq!(slots.take(5), runs(&[(0, 1), (3, 5), (6, 8)]));
    }
}
