//! Loss of power: what was not flushed is there or not.
//!
//! Disks and state files keep a log of what is not durable yet. Every entry has a number from one clock, so that a moment means the same
//! for all of them. A [`Cut`] says what of the log a loss of power leaves:
//!
//! - Whatever it is, what was complete when a flush (or sync) began that has succeeded is there.
//! - A disk loses by sectors: each is as it was at the last flush, or as any later write left it, whatever became of its neighbours.
//! - A state file loses by pages: each is as its stores had made it at some moment since the last sync. Pages are written back at any
//!   moment, in any order between them. What a file has grown by, and names that came or went, are there or not.

use std::cell::RefCell;
use std::rc::Rc;

use crate::executor::serial;
use crate::random::Random;

/// What of the log of a device a loss of power leaves.
#[derive(Clone)]
pub enum Cut {
    /// What had been logged before a moment, in its order.
    Before(u64),
    /// Anything that flushes allow.
    Sampled(Rc<RefCell<Random>>),
}

/// How a plan wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Anything that flushes allow, by chance.
    Sampled,
    /// All but so many of what was logged last, of all devices together.
    Last(u64),
}

impl Cut {
    /// Anything that flushes allow, following from a seed.
    pub fn sampled(seed: u64) -> Self {
        Self::Sampled(Rc::new(RefCell::new(Random::labelled(seed ^ serial(), "power"))))
    }

    /// How many of these entries, by their ascending numbers, are there, the first ones.
    pub fn prefix(&self, numbers: &[u64]) -> usize {
        match self {
            Self::Before(moment) => numbers.partition_point(|number| number < moment),
            Self::Sampled(random) => {
                let mut random = random.borrow_mut();
                match random.below(4) {
                    0 => 0,
                    1 => numbers.len(),
                    _ => random.index(numbers.len() + 1),
                }
            }
        }
    }

    /// Whether something that happened at that moment is there.
    pub fn has(&self, number: u64) -> bool {
        self.prefix(&[number]) == 1
    }
}
