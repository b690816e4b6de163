//! Replies on their way to the client, and what the requests in flight cost.
//!
//! Replies are collected while an earlier burst is being sent and leave together in as few system calls as possible: all
//! heads stand in one stretch of memory, and only a read's payload is a vector of its own.
//!
//! # Invariants
//! 1. What a request was charged is released after its reply was sent (or dropped because the client is gone): so [`Budget`] bounds
//!    requests, payloads and queued replies alike.
//! 2. Bytes of one reply are contiguous on the wire.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};

use tzero_block::ByteRange;
use tzero_io::{Buffer, Stream};

use crate::budget::{Budget, Load};

/// Payloads that one system call takes at most.
const BODIES_PER_SEND: usize = 32;

/// Replies that leave together.
#[derive(Default)]
struct Burst {
    /// Heads of all replies, and payloads that are not worth a vector.
    heads: Vec<u8>,
    /// Payloads, and where in `heads` each is to be inserted.
    bodies: Vec<(usize, Buffer)>,
    /// What they give of the export's bytes, where somebody wants to know.
    delivered: Vec<ByteRange>,
    load: Load,
}

impl Burst {
    fn clear(&mut self) {
        self.heads.clear();
        self.bodies.clear();
        self.delivered.clear();
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

    /// The reply that was pushed last gives these bytes of the export.
    pub(crate) fn note_delivery(&self, range: ByteRange) {
        if !self.closed.get() {
            self.waiting.borrow_mut().delivered.push(range);
        }
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

    /// Sends everything that waits now; `delivered` is told what of the export's bytes left with it.
    ///
    /// # Errors
    /// When the client is gone; the outbox is then closed.
    pub(crate) async fn send(
        &mut self,
        outbox: &Outbox,
        stream: &Stream,
        delivered: impl Fn(ByteRange),
    ) -> io::Result<()> {
        std::mem::swap(&mut self.burst, &mut outbox.waiting.borrow_mut());
        let result = self.burst.send(stream).await;
        if result.is_ok() {
            self.burst.delivered.iter().for_each(|range| delivered(*range));
        }
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
    use std::sync::Arc;

    use super::*;
    use crate::server::Limits;

    #[test]
    fn a_closed_outbox_releases_what_comes_and_what_waits() {
        let outbox = Outbox::new(Budget::new(&Limits::default(), Arc::default()));
        outbox.budget.try_charge(5).expect("admitted").start();
        outbox.budget.try_charge(6).expect("admitted").start();
        outbox.push(5, |head| head.push(1), Some(Buffer::copy_of(b"x")));
        assert!(!outbox.is_empty());
        outbox.close();
        assert!(outbox.is_empty() && !outbox.budget.is_idle());
        outbox.push(6, |head| head.push(2), None);
        assert!(outbox.is_empty() && outbox.budget.is_idle());
    }
}
