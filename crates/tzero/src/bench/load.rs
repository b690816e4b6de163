//! A host as a client of an NBD server: so many requests in flight, each sent by itself, and when each was answered.
//!
//! One thread, blocking, structured replies, as fio's NBD engine and most clients are. A paced load has two: one sends when it is time.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::bench::content::{BLOCK, Content};
use crate::nbd::{Command, Connection, REQUEST_BYTES, SIMPLE_REPLY, protocol, request};

/// Bytes that one receive may bring.
const RECEIVED: usize = 256 << 10;
/// Of so many writes one is remembered, to be read again.
const SAMPLED: u64 = 61;
/// Most writes that are remembered.
const MOST_SAMPLED: usize = 512;

/// Cookies of requests that are no load's: those count from zero.
const FLUSH: u64 = 1 << 32;
const READ: u64 = 2 << 32;
const LAST: u64 = 3 << 32;

const STRUCTURED_REPLY: u32 = 0x668e_33ef;
const DONE: u16 = 1;
const ERROR_CHUNK: u16 = 1 << 15;

/// What a host does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    pub(super) command: Command,
    /// Bytes of a request.
    pub(super) len: u32,
    /// Requests in flight.
    pub(super) depth: usize,
    pub(super) places: Places<'a>,
    pub(super) end: End<'a>,
    /// What it writes.
    pub(super) content: Content,
}

/// Where its requests go, in units of their length.
#[derive(Clone, Copy, Debug)]
pub(super) enum Places<'a> {
    /// Anywhere among so many, evenly.
    Random(u64),
    /// One after the other among so many, from the start again after the last.
    Sequential(u64),
    /// To each of these once.
    Each(&'a [u64]),
}

/// When it ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End<'a> {
    /// After this time.
    After(Duration),
    /// When every place was visited.
    All,
    /// When it is told to.
    When(&'a AtomicBool),
}

/// One request, as the host saw it. Nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    /// Since the load began.
    at: u64,
    latency: u64,
}

/// What a host has had.
#[derive(Debug, Default)]
pub(super) struct Taken {
    answered: Vec<Answered>,
    seconds: f64,
    /// Byte offsets of some of the blocks that were written.
    pub(super) sample: Vec<u64>,
}

impl Taken {
    /// Requests a second.
    pub(super) fn rate(&self) -> f64 {
        self.answered.len() as f64 / self.seconds.max(1e-9)
    }

    /// How many requests were answered.
    pub(super) fn requests(&self) -> usize {
        self.answered.len()
    }

    /// The latency in microseconds that so many of a hundred requests did not exceed.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let mut latencies: Vec<u64> = self.answered.iter().map(|answered| answered.latency).collect();
        latencies.sort_unstable();
        let index = (latencies.len() as f64 * percent / 100.0) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).map_or(f64::NAN, |ns| *ns as f64 / 1000.0)
    }

    /// What was answered in this part of its time, in seconds since it began.
    pub(super) fn between(&self, from: f64, to: f64) -> Self {
        let within = |answered: &&Answered| (from..to).contains(&(answered.at as f64 / 1e9));
        Self {
            answered: self.answered.iter().filter(within).copied().collect(),
            seconds: to - from,
            sample: Vec::new(),
        }
    }
}

/// A connection to an export.
pub(super) struct Link {
    stream: UnixStream,
    inbox: Inbox,
    random: u64,
}

impl Link {
    pub(super) fn open(socket: &Path, export: &str) -> io::Result<Self> {
        let stream = Connection::open_structured(socket, export)?;
        Ok(Self { stream, inbox: Inbox::new(), random: 0 })
    }

    /// Carries out a load.
    pub(super) fn run(&mut self, load: &Load<'_>) -> io::Result<Taken> {
        let begun = Instant::now();
        let since = || begun.elapsed().as_nanos() as u64;
        let mut course = Course::new(load, self.random);
        let mut sent = vec![0; load.depth];
        let mut taken = Taken::default();
        let mut in_flight = 0;
        for (cookie, sent) in sent.iter_mut().enumerate() {
            let Some(place) = course.next() else { break };
            *sent = since();
            self.send(load, cookie as u64, place, course.payload(place))?;
            in_flight += 1;
        }
        let goes_on = |now: u64| match load.end {
            End::After(time) => u128::from(now) < time.as_nanos(),
            End::All => true,
            End::When(stop) => !stop.load(Ordering::Relaxed),
        };
        while in_flight > 0 {
            self.inbox.fill(&self.stream)?;
            let now = since();
            while let Some(cookie) = self.inbox.next_reply()? {
                let slot = slot_of(cookie, load.depth)?;
                taken.answered.push(Answered { at: now, latency: now - sent[slot] });
                in_flight -= 1;
                if goes_on(now)
                    && let Some(place) = course.next()
                {
                    sent[slot] = since();
                    self.send(load, cookie, place, course.payload(place))?;
                    in_flight += 1;
                }
            }
        }
        taken.seconds = begun.elapsed().as_secs_f64();
        taken.sample = course.sample;
        self.random = course.random;
        Ok(taken)
    }

