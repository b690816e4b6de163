//! Requests being carried out, without an allocation for each.
//!
//! A request is first polled on the spot; most that the page cache serves are then done. Only one that has to wait becomes
//! a task. The memory of its future is kept for the next request; as many are kept as were ever in flight together,
//! which the connection bounds.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

type Slot<F> = Pin<Box<Option<F>>>;

/// Places for futures of one type.
pub(crate) struct Slots<F>(RefCell<Vec<Slot<F>>>);

impl<F: Future<Output = ()> + 'static> Slots<F> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self(RefCell::default()))
    }

    /// Runs `future` as far as it goes now, and the rest as a task.
    pub(crate) async fn start(self: &Rc<Self>, future: F) {
        let kept = self.0.borrow_mut().pop();
        let mut slot = kept.unwrap_or_else(|| Box::pin(None));
        slot.as_mut().set(Some(future));
        let done = poll_fn(|cx| Poll::Ready(poll(&mut slot, cx).is_ready())).await;
        if done {
            self.put_back(slot);
        } else {
            let slots = Rc::clone(self);
            drop(tzero_io::spawn(async move {
                poll_fn(|cx| poll(&mut slot, cx)).await;
                slots.put_back(slot);
            }));
        }
    }

    fn put_back(&self, mut slot: Slot<F>) {
        slot.as_mut().set(None);
        self.0.borrow_mut().push(slot);
    }
}

fn poll<F: Future<Output = ()>>(slot: &mut Slot<F>, cx: &mut Context<'_>) -> Poll<()> {
    slot.as_mut().as_pin_mut().expect("a slot in use holds a future").poll(cx)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tzero_io::{Backend, Notify, Runtime};

    use super::*;

    #[test]
    fn only_what_waits_becomes_a_task_and_slots_are_used_again() {
        let runtime = Runtime::new(Backend::Auto).expect("a runtime");
        runtime.block_on(async {
            let (open, done, gate) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)), Rc::new(Notify::default()));
            let slots = Slots::new();
            let request = |waits: bool| {
                let (open, done, gate) = (Rc::clone(&open), Rc::clone(&done), Rc::clone(&gate));
                async move {
                    while waits && !open.get() {
                        gate.listen().await;
                    }
                    done.set(done.get() + 1);
                }
            };
            for ready in 1..=10 {
                slots.start(request(false)).await;
                assert_eq!((done.get(), slots.0.borrow().len()), (ready, 1));
            }
            for _ in 0..3 {
                slots.start(request(true)).await;
            }
            assert_eq!((done.get(), slots.0.borrow().len()), (10, 0));
            open.set(true);
            gate.notify_all();
            while done.get() < 13 {
                tzero_io::spawn(async {}).await;
            }
            slots.start(request(false)).await;
            assert_eq!((done.get(), slots.0.borrow().len()), (14, 3));
        });
    }
}
