//! Waiting for several things at once.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

enum Part<F: Future> {
    Running(Pin<Box<F>>),
    Done(Option<F::Output>),
}

/// The outputs of all `futures`, in their order. All are begun before any is waited for. Meant for a few: whenever one wakes, all are polled.
pub async fn together<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut parts: Vec<_> = futures.into_iter().map(|future| Part::Running(Box::pin(future))).collect();
    poll_fn(|cx| {
        let mut running = false;
        for part in &mut parts {
            if let Part::Running(future) = part {
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => *part = Part::Done(Some(output)),
                    Poll::Pending => running = true,
                }
            }
        }
        if running { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    let output = |part| match part {
        Part::Done(output) => output,
        Part::Running(_) => None,
    };
    parts.into_iter().filter_map(output).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::{Backend, Runtime, yield_now};

    #[test]
    fn all_begin_first_and_outputs_keep_their_order() {
        Runtime::new(Backend::Auto).expect("a runtime").block_on(async {
            let events = RefCell::new(Vec::new());
            let outputs = together((0..3u32).map(|number| {
                let events = &events;
                async move {
                    events.borrow_mut().push(number);
                    for _ in number..3 {
                        yield_now().await;
                    }
                    events.borrow_mut().push(10 + number);
                    number * number
                }
            }))
            .await;
            assert_eq!(outputs, [0, 1, 4]);
            assert_eq!(*events.borrow(), [0, 1, 2, 12, 11, 10]);
            assert!(together(Vec::<std::future::Ready<()>>::new()).await.is_empty());
        });
    }
}
