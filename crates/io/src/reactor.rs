//! Requests to the kernel that complete later: an io_uring, or epoll where io_uring is not allowed.
//!
//! # Invariants
//! 1. What the kernel may still touch is owned by the reactor or by the future that waits: a future dropped early moves its
//!    resource into the slot, where it stays until the completion.
//! 2. A slot is freed exactly once: by its future, or by the completion if the future is gone.
//! 3. The reactor outlives all completions: dropping it waits for them.
//! 4. A request that was pushed reaches the kernel; see [`Ring`].

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};

use crate::descriptor::check;
use crate::ring::Ring;

const RING_ENTRIES: u32 = 256;
/// `user_data` of requests that nobody waits for.
const NOBODY: u64 = u64::MAX;
/// `user_data` of the poll on the event descriptor that wakes the thread.
const WAKE: u64 = u64::MAX - 1;
/// How long a dropped reactor waits for the kernel to finish before it leaks what the kernel may still touch.
const DRAIN: Duration = Duration::from_secs(10);
/// Most kernel workers that may block on files at one time on behalf of this thread: a bound against running wild, far above what a
/// file is let have (see `file.rs`), so that files that hang leave enough for the others. Workers exist only while
/// requests need them. The second number is meant for sockets and pipes, but a request that is marked to go to a worker at once counts
/// there whatever its file is.
const WORKERS: [u32; 2] = [512, 512];

enum Slot {
    Free(usize),
    Waiting { waker: Option<Waker>, orphan: Option<Box<dyn Any>> },
    Done(i32),
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Option<usize>,
    busy: usize,
}

impl Slots {
    fn take(&mut self) -> usize {
        self.busy += 1;
        let fresh = Slot::Waiting { waker: None, orphan: None };
        match self.free {
            Some(index) => {
                let Slot::Free(next) = std::mem::replace(&mut self.slots[index], fresh) else {
                    unreachable!("the free list holds free slots")
                };
                self.free = (next != usize::MAX).then_some(next);
                index
            }
            None => {
                self.slots.push(fresh);
                self.slots.len() - 1
            }
        }
    }

    fn release(&mut self, index: usize) {
        self.busy -= 1;
        self.slots[index] = Slot::Free(self.free.unwrap_or(usize::MAX));
        self.free = Some(index);
    }
}

enum Engine {
    Ring(Box<Ring>),
    Epoll(Epoll),
}

struct Epoll {
    poll: OwnedFd,
}

/// A duplicate of a descriptor, registered once: two waits for one socket do not meet.
pub(crate) struct Registration {
    poll: RawFd,
    own: OwnedFd,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The file stays open elsewhere, so closing the duplicate alone would leave it registered.
        // SAFETY: both are open: the future that owns this keeps the reactor alive.
        unsafe { libc::epoll_ctl(self.poll, libc::EPOLL_CTL_DEL, self.own.as_raw_fd(), std::ptr::null_mut()) };
    }
}

/// One thread's outstanding requests.
pub(crate) struct Reactor {
    slots: RefCell<Slots>,
    engine: RefCell<Engine>,
    wake: OwnedFd,
}

impl Reactor {
    /// A reactor over an io_uring of this thread.
    pub(crate) fn ring(wake: OwnedFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_cqsize(RING_ENTRIES * 8)
            .build(RING_ENTRIES)
            .or_else(|_| IoUring::builder().setup_cqsize(RING_ENTRIES * 8).build(RING_ENTRIES))?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // The kernel's own choice, where it refuses, is lower but works.
        let _ = ring.submitter().register_iowq_max_workers(&mut WORKERS.clone());
        Ok(Self::over(ring, wake))
    }

    fn over(ring: IoUring, wake: OwnedFd) -> Self {
        let ring = Ring::new(ring);
        let reactor = Self { slots: RefCell::default(), engine: RefCell::new(Engine::Ring(Box::new(ring))), wake };
        reactor.arm_wake();
        reactor
    }

