//! The outboard copy (R31-R37): the base with no regard to updates, then the originals over it.
//!
//! ```text
//!   base ── the kernel, or read and write ──▶ image                              record: base
//!      the last of these has completed ▶ boundary                                record: boundary
//!   image, chunks with originals ▶ originals laid over ▶ digest of T0            record: laid
//!                                                     ▶ their places written ▶ image
//! ```
//!
//! Which originals (R33, R34):
//!
//! | boundary | the last one that belongs to the copy | copy-on-write |
//! |---|---|---|
//! | `all` | the newest that the mover sees when it begins with them | goes on until the copy is declared |
//! | `marker` | the newest that the daemon knows once the last read of the base has completed | the same |
//! | `terminate` | the newest one at its end | ends between the two copies |
//!
//! An original is published before its change touches the base, so whatever a read of the base saw of later changes has an original up to
//! each of these. What is saved afterwards no read has seen. So copy-on-write may end at any moment after the last read (R35), and
//! it does where the cache is short of space.
//!
//! # Invariants
//! 1. (INV-5) The boundary is taken after the last read of the base, of a run that goes on too. A chunk that must be read again takes it back.
//! 2. Once copy-on-write has ended the base is not read any more: what is lost then ends the copy for good.
//! 3. A chunk's digest of T0 is on record before the first original is laid over it in the image. Laying twice is laying once, so
//!    a run that goes on lays all of them again, and compares. What originals are laid over is compared with what was copied, at that moment:
//!    a server may have lost it meanwhile, and what is laid over zeroes has a digest, too.
//! 4. (R36, INV-6) What is retained stays until the daemon hears that the copy is declared or given up.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::{Buffer, blocking, together};
use tzero_originals::Sequence;

use super::job::Job;
use super::offload::Offload;
use super::stop::Stop;
use crate::digests::{CHUNK, ChunkDigest};
use crate::error::{FileAction, StopCause};
use crate::flow::{Taker, Target, Unkept};
use crate::journal::{ChunkRecord, Journal, Stage};
use crate::manifest::Boundary;
use crate::session::Session;
use crate::source::{Content, PlainSource, SnapshotSource, Source};
use crate::{Error, Event, Notice, Phase};

/// Bytes of one read.
const PIECE: u64 = 1 << 20;
/// Chunks that the kernel copies before they are digested: they are in memory then.
const BATCH: usize = 16;
/// How often the daemon is asked whether the cache is short of space.
const ASK: Duration = Duration::from_secs(1);

