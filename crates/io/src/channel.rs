//! Passing values and news between tasks, of one thread or several.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

struct Queue<T> {
    values: VecDeque<T>,
    senders: usize,
    receiver: Option<Waker>,
    closed: bool,
}

/// Sends into a [`channel`].
pub struct Sender<T>(Arc<Mutex<Queue<T>>>);

/// The one reader of a [`channel`].
pub struct Receiver<T>(Arc<Mutex<Queue<T>>>);

fn locked<T>(queue: &Mutex<Queue<T>>) -> MutexGuard<'_, Queue<T>> {
    queue.lock().expect("nothing panics under a channel's lock")
}

/// An unbounded queue: whoever sends bounds it.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Mutex::new(Queue { values: VecDeque::new(), senders: 1, receiver: None, closed: false }));
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl<T> Sender<T> {
    /// Queues a value; gives it back if the receiver is gone.
    ///
    /// # Errors
    /// The value itself.
    pub fn send(&self, value: T) -> Result<(), T> {
        let mut queue = locked(&self.0);
        if queue.closed {
            return Err(value);
        }
        queue.values.push_back(value);
        let waker = queue.receiver.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        locked(&self.0).senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut queue = locked(&self.0);
        queue.senders -= 1;
        if queue.senders == 0
            && let Some(waker) = queue.receiver.take()
        {
            drop(queue);
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The next value, or `None` once every sender is gone and the queue is empty.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| {
            let mut queue = locked(&self.0);
            match queue.values.pop_front() {
                Some(value) => Poll::Ready(Some(value)),
                None if queue.senders == 0 => Poll::Ready(None),
                None => {
                    queue.receiver = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next value if there is one now.
    pub fn try_recv(&mut self) -> Option<T> {
        locked(&self.0).values.pop_front()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = locked(&self.0);
        queue.closed = true;
        let values = std::mem::take(&mut queue.values);
        drop(queue);
        drop(values);
    }
}

#[derive(Default)]
struct News {
    generation: u64,
    next: u64,
    waiting: BTreeMap<u64, Waker>,
}

/// News without content: something changed, look again.
///
/// Call [`Notify::listen`] *before* testing the condition and await the listener after: no change in between is lost.
#[derive(Default)]
pub struct Notify(Mutex<News>);

impl Notify {
    fn news(&self) -> MutexGuard<'_, News> {
        self.0.lock().expect("nothing panics under this lock")
    }

    /// Wakes everyone who listens.
    pub fn notify_all(&self) {
        let mut news = self.news();
        news.generation += 1;
        let waiting = std::mem::take(&mut news.waiting);
        drop(news);
        waiting.into_values().for_each(Waker::wake);
    }

    /// Resolves at the first notification after this call.
    pub fn listen(&self) -> Listen<'_> {
        let mut news = self.news();
        news.next += 1;
        Listen { notify: self, heard: news.generation, key: news.next }
    }
}

/// See [`Notify::listen`].
pub struct Listen<'a> {
    notify: &'a Notify,
    heard: u64,
    key: u64,
}

impl Future for Listen<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut news = self.notify.news();
        if news.generation != self.heard {
            return Poll::Ready(());
        }
        news.waiting.insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Listen<'_> {
    fn drop(&mut self) {
        self.notify.news().waiting.remove(&self.key);
    }
}
