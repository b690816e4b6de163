//! Bringing chunks from a source to the destination, and onto record.

use std::sync::Arc;

use tzero_block::ByteRange;

use super::capture::{Captures, Durably, Report};
use super::job::Job;
use super::landing::{FlushBehind, Landing};
use super::stop::Stop;
use crate::digests::chunk_range;
use crate::error::{FileAction, StopCause};
use crate::flow::{self, End, Step, Taker, Target};
use crate::journal::Stage;
use crate::manifest::ModeUsed;
use crate::pace::Pace;
use crate::session::Session;
use crate::source::Source;
use crate::{Cancel, Error};

impl<S: Source> Job<'_, S> {
    /// The chunks of which nothing is on record.
    pub(super) fn missing(&self) -> Vec<u64> {
        (0..self.journal.header.chunks()).filter(|index| !self.records.contains_key(index)).collect()
    }

    /// How the volume is cut into chunks: bytes of one, and of all.
    fn cut(&self) -> (u64, u64) {
        (self.journal.header.chunk, self.journal.header.volume.size)
    }

    /// Source and sink of a run of the pipeline.
    fn landing(&mut self, captures: Option<Captures>, stage: Stage) -> (&mut S, &Cancel, Landing<'_>) {
        let (done, total) = (self.done(), self.journal.header.volume.size);
        let landing = Landing {
            stage,
            done,
            total,
            medium: &self.medium,
            journal: &mut self.journal,
            records: &mut self.records,
            source_name: &self.source_name,
            site: &self.site,
            captures,
            behind: FlushBehind::default(),
            observer: &mut *self.observer,
        };
        (&mut self.source, self.cancel, landing)
    }

    /// Where missing chunks go.
    pub(super) fn target(&self) -> Target<tzero_nbd::AnyDevice> {
        let blank = self.site.device.is_none() && !self.resumed;
        let pace = self.medium.file().is_none().then(Pace::default);
        Target { device: Arc::clone(self.medium.device()), blank, pace }
    }

    /// The same, past the page cache where that is safe: what a killed run had given to the kernel there holds neither its lock nor its device. A new image
    /// has no such past.
    pub(super) fn target_past_cache(&self) -> Target<tzero_nbd::AnyDevice> {
        let target = self.target();
        let is_new = self.site.device.is_none() && !self.resumed;
        if is_new { Target { device: self.medium.past_cache(), ..target } } else { target }
    }

    /// Copies the missing chunks as of T0, and tells the daemon of each that is safe.
    pub(super) async fn copy(&mut self) -> Result<(), Stop> {
        let report: Report = match self.journal.header.mode_used {
            ModeUsed::Reconciled => Session::delivered,
            _ => Session::captured,
        };
        let already = self.recorded();
        let durably = self.durably()?;
        let known = (self.released.clone(), self.source.hurry());
        let captures = |session| Captures::new(session, report, &self.source_name, durably, known);
        let mut captures = self.session.take().map(captures);
        if let Some(captures) = &mut captures {
            // The last batch of the interrupted run may not have been reported.
            for range in already.into_iter().flat_map(|range| self.released.missing(range)) {
                captures.add(range).await?;
            }
        }
        let (chunk, size) = self.cut();
        let order = self.source.hurry().order(self.missing().into_iter().collect());
        let steps = order.map(move |index| Step { index, range: chunk_range(index, chunk, size), expect: None });
        let target = self.target_past_cache();
        let (source, cancel, mut landing) = self.landing(captures, Stage::Final);
        let ended = flow::run(source, target, steps, cancel, &mut landing).await;
        let Landing { captures, behind, .. } = landing;
        let ended = self.ended(ended, behind).await;
        if let Some(captures) = captures {
            match &ended {
                Ok(_) => self.session = Some(captures.finish().await.map_err(|error| self.doubted(error))?),
                Err(_) => {
                    let (session, reported) = captures.abort().await;
                    self.session = session;
                    let _ = reported.map_err(|error| self.doubted(error));
                }
            }
        }
        done(ended?)
    }

    /// An error after which what is recorded is not certain to be in the destination goes on record.
    fn doubted(&mut self, error: Error) -> Error {
        if error.casts_doubt() {
            // The end of the run insists on it.
            let _ = self.journal.doubt();
        }
        error
    }

    /// What is flushed before it counts as captured, where it is.
    fn durably(&self) -> Result<Option<Durably>, Error> {
        if !self.flushes_captures() {
            return Ok(None);
        }
        let journal_path = self.site.journal.clone();
        let journal = self.journal.file().map_err(Error::file(FileAction::Open, &journal_path))?;
        let (medium, image) = (self.medium.clone(), self.site.partial.clone());
        Ok(Some(Durably { medium, image, journal: Arc::new(journal), journal_path }))
    }

    /// Brings chunks of `source` onto record as what the base held at whatever moment.
    pub(super) async fn copy_as_base<T: Source>(
        &mut self,
        mut source: T,
        taker: impl Taker,
        chunks: Vec<u64>,
    ) -> Result<(), Stop> {
        let (chunk, size) = self.cut();
        let steps =
            chunks.into_iter().map(|index| Step { index, range: chunk_range(index, chunk, size), expect: None });
        let (_, cancel, mut landing) = self.landing(None, Stage::Base);
        let ended = flow::run(&mut source, taker, steps, cancel, &mut landing).await;
        let behind = landing.behind;
        done(self.ended(ended, behind).await?)
    }

    /// What came of a run of the pipeline, its last flush included.
    async fn ended(&mut self, ended: Result<End, Error>, behind: FlushBehind) -> Result<End, Stop> {
        let flushed = behind.finish(&self.site.partial).await;
        match (ended.map_err(Stop::from), self.kept(flushed)) {
            (ended, Ok(())) => ended,
            (Ok(_), Err(stop)) => Err(stop),
            (Err(one), Err(other)) => Err(one.or_worse(other)),
        }
    }

    /// What an earlier run has done, as few ranges as possible.
    fn recorded(&self) -> Vec<ByteRange> {
        let mut ranges: Vec<ByteRange> = Vec::new();
        for range in self.records.keys().map(|index| self.range_of(*index)) {
            match ranges.last_mut() {
                Some(last) if last.end() == range.start() => *last = ByteRange::between(last.start(), range.end()),
                _ => ranges.push(range),
            }
        }
        ranges
    }
}

fn done(end: End) -> Result<(), Stop> {
    match end {
        End::Done => Ok(()),
        End::Cancelled => Err(Stop::Resumable(StopCause::Cancelled)),
    }
}
