//! Which places of a file are taken: slots of the cache, positions of the map.
//!
//! Freed places are given out again before the file grows, the longest free first (R20), in runs as long as can be had. Places whose space
//! was given back come after those that still have theirs.
//!
//! # Invariants
//! 1. No place at or past the limit is given out, though some may be taken: the limit was higher once.
//! 2. As long as so many are taken that the limit is reached, none is given out, wherever the free ones lie.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// Places `0 .. limit`, given out and taken back.
#[derive(Debug)]
pub(crate) struct Slots {
    /// Below `next`, with space behind them.
    free: VecDeque<Range<u64>>,
    /// Below `next`, their space given back.
    bare: VecDeque<Range<u64>>,
    /// Past the limit, free for ever, with space behind them.
    past: VecDeque<Range<u64>>,
    free_count: u64,
    bare_count: u64,
    taken: u64,
    /// Of the places before `first`, how many are taken.
    first_taken: u64,
    /// Where the first tier ends.
    first: u64,
    /// From here on nothing was ever given out.
    next: u64,
    limit: u64,
}

/// The first of the tiers that places lie in (R53): they are given out from it before they are from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct First {
    /// How many places it has.
    pub(crate) places: u64,
    /// None of them is given out: there is nothing behind them.
    pub(crate) withheld: bool,
}

impl Slots {
    /// All places free.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            free: VecDeque::new(),
            bare: VecDeque::new(),
            past: VecDeque::new(),
            free_count: 0,
            bare_count: 0,
            taken: 0,
            first_taken: 0,
            first: 0,
            next: 0,
            limit,
        }
    }

    /// All places free but `taken`.
    pub(crate) fn with_taken(limit: u64, taken: &BTreeSet<u64>, first: First) -> Self {
        let mut slots = Self { first: first.places, ..Self::new(limit) };
        if first.withheld {
            slots.next = first.places;
        }
        slots.first_taken = taken.range(..first.places).count() as u64;
        for &place in taken.range(slots.next..) {
            if place > slots.next {
                slots.add_free(slots.next..place);
            }
            slots.next = place + 1;
        }
        slots.taken = taken.len() as u64;
        slots
    }

    /// How many can be had at once.
    fn available(&self) -> u64 {
        let places = self.free_count + self.bare_count + self.limit.saturating_sub(self.next);
        places.min(self.limit.saturating_sub(self.taken))
    }

    /// Of `count` places, how many more they are than were given out and are free.
    pub(crate) fn growth(&self, count: u64) -> u64 {
        count.saturating_sub(self.free_count + self.bare_count)
    }

    /// `count` places as runs, or `None` (and nothing taken) if there are not as many.
    pub(crate) fn take(&mut self, count: u64) -> Option<Vec<Range<u64>>> {
        if self.available() < count {
            return None;
        }
        let mut runs = Vec::new();
        let mut left = count;
        while left > 0 {
            let run = if let Some(run) = take_first(&mut self.free, left) {
                self.free_count -= length(&run);
                run
            } else if let Some(run) = take_first(&mut self.bare, left) {
                self.bare_count -= length(&run);
                run
            } else {
                let run = self.next..self.next + left;
                self.next = run.end;
                run
            };
            left -= length(&run);
            self.first_taken += self.in_first(&run);
            runs.push(run);
        }
        self.taken += count;
        Some(runs)
    }

    /// Gives places back.
    pub(crate) fn put_back(&mut self, run: Range<u64>) {
        self.taken -= length(&run);
        self.first_taken -= self.in_first(&run);
        self.add_free(run);
    }

    /// Forgets places that are taken: nobody gets them before the next start.
    pub(crate) fn lose(&mut self, run: Range<u64>) {
        self.taken -= length(&run);
        self.first_taken -= self.in_first(&run);
    }

    /// How many places of a run lie in the first tier.
    fn in_first(&self, run: &Range<u64>) -> u64 {
        self.first.clamp(run.start, run.end) - run.start
    }

    /// How many places of the first tier are taken.
    pub(crate) fn first_taken(&self) -> u64 {
        self.first_taken
    }

    fn add_free(&mut self, run: Range<u64>) {
        let limit = self.limit.clamp(run.start, run.end);
        add(&mut self.past, limit..run.end);
        self.free_count += limit - run.start;
        add(&mut self.free, run.start..limit);
    }

    /// Takes a run of free places aside, up to `most`, whose space is to be given back; they are not to be had until
    /// [`Self::put_bare`]. Leaves so many others that only somebody who wants most of what is left could miss them.
    pub(crate) fn take_aside(&mut self, most: u64) -> Option<Range<u64>> {
        if let Some(run) = take_first(&mut self.past, most) {
            return Some(run);
        }
        let is_all = self.taken == 0 && self.free_count + self.bare_count == self.next.min(self.limit);
        if is_all && self.free.len() > SCATTERED {
            // Nobody has any: however they lie scattered in the list, together they are everything there is.
            let all = 0..self.next.min(self.limit);
            (self.free_count, self.bare_count) = (length(&all), 0);
            (self.free, self.bare) = (VecDeque::from([all]), VecDeque::new());
        }
        let most = most.min(self.available() / SPARED);
        if most == 0 {
            return None;
        }
        let run = take_first(&mut self.free, most)?;
        self.free_count -= length(&run);
        Some(run)
    }

    /// Places that were taken aside have no space behind them any more.
    pub(crate) fn put_bare(&mut self, run: Range<u64>) {
        if run.start < self.limit {
            self.bare_count += length(&run);
            add(&mut self.bare, run);
        }
    }

    /// How many places are taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// How many there may be.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Raises how many there may be.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }
}

