//! An export as a device with the server's own granularity: what a device promises, in commands that the server knows.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tzero_block::{Action, BlockDevice, ByteRange, Error, Extent, Fault, Geometry, Zeroes};
use tzero_io::{Buffer, together};

use super::command::{Answer, Command, Failure, Kind};
use super::error::{ClientError, Shared};
use super::extents::Extents;
use super::lane::{Common, Lane};
use super::marks::Begun;
use crate::wire::command_flag as flag;

/// Requests that one request of the caller is cut into and that are under way together.
const PARTS_TOGETHER: usize = 4;
/// Longest range that one command zeroes or discards, in bytes: a server may hold others up as long as it takes.
const SLICE: u64 = 32 << 20;
/// Zeroes are written in pieces of at most this many bytes where the server knows nothing better.
const ZERO_PIECE: u64 = 1 << 20;
/// Bytes that one question about allocation is about.
const STATUS_WINDOW: u64 = 1 << 30;
/// Most extents that one call answers.
const MOST_EXTENTS: usize = 4096;
const EROFS: i32 = 30;
const EINVAL: i32 = 22;
const EOVERFLOW: i32 = 75;
const ENOTSUP: i32 = 95;

/// See the [module](self).
pub(crate) struct Remote {
    pub(crate) common: Arc<Common>,
    pub(crate) lanes: Vec<Arc<Lane>>,
}

/// This thread's number.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

fn fault(failure: Failure) -> Fault {
    match failure {
        Failure::Server(ENOTSUP) => Fault::Unsupported,
        Failure::Server(number) => Fault::System(io::Error::from_raw_os_error(number)),
        Failure::Connection(error) => Fault::Link(error.into()),
        Failure::LostChanges => Fault::Link(Shared::from(ClientError::LostChanges).into()),
    }
}

impl Remote {
    /// This thread's connection.
    fn lane(&self) -> &Arc<Lane> {
        &self.lanes[thread_number() % self.lanes.len()]
    }

    async fn ask(&self, kind: Kind, flags: u16, range: ByteRange, buffer: Option<Buffer>) -> Answer {
        self.lane().submit(Command::new(kind, flags, range), buffer, None).await
    }

    fn check(&self, action: Action, range: ByteRange) -> Result<ByteRange, Error> {
        let range = self.geometry().check(action, range.start(), range.len())?;
        if matches!(action, Action::Write | Action::WriteZeroes | Action::Discard) && self.common.agreed.is_read_only()
        {
            let refused = io::Error::from_raw_os_error(EROFS);
            return Err(Error::system(action, range.start(), range.len(), refused));
        }
        Ok(range)
    }

    /// Cuts `range` into pieces of at most `most` bytes and does `each`, some at a time. The first failure ends it.
    async fn cut<F: Future<Output = Result<(), Failure>>>(
        &self,
        range: ByteRange,
        most: u64,
        each: impl Fn(ByteRange) -> F,
    ) -> Result<(), (ByteRange, Failure)> {
        let mut pieces = range.pieces(most).peekable();
        while pieces.peek().is_some() {
            let some: Vec<ByteRange> = pieces.by_ref().take(PARTS_TOGETHER).collect();
            let results = together(some.iter().map(|piece| each(*piece))).await;
            for (piece, result) in some.into_iter().zip(results) {
                result.map_err(|failure| (piece, failure))?;
            }
        }
        Ok(())
    }

    async fn read_one(&self, range: ByteRange, buffer: Buffer) -> (Buffer, Result<(), Failure>) {
        let answer = self.ask(Kind::Read, 0, range, Some(buffer)).await;
        (answer.buffer.expect("a request gives its buffer back"), answer.result)
    }

    /// In pieces that the server takes, each by way of a buffer of its own.
    async fn read_long(&self, range: ByteRange, buffer: &mut Buffer) -> Result<(), Failure> {
        let pieces: Vec<ByteRange> = range.pieces(self.common.agreed.largest.into()).collect();
        for some in pieces.chunks(PARTS_TOGETHER) {
            let read = |piece: &ByteRange| self.read_one(*piece, Buffer::uncleared(piece.len() as usize));
            for (piece, (bytes, result)) in some.iter().zip(together(some.iter().map(read)).await) {
                let at = (piece.start() - range.start()) as usize;
                buffer[at..at + bytes.len()].copy_from_slice(&bytes);
                result?;
            }
        }
        Ok(())
    }

