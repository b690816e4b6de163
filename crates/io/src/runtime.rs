//! Tasks of one thread, driven by that thread's [`Reactor`].
//!
//! A task never leaves its thread and needs no lock; a waker may be used from any thread. Another thread's wake goes
//! through a queue and an event descriptor, and costs a system call only while the thread sleeps.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::descriptor::check;
use crate::reactor::Reactor;

/// Tasks that run between two looks at the kernel's completions.
const TASKS_PER_TURN: usize = 64;
/// Identity of the future given to [`Runtime::block_on`].
const MAIN: usize = usize::MAX;

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
                inner.ready.borrow_mut().push_back(self.id);
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
    places: RefCell<Vec<Place>>,
    free: Cell<usize>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_timer: Cell<u64>,
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
                places: RefCell::default(),
                free: Cell::new(usize::MAX),
                timers: RefCell::default(),
                next_timer: Cell::new(0),
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
    /// If called inside another `block_on` of this thread, or if the kernel refuses to wait.
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
                main.queued.store(false, Ordering::Release);
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return output;
                }
            }
            inner.open_mail();
            let wait = inner.fire_timers();
            inner.rest(wait).expect("the kernel lets a thread wait for its I/O");
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _entered = Entered::new(Rc::clone(&self.inner));
        // Tasks own futures whose drop reaches for the runtime: take them out first.
        let places = std::mem::take(&mut *self.inner.places.borrow_mut());
        drop(places);
        self.inner.timers.borrow_mut().clear();
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
        CURRENT.with(|current| *current.borrow_mut() = self.0.take());
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
        task.waker.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&task.waker));
        let done = task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
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

    /// Wakes whoever's time has come; says how long until the next.
    fn fire_timers(&self) -> Option<Duration> {
        let mut timers = self.timers.borrow_mut();
        if timers.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some(first) = timers.first_entry() {
            let at = first.key().0;
            if at > now {
                return Some(at - now);
            }
            first.remove().wake();
        }
        None
    }

    fn rest(&self, until_timer: Option<Duration>) -> io::Result<()> {
        if !self.ready.borrow().is_empty() {
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

struct Timer {
    inner: Rc<Inner>,
    key: (Instant, u64),
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.key.0 {
            return Poll::Ready(());
        }
        self.inner.timers.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.inner.timers.borrow_mut().remove(&self.key);
    }
}

/// Resolves after `duration`.
///
/// # Panics
/// Outside a runtime.
pub async fn sleep(duration: Duration) {
    let inner = current();
    let id = inner.next_timer.get();
    inner.next_timer.set(id + 1);
    let key = (Instant::now() + duration, id);
    Timer { inner, key }.await;
}

/// The output of `future`, or `None` if `duration` passes first; the future is then dropped.
///
/// # Panics
/// Outside a runtime.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = pin!(sleep(duration));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}
