//! Tasks of one thread, driven by that thread's [`Reactor`].
//!
//! A task never leaves its thread and needs no lock; a waker may be used from any thread. Another thread's wake goes
//! through a queue and an event descriptor, and costs a system call only while the thread sleeps.
//!
//! # Invariants
//! 1. A wake is followed by a poll that sees everything the waker's thread did before. `queued` says that a poll is due: whoever
//!    sets it puts the task into a queue, others need not. It is taken back *before* the poll by an exchange that acquires. So a wake that found it set released what
//!    it had to tell to that exchange, and the poll that follows sees it; a wake that found it clear queues the task again.
//! 2. A thread does not sleep on mail. Who posts puts the mail in and then takes `sleeping`; who sleeps sets `sleeping` and then looks at the
//!    mail. The mail's lock orders the two: either the post comes before the look, which then does not sleep, or it finds
//!    `sleeping` set and writes to the descriptor that ends the sleep.
//! 3. Between two polls of a task that wakes itself the reactor has a turn, and every task that was ready has run.
//!
//! | | wake here | wake elsewhere | take back, poll | look at mail, sleep |
//! |---|---|---|---|---|
//! | **wake elsewhere** | one of them queues | one of them queues | (1) | (2) |

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::descriptor::check;
use crate::reactor::Reactor;
use crate::timers::Timers;

/// Tasks that run between two looks at the kernel's completions.
const TASKS_PER_TURN: usize = 64;
/// Identity of the future given to [`Runtime::block_on`].
const MAIN: usize = usize::MAX;
/// Identity of no task.
const NONE: usize = usize::MAX - 1;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

/// How a runtime does file I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where it is allowed, else threads.
    Auto,
    /// io_uring or an error.
    Ring,
    /// epoll and blocking threads.
    Threads,
}

type Make = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Mail {
    woken: Vec<usize>,
    spawns: Vec<Make>,
}

struct Shared {
    mail: Mutex<Mail>,
    sleeping: AtomicBool,
    wake: OwnedFd,
}

impl Shared {
    fn post(&self, put: impl FnOnce(&mut Mail)) {
        put(&mut self.mail.lock().expect("nothing panics under this lock"));
        if self.sleeping.swap(false, Ordering::SeqCst) {
            let one = 1u64;
            // SAFETY: eight readable bytes, as an eventfd wants.
            let _ = unsafe { libc::write(self.wake.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }
}

struct TaskWaker {
    id: usize,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let local = CURRENT
            .try_with(|current| {
                let current = current.borrow();
                let inner = current.as_ref().filter(|inner| Arc::ptr_eq(&inner.shared, &self.shared))?;
                // A task that wakes itself yields: it must not come round again before the reactor did.
                let queue = if inner.running.get() == self.id { &inner.yielded } else { &inner.ready };
                queue.borrow_mut().push_back(self.id);
                Some(())
            })
            .ok()
            .flatten();
        if local.is_none() {
            self.shared.post(|mail| mail.woken.push(self.id));
        }
    }
}

struct Running {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Arc<TaskWaker>,
}

enum Place {
    Free(usize),
    Task(Option<Running>),
}

struct Inner {
    shared: Arc<Shared>,
    reactor: Rc<Reactor>,
    ready: RefCell<VecDeque<usize>>,
    /// Tasks that woke themselves: ready after the reactor's next turn.
    yielded: RefCell<VecDeque<usize>>,
    /// The task that is being polled, or [`NONE`].
    running: Cell<usize>,
    places: RefCell<Vec<Place>>,
    free: Cell<usize>,
    timers: Rc<Timers>,
}

/// One thread's tasks and outstanding I/O. Must be used on the thread that made it.
pub struct Runtime {
    inner: Rc<Inner>,
}

impl Runtime {
    /// A runtime for this thread.
    ///
    /// # Errors
    /// When the kernel refuses what the backend needs.
    pub fn new(backend: Backend) -> io::Result<Self> {
        // SAFETY: plain system call; the descriptor is new and owned here.
        let wake = unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) };
        let reactor = match backend {
            Backend::Ring => Reactor::ring(wake.try_clone()?)?,
            Backend::Threads => Reactor::epoll(wake.try_clone()?)?,
            Backend::Auto => match Reactor::ring(wake.try_clone()?) {
                Ok(reactor) => reactor,
                Err(_) => Reactor::epoll(wake.try_clone()?)?,
            },
        };
        let shared = Arc::new(Shared { mail: Mutex::default(), sleeping: AtomicBool::new(false), wake });
        Ok(Self {
            inner: Rc::new(Inner {
                shared,
                reactor: Rc::new(reactor),
                ready: RefCell::default(),
                yielded: RefCell::default(),
                running: Cell::new(NONE),
                places: RefCell::default(),
                free: Cell::new(usize::MAX),
                timers: Rc::default(),
            }),
        })
    }

    /// Whether file I/O goes through io_uring.
    pub fn has_ring(&self) -> bool {
        self.inner.reactor.has_ring()
    }

