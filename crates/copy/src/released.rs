//! What a snapshot has released, as its mover knows it.
//!
//! A released range is safe in the destination, so the daemon has let go of it: its originals are freed, and the host
//! changes the base there without saving. Its bytes of T0 cannot be read a second time, only bytes that look like them.
//!
//! # Invariants
//! 1. Everything that the daemon may have released is in here: what it said when the session began, and whatever this
//!    process reports, from before the report goes out.
//! 2. Nothing in here is ever taken from the source again.

use std::cell::RefCell;
use std::rc::Rc;

use tzero_block::ByteRange;
use tzero_originals::RangeSet;

/// The set. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Released {
    ranges: Rc<RefCell<RangeSet>>,
    keeps: bool,
}

impl Released {
    /// Of a snapshot that had released `known` when its mover began. One that `keeps` its originals never releases.
    pub(crate) fn new(known: RangeSet, keeps: bool) -> Self {
        Self { ranges: Rc::new(RefCell::new(known)), keeps }
    }

    /// The range is about to be reported.
    pub(crate) fn insert(&self, range: ByteRange) {
        if !self.keeps {
            self.ranges.borrow_mut().insert(range);
        }
    }

    /// Whether a byte of the range is released.
    pub(crate) fn overlaps(&self, range: ByteRange) -> bool {
        self.ranges.borrow().overlaps(range)
    }

    /// What of the range is not released.
    pub(crate) fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        self.ranges.borrow().missing(range)
    }
}