    /// A reactor that only knows readiness; file I/O goes to the blocking threads.
    pub(crate) fn epoll(wake: OwnedFd) -> io::Result<Self> {
        // SAFETY: plain system call; the descriptor is new and owned here.
        let poll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: WAKE };
        // SAFETY: both descriptors are open and `event` lives through the call.
        check(unsafe { libc::epoll_ctl(poll.as_raw_fd(), libc::EPOLL_CTL_ADD, wake.as_raw_fd(), &mut event) })?;
        Ok(Self { slots: RefCell::default(), engine: RefCell::new(Engine::Epoll(Epoll { poll })), wake })
    }

    /// Whether file requests can be submitted here.
    pub(crate) fn has_ring(&self) -> bool {
        matches!(&*self.engine.borrow(), Engine::Ring(_))
    }

    /// Submits `entry`, which may refer to memory and descriptors that `resource` owns.
    ///
    /// # Safety
    /// Every address and descriptor in `entry` stays valid as long as `resource` is not dropped, wherever it is moved.
    ///
    /// # Panics
    /// If the reactor has no ring.
    pub(crate) unsafe fn submit<R: 'static>(self: &Rc<Self>, entry: squeue::Entry, resource: R) -> Submitted<R> {
        let index = self.slots.borrow_mut().take();
        self.push(entry.user_data(index as u64));
        Submitted { reactor: Rc::clone(self), index, resource: Some(resource), cancel: false }
    }

    /// Resolves when `fd` is ready for `events` (`POLLIN`, `POLLOUT`).
    pub(crate) fn readiness(
        self: &Rc<Self>,
        fd: RawFd,
        events: libc::c_short,
    ) -> io::Result<Submitted<Option<Registration>>> {
        if self.has_ring() {
            let entry = opcode::PollAdd::new(types::Fd(fd), events as u32).build();
            // SAFETY: the entry refers to no memory. Should `fd` be closed before the kernel takes the entry, the wait is for the wrong file,
            // and cancelled with the future, which borrows the socket.
            let mut submitted = unsafe { self.submit(entry, None) };
            submitted.cancel = true;
            return Ok(submitted);
        }
        let index = self.slots.borrow_mut().take();
        let mut submitted = Submitted { reactor: Rc::clone(self), index, resource: Some(None), cancel: true };
        // SAFETY: plain system call; the new descriptor is owned by the future.
        let own = unsafe { OwnedFd::from_raw_fd(check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0))?) };
        let flags = if events & libc::POLLIN != 0 { libc::EPOLLIN } else { libc::EPOLLOUT };
        let mut event = libc::epoll_event { events: (flags | libc::EPOLLONESHOT) as u32, u64: index as u64 };
        let Engine::Epoll(epoll) = &*self.engine.borrow() else { unreachable!("checked above") };
        // SAFETY: both descriptors are open and `event` lives through the call.
        check(unsafe { libc::epoll_ctl(epoll.poll.as_raw_fd(), libc::EPOLL_CTL_ADD, own.as_raw_fd(), &mut event) })?;
        submitted.resource = Some(Some(Registration { poll: epoll.poll.as_raw_fd(), own }));
        Ok(submitted)
    }

    fn arm_wake(&self) {
        let entry = opcode::PollAdd::new(types::Fd(self.wake.as_raw_fd()), libc::POLLIN as u32).build();
        self.push(entry.user_data(WAKE));
    }

    fn push(&self, entry: squeue::Entry) {
        let mut engine = self.engine.borrow_mut();
        let Engine::Ring(ring) = &mut *engine else { unreachable!("only a ring takes entries") };
        ring.push(entry);
    }

    /// Submits what is queued, waits for a completion up to `wait` (`None`: for ever), and wakes whoever is concerned.
    pub(crate) fn turn(&self, wait: Option<Duration>) -> io::Result<()> {
        let ring = self.has_ring();
        if ring { self.turn_ring(wait) } else { self.turn_epoll(wait) }
    }

    fn turn_ring(&self, wait: Option<Duration>) -> io::Result<()> {
        let mut completed: [(u64, i32); 64] = [(NOBODY, 0); 64];
        let mut wait = wait;
        loop {
            let mut count = 0;
            {
                let mut engine = self.engine.borrow_mut();
                let Engine::Ring(ring) = &mut *engine else { unreachable!("called for a ring") };
                ring.turn(wait)?;
                for (place, entry) in completed.iter_mut().zip(ring.completions()) {
                    *place = (entry.user_data(), entry.result());
                    count += 1;
                }
            }
            for (user_data, result) in &completed[..count] {
                self.complete(*user_data, *result);
            }
            if count < completed.len() {
                return Ok(());
            }
            wait = Some(Duration::ZERO);
        }
    }

    fn turn_epoll(&self, wait: Option<Duration>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let millis = wait.map_or(-1, |wait| {
            i32::try_from(wait.as_millis() + u128::from(wait.subsec_nanos() % 1_000_000 != 0)).unwrap_or(i32::MAX)
        });
        let poll = match &*self.engine.borrow() {
            Engine::Epoll(epoll) => epoll.poll.as_raw_fd(),
            Engine::Ring(_) => unreachable!("called for epoll"),
        };
        // SAFETY: `events` is writable for 64 events during the call.
        let count = match check(unsafe { libc::epoll_wait(poll, events.as_mut_ptr(), 64, millis) }) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            self.complete(event.u64, event.events as i32);
        }
        Ok(())
    }

    fn complete(&self, user_data: u64, result: i32) {
        match user_data {
            NOBODY => {}
            WAKE => {
                let mut count = 0u64;
                // SAFETY: eight writable bytes, as an eventfd wants.
                let _ = unsafe { libc::read(self.wake.as_raw_fd(), (&raw mut count).cast(), 8) };
                if self.has_ring() {
                    self.arm_wake();
                }
            }
            index => {
                let index = index as usize;
                let mut slots = self.slots.borrow_mut();
                let Slot::Waiting { waker, orphan } = &mut slots.slots[index] else { return };
                let (waker, orphan) = (waker.take(), orphan.take());
                if orphan.is_some() {
                    slots.release(index);
                } else {
                    slots.slots[index] = Slot::Done(result);
                }
                drop(slots);
                drop(orphan);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if !self.has_ring() {
            return;
        }
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build();
        self.push(cancel.user_data(NOBODY));
        let deadline = Instant::now() + DRAIN;
        while self.slots.borrow().busy > 0 && Instant::now() < deadline {
            if self.turn(Some(Duration::from_millis(100))).is_err() {
                break;
            }
        }
        if self.slots.borrow().busy > 0 {
            std::mem::forget(std::mem::take(&mut *self.slots.borrow_mut()));
        }
    }
}

/// A request on its way; resolves to its resource and the kernel's result (negative: an error number).
pub(crate) struct Submitted<R: 'static> {
    reactor: Rc<Reactor>,
    index: usize,
    resource: Option<R>,
    /// Worth cancelling when nobody waits any more: readiness, which may never come.
    cancel: bool,
}