    /// For starting tasks here from other threads.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.inner.shared))
    }

    /// Runs `future` to its end, and spawned tasks meanwhile.
    ///
    /// # Panics
    /// If called inside another `block_on` of this thread. If the kernel does not let the thread wait for its I/O any more: then no request
    /// of its tasks will ever end, which nothing short of a new process mends. A shortage that may pass is waited out.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let inner = &self.inner;
        let _entered = Entered::new(Rc::clone(inner));
        let main = Arc::new(TaskWaker { id: MAIN, queued: AtomicBool::new(true), shared: Arc::clone(&inner.shared) });
        inner.ready.borrow_mut().push_back(MAIN);
        let waker = Waker::from(Arc::clone(&main));
        let mut future = pin!(future);
        loop {
            for _ in 0..TASKS_PER_TURN {
                let Some(id) = inner.ready.borrow_mut().pop_front() else { break };
                if id != MAIN {
                    inner.run(id);
                    continue;
                }
                main.queued.swap(false, Ordering::AcqRel);
                inner.running.set(MAIN);
                let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
                inner.running.set(NONE);
                if let Poll::Ready(output) = polled {
                    return output;
                }
            }
            inner.open_mail();
            let wait = inner.timers.fire();
            if let Err(error) = inner.rest(wait) {
                panic!("the kernel does not let this thread wait for its I/O any more: {error}");
            }
            inner.ready.borrow_mut().append(&mut inner.yielded.borrow_mut());
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _entered = Entered::new(Rc::clone(&self.inner));
        // Tasks own futures whose drop reaches for the runtime: take them out first.
        let places = std::mem::take(&mut *self.inner.places.borrow_mut());
        drop(places);
        self.inner.timers.clear();
    }
}

struct Entered(Option<Rc<Inner>>);

impl Entered {
    fn new(inner: Rc<Inner>) -> Self {
        Self(CURRENT.with(|current| current.borrow_mut().replace(inner)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Dropped after the borrow: tasks may go with it, and reach for what is current.
        let left = CURRENT.with(|current| std::mem::replace(&mut *current.borrow_mut(), self.0.take()));
        drop(left);
    }
}

impl Inner {
    fn insert(self: &Rc<Self>, future: Pin<Box<dyn Future<Output = ()>>>) {
        let mut places = self.places.borrow_mut();
        let id = match self.free.get() {
            usize::MAX => {
                places.push(Place::Free(usize::MAX));
                places.len() - 1
            }
            id => {
                let Place::Free(next) = places[id] else { unreachable!("the free list holds free places") };
                self.free.set(next);
                id
            }
        };
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(true), shared: Arc::clone(&self.shared) });
        places[id] = Place::Task(Some(Running { future, waker }));
        self.ready.borrow_mut().push_back(id);
    }

    fn run(&self, id: usize) {
        // A wake that outlived its task may find the place free, or another task in it: a spurious poll, no harm.
        let taken = match self.places.borrow_mut().get_mut(id) {
            Some(Place::Task(task)) => task.take(),
            _ => None,
        };
        let Some(mut task) = taken else { return };
        task.waker.queued.swap(false, Ordering::AcqRel);
        let waker = Waker::from(Arc::clone(&task.waker));
        self.running.set(id);
        let done = task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        self.running.set(NONE);
        if done {
            drop(task);
            if let Some(place) = self.places.borrow_mut().get_mut(id) {
                *place = Place::Free(self.free.get());
                self.free.set(id);
            }
        } else if let Some(place) = self.places.borrow_mut().get_mut(id) {
            *place = Place::Task(Some(task));
        }
    }

    fn open_mail(self: &Rc<Self>) {
        let mail = std::mem::take(&mut *self.shared.mail.lock().expect("nothing panics under this lock"));
        self.ready.borrow_mut().extend(mail.woken);
        mail.spawns.into_iter().for_each(|make| make());
    }

    fn rest(&self, until_timer: Option<Duration>) -> io::Result<()> {
        if !self.ready.borrow().is_empty() || !self.yielded.borrow().is_empty() {
            return self.reactor.turn(Some(Duration::ZERO));
        }
        self.shared.sleeping.store(true, Ordering::SeqCst);
        let mail = self.shared.mail.lock().expect("nothing panics under this lock");
        let empty = mail.woken.is_empty() && mail.spawns.is_empty();
        drop(mail);
        let result = self.reactor.turn(if empty { until_timer } else { Some(Duration::ZERO) });
        self.shared.sleeping.store(false, Ordering::SeqCst);
        result
    }
}

/// Starts tasks on a runtime from any thread.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Runs `make` on the runtime's thread and the future it gives as a task there. If the runtime is gone, nothing happens.
    pub fn spawn<M, F>(&self, make: M)
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.0.post(|mail| mail.spawns.push(Box::new(move || drop(spawn(make())))));
    }
}

struct Joint<T> {
    output: Option<T>,
    waker: Option<Waker>,
}

/// A spawned task. Awaiting it gives its output; dropping it lets the task go on alone.
pub struct Task<T>(Rc<RefCell<Joint<T>>>);

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut joint = self.0.borrow_mut();
        match joint.output.take() {
            Some(output) => Poll::Ready(output),
            None => {
                joint.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn current() -> Rc<Inner> {
    CURRENT.with(|current| current.borrow().clone()).expect("called from a task of a runtime")
}

/// This thread's reactor.
///
/// # Panics
/// Outside a runtime.
pub(crate) fn reactor() -> Rc<Reactor> {
    CURRENT.with(|current| {
        let current = current.borrow();
        Rc::clone(&current.as_ref().expect("called from a task of a runtime").reactor)
    })
}

/// This thread's timers.
///
/// # Panics
/// Outside a runtime.
pub(crate) fn timers() -> Rc<Timers> {
    Rc::clone(&current().timers)
}

/// Starts a task on this thread's runtime.
///
/// # Panics
/// Outside a runtime.
pub fn spawn<F: Future + 'static>(future: F) -> Task<F::Output> {
    let joint = Rc::new(RefCell::new(Joint { output: None, waker: None }));
    let theirs = Rc::clone(&joint);
    current().insert(Box::pin(async move {
        let output = future.await;
        let mut joint = theirs.borrow_mut();
        joint.output = Some(output);
        if let Some(waker) = joint.waker.take() {
            drop(joint);
            waker.wake();
        }
    }));
    Task(joint)
}