/// So many runs are worth being put together.
const SCATTERED: usize = 16;
/// Of what is available, at most one part in so many is taken aside.
const SPARED: u64 = 8;

fn length(run: &Range<u64>) -> u64 {
    run.end - run.start
}

fn take_first(runs: &mut VecDeque<Range<u64>>, most: u64) -> Option<Range<u64>> {
    let mut run = runs.pop_front()?;
    let taken = run.start..run.start + length(&run).min(most);
    run.start = taken.end;
    if !run.is_empty() {
        runs.push_front(run);
    }
    Some(taken)
}

fn add(runs: &mut VecDeque<Range<u64>>, run: Range<u64>) {
    if run.is_empty() {
        return;
    }
    match runs.back_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        Some(last) if run.end == last.start => last.start = run.start,
        _ => runs.push_back(run),
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
        let mut slots = Slots::with_taken(8, &BTreeSet::from([1, 2, 5]), First::default());
        assert_eq!(slots.taken(), 3);
        assert_eq!(slots.take(5), runs(&[(0, 1), (3, 5), (6, 8)]));
    }

    #[test]
    fn what_lies_in_the_first_tier_is_counted_and_can_be_withheld() {
        let first = First { places: 4, withheld: false };
        let mut slots = Slots::with_taken(8, &BTreeSet::from([1, 5]), first);
        assert_eq!(slots.first_taken(), 1);
        assert_eq!(slots.take(5), runs(&[(0, 1), (2, 5), (6, 7)]));
        assert_eq!((slots.first_taken(), slots.taken()), (4, 7));
        slots.put_back(2..5);
        slots.lose(0..1);
        assert_eq!((slots.first_taken(), slots.taken()), (1, 3));

        let mut slots = Slots::with_taken(8, &BTreeSet::from([5]), First { withheld: true, ..first });
        assert_eq!(slots.take(4), None, "there are three");
        assert_eq!(slots.take(3), runs(&[(4, 5), (6, 8)]));
        assert_eq!((slots.first_taken(), slots.taken()), (0, 4));
    }

    #[test]
    fn a_lowered_limit_gives_out_nothing_past_it_and_nothing_more_than_it() {
        // Ten were taken once, eight of them below twelve; now the limit is six.
        let mut slots = Slots::with_taken(6, &BTreeSet::from([0, 1, 4, 9, 11]), First::default());
        assert_eq!(slots.taken(), 5);
        assert_eq!(slots.take(2), None, "six and no more");
        assert_eq!(slots.take(1), runs(&[(2, 3)]));
        assert_eq!(slots.take(1), None);
        slots.put_back(9..10);
        slots.put_back(11..12);
        assert_eq!(slots.taken(), 4);
        assert_eq!(slots.take(2), runs(&[(3, 4), (5, 6)]), "9 and 11 are past the limit");
        assert_eq!(slots.take(1), None);
        assert_eq!([(); 3].map(|()| slots.take_aside(9)), [Some(6..9), Some(9..12), None], "their space is of no use");
        slots.put_bare(9..12);
        slots.put_back(0..6);
        assert_eq!(slots.take(7), None);
        assert_eq!(slots.take(6), runs(&[(0, 6)]));
    }

    #[test]
    fn space_is_given_back_and_had_again() {
        let mut slots = Slots::new(64);
        slots.take(32).unwrap();
        for place in (0..32).rev().step_by(2).chain((0..32).step_by(2)) {
            slots.put_back(place..place + 1);
        }
        let mut bare = 0;
        while let Some(run) = slots.take_aside(16) {
            assert!(length(&run) <= 8, "an eighth of what is available");
            assert!(slots.available() >= 56, "the others are to be had meanwhile");
            bare += length(&run);
            slots.put_bare(run);
        }
        assert_eq!(bare, 32, "each once");
        assert_eq!((slots.taken(), slots.available()), (0, 64));
        assert_eq!(slots.take(64).unwrap().iter().map(length).sum::<u64>(), 64);
    }
}