    /// Flags of a change that is to be durable when it is done.
    fn fua(&self, fua: bool) -> u16 {
        if fua && self.common.agreed.can_fua() { flag::FUA } else { 0 }
    }

    /// Where a durable change begins for which the server has no flag.
    fn vow(&self, fua: bool) -> Option<Begun> {
        let needed = fua && !self.common.agreed.can_fua();
        needed.then(|| self.lane().state().table.marks.begin_write())
    }

    /// Makes such a change durable. On this thread's connection, like the change itself.
    async fn keep(&self, vow: Option<Begun>) -> Result<(), Failure> {
        if vow.is_none() || !self.common.agreed.can_flush() {
            return Ok(());
        }
        let command = Command::new(Kind::Flush, 0, ByteRange::new(0, 0));
        self.lane().submit(command, None, vow).await.result
    }

    async fn write_any(&self, range: ByteRange, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Failure>) {
        let (flags, vow) = (self.fua(fua), self.vow(fua));
        let most = u64::from(self.common.agreed.largest);
        let (buffer, result) = if range.len() <= most {
            let answer = self.ask(Kind::Write, flags, range, Some(buffer)).await;
            (answer.buffer.expect("a request gives its buffer back"), answer.result)
        } else {
            let write = |piece: ByteRange| {
                let at = (piece.start() - range.start()) as usize;
                let bytes = Buffer::copy_of(&buffer[at..at + piece.len() as usize]);
                async move { self.ask(Kind::Write, flags, piece, Some(bytes)).await.result }
            };
            let result = self.cut(range, most, write).await.map_err(|(_, failure)| failure);
            (buffer, result)
        };
        let result = match result {
            Ok(()) => self.keep(vow).await,
            failed => failed,
        };
        (buffer, result)
    }

    /// See [`Marks::losses`](super::marks::Marks::losses), over all connections.
    pub(crate) fn losses(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.state().table.marks.losses()).sum()
    }

    /// See [`NbdDevice::settle`](super::NbdDevice::settle).
    pub(crate) async fn settle(&self) -> Result<(), Error> {
        if !self.common.agreed.can_flush() {
            return Ok(());
        }
        let settle = |lane: &Arc<Lane>| {
            let begun = {
                let marks = &lane.state().table.marks;
                marks.is_dirty().then(|| marks.begin_write())
            };
            begun.map(|begun| lane.submit(Command::new(Kind::Flush, 0, ByteRange::new(0, 0)), None, Some(begun)))
        };
        let answers = together(self.lanes.iter().filter_map(settle)).await;
        let result = answers.into_iter().try_for_each(|answer| answer.result);
        result.map_err(|failure| Error::new(Action::Flush, 0, 0, fault(failure)))
    }

    async fn write_out_zeroes(&self, range: ByteRange, flags: u16) -> Result<(), Failure> {
        let most = ZERO_PIECE.min(self.common.agreed.largest.into());
        let write = |piece: ByteRange| async move {
            self.ask(Kind::Write, flags, piece, Some(Buffer::zeroed(piece.len() as usize))).await.result
        };
        self.cut(range, most, write).await.map_err(|(_, failure)| failure)
    }

    async fn zero(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Failure> {
        let agreed = &self.common.agreed;
        let unable = if zeroes.fast { !agreed.can_zero_fast() } else { !agreed.can_zero() };
        let fua = self.fua(zeroes.fua);
        if unable && zeroes.fast {
            return Err(Failure::Server(ENOTSUP));
        }
        if unable {
            return self.write_out_zeroes(range, fua).await;
        }
        let no_hole = if zeroes.may_unmap { 0 } else { flag::NO_HOLE };
        let flags = fua | no_hole | if zeroes.fast { flag::FAST_ZERO } else { 0 };
        let zero = |piece: ByteRange| async move { self.ask(Kind::WriteZeroes, flags, piece, None).await.result };
        match self.cut(range, SLICE, zero).await {
            Ok(()) => Ok(()),
            // It takes the command but not here, or not so long a one.
            Err((_, Failure::Server(ENOTSUP | EINVAL | EOVERFLOW))) if !zeroes.fast => {
                self.write_out_zeroes(range, fua).await
            }
            Err((_, failure)) => Err(failure),
        }
    }
}

