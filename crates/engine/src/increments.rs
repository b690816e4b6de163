//! Large changes go in increments: each waits only for its own grains (R10).
//!
//! ```text
//!  one ticket, one tag ──▶ save 1 ──▶ change 1 ──▶ save 3 ──▶ change 3 ──▶ …
//!                     └──▶ save 2 ──▶ change 2 ──▶ …
//! ```
//!
//! # Invariants
//! 1. A change is admitted once: whatever begins meanwhile finds all of it before T0, or all of it after. T0 never splits it.
//! 2. What has not landed is in the ticket's range: the range becomes shorter only by increments before which all have landed.
//! 3. Two increments are on their way at most, whatever the length of the change: originals of as much are in memory.
//!
//! A change that fails may be there in part, as on any disk; every part that is has its originals.

use std::cell::{Cell, RefCell};

use tzero_block::ByteRange;
use tzero_io::together;

use crate::admission::Ticket;
use crate::platform::Platform;
use crate::points::{Event, Planted};
use crate::volume::Volume;

/// Increments on their way at once.
const LANES: usize = 2;

impl<P: Platform> Volume<P> {
    /// Whether a change goes in increments: it is longer than one, and may have something to wait for.
    pub(crate) fn goes_in_increments(&self, range: ByteRange) -> bool {
        // The first look costs a change that is settled nothing.
        range.len() > self.platform.increment()
            && range.len() > self.increment()
            && self.pending.any(self.grains().touched(range))
    }

    /// Has `change` done for each increment of a change that has this ticket. The first failure ends it.
    pub(crate) async fn in_increments<E>(
        &self,
        range: ByteRange,
        ticket: &Ticket<'_>,
        change: impl AsyncFn(ByteRange) -> Result<(), E>,
    ) -> Result<(), E> {
        let left = RefCell::new(range.pieces(self.increment()).peekable());
        let (landing, failed) = (RefCell::new(Vec::new()), Cell::new(false));
        let lane = async || {
            loop {
                let Some(piece) = left.borrow_mut().next().filter(|_| !failed.get()) else { return Ok(()) };
                landing.borrow_mut().push(piece.start());
                let early = self.platform.planted(Planted::LandedTooEarly);
                if early {
                    ticket.landed(piece.end());
                }
                if let Err(error) = change(piece).await {
                    failed.set(true);
                    return Err(error);
                }
                landing.borrow_mut().retain(|start| *start != piece.start());
                let first_left = landing.borrow().iter().min().copied();
                let from = first_left.or_else(|| left.borrow_mut().peek().map(|next| next.start()));
                if let Some(from) = from.filter(|_| !early && !failed.get()) {
                    ticket.landed(from);
                    self.platform.observe(Event::IncrementLanded { tag: ticket.tag() });
                }
            }
        };
        together((0..LANES).map(|_| lane())).await.into_iter().collect()
    }

    /// Bytes of an increment: whole grains.
    fn increment(&self) -> u64 {
        self.platform.increment().next_multiple_of(self.grains().grain())
    }
}
