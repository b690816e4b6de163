//! What a run that goes on makes of what the journal says.
//!
//! The image has lain there since, for anybody to change, and a restart of the machine or a failure of the destination may
//! have cost it pages that were recorded before. So every recorded chunk is read again and compared with its digest. What is
//! not as it was written is lost: it is copied again, unless it was released.
//!
//! The page cache will do, except after a restart or a failure: then pages that never reached the medium would be
//! compared instead of what becomes of them.

use std::sync::Arc;

use tzero_io::system;

use super::job::Job;
use super::stop::Stop;
use crate::error::{FileAction, StopCause};
use crate::flow::{self, End, Landed, Outcome, Sink, Step, Unkept};
use crate::journal::Stage;
use crate::source::{PlainSource, Source};
use crate::{Error, Event, Notice, Observer, Phase};

impl<S: Source> Job<'_, S> {
    /// Reads what is recorded again, and takes back the records of what is lost.
    pub(super) async fn recheck(&mut self) -> Result<(), Stop> {
        let boot = system::boot_id().map_err(Error::Runtime)?;
        if crate::hex::decode(&self.journal.header.boot) != Some(boot) || self.journal.is_doubted() {
            self.sync().await?;
            self.medium.forget(None);
        }
        let steps: Vec<Step> = self
            .records
            .iter()
            // Of a chunk with originals over it only the last digest is known: it is compared when all of them are laid again.
            .filter(|(_, record)| record.stage != Stage::Laid)
            .map(|(index, record)| Step { index: *index, range: self.range_of(*index), expect: Some(record.digest) })
            .collect();
        let mut recheck = Recheck { lost: Vec::new(), done: 0, total: self.done(), observer: &mut *self.observer };
        let image = PlainSource::new(Arc::clone(self.medium.device()), self.source.size());
        let mut image = image.scoped(self.source.scope().clone()).paced(self.source.pace());
        let compared = flow::run(&mut image, Unkept, steps.into_iter(), self.cancel, &mut recheck);
        if compared.await? == End::Cancelled {
            return Err(Stop::Resumable(StopCause::Cancelled));
        }
        let lost = recheck.lost;
        for index in &lost {
            self.records.remove(index);
            self.journal.append_lost(*index).map_err(Error::file(FileAction::Write, &self.site.journal))?;
        }
        self.journal.trust().map_err(Error::file(FileAction::Write, &self.site.journal))?;
        if !lost.is_empty() {
            (self.observer)(&Event::Notice(Notice::Recopied { chunks: lost.len() as u64 }));
        }
        Ok(())
    }
}

struct Recheck<'a> {
    lost: Vec<u64>,
    done: u64,
    total: u64,
    observer: Observer<'a>,
}

impl Sink for Recheck<'_> {
    async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        if !matches!(landed.outcome, Outcome::Good(_)) {
            self.lost.push(landed.index);
        }
        self.done += landed.range.len();
        (self.observer)(&Event::Progress { phase: Phase::Recheck, done: self.done, total: self.total });
        Ok(())
    }
}
