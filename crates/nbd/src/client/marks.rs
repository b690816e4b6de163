//! What a flush on one connection after another may claim. Pure.
//!
//! A server acknowledges a change before it is durable. When the connection breaks, the server may have crashed, and acknowledged changes that
//! were not flushed may be gone; the server that is reached next would flush with success all the same. So a flush that was begun
//! before somebody was told of such a break fails, once for the break however many flushes there are.
//!
//! ```text
//! write ──acknowledged──▶ dirty ──flush succeeds──▶ durable
//!                           │ connection breaks
//!                           ▼
//!                        perhaps gone ──the next flush fails: told──▶ nobody relies on it
//! ```
//! Changes that were not acknowledged are no matter here: they are sent again.

/// The flush cannot claim what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost;

/// Counts of one connection's changes, and of those that replace it.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Changes that the server acknowledged without making them durable at once.
    acknowledged: u64,
    /// How many of those are durable, or known to be lost.
    settled: u64,
    /// Breaks that may have lost some.
    losses: u64,
    /// How many of those a flush has told.
    told: u64,
}

/// Where things stood when a flush began, or a write that is followed by one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    acknowledged: u64,
    known: u64,
    tells: bool,
}

impl Marks {
    /// A flush that its caller asked for begins.
    pub(crate) fn begin(&self) -> Begun {
        Begun { acknowledged: self.acknowledged, known: self.told, tells: true }
    }

    /// A write begins that a flush of ours is to make durable, or such a flush for what is there. It vouches for nothing else: earlier losses are left to be told.
    pub(crate) fn begin_write(&self) -> Begun {
        Begun { acknowledged: self.acknowledged, known: self.losses, tells: false }
    }

    pub(crate) fn acknowledge(&mut self) {
        self.acknowledged += 1;
    }

    /// Breaks that may have lost something, so far.
    pub(crate) fn losses(&self) -> u64 {
        self.losses
    }

    /// Whether a flush has something to do here.
    pub(crate) fn is_dirty(&self) -> bool {
        self.acknowledged > self.settled
    }

    /// The connection broke.
    pub(crate) fn lose(&mut self) {
        self.losses += u64::from(self.is_dirty());
    }

    /// The server says that the flush succeeded.
    pub(crate) fn flushed(&mut self, begun: Begun) -> Result<(), Lost> {
        let lost = self.losses > begun.known;
        if begun.tells {
            if lost {
                self.told = self.losses;
            }
            self.settled = self.settled.max(begun.acknowledged);
        }
        if lost { Err(Lost) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_is_told_once() {
        let mut marks = Marks::default();
        marks.lose();
        let begun = marks.begin();
        assert_eq!(marks.flushed(begun), Ok(()), "nothing was acknowledged");
        marks.acknowledge();
        assert!(marks.is_dirty());
        let begun = marks.begin();
        assert_eq!(marks.flushed(begun), Ok(()));
        marks.lose();
        let begun = marks.begin();
        assert_eq!(marks.flushed(begun), Ok(()), "what was acknowledged was durable");
        marks.acknowledge();
        marks.lose();
        marks.lose();
        let begun = marks.begin();
        assert_eq!(marks.flushed(begun), Err(Lost));
        let begun = marks.begin();
        assert_eq!((marks.flushed(begun), marks.is_dirty()), (Ok(()), false));
    }

    #[test]
    fn flushes_together_all_fail() {
        let mut marks = Marks::default();
        marks.acknowledge();
        let (before, also) = (marks.begin(), marks.begin());
        marks.lose();
        let after = marks.begin();
        assert_eq!([marks.flushed(before), marks.flushed(after), marks.flushed(also)], [Err(Lost); 3]);
        let later = marks.begin();
        assert_eq!(marks.flushed(later), Ok(()));
    }

    #[test]
    fn a_durable_write_is_its_own_affair() {
        let mut marks = Marks::default();
        marks.acknowledge();
        marks.lose();
        let write = marks.begin_write();
        marks.acknowledge();
        assert_eq!(marks.flushed(write), Ok(()));
        let write = marks.begin_write();
        marks.acknowledge();
        marks.lose();
        assert_eq!(marks.flushed(write), Err(Lost), "the break came between the write and its flush");
        let begun = marks.begin();
        assert_eq!(marks.flushed(begun), Err(Lost), "the earlier change is still to be told of");
    }
}
