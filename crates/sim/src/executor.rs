//! The deterministic executor: one thread, virtual time, and chance in every choice.
//!
//! # What a step is
//! ```text
//!   ready tasks ──┐
//!                 ├─ one is drawn ─▶ polled once, or called ─▶ the clock moves on a little ─▶ next step
//!   due events  ──┘      (nothing ready, nothing due: the clock jumps to the next event)
//! ```
//! One poll is atomic. What lies between two awaits of the code under test cannot interleave here; the code therefore
//! awaits [`interleave()`] (the engine through its platform's `point`) wherever the order of two steps matters.
//!
//! # Invariants
//! 1. The same seed and the same tasks give the same steps: [`Executor::trace`] is equal.
//! 2. A task of a dead [`Process`] is never polled again: `kill` takes effect when the current poll returns, and
//!    everything that outlives a process (disk, mappings, what clients were told) asks [`is_dead`] first. So whatever
//!    the rest of that poll does stays in memory that nobody will see, which is what a kill at that very place does.
//! 3. No step takes real time; nothing reads a real clock.
//!
//! Deliberately absent: threads. Memory ordering of real threads is another tool's business.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crate::random::{Random, mix};

mod interleave;
mod joined;
mod process;
mod stuck;

pub use interleave::{Chaos, cut_short, interleave, sleep, yield_once};
pub use joined::{Joined, spawn_joined};
pub use process::{Crash, CrashPlan, Process, die, is_dead, moment, moments};
pub use stuck::{Note, Stuck, Waiting};

/// A task's number, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(u64);

type Body = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    process: Process,
    name: String,
    body: Option<Body>,
    waker: Waker,
    /// The run is over only once this task is.
    required: bool,
    note: Note,
}

struct Wakeup {
    task: TaskId,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<TaskId>>>,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().expect("nothing panics under this lock").push(self.task);
        }
    }
}

struct Event {
    due: u64,
    number: u64,
    call: Box<dyn FnOnce()>,
}

struct Inner {
    random: RefCell<Random>,
    chaos: RefCell<Chaos>,
    now: Cell<u64>,
    steps: Cell<u64>,
    numbers: Cell<u64>,
    trace: Cell<u64>,
    running: Cell<Option<TaskId>>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    wakeups: RefCell<BTreeMap<TaskId, Arc<Wakeup>>>,
    ready: Arc<Mutex<Vec<TaskId>>>,
    events: RefCell<Vec<Event>>,
    required: Cell<usize>,
    violation: RefCell<Option<String>>,
    processes: RefCell<process::Processes>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

fn current() -> Rc<Inner> {
    CURRENT.with_borrow(|current| current.clone()).expect("called within a simulation")
}

/// Why [`Executor::run`] returned without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// Every required task has finished.
    Finished,
    /// This process was killed.
    Killed(Process),
    /// The steps asked for were taken.
    Paused,
}

/// The executor of one simulation; at most one per thread.
pub struct Executor {
    inner: Rc<Inner>,
}

