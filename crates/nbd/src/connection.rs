//! The transmission phase of one connection.
//!
//! ```text
//!            ┌────────────── one task ──────────────┐
//!  socket ──▶│ read_requests ─▶ budget ─▶ Slots ────┼─▶ a task per request that has to wait ─▶ Export
//!  socket ◀──│ send_replies ◀─────────── Outbox ◀───┼────────────────────────────────────────────┘
//!            └──────────────────────────────────────┘
//! ```
//! Both directions are futures of the same task, polled in turn: a burst of requests is read and started, then the replies
//! that are ready leave together, then more is received. Whoever changes what one of them may wait for calls
//! [`Connection::changed`].
//!
//! # Invariants
//! 1. A client that does not read its replies never keeps its requests from being received until the budget
//!    is used up; then nothing more is received. What it holds of the memory of all slows others down and never stops them: see
//!    [`crate::memory`].
//! 2. Every request that was started is answered, unless the client is gone or the grace at the end has run out.
//! 3. Budget of the hot path: no lock, no log line, no allocation for a request that the page cache serves.
//!
//! Deliberately absent: order among requests. A flush covers the writes that were *answered* before it, and those are
//! done; see [`tzero_block::Export`].

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tzero_block::{ByteRange, Export};
use tzero_io::{Buffer, Stream, timeout};

use crate::contexts::Descriptor;
use crate::error::{End, Error, Violation};
use crate::execute::execute;
use crate::inbox::Inbox;
use crate::outbox::{Outbox, Sender};
use crate::reply;
use crate::request::{Command, Header, Refusal, Terms, check};
use crate::slots::Slots;
use crate::stop::Stopped;

/// A payload of this many bytes or more is followed by a receive of no more than a header, so that the payload
/// after it is not copied.
const LARGE: u32 = 64 << 10;
/// Turns of the two directions before other tasks of the thread get theirs.
const TURNS: usize = 4;

/// One client's use of one export.
pub(crate) struct Connection<S> {
    stream: Stream,
    pub(crate) session: S,
    terms: Terms,
    outbox: Outbox,
    task: RefCell<Option<Waker>>,
    polled: Cell<bool>,
    again: Cell<bool>,
}

impl<S: Export> Connection<S> {
    pub(crate) fn new(stream: Stream, session: S, terms: Terms, outbox: Outbox) -> Rc<Self> {
        Rc::new(Self {
            stream,
            session,
            terms,
            outbox,
            task: RefCell::default(),
            polled: Cell::new(false),
            again: Cell::new(false),
        })
    }

    /// Serves the client until it leaves, errs, or the server stops; then finishes what was started, for `grace` at most.
    pub(crate) async fn serve(
        self: Rc<Self>,
        inbox: Inbox,
        stopped: &mut Stopped,
        grace: Duration,
    ) -> Result<End, Error> {
        let mut sending = pin!(self.send_replies());
        let end = {
            let mut reading = pin!(self.read_requests(inbox));
            poll_fn(|cx| {
                if stopped.poll(cx) {
                    return Poll::Ready(Ok(End::Stopped));
                }
                self.take_turns(cx, |cx| {
                    if let Poll::Ready(end) = reading.as_mut().poll(cx) {
                        return Poll::Ready(end);
                    }
                    sending.as_mut().poll(cx).map(Err)
                })
            })
            .await
        };
        let mut gone = matches!(end, Err(Error::Send(_)));
        let idle = poll_fn(|cx| {
            self.take_turns(cx, |cx| {
                if !gone && sending.as_mut().poll(cx).is_ready() {
                    gone = true;
                }
                if self.outbox.budget.is_idle() { Poll::Ready(()) } else { Poll::Pending }
            })
        });
        timeout(grace, idle).await;
        self.stream.shutdown();
        end
    }

    /// Polls `turn` until it is done or nothing changes any more.
    fn take_turns<T>(&self, cx: &mut Context<'_>, mut turn: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.remember(cx.waker());
        self.polled.set(true);
        let mut result = Poll::Pending;
        for _ in 0..TURNS {
            self.again.set(false);
            result = turn(cx);
            if result.is_ready() || !self.again.get() {
                break;
            }
        }
        self.polled.set(false);
        if result.is_pending() && self.again.get() {
            cx.waker().wake_by_ref();
        }
        result
    }

