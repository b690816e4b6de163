//! Threads for calls that block and have no asynchronous form.
//!
//! Every open file has a [`Pool`] of its own. A call into a device or file system that hangs does not come back and keeps its thread,
//! so a pool that volumes shared would stop all of them when one hangs: eight calls would be enough. A pool costs nothing
//! until it is used: threads are started when calls wait for one, [`MOST_THREADS`] at most, and end when they had nothing to
//! do for [`IDLE`] or when the file is closed. Threads in the process are thus bounded by the number of open files.
//!
//! [`blocking`] without a file runs in a pool of the whole process. Calls on a volume have no place there.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

/// Most threads of one pool that block at one time; further calls queue.
pub(crate) const MOST_THREADS: usize = 8;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no job panics while the queue is locked")
    }

    fn work(&self, idle: Duration) {
        let mut queue = self.queue();
        let mut waited = false;
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue();
                waited = false;
            } else if waited || queue.closed {
                queue.threads -= 1;
                return;
            } else {
                queue.idle += 1;
                let (again, wait) =
                    self.wake.wait_timeout(queue, idle).expect("no job panics while the queue is locked");
                queue = again;
                queue.idle -= 1;
                waited = wait.timed_out();
            }
        }
    }
}

/// Threads that block on behalf of one file, or of whatever it is that may hang as a whole.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    idle: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self { shared: Arc::default(), idle: IDLE }
    }
}

impl Pool {
    fn submit(&self, job: Job) {
        let mut queue = self.shared.queue();
        queue.jobs.push_back(job);
        if queue.jobs.len() > queue.idle && queue.threads < MOST_THREADS {
            let (shared, idle) = (Arc::clone(&self.shared), self.idle);
            let started = thread::Builder::new().name("blocking".into()).spawn(move || shared.work(idle));
            match started {
                Ok(_) => queue.threads += 1,
                Err(_) if queue.threads > 0 => {}
                Err(_) => {
                    // No thread is to be had and none is there that would come to it: done on the spot, slow but done.
                    let job = queue.jobs.pop_back();
                    drop(queue);
                    return job.into_iter().for_each(|job| job());
                }
            }
        }
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// Runs `call` on a thread of the pool. A dropped future leaves the call running.
    ///
    /// # Panics
    /// If `call` panics.
    pub(crate) fn run<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> Blocking<T> {
        let outcome = Arc::new(Mutex::new(Outcome { result: None, waker: None }));
        let theirs = Arc::clone(&outcome);
        self.submit(Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(call));
            let mut outcome = theirs.lock().expect("nothing panics under this lock");
            outcome.result = Some(result);
            if let Some(waker) = outcome.waker.take() {
                drop(outcome);
                waker.wake();
            }
        }));
        Blocking(outcome)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.wake.notify_all();
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

struct Outcome<T> {
    result: Option<thread::Result<T>>,
    waker: Option<Waker>,
}

/// See [`Pool::run`].
pub(crate) struct Blocking<T>(Arc<Mutex<Outcome<T>>>);

impl<T> Future for Blocking<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut outcome = self.0.lock().expect("nothing panics under this lock");
        match outcome.result.take() {
            Some(Ok(value)) => Poll::Ready(value),
            Some(Err(panic)) => resume_unwind(panic),
            None => {
                outcome.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Runs `call` on a thread that may block. A dropped future leaves the call running. Calls on a file that may hang
/// belong to that file: [`crate::File::blocking`].
///
/// # Panics
/// If `call` panics.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(Pool::default).run(call).await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    fn eventually(condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it never happens");
            thread::yield_now();
        }
    }

    #[test]
    fn a_pool_whose_calls_hang_stops_no_other() {
        let (hung, other) = (Pool::default(), Pool::default());
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().expect("fresh");
        for _ in 0..3 * MOST_THREADS {
            let gate = Arc::clone(&gate);
            drop(hung.run(move || drop(gate.lock())));
        }
        let (sender, receiver) = mpsc::channel();
        drop(other.run(move || sender.send(7)));
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(7));
        assert_eq!(hung.shared.queue().threads, MOST_THREADS);
        drop(held);
        eventually(|| hung.shared.queue().jobs.is_empty());
    }

    #[test]
    fn threads_end_when_idle_and_when_the_pool_is_closed() {
        let brief = Pool { idle: Duration::from_millis(1), shared: Arc::default() };
        for _ in 0..3 {
            drop(brief.run(|| ()));
            eventually(|| brief.shared.queue().threads == 0);
        }
        let closed = Pool { idle: Duration::from_secs(3600), shared: Arc::default() };
        drop(closed.run(|| ()));
        let shared = Arc::clone(&closed.shared);
        eventually(|| shared.queue().idle == 1);
        drop(closed);
        eventually(|| shared.queue().threads == 0);
    }
}
