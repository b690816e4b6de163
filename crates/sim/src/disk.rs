//! A virtual disk that keeps no more of its contract than it must.
//!
//! # Behaviour
//! - Requests complete in random order after random virtual time. A request's bytes move in pieces, cut at random sector
//!   boundaries and moved in random order at random moments between submission and completion: a reader that overlaps
//!   a writer sees any mixture of sectors, never half a sector.
//! - Dropping a request's future leaves the request running.
//! - Requests fail, run out of space, or take long, as [`Injection`]s say. A failed write has moved some of its pieces.
//! - Discarded sectors become zero or stay, each by chance.
//! - What is allocated is known per sector; a limit on it gives `ENOSPC`.
//!
//! # Death of a process
//! Completed requests stay. Requests in flight may go on landing, unseen; [`Disk::settle`], called before the next
//! incarnation starts, lets each of the rest land wholly, in part (by sectors) or not at all, and nothing afterwards. The real
//! thing has this from the lock on the open file: the next daemon cannot have it while requests of the dead one run.
//! A request submitted by a dead process never existed.
//!
//! # Loss of power
//! What was complete when a flush began is durable when it succeeds, and so is a write with FUA when it completes. Of the rest each sector is
//! there as some request left it, or not: see [`crate::power`]. After a flush that failed, what it was to write is never certain again, as
//! with Linux's page cache.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tzero_block::{Action, ByteRange, Extent};

use crate::executor::{Crash, Process, after, is_dead, moment, record};
use crate::power::Cut;
use crate::random::{Random, mix};
use crate::story::happens;

mod handle;
mod platter;
mod request;
mod row;

pub use handle::DiskHandle;
use platter::{Image, Platter, sectors_of};
use request::{Request, Work};
pub use row::{Row, RowHandle};

/// What a disk moves at once, in bytes.
pub const SECTOR: u64 = 512;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// How long requests take.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// The longest usual delay of one piece.
    pub usual_ns: u64,
    /// How often a piece takes long.
    pub slow_percent: u32,
    /// The longest delay of such a piece.
    pub slow_ns: u64,
}

/// A disk to be made.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// For the trace and the notes of tasks that wait.
    pub name: &'static str,
    /// In bytes; need not be a multiple of anything.
    pub size: u64,
    /// See [`tzero_block::Geometry::alignment`].
    pub alignment: u32,
    /// How long requests take.
    pub latency: Latency,
    /// Most sectors that can be allocated.
    pub limit: Option<u64>,
    /// Whether `write_zeroes` with `fast` is supported.
    pub fast_zeroes: bool,
    /// What is not durable is logged: the power may be lost.
    pub logged: bool,
}

/// What an [`Injection`] does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with `EIO`.
    Fail,
    /// It fails with `ENOSPC`.
    NoSpace,
    /// It takes this much longer.
    Stall(u64),
}

/// A fault in waiting.
#[derive(Clone, Debug)]
pub struct Injection {
    /// Requests of this kind,
    pub action: Action,
    /// after so many of them,
    pub skip: u64,
    /// so many in a row
    pub times: u64,
    /// suffer this.
    pub effect: Effect,
}

struct State {
    options: DiskOptions,
    /// How long it is now, in bytes: up to its whole size.
    len: u64,
    bytes: Vec<u8>,
    allocated: Vec<bool>,
    allocated_sectors: u64,
    requests: BTreeMap<u64, Request>,
    next: u64,
    injections: Vec<Injection>,
    failed: Vec<(Action, ByteRange)>,
    platter: Platter,
    random: Random,
}