    fn remember(&self, waker: &Waker) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|task| task.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    /// Something that one of the directions may wait for has changed.
    fn changed(&self) {
        self.again.set(true);
        if !self.polled.get()
            && let Some(task) = &*self.task.borrow()
        {
            task.wake_by_ref();
        }
    }

    /// Lets the other direction have its turn.
    async fn pass(&self) {
        let mut passed = false;
        poll_fn(|_| {
            if std::mem::replace(&mut passed, true) {
                return Poll::Ready(());
            }
            self.again.set(true);
            Poll::Pending
        })
        .await;
    }

    async fn read_requests(self: &Rc<Self>, mut inbox: Inbox) -> Result<End, Error> {
        let slots = Slots::new();
        let start =
            |header: &Header, command, payload| slots.start(execute(Rc::clone(self), header.cookie, command, payload));
        loop {
            let mut most = usize::MAX;
            while let Some(bytes) = inbox.next::<{ Header::LEN }>() {
                let Some(header) = Header::parse(&bytes) else {
                    let [m0, m1, m2, m3, ..] = bytes;
                    return Err(Violation::RequestMagic(u32::from_be_bytes([m0, m1, m2, m3])).into());
                };
                match check(&header, &self.terms) {
                    Ok(Command::Disconnect) => return Ok(End::Disconnected),
                    Ok(command) => {
                        let charge = self.outbox.budget.charge(command.cost()).await;
                        let payload = self.payload(&mut inbox, header.payload()).await?;
                        charge.start();
                        start(&header, command, payload).await;
                    }
                    Err(refusal) => {
                        let payload = u64::from(header.payload());
                        inbox.discard(&self.stream, payload).await.map_err(Error::receive)?;
                        self.outbox.budget.charge(0).await.start();
                        self.refuse(header.cookie, 0, refusal);
                    }
                }
                if header.payload() >= LARGE {
                    most = Header::LEN;
                }
            }
            self.pass().await;
            if inbox.fill(&self.stream, most).await.map_err(Error::receive)? == 0 {
                return if inbox.is_empty() { Ok(End::Left) } else { Err(Violation::Truncated.into()) };
            }
        }
    }

    async fn payload(&self, inbox: &mut Inbox, len: u32) -> Result<Option<Buffer>, Error> {
        if len == 0 {
            return Ok(None);
        }
        let mut payload = Buffer::uncleared(len as usize);
        inbox.exact(&self.stream, &mut payload).await.map_err(Error::receive)?;
        Ok(Some(payload))
    }

    /// Sends replies for as long as that works.
    async fn send_replies(&self) -> Error {
        let mut sender = Sender::new();
        loop {
            poll_fn(|_| if self.outbox.is_empty() { Poll::Pending } else { Poll::Ready(()) }).await;
            let result = sender.send(&self.outbox, &self.stream, |range| self.session.delivered(range)).await;
            self.changed();
            if let Err(error) = result {
                return Error::Send(error);
            }
        }
    }

    /// The request is done and has nothing to say.
    pub(crate) fn succeed(&self, cookie: u64, cost: usize) {
        self.outbox.push(cost, |head| reply::success(head, cookie), None);
        self.changed();
    }

    /// The request is refused or has failed.
    pub(crate) fn refuse(&self, cookie: u64, cost: usize, refusal: Refusal) {
        self.outbox.push(cost, |head| reply::error(head, self.terms.structured, cookie, refusal), None);
        self.changed();
    }

    /// The bytes of `range`.
    pub(crate) fn deliver(&self, cookie: u64, range: ByteRange, bytes: Buffer) {
        let structured = self.terms.structured;
        let cost = bytes.len();
        if structured && bytes.is_zero() {
            self.outbox.push(cost, |head| reply::hole(head, cookie, range), None);
        } else {
            self.outbox.push(cost, |head| reply::data(head, structured, cookie, range), Some(bytes));
        }
        if self.terms.counts_deliveries {
            self.outbox.note_delivery(range);
        }
        self.changed();
    }

    /// The status of a range.
    pub(crate) fn describe(&self, cookie: u64, cost: usize, descriptors: &[Descriptor]) {
        self.outbox.push(cost, |head| reply::block_status(head, cookie, descriptors), None);
        self.changed();
    }
}
