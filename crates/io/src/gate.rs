//! Lets a bounded number of requests through, the others in the order in which they came.
//!
//! Threads and kernel workers that block are shared by everything in the process. A device that hangs keeps all that it was given,
//! so every open file has gates of its own in front of them: what one file can hold is bounded, and the rest is left to the others.
//!
//! # Invariants
//! 1. At most `most` passes exist. A pass stays with the kernel's request when its future is dropped.
//! 2. Nobody passes who came after someone that waits.
//! 3. Whoever leaves either sees that somebody waits or has left before the one who waits looks: no wake-up is lost. Both
//!    sides write their own word and then read the other's, all sequentially consistent.
//!
//! No lock is taken as long as nobody waits.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
enum State {
    New,
    Waiting(Option<Waker>),
    Granted,
    Taken,
}

type Waiter = Arc<Mutex<State>>;

/// A bound on requests that are under way.
#[derive(Debug)]
pub(crate) struct Gate {
    most: usize,
    inside: AtomicUsize,
    /// Length of `queue`.
    queued: AtomicUsize,
    queue: Mutex<VecDeque<Waiter>>,
}

impl Gate {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, inside: AtomicUsize::new(0), queued: AtomicUsize::new(0), queue: Mutex::default() })
    }

    /// Waits for its turn.
    pub(crate) fn enter(self: &Arc<Self>) -> Enter {
        Enter { gate: Arc::clone(self), waiter: Arc::new(Mutex::new(State::New)) }
    }

    /// Passes if nobody waits and there is room.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Pass> {
        (self.queued.load(Ordering::SeqCst) == 0 && self.count()).then(|| Pass(Arc::clone(self)))
    }

    fn count(&self) -> bool {
        self.inside
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |inside| (inside < self.most).then_some(inside + 1))
            .is_ok()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.queue.lock().expect("nothing panics under a gate's lock")
    }

    /// Lets in whoever there is room for; gives those to be woken.
    fn grant(&self, queue: &mut VecDeque<Waiter>) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while !queue.is_empty() && self.count() {
            let waiter = queue.pop_front().expect("just looked");
            if let State::Waiting(waker) = std::mem::replace(&mut *state(&waiter), State::Granted) {
                wakers.extend(waker);
            }
        }
        self.queued.store(queue.len(), Ordering::SeqCst);
        wakers
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
        if self.queued.load(Ordering::SeqCst) > 0 {
            let wakers = self.grant(&mut self.queue());
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

fn state(waiter: &Waiter) -> MutexGuard<'_, State> {
    waiter.lock().expect("nothing panics under a waiter's lock")
}

/// See [`Gate::enter`].
pub(crate) struct Enter {
    gate: Arc<Gate>,
    waiter: Waiter,
}

impl Future for Enter {
    type Output = Pass;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Pass> {
        let mut queue = self.gate.queue();
        let mut own = state(&self.waiter);
        if matches!(*own, State::New) {
            *own = State::Waiting(None);
            drop(own);
            queue.push_back(Arc::clone(&self.waiter));
            self.gate.queued.store(queue.len(), Ordering::SeqCst);
            let wakers = self.gate.grant(&mut queue);
            wakers.into_iter().for_each(Waker::wake);
            own = state(&self.waiter);
        }
        match &mut *own {
            State::Granted => {
                *own = State::Taken;
                Poll::Ready(Pass(Arc::clone(&self.gate)))
            }
            State::Waiting(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            State::New | State::Taken => unreachable!("polled after completion"),
        }
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        let mut queue = self.gate.queue();
        let was = std::mem::replace(&mut *state(&self.waiter), State::Taken);
        match was {
            State::New | State::Taken => {}
            State::Granted => {
                drop(queue);
                self.gate.leave();
            }
            State::Waiting(_) => {
                queue.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
                self.gate.queued.store(queue.len(), Ordering::SeqCst);
            }
        }
    }
}

/// The right to be under way, until dropped.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::{Backend, Runtime, spawn, timeout, yield_now};

    #[test]
    fn in_order_and_never_too_many() {
        Runtime::new(Backend::Auto).expect("a runtime").block_on(async {
            let gate = Gate::new(2);
            let held = [gate.try_enter().expect("room"), gate.enter().await];
            assert!(gate.try_enter().is_none());
            let order = Rc::new(RefCell::new(Vec::new()));
            let mut tasks = Vec::new();
            for number in 0..20 {
                let (gate, order) = (Arc::clone(&gate), Rc::clone(&order));
                tasks.push(spawn(async move {
                    let pass = gate.enter().await;
                    order.borrow_mut().push(number);
                    assert!(gate.inside.load(Ordering::SeqCst) <= 2);
                    yield_now().await;
                    drop(pass);
                }));
            }
            yield_now().await;
            // Who gives up is passed over.
            assert!(timeout(Duration::from_millis(1), gate.enter()).await.is_none());
            assert!(order.borrow().is_empty());
            drop(held);
            for task in tasks {
                task.await;
            }
            assert_eq!(*order.borrow(), (0..20).collect::<Vec<_>>());
            assert_eq!((gate.inside.load(Ordering::SeqCst), gate.queued.load(Ordering::SeqCst)), (0, 0));
        });
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        let gate = Gate::new(3);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || {
                    Runtime::new(Backend::Auto).expect("a runtime").block_on(async {
                        for round in 0..5000 {
                            let pass = match gate.try_enter() {
                                Some(pass) => pass,
                                None => gate.enter().await,
                            };
                            if round % 7 == 0 {
                                yield_now().await;
                            }
                            drop(pass);
                        }
                    });
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(gate.try_enter().is_some());
    }
}
