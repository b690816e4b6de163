//! Requests that have no answer yet, or whose answer nobody has taken. Pure.
//!
//! ```text
//! insert ─▶ queued ─▶ sending ─▶ sent ─▶ done ─▶ taken
//!             ▲          │         │
//!             └──────────┴─────────┘ the connection broke
//! ```
//!
//! # Invariants
//! 1. A reply counts only for a request that was sent completely and is not done: everything else is a breach.
//! 2. The buffer of a request is in the table, or lent to the one sender or receiver of the connection, which give it back before the
//!    connection is forgotten. So nothing writes to it once it was given back to the caller.
//! 3. At most [`MOST_ON_WIRE`] requests are sending or sent.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::{Duration, Instant};

use tzero_io::Buffer;

use super::command::{Answer, Command, Failure, Kind, system_error};
use super::coverage::Coverage;
use super::error::{Breach, ClientError, Shared};
use super::marks::{Begun, Marks};
use crate::contexts::Descriptor;
use crate::wire::Errno;

/// Requests that a server is given at one time; the others wait here.
const MOST_ON_WIRE: usize = 128;
/// Replies of this many bytes or more are received apart from others; see `receiver`.
const LARGE: u64 = 64 << 10;

enum State {
    Queued,
    Sending,
    Sent,
    Done(Result<(), Failure>),
}

/// What has come of a reply so far.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) coverage: Coverage,
    pub(crate) error: Option<u32>,
    pub(crate) descriptors: Vec<Descriptor>,
    pub(crate) told_extents: bool,
}

/// A request.
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) buffer: Option<Buffer>,
    pub(crate) reply: Reply,
    state: State,
    begun: Option<Begun>,
    waker: Option<Waker>,
    abandoned: bool,
    sent: Option<Instant>,
    /// Set when its connection broke: by then it is done, or fails.
    deadline: Option<Instant>,
}

#[derive(Default)]
struct Slot {
    /// Part of the cookie, so that an answer to an earlier request is none to a later one.
    generation: u32,
    request: Option<Request>,
}

/// Requests of one connection.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) marks: Marks,
    /// Whose request is done since this was last emptied.
    pub(crate) woken: Vec<Waker>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    queue: VecDeque<u64>,
    on_wire: usize,
    undone: usize,
    large: usize,
    answered: u64,
}

impl Table {
    /// Adds a request, to be sent when its turn comes.
    pub(crate) fn insert(&mut self, command: Command, buffer: Option<Buffer>, begun: Option<Begun>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let cookie = u64::from(slot.generation) << 32 | u64::from(index);
        slot.request = Some(Request {
            command,
            buffer,
            reply: Reply::default(),
            state: State::Queued,
            begun,
            waker: None,
            abandoned: false,
            sent: None,
            deadline: None,
        });
        self.queue.push_back(cookie);
        self.undone += 1;
        cookie
    }

    fn get(&mut self, cookie: u64) -> Option<&mut Request> {
        let slot = self.slots.get_mut(cookie as u32 as usize)?;
        slot.request.as_mut().filter(|_| u64::from(slot.generation) == cookie >> 32)
    }

    fn expect(&mut self, cookie: u64) -> &mut Request {
        self.get(cookie).expect("a request stays until its answer is taken")
    }

    /// The request that a reply is about.
    pub(crate) fn replied(&mut self, cookie: u64) -> Result<&mut Request, Breach> {
        self.get(cookie).filter(|request| matches!(request.state, State::Sent)).ok_or(Breach::Cookie(cookie))
    }

    /// Whether every request is done.
    pub(crate) fn is_idle(&self) -> bool {
        self.undone == 0
    }

    /// Whether a large reply is due.
    pub(crate) fn expects_large(&self) -> bool {
        self.large > 0
    }

    /// How many requests a server has answered.
    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    /// Whether [`Table::next_to_send`] has one.
    pub(crate) fn has_to_send(&self) -> bool {
        !self.queue.is_empty() && self.on_wire < MOST_ON_WIRE
    }

    /// The next request to send, with its payload.
    pub(crate) fn next_to_send(&mut self) -> Option<(u64, Command, Option<Buffer>)> {
        if !self.has_to_send() {
            return None;
        }
        let cookie = self.queue.pop_front()?;
        self.on_wire += 1;
        let request = self.expect(cookie);
        request.state = State::Sending;
        let payload = if request.command.kind == Kind::Write { request.buffer.take() } else { None };
        Some((cookie, request.command, payload))
    }

    /// All of a request is on its way.
    pub(crate) fn sent(&mut self, cookie: u64, payload: Option<Buffer>, now: Option<Instant>) {
        let request = self.expect(cookie);
        request.state = State::Sent;
        request.sent = now;
        request.buffer = request.buffer.take().or(payload);
        self.large += usize::from(request.command.reply_len() >= LARGE);
    }

    /// A sender or receiver that ends gives back what it was lent.
    pub(crate) fn give_back(&mut self, cookie: u64, buffer: Option<Buffer>) {
        let request = self.expect(cookie);
        request.buffer = request.buffer.take().or(buffer);
    }

