//! Telling a connection, from any thread, that it is to end.
//!
//! One signal belongs to one connection and is dropped with it, so nothing is left behind by connections that came and went.
//! Looking costs the connection one atomic load; the lock is taken only when its task's waker changes.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// The server's end.
#[derive(Default)]
pub(crate) struct Stop {
    asked: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Stop {
    /// Asks the connection to end.
    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        let task = self.task.lock().expect("nothing panics under this lock").take();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// The connection's end.
pub(crate) struct Stopped {
    stop: Arc<Stop>,
    registered: Option<Waker>,
}

impl Stopped {
    pub(crate) fn new(stop: Arc<Stop>) -> Self {
        Self { stop, registered: None }
    }

    /// Whether the connection is to end; if not, the task is woken when it is.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            let waker = cx.waker().clone();
            *self.stop.task.lock().expect("nothing panics under this lock") = Some(waker.clone());
            self.registered = Some(waker);
        }
        self.stop.asked.load(Ordering::Acquire)
    }

    /// The output of `future`, or `None` if the connection is to end first; the future is then dropped.
    pub(crate) async fn or<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if self.poll(cx) {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }
}
