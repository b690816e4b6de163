//! A task's way to let others go first.

use std::future::poll_fn;
use std::task::Poll;

/// Lets every other task of this thread that is ready run, and the kernel's completions be seen, before going on. For loops
/// that are long and would not otherwise wait.
///
/// It wakes the task that polls it and asks nothing of the executor, so it works on any. On a [`crate::Runtime`] a task that wakes itself
/// goes on only after the reactor had its turn.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
