//! Waiting for what a task gives, or for its process to die.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{Process, is_dead, spawn};

/// Starts a task and gives a future of its value: `None` if the task is dropped before it has one, because its process died. Dropping
/// the future leaves the task running.
pub fn spawn_joined<T: 'static>(process: Process, name: String, body: impl Future<Output = T> + 'static) -> Joined<T> {
    let slot = Rc::new(RefCell::new(Slot { value: None, over: false, waker: None }));
    let filler = Filler(Rc::clone(&slot));
    spawn(process, name, false, async move {
        let filler = filler;
        let value = body.await;
        // What a process says in the poll in which it dies, nobody hears.
        if !is_dead(process) {
            filler.0.borrow_mut().value = Some(value);
        }
    });
    Joined(slot)
}

struct Slot<T> {
    value: Option<T>,
    over: bool,
    waker: Option<Waker>,
}

struct Filler<T>(Rc<RefCell<Slot<T>>>);

impl<T> Drop for Filler<T> {
    fn drop(&mut self) {
        let waker = {
            let mut slot = self.0.borrow_mut();
            slot.over = true;
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// See [`spawn_joined`].
pub struct Joined<T>(Rc<RefCell<Slot<T>>>);

impl<T> Future for Joined<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = self.0.borrow_mut();
        if slot.over {
            return Poll::Ready(slot.value.take());
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
