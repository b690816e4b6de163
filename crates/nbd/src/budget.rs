//! What one connection may have in flight: requests, and bytes of payload.
//!
//! A request is charged before its payload is received or its task starts, and released after its reply was sent, or dropped
//! because the client is gone.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use crate::memory::Memory;
use crate::server::Limits;

/// One connection's bounds, and how much of them is in use.
#[derive(Debug)]
pub(crate) struct Budget {
    most_requests: usize,
    most_bytes: usize,
    /// Bytes that are this connection's in any case; more is borrowed.
    own: usize,
    memory: Arc<Memory>,
    requests: Cell<usize>,
    bytes: Cell<usize>,
}

impl Budget {
    pub(crate) fn new(limits: &Limits, memory: Arc<Memory>) -> Self {
        Self {
            most_requests: limits.requests,
            most_bytes: limits.bytes,
            own: limits.own,
            memory,
            requests: Cell::new(0),
            bytes: Cell::new(0),
        }
    }

    /// Charges a request of `cost` bytes, if it may start now. A lone request always may.
    pub(crate) fn try_charge(&self, cost: usize) -> Result<Charge<'_>, Refused> {
        let (requests, bytes) = (self.requests.get(), self.bytes.get());
        if requests == 0 {
            self.memory.lend(self.borrowed(cost));
        } else if requests >= self.most_requests || cost > self.most_bytes.saturating_sub(bytes) {
            return Err(Refused::Own);
        } else {
            let (has, wants) = (self.borrowed(bytes), self.borrowed(bytes + cost));
            if wants > has && !self.memory.try_lend(wants - has, wants) {
                return Err(Refused::Shared);
            }
        }
        self.requests.set(requests + 1);
        self.bytes.set(bytes + cost);
        Ok(Charge { budget: self, load: Load { requests: 1, bytes: cost } })
    }

    /// Waits until a request of `cost` bytes may start, and charges it. To be polled again when something of this connection is released;
    /// when other connections release what it waits for, it wakes its task itself.
    pub(crate) async fn charge(&self, cost: usize) -> Charge<'_> {
        loop {
            let own = poll_fn(|_| match self.try_charge(cost) {
                Err(Refused::Own) => Poll::Pending,
                other => Poll::Ready(other),
            });
            if let Ok(charge) = own.await {
                return charge;
            }
            let waiting = self.memory.wait();
            let mut returned = pin!(waiting.returned());
            let others = poll_fn(|cx| match self.try_charge(cost) {
                Ok(charge) => Poll::Ready(Some(charge)),
                Err(_) => returned.as_mut().poll(cx).map(|()| None),
            });
            if let Some(charge) = others.await {
                return charge;
            }
        }
    }

    fn borrowed(&self, bytes: usize) -> usize {
        bytes.saturating_sub(self.own)
    }

    /// The request's reply was sent or dropped.
    pub(crate) fn release(&self, load: Load) {
        let bytes = self.bytes.get();
        self.requests.set(self.requests.get() - load.requests);
        self.bytes.set(bytes - load.bytes);
        let back = self.borrowed(bytes) - self.borrowed(bytes - load.bytes);
        if back > 0 {
            self.memory.give_back(back);
        }
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests.get() == 0
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        let back = self.borrowed(self.bytes.get());
        if back > 0 {
            self.memory.give_back(back);
        }
    }
}

/// Why a request may not start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The connection has enough in flight.
    Own,
    /// All connections together have.
    Shared,
}

/// A request that was charged and has not started.
#[derive(Debug)]
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

/// What requests cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) requests: usize,
    pub(crate) bytes: usize,
}

#[cfg(test)]
mod tests {
    use tzero_io::{Backend, Runtime, yield_now};

    use super::*;

    fn budget(requests: usize, bytes: usize, own: usize, memory: &Arc<Memory>) -> Budget {
        Budget::new(&Limits { requests, bytes, own, ..Limits::default() }, Arc::clone(memory))
    }

    fn admits(budget: &Budget, cost: usize) -> bool {
        budget.try_charge(cost).is_ok()
    }

    #[test]
    fn the_budget_bounds_requests_and_bytes() {
        let budget = budget(3, 100, 100, &Arc::default());
        assert!(admits(&budget, 1000), "a lone request always may start");
        budget.try_charge(60).expect("admitted").start();
        assert!(admits(&budget, 40) && !admits(&budget, 41));
        let second = budget.try_charge(10).expect("admitted");
        budget.try_charge(0).expect("admitted").start();
        assert!(!admits(&budget, 0), "three are in flight");
        drop(second);
        assert!(admits(&budget, 40) && !admits(&budget, 41));
        budget.release(Load { requests: 2, bytes: 60 });
        assert!(budget.is_idle() && admits(&budget, 1000));
    }

    #[test]
    fn who_takes_all_it_can_leaves_as_much_to_others() {
        let memory = Arc::new(Memory::new(1000));
        let greedy: Vec<_> = (0..20)
            .map(|_| {
                let greedy = budget(1000, 1000, 10, &memory);
                while let Ok(charge) = greedy.try_charge(5) {
                    charge.start();
                }
                greedy
            })
            .collect();
        assert!(greedy[0].bytes.get() >= 500 && greedy[1].bytes.get() >= 250);
        assert!(memory.borrowed() <= 1000);
        let live = budget(1000, 1000, 10, &memory);
        live.try_charge(6).expect("its own").start();
        live.try_charge(4).expect("its own").start();
        assert!(!admits(&live, 20), "what is left is less");
        live.release(Load { requests: 2, bytes: 10 });
        assert!(admits(&live, 1000), "a lone request always may start");
        drop(greedy);
        assert_eq!(memory.borrowed(), 0);
    }

    #[test]
    fn who_waits_is_woken_from_another_thread() {
        let memory = Arc::new(Memory::new(200));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let memory = Arc::clone(&memory);
                std::thread::spawn(move || {
                    Runtime::new(Backend::Auto).expect("a runtime").block_on(async {
                        let budget = budget(8, 1000, 10, &memory);
                        for _ in 0..3000 {
                            let first = budget.charge(10).await;
                            let second = budget.charge(90).await;
                            assert!(memory.borrowed() <= 200);
                            yield_now().await;
                            drop((first, second));
                        }
                    });
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(memory.borrowed(), 0);
    }
}
