//! The one pipeline that backup, verify and restore are made of.
//!
//! ```text
//!   base reads (up to 8 MiB ahead)                chunks (2 landing)                 in order
//!   ─────────────────────────────────────▶ settle ─────────────────▶ digest ▶ write ─────────▶ sink
//!          without regard to updates      a chunk of                 on a thread               journal, captured,
//!                                         pieces of 128 KiB,                                   progress
//!                                         after their reads
//! ```
//! At most 20 MiB of buffers are alive, whatever the volume's size. How much of that is on its way to or from a disk [`Pace`] says.
//!
//! # Invariants
//! 1. A chunk is settled only after all of its base reads have completed (R21).
//! 2. A chunk whose digest is not the expected one is not written.
//! 3. The sink hears of a chunk after all of its bytes have been written, and of chunks in their order.
//! 4. When `run` returns, nothing of it is in flight any more.
//! 5. Outside the source's scope nothing is read and nothing is written.
//!
//! Deliberately absent: what a chunk's fate means. The sink decides.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::{Buffer, Task, blocking, is_zero, spawn};

use crate::digests::Digest;
use crate::error::SourceFault;
use crate::pace::Pace;
use crate::scope::Scope;
use crate::source::{Content, Part, Source};
use crate::{Cancel, ChunkDigest, Error, unaligned};

/// Bytes that are read, and written, at once. Larger ones are no faster, and a host waits longer behind each.
const PIECE: u64 = 128 << 10;
/// Pieces that are being read, or wait to be settled.
const READS: usize = (8 << 20) / PIECE as usize;
/// Chunks being digested and written.
const LANDINGS: usize = 2;
/// A stretch of zeroes that starts and ends at multiples of this many bytes becomes a hole.
const HOLE: usize = 4096;

/// A chunk to be taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) index: u64,
    pub(crate) range: ByteRange,
    /// What it must read as, where that is known.
    pub(crate) expect: Option<ChunkDigest>,
}

/// What is done with a chunk that was read and is as expected.
pub(crate) trait Taker: Clone + 'static {
    /// Takes a chunk's parts, as of T0. `digest` is theirs.
    fn take(self, range: ByteRange, digest: ChunkDigest, parts: Vec<Part>, pace: Pace) -> impl Future<Output = Taken>;
}

/// What came of taking a chunk: how many bytes were written for it.
pub(crate) type Taken = Result<u64, tzero_block::Error>;

/// Takes chunks and keeps nothing: it was enough to read them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unkept;

impl Taker for Unkept {
    async fn take(self, _range: ByteRange, _digest: ChunkDigest, _parts: Vec<Part>, _pace: Pace) -> Taken {
        Ok(0)
    }
}

/// Where chunks go.
pub(crate) struct Target<T> {
    pub(crate) device: Arc<T>,
    /// It reads as zeroes wherever nothing was written, so zeroes need no writing.
    pub(crate) blank: bool,
    /// What bounds what is written, where that is not the host's business: another machine's disk.
    pub(crate) pace: Option<Pace>,
}

impl<T> Clone for Target<T> {
    fn clone(&self) -> Self {
        Self { device: Arc::clone(&self.device), blank: self.blank, pace: self.pace.clone() }
    }
}

/// What became of a chunk.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was read, is as expected, and is in the target if there is one.
    Good(ChunkDigest),
    /// It is not what was expected.
    Mismatch,
    /// It could not be had.
    Unreadable(ByteRange, SourceFault),
    /// The target did not take it.
    Unwritable(tzero_block::Error),
}

/// A chunk that went all the way.
#[derive(Debug)]
pub(crate) struct Landed {
    pub(crate) index: u64,
    pub(crate) range: ByteRange,
    pub(crate) outcome: Outcome,
    /// Bytes read from the base.
    pub(crate) read: u64,
    /// Bytes that came from originals.
    pub(crate) changed: u64,
    /// Bytes written to the target.
    pub(crate) written: u64,
}

/// Hears of chunks, in order.
pub(crate) trait Sink {
    /// An error ends the run.
    fn landed(&mut self, landed: Landed) -> impl Future<Output = Result<(), Error>>;
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All steps were taken.
    Done,
    /// It was asked to stop; the sink has heard of everything that was begun.
    Cancelled,
}

struct Piece {
    step: Step,
    range: ByteRange,
    inside: bool,
    last: bool,
}

struct Chunk {
    step: Step,
    parts: Vec<Part>,
    fault: Option<(ByteRange, SourceFault)>,
    read: u64,
    changed: u64,
}