    /// A simple reply without payload, or the end of any other.
    pub(crate) fn finish(&mut self, cookie: u64) -> Result<(), ClientError> {
        let request = self.replied(cookie)?;
        let range = request.command.range;
        let result = match request.reply.error {
            Some(number) if number == Errno::Shutdown as u32 => return Err(ClientError::ShuttingDown),
            Some(number) => Err(Failure::Server(system_error(number))),
            None => {
                let missing = match request.command.kind {
                    Kind::Read => !request.reply.coverage.is(range.start()..range.end()),
                    Kind::BlockStatus => request.reply.descriptors.is_empty(),
                    _ => false,
                };
                if missing {
                    return Err(Breach::Missing.into());
                }
                Ok(())
            }
        };
        let (command, begun) = (request.command, request.begun);
        let result = match (result, begun) {
            (Ok(()), Some(begun)) => self.marks.flushed(begun).map_err(|_| Failure::LostChanges),
            (result, _) => result,
        };
        if result.is_ok() && command.leaves_dirt() {
            self.marks.acknowledge();
        }
        self.answered += 1;
        self.on_wire -= 1;
        self.large -= usize::from(command.reply_len() >= LARGE);
        self.end(cookie, result);
        Ok(())
    }

    fn end(&mut self, cookie: u64, result: Result<(), Failure>) {
        let request = self.expect(cookie);
        request.state = State::Done(result);
        let (waker, abandoned) = (request.waker.take(), request.abandoned);
        self.woken.extend(waker);
        self.undone -= 1;
        if abandoned {
            self.remove(cookie);
        }
    }

    fn remove(&mut self, cookie: u64) -> Option<Request> {
        let index = cookie as u32;
        self.free.push(index);
        self.slots[index as usize].request.take()
    }

    /// The answer if it is there; else `waker` is woken when it is.
    pub(crate) fn take(&mut self, cookie: u64, waker: &Waker) -> Option<Answer> {
        let request = self.expect(cookie);
        if !matches!(request.state, State::Done(_)) {
            if !request.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                request.waker = Some(waker.clone());
            }
            return None;
        }
        let request = self.remove(cookie)?;
        let State::Done(result) = request.state else { return None };
        Some(Answer { buffer: request.buffer, descriptors: request.reply.descriptors, result })
    }

    /// Nobody waits for the answer any more. The request still runs to its end.
    pub(crate) fn abandon(&mut self, cookie: u64) {
        let request = self.expect(cookie);
        request.abandoned = true;
        request.waker = None;
        if matches!(request.state, State::Done(_)) {
            self.remove(cookie);
        }
    }

    fn unanswered(&mut self) -> impl Iterator<Item = (u64, &mut Request)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let cookie = u64::from(slot.generation) << 32 | index as u64;
            let request = slot.request.as_mut()?;
            (!matches!(request.state, State::Done(_))).then_some((cookie, request))
        })
    }

    /// The connection broke: everything is to be sent again. Buffers were given back.
    pub(crate) fn requeue(&mut self) {
        self.queue.clear();
        (self.on_wire, self.large) = (0, 0);
        let mut cookies: Vec<u64> = Vec::new();
        for (cookie, request) in self.unanswered() {
            request.state = State::Queued;
            request.sent = None;
            request.reply = Reply::default();
            cookies.push(cookie);
        }
        self.queue.extend(cookies);
    }

    /// With the connection broken: requests without a deadline get `until`, and those whose deadline has passed fail.
    pub(crate) fn expire(&mut self, until: Instant, now: Instant, error: &Shared) {
        let mut expired = Vec::new();
        for (cookie, request) in self.unanswered() {
            if *request.deadline.get_or_insert(until) <= now {
                expired.push(cookie);
            }
        }
        self.fail(&expired, error);
    }

    /// With the connection broken: no request will be sent any more.
    pub(crate) fn fail_all(&mut self, error: &Shared) {
        let all: Vec<_> = self.unanswered().map(|(cookie, _)| cookie).collect();
        self.fail(&all, error);
    }

    fn fail(&mut self, cookies: &[u64], error: &Shared) {
        self.queue.retain(|cookie| !cookies.contains(cookie));
        cookies.iter().for_each(|cookie| self.end(*cookie, Err(Failure::Connection(error.clone()))));
    }

    /// When the first request will have waited for too long; `limit` is for the time since it was sent.
    pub(crate) fn due(&mut self, limit: Option<Duration>) -> Option<Instant> {
        let due = |request: &Request| {
            let answered_by = request.sent.zip(limit).map(|(sent, limit)| sent + limit);
            answered_by.into_iter().chain(request.deadline).min()
        };
        self.unanswered().filter_map(|(_, request)| due(request)).min()
    }

    /// Everyone who waits, to look again.
    pub(crate) fn wake_all(&mut self) {
        let wakers: Vec<_> = self.unanswered().filter_map(|(_, request)| request.waker.take()).collect();
        self.woken.extend(wakers);
    }
}
