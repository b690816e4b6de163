//! What happens to a chunk once its bytes are in the destination: journal first, then the daemon, then the page cache.

use std::collections::BTreeMap;

use tzero_block::ByteRange;
use tzero_io::{Task, spawn};

use super::capture::Captures;
use crate::error::FileAction;
use crate::flow::{Landed, Outcome, Sink};
use crate::journal::{ChunkRecord, Journal, Stage};
use crate::medium::Medium;
use crate::site::Site;
use crate::{Error, Event, Observer, Phase};

/// How many bytes are made durable and dropped from the page cache at a time.
const FLUSH_BEHIND: u64 = 64 << 20;

/// Takes chunks that are in the destination: journal first, then the daemon.
pub(crate) struct Landing<'a> {
    /// What chunks are, once they are in.
    pub(crate) stage: Stage,
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) medium: &'a Medium,
    pub(crate) journal: &'a mut Journal,
    pub(crate) records: &'a mut BTreeMap<u64, ChunkRecord>,
    pub(crate) source_name: &'a str,
    pub(crate) site: &'a Site,
    pub(crate) captures: Option<Captures>,
    pub(crate) behind: FlushBehind,
    pub(crate) observer: Observer<'a>,
}

impl Sink for Landing<'_> {
    async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        let taken = self.take(landed).await;
        if let Err(error) = &taken
            && error.casts_doubt()
        {
            // At once: a run that dies before it has ended is resumed too. The end of the run insists on it.
            let _ = self.journal.doubt();
        }
        taken
    }
}

impl Landing<'_> {
    async fn take(&mut self, landed: Landed) -> Result<(), Error> {
        let Landed { index, range, outcome, read, changed, written } = landed;
        let digest = match outcome {
            Outcome::Good(digest) => digest,
            Outcome::Unreadable(range, fault) => {
                return Err(Error::Source { source_name: self.source_name.to_owned(), range, fault });
            }
            Outcome::Unwritable(source) => return Err(Error::Target { path: self.site.partial.clone(), source }),
            Outcome::Mismatch => unreachable!("nothing is expected of a chunk that is copied for the first time"),
        };
        let record = ChunkRecord { stage: self.stage, digest, read, changed, written };
        self.journal.append(index, &record).map_err(Error::file(FileAction::Write, &self.site.journal))?;
        self.records.insert(index, record);
        if let Some(captures) = &mut self.captures {
            captures.add(range).await?;
        }
        self.behind.add(range, written, self.medium, self.site).await?;
        self.done += range.len();
        (self.observer)(&Event::Progress { phase: Phase::Copy, done: self.done, total: self.total });
        Ok(())
    }
}

/// Makes what was written durable soon, and drops it from the page cache. One such flush at a time.
#[derive(Default)]
pub(crate) struct FlushBehind {
    from: u64,
    to: u64,
    written: u64,
    running: Option<Task<Result<(), tzero_block::Error>>>,
}

impl FlushBehind {
    async fn add(&mut self, range: ByteRange, written: u64, medium: &Medium, site: &Site) -> Result<(), Error> {
        // Chunks may come in any order.
        (self.from, self.to) = match self.written {
            0 => (range.start(), range.end()),
            _ => (self.from.min(range.start()), self.to.max(range.end())),
        };
        self.written += written;
        if self.written < FLUSH_BEHIND {
            return Ok(());
        }
        let written = ByteRange::between(self.from, self.to);
        self.written = 0;
        if let Some(running) = self.running.take() {
            running.await.map_err(Error::unflushed(&site.partial))?;
        }
        let medium = medium.clone();
        self.running = Some(spawn(async move {
            medium.flush().await?;
            medium.forget(Some(written));
            Ok(())
        }));
        Ok(())
    }

    /// A failed flush is reported by the kernel once: it must not be lost here.
    pub(crate) async fn finish(self, path: &std::path::Path) -> Result<(), Error> {
        match self.running {
            Some(running) => running.await.map_err(Error::unflushed(path)),
            None => Ok(()),
        }
    }
}