impl<R> Submitted<R> {
    /// It is cancelled when nobody waits for it any more.
    pub(crate) fn cancels(&mut self) {
        self.cancel = true;
    }
}

impl<R> Unpin for Submitted<R> {}

impl<R> Future for Submitted<R> {
    type Output = (R, i32);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reactor = Rc::clone(&self.reactor);
        let mut slots = reactor.slots.borrow_mut();
        match &mut slots.slots[self.index] {
            Slot::Done(result) => {
                let result = *result;
                slots.release(self.index);
                Poll::Ready((self.resource.take().expect("polled after completion"), result))
            }
            Slot::Waiting { waker, .. } => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Slot::Free(_) => unreachable!("the future holds its slot"),
        }
    }
}

impl<R: 'static> Drop for Submitted<R> {
    fn drop(&mut self) {
        let Some(resource) = self.resource.take() else { return };
        let mut slots = self.reactor.slots.borrow_mut();
        let ring = self.reactor.has_ring();
        match &mut slots.slots[self.index] {
            Slot::Waiting { waker, orphan } if ring => {
                *waker = None;
                *orphan = Some(Box::new(resource));
                drop(slots);
                if self.cancel {
                    self.reactor.push(opcode::AsyncCancel::new(self.index as u64).build().user_data(NOBODY));
                }
            }
            _ => {
                slots.release(self.index);
                drop(slots);
                drop(resource);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_wait_for_a_kernel_that_takes_none() {
        // A disabled ring refuses every submission.
        let ring = IoUring::builder().setup_r_disabled().build(8).expect("io_uring is allowed here");
        // SAFETY: plain system call; the descriptor is new and owned here.
        let wake = unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(1, libc::EFD_CLOEXEC)).expect("an eventfd")) };
        let ready = wake.as_raw_fd();
        let reactor = Rc::new(Reactor::over(ring, wake.try_clone().expect("a duplicate")));
        let mut requests: Vec<_> =
            (0..50).map(|_| reactor.readiness(ready, libc::POLLOUT).expect("no call is made")).collect();
        let refused = reactor.turn(Some(Duration::ZERO)).expect_err("the ring cannot be used");
        assert_eq!(refused.raw_os_error(), Some(libc::EBADFD));
        match &mut *reactor.engine.borrow_mut() {
            Engine::Ring(ring) => ring.enable().expect("it can be enabled"),
            Engine::Epoll(_) => unreachable!("made above"),
        }
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100 {
            reactor.turn(Some(Duration::from_millis(10))).expect("the ring works");
            requests.retain_mut(|request| Pin::new(request).poll(&mut cx).is_pending());
        }
        assert!(requests.is_empty(), "{} requests were forgotten", requests.len());
    }
}