    /// Writes blocks at random, so many a second as long as no more than `load.depth` are in flight, until it is told to stop.
    pub(super) fn pace(&mut self, load: &Load<'_>, rate: u32, stop: &AtomicBool) -> io::Result<Taken> {
        let begun = Instant::now();
        let since = || begun.elapsed().as_nanos() as u64;
        let sent: Vec<_> = (0..load.depth).map(|_| AtomicU64::new(0)).collect();
        let total = AtomicU64::new(u64::MAX);
        let (gives, takes) = mpsc::channel();
        (0..load.depth as u64).try_for_each(|slot| gives.send(slot)).expect("the receiver is here");
        let mut course = Course::new(load, self.random);
        let mut sending = self.stream.try_clone()?;
        let (stream, inbox) = (&self.stream, &mut self.inbox);
        let mut taken = thread::scope(|scope| -> io::Result<Taken> {
            // Gone when this ends early: the sender waits for nothing then.
            let free = gives;
            let (course, sent, total) = (&mut course, &sent, &total);
            let sender = scope.spawn(move || -> io::Result<()> {
                let mut count = 0u64;
                while !stop.load(Ordering::Acquire) {
                    let due = Duration::from_secs(count) / rate;
                    thread::sleep(due.saturating_sub(begun.elapsed()));
                    let Ok(slot) = takes.recv() else { break };
                    let Some(place) = course.next() else { break };
                    sent[slot as usize].store(since(), Ordering::Release);
                    send(&mut sending, load, slot, place, course.payload(place))?;
                    count += 1;
                }
                total.store(count, Ordering::Release);
                // Its reply says to the other side that there will be no more.
                sending.write_all(&request(Command::Flush, LAST, 0, 0))
            });
            let mut taken = Taken::default();
            while (taken.answered.len() as u64) < total.load(Ordering::Acquire) {
                inbox.fill(stream)?;
                let now = since();
                while let Some(cookie) = inbox.next_reply()? {
                    if cookie == LAST {
                        continue;
                    }
                    let slot = slot_of(cookie, load.depth)?;
                    let latency = now - sent[slot].load(Ordering::Acquire);
                    taken.answered.push(Answered { at: now, latency });
                    // The sender may have gone.
                    let _ = free.send(cookie);
                }
            }
            sender.join().expect("the sender does not panic").map(|()| taken)
        })?;
        taken.seconds = begun.elapsed().as_secs_f64();
        taken.sample = course.sample;
        self.random = course.random;
        Ok(taken)
    }

    /// Makes everything durable that was answered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&request(Command::Flush, FLUSH, 0, 0))?;
        self.wait_for(FLUSH)
    }

    /// Waits for one reply. Others may be on their way still: of the flush that ends a paced load.
    fn wait_for(&mut self, wanted: u64) -> io::Result<()> {
        loop {
            while let Some(cookie) = self.inbox.next_reply()? {
                if cookie == wanted {
                    return Ok(());
                }
            }
            self.inbox.fill(&self.stream)?;
        }
    }

    /// The block at a byte offset.
    pub(super) fn read(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        self.stream.write_all(&request(Command::Read, READ, offset, BLOCK as u32))?;
        self.inbox.kept = Some(Vec::with_capacity(BLOCK));
        self.wait_for(READ)?;
        Ok(self.inbox.kept.take().unwrap_or_default())
    }

    fn send(&mut self, load: &Load<'_>, cookie: u64, place: u64, payload: &[u8]) -> io::Result<()> {
        send(&mut self.stream, load, cookie, place, payload)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A server that is gone needs no word.
        let _ = self.stream.write_all(&request(Command::Disconnect, 0, 0, 0));
    }
}

fn slot_of(cookie: u64, depth: usize) -> io::Result<usize> {
    usize::try_from(cookie).ok().filter(|slot| *slot < depth).ok_or_else(|| protocol("a reply answers nothing"))
}

fn send(stream: &mut UnixStream, load: &Load<'_>, cookie: u64, place: u64, payload: &[u8]) -> io::Result<()> {
    let head = request(load.command, cookie, place * u64::from(load.len), load.len);
    let mut slices = [IoSlice::new(&head), IoSlice::new(payload)];
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match stream.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut left, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The places of a load, one after the other, and what goes there.
struct Course<'a> {
    load: Load<'a>,
    count: u64,
    random: u64,
    payload: Vec<u8>,
    sample: Vec<u64>,
}

impl<'a> Course<'a> {
    fn new(load: &Load<'a>, random: u64) -> Self {
        let len = if load.command == Command::Write { load.len as usize } else { 0 };
        Self { load: *load, count: 0, random, payload: vec![0; len], sample: Vec::new() }
    }

    fn next(&mut self) -> Option<u64> {
        let place = match self.load.places {
            Places::Random(of) => {
                self.random = self.random.wrapping_add(1);
                crate::demo::mixed(self.random) % of
            }
            Places::Sequential(of) => self.count % of,
            Places::Each(places) => *places.get(self.count as usize)?,
        };
        self.count += 1;
        Some(place)
    }

