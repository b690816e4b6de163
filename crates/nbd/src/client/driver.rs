//! Moves the bytes of a lane, and gets it a connection when it has none.
//!
//! ```text
//!            ┌───────────────────────────── idle: parked, the task ends
//!            │
//!  start ─▶ talk ──broke──▶ everything unanswered is queued again ──▶ connect ──▶ talk
//!                                                                       │  ▲
//!                                                                       └──┘ pause, ever longer
//! ```
//! Sending, receiving and the clock are three futures of one task. None of them holds anything that is lost with it, so the task may be dropped at
//! any time and another goes on.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tzero_io::{Stream, sleep, timeout};

use super::connection::Connection;
use super::error::ClientError;
use super::lane::{Driver, Lane};
use super::receiver::Receiver;
use super::sender::Sender;

/// Pause before the second attempt to connect, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Drives a lane until nothing is unanswered.
pub(crate) async fn drive(mut seat: Seat) {
    let mut pause = Duration::ZERO;
    loop {
        let Some(connection) = &mut seat.connection else {
            if seat.leave_if_idle() {
                return;
            }
            seat.attempt(pause).await;
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            continue;
        };
        let answered = seat.lane.state().table.answered();
        match talk(&seat.lane, connection).await {
            Ok(()) if seat.leave_if_idle() => return,
            Ok(()) => {}
            Err(error) => {
                if seat.lane.state().table.answered() != answered {
                    pause = Duration::ZERO;
                }
                seat.lose(error);
            }
        }
    }
}

/// The place of the one who drives. There is one for a lane at most; it is vacant again when this is dropped.
pub(crate) struct Seat {
    lane: Arc<Lane>,
    connection: Option<Box<Connection>>,
    left: bool,
}

impl Seat {
    /// Takes the place. The caller has made the driver [`Driver::Present`], so it was vacant.
    pub(crate) fn take(lane: Arc<Lane>) -> Self {
        let connection = lane.state().connection.take();
        Self { lane, connection, left: false }
    }

    /// Parks the connection and leaves, if nothing is unanswered.
    fn leave_if_idle(&mut self) -> bool {
        let mut state = self.lane.state();
        if state.table.is_idle() {
            state.connection = self.connection.take();
            state.driver = Driver::Absent;
            self.left = true;
        }
        self.left
    }

    /// After a pause, tries once to connect.
    async fn attempt(&mut self, pause: Duration) {
        let options = &self.lane.common.options;
        let over = {
            let state = self.lane.state();
            state.outage.map(|since| since + options.reconnect.within)
        };
        let left = over.map_or(Duration::MAX, |over| over.saturating_duration_since(Instant::now()));
        // With the time over there is one attempt, and it gets all that an attempt may take.
        if !left.is_zero() && !pause.is_zero() {
            sleep(pause.min(left)).await;
        }
        let limit = if left.is_zero() { options.connect } else { options.connect.min(left) };
        match timeout(limit, Connection::establish(&self.lane.common.uri)).await {
            None => self.lane.failed(ClientError::TimedOut),
            Some(Err(error)) => self.lane.failed(error),
            Some(Ok((connection, agreed))) => match self.lane.common.agreed.compare(&agreed) {
                Ok(()) => {
                    self.lane.state().outage = None;
                    self.connection = Some(connection);
                }
                Err(changed) => self.lane.give_up(changed.into()),
            },
        }
    }

    /// The connection is no good any more.
    fn lose(&mut self, error: ClientError) {
        if let Some(mut connection) = self.connection.take() {
            connection.stream.shutdown();
            let table = &mut self.lane.state().table;
            connection.sender.end(table);
            connection.receiver.end(table);
        }
        self.lane.broke(error);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.left {
            self.lane.change(|state| {
                state.connection = self.connection.take();
                state.driver = Driver::Absent;
                state.table.wake_all();
            });
        }
    }
}

/// Sends and receives until nothing is unanswered.
async fn talk(lane: &Lane, connection: &mut Connection) -> Result<(), ClientError> {
    let Connection { stream, sender, receiver } = connection;
    let (stream, starved) = (&*stream, Cell::new(false));
    let mut sending = pin!(send(lane, stream, sender, &starved));
    let mut receiving = pin!(receive(lane, stream, receiver));
    let mut waiting = pin!(overdue(lane));
    poll_fn(|cx| {
        remember(lane, cx.waker());
        loop {
            if let Poll::Ready(error) = sending.as_mut().poll(cx) {
                return Poll::Ready(Err(error));
            }
            if let Poll::Ready(end) = receiving.as_mut().poll(cx) {
                return Poll::Ready(end);
            }
            // Answers make room for requests that waited for it.
            if !starved.get() || !lane.state().table.has_to_send() {
                break;
            }
        }
        waiting.as_mut().poll(cx).map(Err)
    })
    .await
}

fn remember(lane: &Lane, waker: &Waker) {
    let driver = &mut lane.state().driver;
    if !matches!(driver, Driver::Present(Some(known)) if known.will_wake(waker)) {
        *driver = Driver::Present(Some(waker.clone()));
    }
}

async fn send(lane: &Lane, stream: &Stream, sender: &mut Sender, starved: &Cell<bool>) -> ClientError {
    let timed = lane.common.options.request.is_some();
    loop {
        starved.set(true);
        poll_fn(|_| if sender.load(&mut lane.state().table) { Poll::Ready(()) } else { Poll::Pending }).await;
        starved.set(false);
        let sent = {
            let (slices, count) = sender.slices();
            stream.send(&slices[..count]).await
        };
        match sent {
            Ok(count) => sender.advance(count, &mut lane.state().table, timed.then(Instant::now)),
            Err(error) => return ClientError::Broken(error),
        }
    }
}

async fn receive(lane: &Lane, stream: &Stream, receiver: &mut Receiver) -> Result<(), ClientError> {
    // What was sent just now is not answered yet, and after a receive that left room nothing more is here.
    let mut drained = true;
    loop {
        if std::mem::take(&mut drained) {
            stream.readable().await.map_err(ClientError::Broken)?;
        }
        let large = lane.state().table.expects_large();
        let space = receiver.space(large);
        let room = space.len();
        let count = stream.recv(space).await.map_err(ClientError::Broken)?;
        if count == 0 {
            return Err(ClientError::Closed);
        }
        drained = count < room;
        let idle = lane.change(|state| {
            receiver.advance(count, &mut state.table)?;
            Ok::<_, ClientError>(state.table.is_idle())
        })?;
        if idle {
            return Ok(());
        }
    }
}

/// Resolves when a request has waited for too long.
async fn overdue(lane: &Lane) -> ClientError {
    let limit = lane.common.options.request;
    loop {
        let due = lane.state().table.due(limit);
        match due.map(|due| due.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => return ClientError::TimedOut,
            Some(left) => sleep(left).await,
            // A request that is sent later is due later than this.
            None => match limit {
                Some(limit) => sleep(limit).await,
                None => std::future::pending().await,
            },
        }
    }
}