/// The disk itself, which no kill harms.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// A disk all holes.
    pub fn new(seed: u64, options: DiskOptions) -> Self {
        let random = Random::labelled(seed, options.name);
        let sectors = options.size.div_ceil(SECTOR) as usize;
        Self(Arc::new(Mutex::new(State {
            bytes: vec![0; options.size as usize],
            allocated: vec![false; sectors],
            allocated_sectors: 0,
            requests: BTreeMap::new(),
            next: 1,
            injections: Vec::new(),
            failed: Vec::new(),
            platter: Platter::default(),
            random,
            len: options.size,
            options,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the disk")
    }

    /// Puts bytes there before the simulation begins.
    pub fn fill(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        let range = ByteRange::new(offset, bytes.len() as u64);
        state.bytes[offset as usize..range.end() as usize].copy_from_slice(bytes);
        state.allocate(range);
    }

    /// What is there now.
    pub fn peek(&self, range: ByteRange) -> Vec<u8> {
        self.state().bytes[range.start() as usize..range.end() as usize].to_vec()
    }

    /// Changes one byte of an allocated sector, which follows from the number; `false` if there is none.
    pub fn corrupt(&self, pick: u64) -> bool {
        let mut state = self.state();
        let allocated: Vec<usize> = (0..state.allocated.len()).filter(|sector| state.allocated[*sector]).collect();
        let Some(sector) = allocated.get((pick % allocated.len().max(1) as u64) as usize) else { return false };
        let at = (sector * SECTOR as usize + (pick >> 32) as usize % SECTOR as usize).min(state.bytes.len() - 1);
        state.bytes[at] ^= 1 << (pick % 8);
        true
    }

    /// Opens the disk for `process`.
    pub fn open(&self, process: Process) -> DiskHandle {
        let alignment = self.state().options.alignment;
        DiskHandle::new(self.clone(), alignment, process)
    }

    /// How long it is, in bytes.
    pub fn size(&self) -> u64 {
        self.state().len
    }

    /// Makes it so long, durably, up to its whole size: longer by a hole, or shorter. Nobody may have a request behind the new end.
    pub fn resize(&self, len: u64) {
        let mut state = self.state();
        assert!(len <= state.options.size, "a disk has an end");
        let gone = ByteRange::between(len.min(state.len), state.len);
        if !gone.is_empty() {
            state.bytes[gone.start() as usize..gone.end() as usize].fill(0);
            state.deallocate(gone);
            state.platter.forget(sectors_of(gone));
        }
        state.len = len;
    }

    /// Arms a fault.
    pub fn inject(&self, injection: Injection) {
        self.state().injections.push(injection);
    }

    /// Disarms every fault and lifts the limit on space.
    pub fn heal(&self) {
        let mut state = self.state();
        state.injections.clear();
        state.options.limit = None;
    }

    /// Limits what can be allocated, in sectors, from now on.
    pub fn limit(&self, sectors: Option<u64>) {
        self.state().options.limit = sectors;
    }

    /// How many sectors are allocated.
    pub fn allocated(&self) -> u64 {
        self.state().allocated_sectors
    }

    /// How many requests of this kind have failed so far.
    pub fn failures(&self, action: Action) -> u64 {
        self.state().failed.iter().filter(|(failed, _)| *failed == action).count() as u64
    }

    /// Whether a request of this kind has ever failed that touched `range`.
    pub fn has_failed(&self, action: Action, range: ByteRange) -> bool {
        self.state().failed.iter().any(|(failed, where_failed)| *failed == action && where_failed.overlaps(range))
    }

    /// Lets requests that outlived their process land, each wholly, in part or not; none is left afterwards.
    pub fn settle(&self) {
        let mut state = self.state();
        let orphans: Vec<u64> =
            state.requests.iter().filter(|(_, request)| is_dead(request.process)).map(|(id, _)| *id).collect();
        for id in orphans {
            let Some(request) = state.requests.remove(&id) else { continue };
            state.land_in_part(id, request);
            // Who opens the file next and flushes it flushes this, too.
            state.platter.completes(id, None);
        }
    }

    /// The power is lost; [`Disk::settle`] came before.
    pub fn lose_power(&self, cut: &Cut) {
        let mut state = self.state();
        for (sector, image) in state.platter.cut(cut) {
            let range = state.sector(sector);
            state.bytes[range.start() as usize..range.end() as usize].copy_from_slice(&image.bytes);
            if image.allocated { state.allocate(range) } else { state.deallocate(range) }
        }
    }

    /// Numbers of what is not durable, in no order.
    pub fn logged(&self) -> Vec<u64> {
        self.state().platter.numbers().collect()
    }

    /// Requests of `process` that have not landed.
    pub fn in_flight(&self, process: Process) -> usize {
        self.state().requests.values().filter(|request| request.process == process && !request.done).count()
    }

    fn progress(&self, id: u64) {
        let mut state = self.state();
        let Some(mut request) = state.requests.remove(&id) else { return };
        let pieces = state.random.magnitude(4).min(request.pieces.len() as u64);
        for _ in 0..pieces {
            let Some(piece) = request.pieces.pop() else { break };
            state.apply(id, &mut request, piece);
        }
        if !request.pieces.is_empty() {
            let delay = state.delay();
            state.requests.insert(id, request);
            drop(state);
            return self.schedule(id, delay);
        }
        record(mix(id) ^ request.range.start() ^ request.range.len() << 32);
        state.finish(id, &mut request);
        happens(|| {
            let (name, action, result) = (state.options.name, name_of(request.action()), request.result);
            format!("{name}: {action} of {} by {:?}: {result:?}", request.range, request.process)
        });
        let unseen = moment(request.process, Crash::Complete);
        let waker = request.waker.take();
        if !request.abandoned && !unseen {
            request.done = true;
            state.requests.insert(id, request);
        }
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn schedule(&self, id: u64, delay: u64) {
        let disk = self.clone();
        after(delay, move || disk.progress(id));
    }
}

impl State {
    fn delay(&mut self) -> u64 {
        let Latency { usual_ns, slow_percent, slow_ns } = self.options.latency;
        let slow = self.random.chance(slow_percent);
        self.random.magnitude(if slow { slow_ns } else { usual_ns })
    }

    fn sectors(range: ByteRange) -> std::ops::Range<usize> {
        (range.start() / SECTOR) as usize..range.end().div_ceil(SECTOR) as usize
    }

    fn allocate(&mut self, range: ByteRange) {
        for sector in Self::sectors(range) {
            if !std::mem::replace(&mut self.allocated[sector], true) {
                self.allocated_sectors += 1;
            }
        }
    }

    fn deallocate(&mut self, range: ByteRange) {
        let whole = range.start().div_ceil(SECTOR) as usize..if range.end() == self.options.size {
            range.end().div_ceil(SECTOR) as usize
        } else {
            (range.end() / SECTOR) as usize
        };
        for sector in whole {
            if std::mem::replace(&mut self.allocated[sector], false) {
                self.allocated_sectors -= 1;
            }
        }
    }

    /// Whether writing the range needs more than is left.
    fn is_full_for(&self, range: ByteRange) -> bool {
        let Some(limit) = self.options.limit else { return false };
        let needed = Self::sectors(range).filter(|sector| !self.allocated[*sector]).count() as u64;
        self.allocated_sectors + needed > limit
    }

    fn sector(&self, sector: usize) -> ByteRange {
        let start = sector as u64 * SECTOR;
        ByteRange::between(start, (start + SECTOR).min(self.options.size))
    }

    fn image(&self, sector: usize) -> Image {
        let range = self.sector(sector);
        let bytes = self.bytes[range.start() as usize..range.end() as usize].to_vec();
        Image { bytes, allocated: self.allocated[sector] }
    }

    fn apply(&mut self, id: u64, request: &mut Request, piece: ByteRange) {
        if !request.changes() || !self.options.logged {
            return self.perform(request, piece);
        }
        for sector in sectors_of(piece) {
            if !self.platter.knows(sector) {
                let now = self.image(sector);
                self.platter.touch(sector, now);
            }
        }
        self.perform(request, piece);
        for sector in sectors_of(piece) {
            let image = self.image(sector);
            self.platter.log(sector, id, image);
        }
    }

    fn perform(&mut self, request: &mut Request, piece: ByteRange) {
        let place = piece.start() as usize..piece.end() as usize;
        let inside = (piece.start() - request.range.start()) as usize;
        let inside = inside..inside + piece.len() as usize;
        match &mut request.work {
            Work::Read(buffer) => buffer[inside].copy_from_slice(&self.bytes[place]),
            Work::Write(buffer) => {
                self.bytes[place].copy_from_slice(&buffer[inside]);
                self.allocate(piece);
            }
            Work::Zero { unmap } => {
                self.bytes[place].fill(0);
                if *unmap {
                    self.deallocate(piece);
                } else {
                    self.allocate(piece);
                }
            }
            Work::Discard => {
                if self.random.chance(50) {
                    self.bytes[place].fill(0);
                    self.deallocate(piece);
                }
            }
            Work::Flush(_) | Work::Extents(_) => {}
        }
    }

    fn finish(&mut self, id: u64, request: &mut Request) {
        if let Some(code) = request.fails {
            request.result = Err(code);
            self.failed.push((request.action(), request.range));
            if request.fua {
                // It was a flush, too, and may have been told of what others wrote.
                self.failed.push((Action::Flush, request.range));
                self.platter.flush_failed();
            }
        }
        match &request.work {
            Work::Flush(_) if request.fails.is_some() => self.platter.flush_failed(),
            Work::Flush(covered) => self.platter.flushed(covered),
            _ => {
                let durable = request.fua && request.fails.is_none();
                self.platter.completes(id, durable.then(|| Self::sectors(request.range)));
            }
        }
        if let Work::Extents(found) = &mut request.work {
            for piece in request.range.pieces(SECTOR) {
                let hole = !self.allocated[(piece.start() / SECTOR) as usize];
                match found.last_mut() {
                    Some(last) if last.hole == hole => last.range = ByteRange::between(last.range.start(), piece.end()),
                    _ => found.push(Extent { range: piece, hole }),
                }
            }
        }
    }

    fn land_in_part(&mut self, id: u64, mut request: Request) {
        if request.done || !request.changes() {
            return;
        }
        let percent = *self.random.pick(&[0, 0, 30, 70, 100, 100]);
        for piece in std::mem::take(&mut request.pieces) {
            for sector in piece.pieces(SECTOR) {
                if self.random.chance(percent) {
                    self.apply(id, &mut request, sector);
                }
            }
        }
    }

    /// What the faults in waiting do to a request of this kind.
    fn suffer(&mut self, action: Action) -> Option<Effect> {
        let mut suffered = None;
        for injection in self.injections.iter_mut().filter(|injection| injection.action == action) {
            if injection.skip > 0 {
                injection.skip -= 1;
            } else if suffered.is_none() && injection.times > 0 {
                injection.times -= 1;
                suffered = Some(injection.effect);
            }
        }
        self.injections.retain(|injection| injection.times > 0);
        suffered
    }

    fn submit(&mut self, process: Process, range: ByteRange, work: Work, fua: bool) -> (u64, u64) {
        let mut request = Request::new(process, range, work, fua, &mut self.random);
        let mut delay = self.delay();
        match self.suffer(request.action()) {
            Some(Effect::Fail) => request.fails = Some(EIO),
            Some(Effect::NoSpace) => request.fails = Some(ENOSPC),
            Some(Effect::Stall(ns)) => delay += ns,
            None => {}
        }
        if matches!(request.work, Work::Write(_) | Work::Zero { unmap: false }) && self.is_full_for(range) {
            request.fails = Some(ENOSPC);
        }
        if request.fails.is_some() {
            let kept = self.random.index(request.pieces.len() + 1);
            request.pieces.truncate(kept);
        }
        let id = self.next;
        self.next += 1;
        if let Work::Flush(covered) = &mut request.work {
            *covered = self.platter.flush_begins();
        }
        if request.changes() {
            self.platter.begins(id);
        }
        self.requests.insert(id, request);
        (id, delay)
    }
}

fn name_of(action: Action) -> &'static str {
    match action {
        Action::Read => "read",
        Action::Write => "write",
        Action::WriteZeroes => "write zeroes",
        Action::Discard => "discard",
        Action::Flush => "flush",
        Action::Extents => "extents",
    }
}

#[cfg(test)]
mod tests;
