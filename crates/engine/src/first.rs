//! Waiting no longer than something else takes.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// The output of `work`, or `None` if `limit` ends before it. Then `work` is dropped.
pub(crate) async fn within<F: Future>(work: F, limit: impl Future) -> Option<F::Output> {
    let (mut work, mut limit) = (pin!(work), pin!(limit));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => limit.as_mut().poll(cx).map(|_| None),
    })
    .await
}
