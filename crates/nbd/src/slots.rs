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
