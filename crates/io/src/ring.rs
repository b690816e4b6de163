//! An io_uring that takes any number of requests.
//!
//! What the submission queue has no room for waits in a backlog, in order, and goes to the kernel at the next turns: nobody
//! who submits spins or fails because the kernel is short of something at the moment.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, cqueue, squeue, types};

/// How long to wait for a request to end, in milliseconds, after the kernel had no memory for another: trying again at once would only
/// burn the processor.
const NO_MEMORY: libc::c_int = 1;

/// See above.
pub(crate) struct Ring {
    ring: IoUring,
    /// What the submission queue had no room for.
    backlog: VecDeque<squeue::Entry>,
}

impl Ring {
    pub(crate) fn new(ring: IoUring) -> Self {
        Self { ring, backlog: VecDeque::new() }
    }

    /// Queues a request. The caller vouches for its addresses: see `Reactor::submit`.
    pub(crate) fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.fill();
        if !self.backlog.is_empty() {
            // A full queue: hand it to the kernel, which empties it. Should it refuse now, the next turn tries again, and is told why.
            let _ = self.ring.submit();
            self.fill();
        }
    }

    /// What has ended.
    pub(crate) fn completions(&mut self) -> cqueue::CompletionQueue<'_> {
        self.ring.completion()
    }

    #[cfg(test)]
    pub(crate) fn enable(&self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()
    }

    /// Moves as much of the backlog into the submission queue as that takes.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the callers of `push` vouch for the entry's addresses: see `submit`.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Submits what is queued; waits for something to end, up to `wait`, if nothing has.
    pub(crate) fn turn(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.fill();
        // Neither completions that are there nor a backlog allow waiting; both do not keep requests from being submitted.
        if self.ring.completion().is_empty() && self.backlog.is_empty() {
            self.enter(wait)
        } else if !self.ring.submission().is_empty() {
            self.enter(Some(Duration::ZERO))
        } else {
            Ok(())
        }
    }

    /// Submits and waits. An error says that the ring cannot be used any more.
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let ring = &mut self.ring;
        let result = match wait {
            None => ring.submit_and_wait(1),
            Some(Duration::ZERO) => {
                let queued = ring.submission().len() as u32;
                const GET_EVENTS: u32 = 1;
                // SAFETY: no argument is passed, and the count is that of the submission queue.
                unsafe { ring.submitter().enter::<libc::sigset_t>(queued, 0, GET_EVENTS, None) }
            }
            Some(wait) => {
                let time = types::Timespec::new().sec(wait.as_secs()).nsec(wait.subsec_nanos());
                let arguments = types::SubmitArgs::new().timespec(&time);
                ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // A signal, the time that was given, completions that want to be taken first.
                Some(libc::EINTR | libc::ETIME | libc::EBUSY) => Ok(()),
                Some(libc::EAGAIN | libc::ENOMEM) => {
                    let mut ended = libc::pollfd { fd: ring.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                    // SAFETY: one writable entry; the ring's descriptor is open.
                    unsafe { libc::poll(&mut ended, 1, NO_MEMORY) };
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }
}