impl BlockDevice for Remote {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.common.agreed.size, alignment: self.common.agreed.block }
    }

    async fn read(&self, offset: u64, mut buffer: Buffer) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry().check(Action::Read, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        let (buffer, result) = if range.is_empty() {
            (buffer, Ok(()))
        } else if range.len() <= u64::from(self.common.agreed.largest) {
            self.read_one(range, buffer).await
        } else {
            let result = self.read_long(range, &mut buffer).await;
            (buffer, result)
        };
        (buffer, result.map_err(|failure| Error::new(Action::Read, offset, range.len(), fault(failure))))
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        let checked = self
            .geometry()
            .check(Action::Write, offset, buffer.len() as u64)
            .and_then(|range| self.check(Action::Write, range));
        let range = match checked {
            Ok(range) if range.is_empty() => return (buffer, Ok(())),
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        let (buffer, result) = self.write_any(range, buffer, fua).await;
        (buffer, result.map_err(|failure| Error::new(Action::Write, offset, range.len(), fault(failure))))
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.check(Action::WriteZeroes, range)?;
        if range.is_empty() {
            return Ok(());
        }
        let vow = self.vow(zeroes.fua);
        let result = match self.zero(range, zeroes).await {
            Ok(()) => self.keep(vow).await,
            failed => failed,
        };
        result.map_err(|failure| Error::new(Action::WriteZeroes, range.start(), range.len(), fault(failure)))
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.check(Action::Discard, range)?;
        if !self.common.agreed.can_trim() {
            return Ok(());
        }
        let trim = |piece: ByteRange| async move { self.ask(Kind::Trim, 0, piece, None).await.result };
        match self.cut(range, SLICE, trim).await {
            // Advice that cannot be taken is no failure.
            Ok(()) | Err((_, Failure::Server(ENOTSUP | EINVAL | EOVERFLOW))) => Ok(()),
            Err((piece, failure)) => Err(Error::new(Action::Discard, piece.start(), piece.len(), fault(failure))),
        }
    }

    /// On every connection that has acknowledged changes: only there it is known whether they were lost.
    async fn flush(&self) -> Result<(), Error> {
        if !self.common.agreed.can_flush() {
            return Ok(());
        }
        let own = self.lane();
        let flush = |lane: &Arc<Lane>| {
            let begun = {
                let marks = &lane.state().table.marks;
                (marks.is_dirty() || Arc::ptr_eq(lane, own)).then(|| marks.begin())
            };
            begun.map(|begun| lane.submit(Command::new(Kind::Flush, 0, ByteRange::new(0, 0)), None, Some(begun)))
        };
        let answers = match self.lanes.as_slice() {
            [only] => vec![flush(only).expect("it is this thread's").await],
            several => together(several.iter().filter_map(flush)).await,
        };
        let result = answers.into_iter().try_for_each(|answer| answer.result);
        result.map_err(|failure| Error::new(Action::Flush, 0, 0, fault(failure)))
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.check(Action::Extents, range)?;
        let mut extents = Extents::new(range, self.common.agreed.block);
        while self.common.agreed.allocation.is_some() && extents.len() < MOST_EXTENTS {
            let rest = extents.rest();
            let Some(window) = rest.pieces(STATUS_WINDOW).next() else { break };
            let answer = self.ask(Kind::BlockStatus, 0, window, None).await;
            match answer.result {
                Ok(()) => extents.add(&answer.descriptors),
                // It is a hint: what cannot be had is data.
                Err(Failure::Server(ENOTSUP | EINVAL | EOVERFLOW)) => break,
                Err(failure) => {
                    return Err(Error::new(Action::Extents, window.start(), window.len(), fault(failure)));
                }
            }
        }
        Ok(extents.finish())
    }

    async fn prefetch(&self, range: ByteRange) {
        if self.common.agreed.can_cache() && self.check(Action::Read, range).is_ok() {
            let cache = |piece: ByteRange| async move { self.ask(Kind::Cache, 0, piece, None).await.result };
            // Advice: whoever reads meets the failure.
            let _ = self.cut(range, SLICE, cache).await;
        }
    }
}
