//! What the payloads of all connections together may take, on whatever threads they run.
//!
//! Each connection has an allowance of its own that nobody else can use up; a client with small requests never gets to know of the others. What is
//! beyond it is borrowed here.
//!
//! # Invariants
//! 1. A connection without a request in flight may start one, of any size, whatever is left. So nobody waits for ever on a client that has stalled, and
//!    no connection is cut for stalling: a suspended host comes back to find its requests served. This is also why nothing here can
//!    deadlock: requests that were let in need nothing more to end, and once a connection's own have ended its next one may start.
//! 2. Otherwise a connection may borrow no more than what it leaves to others. Clients that stall with all they can get take a half, a
//!    quarter and so on, and never the rest.
//! 3. A connection waits before it receives a payload: it has nothing of the request but the header.
//! 4. Whoever gives back either sees that somebody waits or has given back before the one who waits looks again; see [`Waiting`].
//!
//! The most that all payloads take is thus what may be borrowed, and for every connection the larger of its allowance and one
//! request. The second part is reached only if every client stalls in a request of the largest size.

use std::sync::atomic::{AtomicUsize, Ordering};

use tzero_io::{Listen, Notify};

/// The memory that connections borrow from, in bytes.
#[derive(Default)]
pub(crate) struct Memory {
    most: usize,
    borrowed: AtomicUsize,
    waiting: AtomicUsize,
    returned: Notify,
}

impl Memory {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Lends `more` to a connection which then has `together`, if that leaves as much.
    pub(crate) fn try_lend(&self, more: usize, together: usize) -> bool {
        let lent = |borrowed: usize| {
            let borrowed = borrowed.checked_add(more)?;
            (together <= self.most.checked_sub(borrowed)?).then_some(borrowed)
        };
        self.borrowed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lent).is_ok()
    }

    /// Lends to a connection that has nothing in flight.
    pub(crate) fn lend(&self, bytes: usize) {
        self.borrowed.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.borrowed.fetch_sub(bytes, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.returned.notify_all();
        }
    }

    /// To be had before trying again to borrow.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self)
    }

    #[cfg(test)]
    pub(crate) fn borrowed(&self) -> usize {
        self.borrowed.load(Ordering::SeqCst)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("most", &self.most).field("borrowed", &self.borrowed).finish_non_exhaustive()
    }
}

/// A connection that waits for others. It counts itself and then looks at what is borrowed; who gives back changes that and then looks at the
/// count: one of the two sees the other.
pub(crate) struct Waiting<'a>(&'a Memory);

impl Waiting<'_> {
    /// Resolves when something has been given back after this call.
    pub(crate) fn returned(&self) -> Listen<'_> {
        self.0.returned.listen()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
