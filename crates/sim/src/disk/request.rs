//! One request of a virtual disk while it is in flight.

use std::task::Waker;

use tzero_block::{Action, ByteRange, Extent};
use tzero_io::Buffer;

use super::SECTOR;
use super::platter::Covered;
use crate::executor::Process;
use crate::random::Random;

/// Most pieces that a request is cut into.
const MOST_PIECES: u64 = 6;

pub(super) enum Work {
    Read(Buffer),
    Write(Buffer),
    Zero { unmap: bool },
    Discard,
    Flush(Covered),
    Extents(Vec<Extent>),
}

impl Work {
    pub(super) fn action(&self) -> Action {
        match self {
            Self::Read(_) => Action::Read,
            Self::Write(_) => Action::Write,
            Self::Zero { .. } => Action::WriteZeroes,
            Self::Discard => Action::Discard,
            Self::Flush(_) => Action::Flush,
            Self::Extents(_) => Action::Extents,
        }
    }
}

pub(super) struct Request {
    pub(super) process: Process,
    pub(super) range: ByteRange,
    pub(super) work: Work,
    /// Durable when it completes.
    pub(super) fua: bool,
    /// What has not moved yet; moved from the end.
    pub(super) pieces: Vec<ByteRange>,
    /// The code with which it will fail.
    pub(super) fails: Option<i32>,
    pub(super) result: Result<(), i32>,
    pub(super) done: bool,
    /// Nobody waits for it any more.
    pub(super) abandoned: bool,
    pub(super) waker: Option<Waker>,
}

impl Request {
    pub(super) fn new(process: Process, range: ByteRange, work: Work, fua: bool, random: &mut Random) -> Self {
        let moves = matches!(work, Work::Read(_) | Work::Write(_) | Work::Zero { .. } | Work::Discard);
        let pieces = if moves { cut(range, random) } else { Vec::new() };
        Self {
            process,
            range,
            work,
            fua,
            pieces,
            fails: None,
            result: Ok(()),
            done: false,
            abandoned: false,
            waker: None,
        }
    }

    pub(super) fn action(&self) -> Action {
        self.work.action()
    }

    pub(super) fn changes(&self) -> bool {
        matches!(self.work, Work::Write(_) | Work::Zero { .. } | Work::Discard)
    }

    pub(super) fn take_buffer(&mut self) -> Buffer {
        match &mut self.work {
            Work::Read(buffer) | Work::Write(buffer) => std::mem::take(buffer),
            _ => Buffer::default(),
        }
    }

    pub(super) fn take_extents(&mut self) -> Vec<Extent> {
        match &mut self.work {
            Work::Extents(found) => std::mem::take(found),
            _ => Vec::new(),
        }
    }
}

/// Cuts a range at random sector boundaries into pieces in random order.
fn cut(range: ByteRange, random: &mut Random) -> Vec<ByteRange> {
    let boundaries = range.end().div_ceil(SECTOR).saturating_sub(range.start() / SECTOR + 1);
    let cuts = random.below(MOST_PIECES).min(boundaries);
    let first = range.start() / SECTOR + 1;
    let mut at: Vec<u64> = (0..cuts).map(|_| (first + random.below(boundaries)) * SECTOR).collect();
    at.extend([range.start(), range.end()]);
    at.sort_unstable();
    at.dedup();
    let mut pieces: Vec<_> = at.windows(2).map(|ends| ByteRange::between(ends[0], ends[1])).collect();
    if random.chance(75) {
        random.shuffle(&mut pieces);
    }
    pieces
}
