//! One connection as its users see it: requests go in, answers come out, whatever becomes of the connection meanwhile.
//!
//! ```text
//!  any thread ──submit──▶ Table ◀──── a driver, on one of the threads that wait ────▶ socket
//!  any thread ◀─answer──    │
//!                           └ no request: no driver, the connection is parked here
//! ```
//! A driver is a task that sends, receives and reconnects. It is started by the request that finds none, on that request's thread, and ends with
//! the last answer. So a lane needs no thread of its own, belongs to no thread, and costs a thread that has it to itself no hop.
//!
//! # Invariants
//! 1. Where there are unanswered requests there is a driver, or everyone who waits is woken and the first to be polled starts one: a driver
//!    that is dropped with its runtime parks the connection, half-sent bytes and all, for the next.
//! 2. A dropped future only stops waiting: its request goes on.
//! 3. Whoever changes what the driver waits for wakes it after the change, and the driver says that it waits before it looks.
//!
//! A runtime that is kept but not run any more stops the requests of other threads that its driver drives. Threads that share a device either run or end.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tzero_io::{Buffer, spawn};

use super::agreed::Agreed;
use super::command::{Answer, Command};
use super::connection::Connection;
use super::driver::{Seat, drive};
use super::error::{ClientError, Shared};
use super::marks::Begun;
use super::options::ClientOptions;
use super::table::Table;
use super::uri::Uri;

/// What all lanes of a client have in common.
pub(crate) struct Common {
    pub(crate) uri: Uri,
    pub(crate) options: ClientOptions,
    /// With the first connection; later ones are held against it.
    pub(crate) agreed: Agreed,
    /// Connections that broke.
    pub(crate) breaks: AtomicU64,
}

/// Whether somebody drives.
#[derive(Default)]
pub(crate) enum Driver {
    #[default]
    Absent,
    /// To be woken when there is news.
    Present(Option<Waker>),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) table: Table,
    /// Parked, where there is a connection and no driver.
    pub(crate) connection: Option<Box<Connection>>,
    pub(crate) driver: Driver,
    /// Since when there has been no connection.
    pub(crate) outage: Option<Instant>,
    /// Why there never will be one again.
    pub(crate) gone: Option<Shared>,
}

/// See the [module](self).
pub(crate) struct Lane {
    pub(crate) common: Arc<Common>,
    state: Mutex<State>,
}

impl Lane {
    pub(crate) fn new(common: Arc<Common>, connection: Option<Box<Connection>>) -> Arc<Self> {
        Arc::new(Self { common, state: Mutex::new(State { connection, ..State::default() }) })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under a lane's lock")
    }

    /// Changes the state, then wakes those whose requests are done.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        let woken = std::mem::take(&mut state.table.woken);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        result
    }

    /// Gives a request to the server, now or when there is a connection. `begun` is for flushes.
    ///
    /// # Panics
    /// Outside a runtime.
    pub(crate) fn submit(
        self: &Arc<Self>,
        command: Command,
        buffer: Option<Buffer>,
        begun: Option<Begun>,
    ) -> Submitted {
        let (cookie, news) = self.change(|state| {
            let cookie = state.table.insert(command, buffer, begun);
            if let Some(gone) = state.gone.clone() {
                state.table.fail_all(&gone);
                return (cookie, News::None);
            }
            (cookie, state.driver.news())
        });
        match news {
            News::None => {}
            News::Wake(waker) => waker.wake(),
            News::Start => self.start(),
        }
        Submitted { lane: Arc::clone(self), cookie, taken: false }
    }

    /// Starts a driver on this thread. The caller has made it [`Driver::Present`].
    fn start(self: &Arc<Self>) {
        // Not within the task: that may be dropped before it was ever polled.
        let seat = Seat::take(Arc::clone(self));
        drop(spawn(drive(seat)));
    }

    /// A connection broke.
    pub(crate) fn broke(&self, error: ClientError) {
        self.common.breaks.fetch_add(1, Ordering::Relaxed);
        let within = self.common.options.reconnect.within;
        let error = Shared::from(error);
        self.change(|state| {
            let now = Instant::now();
            if !self.common.options.keeps_acknowledged {
                state.table.marks.lose();
            }
            state.table.requeue();
            state.table.expire(now + within, now, &error);
            state.outage.get_or_insert(now);
        });
    }

    /// There is no connection to be had now.
    pub(crate) fn failed(&self, error: ClientError) {
        let within = self.common.options.reconnect.within;
        let error = Shared::from(error);
        self.change(|state| {
            let now = Instant::now();
            let since = *state.outage.get_or_insert(now);
            state.table.expire(since + within, now, &error);
        });
    }

    /// There will be no connection any more.
    pub(crate) fn give_up(&self, error: ClientError) {
        let error = Shared::from(error);
        self.change(|state| {
            state.table.fail_all(&error);
            state.gone = Some(error);
        });
    }
}

/// What a new request means to the driver.
enum News {
    None,
    Wake(Waker),
    Start,
}

impl Driver {
    fn news(&mut self) -> News {
        match self {
            Self::Absent => {
                *self = Self::Present(None);
                News::Start
            }
            Self::Present(waker) => waker.take().map_or(News::None, News::Wake),
        }
    }
}

/// A request that a lane has. Dropped, it goes on.
pub(crate) struct Submitted {
    lane: Arc<Lane>,
    cookie: u64,
    taken: bool,
}

impl Future for Submitted {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.lane.state();
        if let Some(answer) = state.table.take(self.cookie, cx.waker()) {
            drop(state);
            self.taken = true;
            return Poll::Ready(answer);
        }
        // The driver went with its thread.
        let orphaned = matches!(state.driver, Driver::Absent);
        if orphaned {
            state.driver = Driver::Present(None);
        }
        drop(state);
        if orphaned {
            self.lane.start();
        }
        Poll::Pending
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        if !self.taken {
            self.lane.state().table.abandon(self.cookie);
        }
    }
}