    fn payload(&mut self, place: u64) -> &[u8] {
        let offset = place * u64::from(self.load.len);
        if !self.payload.is_empty() {
            self.load.content.fill(&mut self.payload, offset);
            if self.count % SAMPLED == 1 && self.sample.len() < MOST_SAMPLED {
                self.sample.push(offset);
            }
        }
        &self.payload
    }
}

/// Bytes of a server, and how far they are understood.
struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Of the chunk at hand, so many bytes are to come, and then it is done.
    chunk: Option<(u64, usize, bool)>,
    /// What reads have brought, where somebody wants to know.
    kept: Option<Vec<u8>>,
}

impl Inbox {
    fn new() -> Self {
        Self { buffer: vec![0; RECEIVED], start: 0, end: 0, chunk: None, kept: None }
    }

    /// Waits for more bytes.
    fn fill(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            match stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The cookie of the next request that is answered in full by what is here.
    fn next_reply(&mut self) -> io::Result<Option<u64>> {
        loop {
            if let Some((cookie, left, done)) = &mut self.chunk {
                let here = (*left).min(self.end - self.start);
                if let Some(kept) = &mut self.kept {
                    kept.extend_from_slice(&self.buffer[self.start..self.start + here]);
                }
                self.start += here;
                *left -= here;
                if *left > 0 {
                    return Ok(None);
                }
                let (cookie, done) = (*cookie, *done);
                self.chunk = None;
                if done {
                    return Ok(Some(cookie));
                }
            }
            if !self.begin_chunk()? {
                return Ok(None);
            }
        }
    }

    fn begin_chunk(&mut self) -> io::Result<bool> {
        let here = &self.buffer[self.start..self.end];
        let number = |at: usize, len: usize| here[at..at + len].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        if here.len() < 16 {
            return Ok(false);
        }
        match number(0, 4) as u32 {
            SIMPLE_REPLY => {
                if number(4, 4) != 0 {
                    return Err(io::Error::from_raw_os_error(number(4, 4) as i32));
                }
                self.chunk = Some((number(8, 8), 0, true));
                self.start += 16;
            }
            STRUCTURED_REPLY if here.len() >= 20 => {
                let (flags, kind, cookie, len) =
                    (number(4, 2) as u16, number(6, 2) as u16, number(8, 8), number(16, 4) as usize);
                if kind & ERROR_CHUNK != 0 {
                    return Err(protocol("the server gives an error"));
                }
                // Data is behind its offset; a hole has no data, which no block here is.
                let skipped = if len >= 8 { 8 } else { 0 };
                if here.len() < 20 + skipped {
                    return Ok(false);
                }
                self.chunk = Some((cookie, len - skipped, flags & DONE != 0));
                self.start += 20 + skipped;
            }
            STRUCTURED_REPLY => return Ok(false),
            _ => return Err(protocol("the server's reply is none")),
        }
        Ok(true)
    }
}

const _: () = assert!(REQUEST_BYTES == 28);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_of_what_was_answered_then() {
        let answered = (1..=100).map(|n| Answered { at: n * 10_000_000, latency: n * 1000 }).collect();
        let taken = Taken { answered, seconds: 1.0, sample: Vec::new() };
        assert_eq!((taken.percentile(50.0), taken.percentile(99.0), taken.percentile(100.0)), (51.0, 100.0, 100.0));
        let half = taken.between(0.5, 1.0);
        assert_eq!((half.requests(), half.rate()), (50, 100.0));
        assert!(Taken::default().percentile(50.0).is_nan());
    }

    #[test]
    fn replies_are_understood_in_any_pieces() {
        let mut bytes = Vec::new();
        let mut chunk = |flags: u16, kind: u16, cookie: u64, data: &[u8]| {
            bytes.extend_from_slice(&STRUCTURED_REPLY.to_be_bytes());
            bytes.extend_from_slice(&flags.to_be_bytes());
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&cookie.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
        };
        chunk(0, 1, 7, &[0; 8 + 100]);
        chunk(1, 1, 7, &[1; 8 + 50]);
        chunk(1, 0, 8, &[]);
        bytes.extend_from_slice(&SIMPLE_REPLY.to_be_bytes());
        bytes.extend_from_slice(&0u32.to_be_bytes());
        bytes.extend_from_slice(&9u64.to_be_bytes());
        for piece in [1, 3, 19, 20, 64, 1000] {
            let (to, from) = UnixStream::pair().unwrap();
            let (mut inbox, mut cookies) = (Inbox::new(), Vec::new());
            inbox.kept = Some(Vec::new());
            for part in bytes.chunks(piece) {
                (&to).write_all(part).unwrap();
                inbox.fill(&from).unwrap();
                while let Some(cookie) = inbox.next_reply().unwrap() {
                    cookies.push(cookie);
                }
            }
            assert_eq!((cookies, inbox.kept.unwrap().len()), (vec![7, 8, 9], 150), "pieces of {piece}");
        }
    }
}
