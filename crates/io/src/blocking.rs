//! Threads for calls that block and have no asynchronous form.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;

/// Most threads that block at one time; further calls queue.
const MOST_THREADS: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(Pool::default)
}

impl Pool {
    fn submit(&'static self, job: Job) {
        let mut queue = self.queue.lock().expect("no job panics while the queue is locked");
        queue.jobs.push_back(job);
        if queue.jobs.len() > queue.idle && queue.threads < MOST_THREADS {
            queue.threads += 1;
            let started = thread::Builder::new().name("blocking".into()).spawn(move || self.work());
            if started.is_err() {
                queue.threads -= 1;
                assert!(queue.threads > 0, "no thread can be started for blocking calls");
            }
        }
        drop(queue);
        self.wake.notify_one();
    }

    fn work(&self) {
        let mut queue = self.queue.lock().expect("no job panics while the queue is locked");
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue.lock().expect("no job panics while the queue is locked");
            } else {
                queue.idle += 1;
                queue = self.wake.wait(queue).expect("no job panics while the queue is locked");
                queue.idle -= 1;
            }
        }
    }
}

struct Outcome<T> {
    result: Option<thread::Result<T>>,
    waker: Option<Waker>,
}

struct Blocking<T>(Arc<Mutex<Outcome<T>>>);

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

/// Runs `call` on a thread that may block. A dropped future leaves the call running.
///
/// # Panics
/// If `call` panics.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let outcome = Arc::new(Mutex::new(Outcome { result: None, waker: None }));
    let theirs = Arc::clone(&outcome);
    pool().submit(Box::new(move || {
        let result = catch_unwind(AssertUnwindSafe(call));
        let mut outcome = theirs.lock().expect("nothing panics under this lock");
        outcome.result = Some(result);
        if let Some(waker) = outcome.waker.take() {
            drop(outcome);
            waker.wake();
        }
    }));
    Blocking(outcome).await
}
