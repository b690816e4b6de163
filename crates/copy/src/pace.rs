//! How much a mover has in flight.
//!
//! Whatever it has given to the disks, a host's next request waits behind. So reads and writes of a mover pass here first, and all that
//! is in flight together is bounded; [`crate::governor`] finds the bound. A rate bounds what is read, too.
//!
//! # Invariants
//! 1. Never more is in flight than the window has, except that one request always may be as long as there is a window at all.
//! 2. Whoever came first goes first: reads stay in order.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tzero_io::sleep;

/// Bytes in flight where nobody says how a host is.
pub(crate) const WINDOW: u64 = 2 << 20;

/// Who waits for his time looks so often whether it matters still.
const SLICE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct State {
    window: Cell<u64>,
    /// Bytes a second, and when so much was let through that the next has to wait.
    rate: Cell<Option<u64>>,
    due: Cell<Instant>,
    in_flight: Cell<u64>,
    /// Who is next, and who comes after the last.
    next: Cell<u64>,
    last: Cell<u64>,
    wakers: RefCell<BTreeMap<u64, Waker>>,
    /// Those who have left before it was their turn.
    left: RefCell<BTreeSet<u64>>,
}

/// What bounds a mover. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Pace(pub(crate) Rc<State>);

impl Default for Pace {
    fn default() -> Self {
        Self(Rc::new(State {
            window: Cell::new(WINDOW),
            rate: Cell::new(None),
            due: Cell::new(Instant::now()),
            in_flight: Cell::new(0),
            next: Cell::new(0),
            last: Cell::new(0),
            wakers: RefCell::default(),
            left: RefCell::default(),
        }))
    }
}

impl Pace {
    /// From now on so many bytes may be in flight.
    pub(crate) fn set_window(&self, bytes: u64) {
        self.0.window.set(bytes);
        self.0.wake_next();
    }

    /// From now on so many bytes are read a second, at most.
    pub(crate) fn set_rate(&self, bytes: Option<u64>) {
        self.0.rate.set(bytes);
    }

    /// How much is in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.0.in_flight.get()
    }

    /// Waits until it is time to read `bytes`, or it does not matter any more.
    pub(crate) async fn wait(&self, bytes: u64, is_over: impl Fn() -> bool) {
        let Some(rate) = self.0.rate.get() else { return };
        let now = Instant::now();
        let due = self.0.due.get().max(now);
        self.0.due.set(due + Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64));
        while !is_over()
            && let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            sleep(left.min(SLICE)).await;
        }
    }

    /// Waits until `bytes` more may be in flight.
    pub(crate) fn enter(&self, bytes: u64) -> Enter {
        let ticket = self.0.last.get();
        self.0.last.set(ticket + 1);
        Enter { state: Rc::clone(&self.0), ticket, bytes, is_in: false }
    }
}

impl State {
    fn wake_next(&self) {
        while self.left.borrow_mut().remove(&self.next.get()) {
            self.next.set(self.next.get() + 1);
        }
        let waker = self.wakers.borrow_mut().remove(&self.next.get());
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The wait for a turn.
pub(crate) struct Enter {
    state: Rc<State>,
    ticket: u64,
    bytes: u64,
    is_in: bool,
}

impl Future for Enter {
    type Output = Pass;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Pass> {
        let state = Rc::clone(&self.state);
        let in_flight = state.in_flight.get();
        let window = state.window.get();
        let fits = in_flight + self.bytes <= window || in_flight == 0 && window > 0;
        if state.next.get() != self.ticket || !fits {
            state.wakers.borrow_mut().insert(self.ticket, cx.waker().clone());
            return Poll::Pending;
        }
        self.is_in = true;
        state.in_flight.set(in_flight + self.bytes);
        state.next.set(self.ticket + 1);
        state.wake_next();
        Poll::Ready(Pass { bytes: self.bytes, state })
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        if !self.is_in {
            self.state.wakers.borrow_mut().remove(&self.ticket);
            self.state.left.borrow_mut().insert(self.ticket);
            self.state.wake_next();
        }
    }
}

/// So many bytes are in flight as long as this lives.
pub(crate) struct Pass {
    state: Rc<State>,
    bytes: u64,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.state.in_flight.set(self.state.in_flight.get() - self.bytes);
        self.state.wake_next();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    fn poll(enter: &mut Enter) -> Option<Pass> {
        let waker = std::sync::Arc::new(Nobody).into();
        match Pin::new(enter).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(pass) => Some(pass),
            Poll::Pending => None,
        }
    }

    #[test]
    fn no_more_is_in_flight_than_the_window_has_and_nobody_is_overtaken() {
        let pace = Pace::default();
        pace.set_window(100);
        let (mut first, mut second, mut third) = (pace.enter(60), pace.enter(60), pace.enter(10));
        assert!(poll(&mut second).is_none() && poll(&mut third).is_none(), "the first is first");
        let pass = poll(&mut first).unwrap();
        assert!(poll(&mut second).is_none() && poll(&mut third).is_none(), "there is room for the third only");
        drop(second);
        let small = poll(&mut third).unwrap();
        drop(pass);
        let mut large = pace.enter(1000);
        assert!(poll(&mut large).is_none());
        drop(small);
        let large = poll(&mut large).expect("it is alone");
        let mut next = pace.enter(1);
        assert!(poll(&mut next).is_none());
        drop(large);
        pace.set_window(0);
        assert!(poll(&mut next).is_none());
        pace.set_window(100);
        assert!(poll(&mut next).is_some());
    }

    #[test]
    fn no_more_is_read_in_a_second_than_the_rate_has() {
        let pace = Pace::default();
        pace.set_rate(Some(1 << 20));
        let begun = Instant::now();
        tzero_io::Runtime::new(tzero_io::Backend::Auto).unwrap().block_on(async {
            for _ in 0..5 {
                pace.wait(32 << 10, || false).await;
            }
        });
        // The fifth goes when four have had their time.
        let took = begun.elapsed();
        assert!((Duration::from_millis(125)..Duration::from_secs(5)).contains(&took), "{took:?}");
        let (begun, looks) = (Instant::now(), Cell::new(0));
        let over = || {
            looks.set(looks.get() + 1);
            looks.get() > 2
        };
        tzero_io::Runtime::new(tzero_io::Backend::Auto).unwrap().block_on(async {
            pace.wait(1 << 40, || true).await;
            pace.wait(1, over).await;
        });
        assert!(begun.elapsed() < Duration::from_secs(5), "what is over is not waited for");
    }
}