/// Takes the steps, one after the other, several at a time.
pub(crate) async fn run<S: Source>(
    source: &mut S,
    taker: impl Taker,
    steps: impl Iterator<Item = Step>,
    cancel: &Cancel,
    sink: &mut impl Sink,
) -> Result<End, Error> {
    let (scope, pace) = (source.scope().clone(), source.pace());
    let mut pieces = steps.take_while(|_| !cancel.is_cancelled()).flat_map(|step| pieces_of(step, &scope));
    let mut reading: VecDeque<(Piece, Task<Result<Content, tzero_block::Error>>)> = VecDeque::new();
    let mut landing: VecDeque<Task<Landed>> = VecDeque::new();
    let mut chunk: Option<Chunk> = None;
    let mut result = Ok(());
    let failed = Rc::new(Cell::new(false));
    loop {
        failed.set(result.is_err());
        while reading.len() < READS && result.is_ok() {
            let Some(piece) = pieces.next() else { break };
            let (base, range, inside, pace) = (Arc::clone(source.base()), piece.range, piece.inside, pace.clone());
            let (failed, cancel) = (Rc::clone(&failed), cancel.clone());
            let read = spawn(async move {
                if !inside {
                    return Ok(Content::Outside);
                }
                read_piece(base, range, &pace, || failed.get() || cancel.is_cancelled()).await
            });
            reading.push_back((piece, read));
        }
        let Some((piece, read)) = reading.pop_front() else { break };
        let content = read.await;
        if result.is_err() {
            continue;
        }
        let mut gathered = chunk.take().unwrap_or_else(|| Chunk::new(piece.step));
        gathered.add(piece.range, content);
        if !piece.last {
            chunk = Some(gathered);
            continue;
        }
        gathered.settle(source).await;
        landing.push_back(spawn(land(taker.clone(), gathered, pace.clone())));
        if landing.len() > LANDINGS
            && let Some(first) = landing.pop_front()
        {
            result = sink.landed(first.await).await;
        }
    }
    for landing in landing {
        let landed = landing.await;
        if result.is_ok() {
            result = sink.landed(landed).await;
        }
    }
    result.map(|()| if cancel.is_cancelled() { End::Cancelled } else { End::Done })
}

fn pieces_of(step: Step, scope: &Scope) -> impl Iterator<Item = Piece> + use<> {
    let pieces = step.range.pieces(PIECE).flat_map(|piece| scope.cut(piece)).collect::<Vec<_>>();
    pieces.into_iter().map(move |(range, inside)| Piece { step, range, inside, last: range.end() == step.range.end() })
}

async fn read_piece<D: BlockDevice>(
    base: Arc<D>,
    range: ByteRange,
    pace: &Pace,
    is_over: impl Fn() -> bool,
) -> Result<Content, tzero_block::Error> {
    let extents = base.extents(unaligned::widened(base.as_ref(), range)).await?;
    if extents.iter().all(|extent| extent.hole) {
        return Ok(Content::Hole);
    }
    pace.wait(range.len(), is_over).await;
    let _pass = pace.enter(range.len()).await;
    unaligned::read(base.as_ref(), range).await.map(Content::Bytes)
}

impl Chunk {
    fn new(step: Step) -> Self {
        Self { step, parts: Vec::new(), fault: None, read: 0, changed: 0 }
    }

    /// Takes what the base gave for a piece.
    fn add(&mut self, range: ByteRange, content: Result<Content, tzero_block::Error>) {
        if self.fault.is_some() {
            return;
        }
        match content {
            Ok(content) => {
                if matches!(content, Content::Bytes(_)) {
                    self.read += range.len();
                }
                self.parts.push((range, content));
            }
            Err(error) => self.fault = Some((range, SourceFault::Base(error))),
        }
    }

    /// Makes it the chunk of T0. All of its pieces have been read.
    async fn settle<S: Source>(&mut self, source: &mut S) {
        if self.fault.is_some() {
            return;
        }
        match source.settle(std::mem::take(&mut self.parts)).await {
            Ok((parts, changed)) => (self.parts, self.changed) = (parts, changed),
            Err(fault) => self.fault = Some(fault),
        }
    }
}

async fn land(taker: impl Taker, chunk: Chunk, pace: Pace) -> Landed {
    let Chunk { step, parts, fault, read, changed } = chunk;
    let landed = |outcome, written| Landed { index: step.index, range: step.range, outcome, read, changed, written };
    if let Some((range, fault)) = fault {
        return landed(Outcome::Unreadable(range, fault), 0);
    }
    let (digest, parts) = if parts.iter().all(|(_, content)| !matches!(content, Content::Bytes(_))) {
        (ChunkDigest::Zero, parts)
    } else {
        blocking(move || (digest_of(&parts), parts)).await
    };
    if let Some(expect) = step.expect
        && digest != expect
    {
        return landed(Outcome::Mismatch, 0);
    }
    match taker.take(step.range, digest, parts, pace).await {
        Ok(written) => landed(Outcome::Good(digest), written),
        Err(error) => landed(Outcome::Unwritable(error), 0),
    }
}

