//! Waiting for a time to come.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::runtime::timers;

/// Who waits for which time, on one thread.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next: Cell<u64>,
}

impl Timers {
    /// Wakes whoever's time has come; says how long until the next.
    pub(crate) fn fire(&self) -> Option<Duration> {
        if self.waiting.borrow().is_empty() {
            return None;
        }
        let now = Instant::now();
        loop {
            // Woken after the borrow: a waker is foreign code.
            let due = {
                let mut waiting = self.waiting.borrow_mut();
                let first = waiting.first_entry()?;
                match first.key().0.checked_duration_since(now) {
                    Some(left) if !left.is_zero() => return Some(left),
                    _ => first.remove(),
                }
            };
            due.wake();
        }
    }

    /// Forgets everyone.
    pub(crate) fn clear(&self) {
        let forgotten = std::mem::take(&mut *self.waiting.borrow_mut());
        drop(forgotten);
    }
}

struct Timer {
    timers: Rc<Timers>,
    key: (Instant, u64),
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.key.0 {
            return Poll::Ready(());
        }
        self.timers.waiting.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timers.waiting.borrow_mut().remove(&self.key);
    }
}

/// Resolves after `duration`.
///
/// # Panics
/// Outside a runtime.
pub async fn sleep(duration: Duration) {
    let timers = timers();
    let id = timers.next.get();
    timers.next.set(id + 1);
    let key = (Instant::now() + duration, id);
    Timer { timers, key }.await;
}

/// The output of `future`, or `None` if `duration` passes first; the future is then dropped.
///
/// # Panics
/// Outside a runtime.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = pin!(sleep(duration));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}
