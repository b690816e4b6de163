//! The threads that move data: each has a runtime of its own, and a connection stays on one.

use std::future::Future;
use std::io;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;
use tzero_io::{Backend, Handle, Runtime, Sender};

/// More threads than this gain nothing.
const MOST: usize = 4;

struct Thread {
    handle: Handle,
    stop: Sender<()>,
    ended: Mutex<Option<JoinHandle<()>>>,
}

/// The data threads.
pub(crate) struct DataThreads {
    threads: Vec<Thread>,
    next: AtomicUsize,
}

impl std::fmt::Debug for DataThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataThreads").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl DataThreads {
    /// Starts one a core, up to four.
    pub(crate) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let threads = (0..count).map(start_one).collect::<io::Result<_>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// The next thread in turn.
    pub(crate) fn next(&self) -> &Handle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        &self.threads[turn % self.threads.len()].handle
    }

    /// Runs a future on some data thread; the receiver gets its output, or an error where the thread has ended.
    pub(crate) fn run<M, F, T>(&self, make: M) -> oneshot::Receiver<T>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (output, receiver) = oneshot::channel();
        self.next().spawn(move || {
            let future = make();
            async move {
                // Whoever asked may have gone: then nobody wants to know.
                let _ = output.send(future.await);
            }
        });
        receiver
    }

    /// Ends all threads with whatever tasks they have.
    pub(crate) fn stop(&self) {
        for thread in &self.threads {
            let _ = thread.stop.send(());
        }
        for thread in &self.threads {
            let ended = thread.ended.lock().expect("nothing panics under this lock").take();
            // It has ended without a panic, or the process would not be here.
            let _ = ended.map(JoinHandle::join);
        }
    }
}

/// Runs what may block, or takes long, on a thread of its own.
///
/// # Panics
/// When the work does.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A data thread that is gone leaves its clients waiting for ever. Ending the process instead is what snapshots survive, and clients that
/// reconnect do not notice.
struct FatalPanic;

impl Drop for FatalPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a data thread panicked: the daemon ends, so that it can be started again");
            process::abort();
        }
    }
}

fn start_one(index: usize) -> io::Result<Thread> {
    let (started, has_started) = mpsc::channel();
    let (stop, mut stopped) = tzero_io::channel();
    let ended = thread::Builder::new().name(format!("data-{index}")).spawn(move || {
        let runtime = match Runtime::new(Backend::Auto) {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        let _ = started.send(Ok((runtime.handle(), runtime.has_ring())));
        let _fatal = FatalPanic;
        runtime.block_on(stopped.recv());
    })?;
    let (handle, has_ring) = has_started.recv().map_err(|_| io::Error::other("a data thread ended at its start"))??;
    if !has_ring && index == 0 {
        tracing::warn!("io_uring is not allowed here: files are read and written by a pool of threads");
    }
    Ok(Thread { handle, stop, ended: Mutex::new(Some(ended)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_on_data_threads() {
        let threads = DataThreads::start().unwrap();
        let name = threads.run(|| async { thread::current().name().map(str::to_owned) });
        assert!(name.blocking_recv().unwrap().unwrap().starts_with("data-"));
        threads.stop();
    }
}
