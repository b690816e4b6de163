//! Replies on their way to the client, and what the requests in flight cost.
//!
//! Replies are collected while an earlier burst is being sent and leave together in as few system calls as possible: all
//! heads stand in one stretch of memory, and only a read's payload is a vector of its own.
//!
//! # Invariants
//! 1. A request is charged before its payload is received or its task starts, and released after its reply was sent (or
//!    dropped because the client is gone): so [`Budget`] bounds requests, payloads and queued replies alike.
//! 2. Bytes of one reply are contiguous on the wire.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};

use tzero_io::{Buffer, Stream};

/// Payloads that one system call takes at most.
const BODIES_PER_SEND: usize = 32;

/// What one connection may have in flight.
#[derive(Debug)]
pub(crate) struct Budget {
    most_requests: usize,
    most_bytes: usize,
    requests: Cell<usize>,
    bytes: Cell<usize>,
}

impl Budget {
    pub(crate) fn new(most_requests: usize, most_bytes: usize) -> Self {
        Self { most_requests, most_bytes, requests: Cell::new(0), bytes: Cell::new(0) }
    }

    /// Whether a request of `cost` bytes may start. A lone request always may.
    pub(crate) fn admits(&self, cost: usize) -> bool {
        let requests = self.requests.get();
        requests == 0 || (requests < self.most_requests && cost <= self.most_bytes.saturating_sub(self.bytes.get()))
    }

    /// Charges a request of `cost` bytes. It is released by its reply, or with the value returned here if it never starts.
    pub(crate) fn charge(&self, cost: usize) -> Charge<'_> {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + cost);
        Charge { budget: self, load: Load { requests: 1, bytes: cost } }
    }

    fn release(&self, load: Load) {
        self.requests.set(self.requests.get() - load.requests);
        self.bytes.set(self.bytes.get() - load.bytes);
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests.get() == 0
    }
}

/// A request that was charged and has not started.
#[must_use = "dropping it releases the request"]
pub(crate) struct Charge<'a> {
    budget: &'a Budget,
    load: Load,
}

impl Charge<'_> {
    /// From here on the request's reply releases it.
    pub(crate) fn start(self) {
        std::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.budget.release(self.load);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    requests: usize,
    bytes: usize,
}

/// Replies that leave together.
#[derive(Default)]
struct Burst {
    /// Heads of all replies, and payloads that are not worth a vector.
    heads: Vec<u8>,
    /// Payloads, and where in `heads` each is to be inserted.
    bodies: Vec<(usize, Buffer)>,
    load: Load,
}

impl Burst {
    fn clear(&mut self) {
        self.heads.clear();
        self.bodies.clear();
        self.load = Load::default();
    }

    async fn send(&self, stream: &Stream) -> io::Result<()> {
        let mut sent = 0;
        for group in self.bodies.chunks(BODIES_PER_SEND) {
            let mut slices = [IoSlice::new(&[]); 2 * BODIES_PER_SEND];
            for (pair, (place, body)) in slices.as_chunks_mut::<2>().0.iter_mut().zip(group) {
                *pair = [IoSlice::new(&self.heads[sent..*place]), IoSlice::new(body)];
                sent = *place;
            }
            stream.send_all(&slices[..2 * group.len()]).await?;
        }
        if sent < self.heads.len() {
            stream.send_all(&[IoSlice::new(&self.heads[sent..])]).await?;
        }
        Ok(())
    }
}

/// Replies that wait to be sent.
pub(crate) struct Outbox {
    waiting: RefCell<Burst>,
    closed: Cell<bool>,
    pub(crate) budget: Budget,
}

impl Outbox {
    pub(crate) fn new(budget: Budget) -> Self {
        Self { waiting: RefCell::default(), closed: Cell::new(false), budget }
    }

    /// Queues the reply to a request that was charged with `cost`: what `head` appends, then `body`.
    pub(crate) fn push(&self, cost: usize, head: impl FnOnce(&mut Vec<u8>), body: Option<Buffer>) {
        let load = Load { requests: 1, bytes: cost };
        if self.closed.get() {
            return self.budget.release(load);
        }
        let mut waiting = self.waiting.borrow_mut();
        head(&mut waiting.heads);
        if let Some(body) = body {
            let place = waiting.heads.len();
            waiting.bodies.push((place, body));
        }
        waiting.load.requests += load.requests;
        waiting.load.bytes += load.bytes;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.borrow().load.requests == 0
    }

    /// Nothing will be sent any more: replies are dropped from now on.
    fn close(&self) {
        self.closed.set(true);
        let mut waiting = self.waiting.borrow_mut();
        self.budget.release(waiting.load);
        waiting.clear();
    }
}

/// Sends what waits in the outbox.
pub(crate) struct Sender {
    burst: Burst,
}

impl Sender {
    pub(crate) fn new() -> Self {
        Self { burst: Burst::default() }
    }

    /// Sends everything that waits now.
    ///
    /// # Errors
    /// When the client is gone; the outbox is then closed.
    pub(crate) async fn send(&mut self, outbox: &Outbox, stream: &Stream) -> io::Result<()> {
        std::mem::swap(&mut self.burst, &mut outbox.waiting.borrow_mut());
        let result = self.burst.send(stream).await;
        outbox.budget.release(self.burst.load);
        self.burst.clear();
        if result.is_err() {
            outbox.close();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_bounds_requests_and_bytes() {
        let budget = Budget::new(3, 100);
        assert!(budget.admits(1000), "a lone request always may start");
        budget.charge(60).start();
        assert!(budget.admits(40) && !budget.admits(41));
        let second = budget.charge(10);
        budget.charge(0).start();
        assert!(!budget.admits(0), "three are in flight");
        drop(second);
        assert!(budget.admits(40) && !budget.admits(41));
        budget.release(Load { requests: 2, bytes: 60 });
        assert!(budget.is_idle() && budget.admits(1000));
    }

    #[test]
    fn a_closed_outbox_releases_what_comes_and_what_waits() {
        let outbox = Outbox::new(Budget::new(8, 100));
        outbox.budget.charge(5).start();
        outbox.budget.charge(6).start();
        outbox.push(5, |head| head.push(1), Some(Buffer::copy_of(b"x")));
        assert!(!outbox.is_empty());
        outbox.close();
        assert!(outbox.is_empty() && !outbox.budget.is_idle());
        outbox.push(6, |head| head.push(2), None);
        assert!(outbox.is_empty() && outbox.budget.is_idle());
    }
}