impl Executor {
    /// An executor whose choices all follow from `seed`.
    ///
    /// # Panics
    /// If the thread has one already.
    pub fn new(seed: u64, chaos: Chaos) -> Self {
        let inner = Rc::new(Inner {
            random: RefCell::new(Random::labelled(seed, "executor")),
            chaos: RefCell::new(chaos),
            now: Cell::new(1),
            steps: Cell::new(0),
            numbers: Cell::new(0),
            trace: Cell::new(seed),
            running: Cell::new(None),
            tasks: RefCell::default(),
            wakeups: RefCell::default(),
            ready: Arc::default(),
            events: RefCell::default(),
            required: Cell::new(0),
            violation: RefCell::default(),
            processes: RefCell::default(),
        });
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "one simulation per thread at a time");
            *current = Some(Rc::clone(&inner));
        });
        Self { inner }
    }

    /// Runs until every required task is done, a process dies, or `most_steps` were taken by this call.
    ///
    /// # Errors
    /// [`Stuck::Deadlock`] when a required task waits and nothing can happen any more, [`Stuck::Panic`] when a task of a
    /// living process panics, [`Stuck::Violation`] after [`fail`].
    pub fn run(&self, most_steps: u64) -> Result<Ran, Stuck> {
        for _ in 0..most_steps {
            if let Some(killed) = self.inner.processes.borrow_mut().take_killed() {
                return Ok(Ran::Killed(killed));
            }
            if self.inner.required.get() == 0 {
                return Ok(Ran::Finished);
            }
            if !self.inner.step()? {
                return Err(Stuck::Deadlock(self.waiting()));
            }
        }
        Ok(Ran::Paused)
    }

    /// Takes up to `steps` steps, required tasks or not; stops early when nothing can happen.
    ///
    /// # Errors
    /// As [`Executor::run`], without deadlock.
    pub fn drift(&self, steps: u64) -> Result<(), Stuck> {
        for _ in 0..steps {
            if !self.inner.step()? {
                break;
            }
        }
        Ok(())
    }

    /// Drops the tasks of a dead process. What their destructors do reaches nothing that outlives it.
    pub fn reap(&self, process: Process) {
        assert!(is_dead(process), "only the dead are reaped");
        loop {
            let found = {
                let tasks = self.inner.tasks.borrow();
                tasks.iter().find(|(_, task)| task.process == process).map(|(id, _)| *id)
            };
            let Some(id) = found else { break };
            let task = self.inner.remove(id);
            let dropped = catch_unwind(AssertUnwindSafe(move || drop(task)));
            drop(dropped);
        }
    }

    /// Every task that waits, with what it last said it waits for.
    pub fn waiting(&self) -> Vec<Waiting> {
        let tasks = self.inner.tasks.borrow();
        let waiting = |task: &Task| Waiting { name: task.name.clone(), note: task.note, required: task.required };
        tasks.values().map(waiting).collect()
    }

    /// A hash over every step taken so far.
    pub fn trace(&self) -> u64 {
        self.inner.trace.get()
    }

    /// How many steps were taken.
    pub fn steps(&self) -> u64 {
        self.inner.steps.get()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Tasks and events may refer to the executor when they are dropped: it stays current until they are gone.
        while let Some(id) = { self.inner.tasks.borrow().keys().next().copied() } {
            let task = self.inner.remove(id);
            drop(catch_unwind(AssertUnwindSafe(move || drop(task))));
        }
        let events = std::mem::take(&mut *self.inner.events.borrow_mut());
        drop(events);
        CURRENT.with_borrow_mut(|current| *current = None);
    }
}

impl Inner {
    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    fn record(&self, what: u64) {
        self.trace.set(mix(self.trace.get() ^ what));
    }

    fn remove(&self, id: TaskId) -> Option<Task> {
        let task = self.tasks.borrow_mut().remove(&id);
        self.wakeups.borrow_mut().remove(&id);
        if task.as_ref().is_some_and(|task| task.required) {
            self.required.set(self.required.get() - 1);
        }
        task
    }

    /// Draws and takes one step; false when there is none to take.
    fn step(&self) -> Result<bool, Stuck> {
        let runnable = self.ready.lock().expect("nothing panics under this lock").len();
        let mut random = self.random.borrow_mut();
        let chaos = self.chaos.borrow();
        if runnable == 0 {
            let soonest = self.events.borrow().iter().map(|event| event.due).min();
            match soonest {
                None => return Ok(false),
                Some(due) => self.now.set(self.now.get().max(due)),
            }
        }
        self.now.set(self.now.get() + random.between(1, chaos.tick_ns));
        self.steps.set(self.steps.get() + 1);
        let now = self.now.get();
        let due: Vec<usize> =
            self.events.borrow().iter().enumerate().filter(|(_, event)| event.due <= now).map(|(at, _)| at).collect();
        let run_task = runnable > 0 && (due.is_empty() || random.chance(chaos.task_percent));
        if run_task {
            let drawn = random.index(runnable);
            drop((random, chaos));
            let id = self.ready.lock().expect("nothing panics under this lock").swap_remove(drawn);
            self.poll(id)?;
        } else {
            let drawn = *random.pick(&due);
            drop((random, chaos));
            let event = self.events.borrow_mut().swap_remove(drawn);
            self.record(event.number ^ now << 20);
            (event.call)();
        }
        match self.violation.take() {
            Some(complaint) => Err(Stuck::Violation(complaint)),
            None => Ok(true),
        }
    }