fn digest_of(parts: &[Part]) -> ChunkDigest {
    let zero = |content: &Content| match content {
        Content::Hole | Content::Outside => true,
        Content::Bytes(bytes) => bytes.is_zero(),
    };
    if parts.iter().all(|(_, content)| zero(content)) {
        return ChunkDigest::Zero;
    }
    let mut hasher = blake3::Hasher::new();
    for (range, content) in parts {
        match content {
            Content::Bytes(bytes) => hasher.update(bytes),
            Content::Hole | Content::Outside => hasher.update(&Buffer::zeroed(range.len() as usize)),
        };
    }
    ChunkDigest::Data(Digest::from(hasher.finalize()))
}

impl<T: BlockDevice> Taker for Target<T> {
    async fn take(self, _range: ByteRange, digest: ChunkDigest, parts: Vec<Part>, pace: Pace) -> Taken {
        self.write(parts, digest == ChunkDigest::Zero, &pace).await
    }
}

impl<T: BlockDevice> Target<T> {
    async fn zero(&self, range: ByteRange) -> Result<(), tzero_block::Error> {
        if self.blank {
            return Ok(());
        }
        unaligned::zero(self.device.as_ref(), range).await
    }

    /// Writes what is not zero and makes sure that the rest is, outside the scope nothing; tells how many bytes were written. When it returns nothing is
    /// on its way any more.
    pub(crate) async fn write(&self, parts: Vec<Part>, all_zero: bool, pace: &Pace) -> Result<u64, tzero_block::Error> {
        let pace = self.pace.as_ref().unwrap_or(pace);
        let (mut pieces, mut zeroes) = (Vec::new(), Vec::new());
        for (range, content) in joined(parts, all_zero) {
            let bytes = match content {
                Content::Bytes(bytes) => bytes,
                Content::Outside => continue,
                Content::Hole => {
                    zeroes.push(range);
                    continue;
                }
            };
            let runs = runs_of(&bytes);
            if let [(whole, false)] = runs.as_slice()
                && whole.len() == range.len()
            {
                pieces.push((range, bytes));
                continue;
            }
            for (run, zero) in runs {
                let place = ByteRange::new(range.start() + run.start(), run.len());
                if zero {
                    zeroes.push(place);
                } else {
                    pieces.push((place, Buffer::copy_of(&bytes[run.start() as usize..run.end() as usize])));
                }
            }
        }
        for range in merged(zeroes) {
            self.zero(range).await?;
        }
        let written = pieces.iter().map(|(place, _)| place.len()).sum();
        // Two that share a sector must not be on their way together.
        let is_whole = |place: ByteRange| unaligned::widened(self.device.as_ref(), place) == place;
        let (whole, ragged): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|(place, _)| is_whole(*place));
        let start = |(place, bytes)| spawn(write_piece(Arc::clone(&self.device), place, bytes, pace.clone()));
        let writing: Vec<_> = whole.into_iter().map(start).collect();
        let mut result = Ok(());
        for piece in writing {
            result = result.and(piece.await);
        }
        result?;
        for (place, bytes) in ragged {
            write_piece(Arc::clone(&self.device), place, bytes, pace.clone()).await?;
        }
        Ok(written)
    }
}

/// Ascending ranges, neighbours as one.
fn merged(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let mut merged: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end() == range.start() => *last = ByteRange::between(last.start(), range.end()),
            _ => merged.push(range),
        }
    }
    merged
}

async fn write_piece<T: BlockDevice>(
    device: Arc<T>,
    place: ByteRange,
    bytes: Buffer,
    pace: Pace,
) -> Result<(), tzero_block::Error> {
    let _pass = pace.enter(place.len()).await;
    unaligned::write(device.as_ref(), place.start(), bytes).await
}

/// Of a chunk that is all zero, neighbouring parts as one hole: they are zeroed together.
fn joined(parts: Vec<Part>, all_zero: bool) -> Vec<Part> {
    if !all_zero {
        return parts;
    }
    let mut joined: Vec<Part> = Vec::new();
    for (range, content) in parts {
        match (joined.last_mut(), content) {
            (_, Content::Outside) => {}
            (Some((last, _)), _) if last.end() == range.start() => {
                *last = ByteRange::between(last.start(), range.end());
            }
            _ => joined.push((range, Content::Hole)),
        }
    }
    joined
}

/// Cuts bytes into stretches that are all zero (`true`) or are not, in units of [`HOLE`].
fn runs_of(bytes: &[u8]) -> Vec<(ByteRange, bool)> {
    let mut runs: Vec<(ByteRange, bool)> = Vec::new();
    let mut at = 0;
    for block in bytes.chunks(HOLE) {
        let (zero, end) = (is_zero(block), at + block.len() as u64);
        match runs.last_mut() {
            Some((run, was)) if *was == zero => *run = ByteRange::between(run.start(), end),
            _ => runs.push((ByteRange::between(at, end), zero)),
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests;