impl Job<'_, SnapshotSource> {
    /// Makes the image that of T0.
    pub(super) async fn copy_outboard(&mut self) -> Result<(), Stop> {
        self.source.retain();
        loop {
            let up_to = match self.boundary.filter(|_| self.missing().is_empty()) {
                Some(up_to) => up_to,
                None => self.copy_to_boundary().await?,
            };
            if self.lay(Sequence(up_to)).await? {
                return Ok(());
            }
        }
    }

    /// Puts something on record.
    fn note(&mut self, note: impl FnOnce(&mut Journal) -> io::Result<()>) -> Result<(), Error> {
        note(&mut self.journal).map_err(Error::file(FileAction::Write, &self.site.journal))
    }

    /// Copies what is missing of the base, and says which originals belong to it.
    async fn copy_to_boundary(&mut self) -> Result<u64, Stop> {
        let missing = self.missing();
        if let (Some(_), Some(first)) = (self.source.ended(), missing.first()) {
            return Err(self.lost(self.range_of(*first)));
        }
        if self.boundary.take().is_some() {
            self.note(Journal::append_no_boundary)?;
        }
        self.copy_base(missing).await?;
        let up_to = self.draw_boundary().await?;
        self.note(|journal| journal.append_boundary(up_to))?;
        self.boundary = Some(up_to);
        Ok(up_to)
    }

    async fn draw_boundary(&mut self) -> Result<u64, Stop> {
        let plan = self.journal.header.outboard.expect("an outboard copy has a plan");
        match (self.source.ended(), plan.boundary) {
            (Some(end), _) => Ok(end),
            (None, Boundary::All) => Ok(self.seen().await?.1.0),
            (None, Boundary::Marker) => self.answer_of(Session::marker).await,
            (None, Boundary::Terminate) => self.terminate().await,
        }
    }

    /// Ends copy-on-write. The base cannot be had again, so what was copied of it must have reached its medium.
    async fn terminate(&mut self) -> Result<u64, Stop> {
        self.sync().await?;
        let end = self.answer_of(Session::terminate).await?;
        self.source.end(end);
        Ok(end)
    }

    async fn copy_base(&mut self, missing: Vec<u64>) -> Result<(), Stop> {
        // What a killed run left in the image is not zero where the base has a hole.
        let files = self.medium.file().filter(|_| !self.resumed);
        // The kernel knows no rate, and nothing of a host.
        let base_file = self.source.base_file().filter(|_| !self.source.is_restrained());
        let mut offload = Offload::between(base_file, files);
        let mut rest = missing.as_slice();
        while let Some(engine) = &mut offload
            && !rest.is_empty()
        {
            if self.cancel.is_cancelled() {
                return Err(Stop::Resumable(StopCause::Cancelled));
            }
            let batch = &rest[..rest.len().min(BATCH)];
            let ranges: Vec<_> = batch.iter().map(|index| self.source.scope().within(self.range_of(*index))).collect();
            let (moved, goes_on) = engine.copy(ranges).await;
            let image = PlainSource::new(Arc::clone(self.medium.device()), self.source.size());
            let image = image.scoped(self.source.scope().clone());
            self.copy_as_base(image, Unkept, batch[..moved].to_vec()).await?;
            self.engine = engine.ran().unwrap_or(self.engine);
            rest = &rest[moved..];
            if !goes_on {
                offload = None;
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        let base = PlainSource::new(Arc::clone(self.source.base()), self.source.size()).paced(self.source.pace());
        let target = self.target_past_cache();
        self.copy_as_base(base.scoped(self.source.scope().clone()), target, rest.to_vec()).await
    }

    async fn seen(&mut self) -> Result<(BTreeSet<u64>, Sequence), Stop> {
        let seen = self.source.chunks_with_originals().await;
        let whole = ByteRange::new(0, self.source.size());
        seen.map_err(|fault| self.source_fault(whole, fault).into())
    }

    /// Lays the originals up to `up_to` over the base in the image; `false` says that something was lost and has to be copied again.
    async fn lay(&mut self, up_to: Sequence) -> Result<bool, Stop> {
        let (chunks, _) = self.seen().await?;
        let laid_before =
            self.records.iter().filter(|(_, record)| record.stage == Stage::Laid).map(|(index, _)| *index);
        let chunks: Vec<u64> = laid_before.chain(chunks).collect::<BTreeSet<_>>().into_iter().collect();
        let total = (chunks.len() as u64 * CHUNK).min(self.source.size());
        let (mut asked, mut good) = (None::<Instant>, true);
        for (done, index) in (1..).zip(chunks) {
            if self.cancel.is_cancelled() {
                return Err(Stop::Resumable(StopCause::Cancelled));
            }
            if asked.is_none_or(|asked| asked.elapsed() > ASK) {
                self.end_if_short().await?;
                asked = Some(Instant::now());
            }
            good &= self.lay_chunk(index, up_to).await?;
            (self.observer)(&Event::Progress { phase: Phase::Originals, done: (done * CHUNK).min(total), total });
        }
        Ok(good)
    }

    /// Where the cache is short of space a private snapshot's copy-on-write ends early: nothing that is saved from here on belongs to the copy
    /// (R35).
    async fn end_if_short(&mut self) -> Result<(), Stop> {
        let is_private = self.journal.header.snapshot.as_ref().is_some_and(|snapshot| snapshot.private);
        if self.source.ended().is_none() && is_private && self.answer_of(|session| session.delivered(&[])).await? {
            self.terminate().await?;
            (self.observer)(&Event::Notice(Notice::EndedEarly));
        }
        Ok(())
    }

    async fn lay_chunk(&mut self, index: u64, up_to: Sequence) -> Result<bool, Stop> {
        let (range, Some(record)) = (self.range_of(index), self.records.get(&index).copied()) else { return Ok(false) };
        let bytes = self.read_image(range).await?;
        let (is, mut bytes) = blocking(move || (ChunkDigest::of(&bytes), bytes)).await;
        if record.stage == Stage::Base && record.digest != is {
            return self.forget(index);
        }
        let laid = self.source.lay_retained(up_to, range, &mut bytes).await;
        let (places, changed) = laid.map_err(|fault| self.source_fault(range, fault))?;
        if places.is_empty() && record.stage == Stage::Base {
            return Ok(true);
        }
        let (digest, bytes) = blocking(move || (ChunkDigest::of(&bytes), bytes)).await;
        if record.stage == Stage::Laid && record.digest != digest {
            return self.forget(index);
        }
        let parts: Vec<_> = places
            .into_iter()
            .map(|place| {
                let at = (place.start() - range.start()) as usize;
                (place, Content::Bytes(Buffer::copy_of(&bytes[at..at + place.len() as usize])))
            })
            .collect();
        let written = record.written + parts.iter().map(|(place, _)| place.len()).sum::<u64>();
        let record = ChunkRecord { stage: Stage::Laid, digest, changed, written, ..record };
        self.note(|journal| journal.append(index, &record))?;
        self.records.insert(index, record);
        let target = Target { blank: false, ..self.target() };
        let taken = target.take(range, ChunkDigest::Data([0; 32]), parts, self.source.pace()).await;
        taken.map(|_| true).map_err(|source| Error::Target { path: self.site.partial.clone(), source }.into())
    }

    /// A chunk is not in the image as it is on record: it has to be copied again.
    fn forget(&mut self, index: u64) -> Result<bool, Stop> {
        self.records.remove(&index);
        self.note(|journal| journal.append_lost(index))?;
        Ok(false)
    }

    /// What of a range is in the image and in scope; zeroes elsewhere.
    async fn read_image(&self, range: ByteRange) -> Result<Buffer, Error> {
        let mut bytes = Buffer::zeroed(range.len() as usize);
        let pieces = self.source.scope().within(range).into_iter().flat_map(|part| part.pieces(PIECE));
        let reads = pieces.map(|piece| async move {
            let (buffer, read) =
                self.medium.device().read(piece.start(), Buffer::uncleared(piece.len() as usize)).await;
            (piece, read.map(|()| buffer))
        });
        for (piece, read) in together(reads).await {
            let read = read.map_err(|source| Error::Target { path: self.site.partial.clone(), source })?;
            let at = (piece.start() - range.start()) as usize;
            bytes[at..at + read.len()].copy_from_slice(&read);
        }
        Ok(bytes)
    }
}