    fn poll(&self, id: TaskId) -> Result<(), Stuck> {
        if let Some(wakeup) = self.wakeups.borrow().get(&id) {
            wakeup.queued.store(false, Ordering::Relaxed);
        }
        let (process, mut body, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(&id) else { return Ok(()) };
            if self.processes.borrow().is_dead(task.process) {
                return Ok(());
            }
            let Some(body) = task.body.take() else { return Ok(()) };
            (task.process, body, task.waker.clone())
        };
        self.record(id.0 ^ self.now.get() << 20 ^ 1 << 63);
        self.running.set(Some(id));
        let polled = catch_unwind(AssertUnwindSafe(|| body.as_mut().poll(&mut Context::from_waker(&waker))));
        self.running.set(None);
        match polled {
            Ok(Poll::Pending) => {
                if let Some(task) = self.tasks.borrow_mut().get_mut(&id) {
                    task.body = Some(body);
                }
            }
            Ok(Poll::Ready(())) => {
                drop(self.remove(id));
                drop(body);
            }
            Err(panic) => {
                let task = self.remove(id);
                drop(catch_unwind(AssertUnwindSafe(move || drop(body))));
                // A process that is dead already cannot die of a panic in the rest of its last poll.
                if !self.processes.borrow().is_dead(process) {
                    let name = task.map(|task| task.name).unwrap_or_default();
                    return Err(Stuck::Panic { task: name, message: message_of(panic) });
                }
            }
        }
        Ok(())
    }
}

fn message_of(panic: Box<dyn Any + Send>) -> String {
    let said = match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or("a panic without a message", |text| text).to_owned(),
    };
    match crate::quiet::take_location() {
        Some(place) => format!("{said} ({place})"),
        None => said,
    }
}

/// Starts a task of `process`. A required one must finish before the run is over.
pub fn spawn(process: Process, name: String, required: bool, body: impl Future<Output = ()> + 'static) -> TaskId {
    let inner = current();
    let id = TaskId(inner.number());
    let wakeup = Arc::new(Wakeup { task: id, queued: AtomicBool::new(false), ready: Arc::clone(&inner.ready) });
    let waker = Waker::from(Arc::clone(&wakeup));
    waker.wake_by_ref();
    let body: Body = Box::pin(body);
    let task = Task { process, name, body: Some(body), waker, required, note: Note::default() };
    inner.tasks.borrow_mut().insert(id, task);
    inner.wakeups.borrow_mut().insert(id, wakeup);
    if required {
        inner.required.set(inner.required.get() + 1);
    }
    id
}

/// The task that runs now will not finish, and need not.
pub fn release_current() {
    let inner = current();
    let Some(id) = inner.running.get() else { return };
    if let Some(task) = inner.tasks.borrow_mut().get_mut(&id)
        && std::mem::take(&mut task.required)
    {
        inner.required.set(inner.required.get() - 1);
    }
}

/// Says what the running task is about to wait for; shown when nothing can go on.
pub fn note(what: &'static str, at: u64, len: u64) {
    let inner = current();
    let Some(id) = inner.running.get() else { return };
    if let Some(task) = inner.tasks.borrow_mut().get_mut(&id) {
        task.note = Note { what, at, len };
    }
}

/// The name of the running task.
pub fn current_name() -> String {
    let inner = current();
    let tasks = inner.tasks.borrow();
    inner.running.get().and_then(|id| tasks.get(&id)).map(|task| task.name.clone()).unwrap_or_default()
}

/// Calls `call` in `delay_ns` of virtual time or a little later.
pub fn after(delay_ns: u64, call: impl FnOnce() + 'static) {
    let inner = current();
    let event = Event { due: inner.now.get().saturating_add(delay_ns), number: inner.number(), call: Box::new(call) };
    inner.events.borrow_mut().push(event);
}

/// Virtual nanoseconds since the simulation began.
pub fn now_ns() -> u64 {
    current().now.get()
}

/// A number that is larger than any before it: the clock of what is logged.
pub fn serial() -> u64 {
    current().number()
}

/// Draws from the executor's stream.
pub fn draw<T>(from: impl FnOnce(&mut Random) -> T) -> T {
    from(&mut current().random.borrow_mut())
}

/// Something was seen that must not be: the run ends with the first such complaint. Does not panic, so that it may be called
/// from within anything.
pub fn fail(complaint: String) {
    let inner = current();
    let dead = {
        let tasks = inner.tasks.borrow();
        let process = inner.running.get().and_then(|id| tasks.get(&id)).map(|task| task.process);
        process.is_some_and(|process| inner.processes.borrow().is_dead(process))
    };
    if !dead {
        inner.violation.borrow_mut().get_or_insert(complaint);
    }
}

/// Mixes something that happened into the trace.
pub fn record(what: u64) {
    current().record(what);
}

#[cfg(test)]
mod tests;
