//! One run of a copy, new or resumed, from the first chunk to the declaration.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use tzero_api::mover::FailureCode;
use tzero_block::{ByteRange, FileDevice};
use tzero_io::{blocking, system};

use super::capture::Captures;
use super::destination::enter;
use super::landing::{FlushBehind, Landing};
use crate::digests::chunk_range;
use crate::error::{DaemonFault, FileAction, Incomplete, ResumeFault, StopCause};
use crate::flow::{self, End, Landed, Outcome, Sink, Step, Target};
use crate::journal::{ChunkRecord, Journal};
use crate::manifest::{ImageRecord, Manifest, ManifestFields, ModeUsed};
use crate::session::Session;
use crate::site::Site;
use crate::source::{PlainSource, Source};
use crate::verify::{Expected, compare};
use crate::{Cancel, Copy, Error, Event, Notice, Observer, Phase, Timestamp};

/// A copy in the making.
pub(crate) struct Job<'a, S> {
    pub(crate) source: S,
    /// What to call it: `VOLUME`, `VOLUME@SNAPSHOT`, or a path.
    pub(crate) source_name: String,
    pub(crate) session: Option<Session>,
    pub(crate) site: Site,
    pub(crate) file: File,
    pub(crate) journal: Journal,
    /// What an earlier run did.
    pub(crate) records: BTreeMap<u64, ChunkRecord>,
    pub(crate) resumed: bool,
    pub(crate) mode_used: ModeUsed,
    pub(crate) replace: bool,
    pub(crate) verify: bool,
    pub(crate) state: PathBuf,
    pub(crate) observer: Observer<'a>,
    pub(crate) cancel: &'a Cancel,
}

/// What a finished run has to tell.
pub(crate) struct Finished {
    pub(crate) copy: Copy,
    pub(crate) verified: bool,
}

/// Why a run stopped: for good, or until it is resumed.
pub(crate) enum Stop {
    Final(Error),
    Resumable(StopCause),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            Error::Target { source, .. } if source.is_no_space() => Self::Resumable(StopCause::Full),
            Error::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::Resumable(StopCause::Full)
            }
            Error::Daemon { fault, .. } if fault.is_passing() => Self::Resumable(StopCause::Daemon(fault)),
            error => Self::Final(error),
        }
    }
}

impl<S: Source> Job<'_, S> {
    /// Copies what is not copied yet and declares the copy. `reason` tells, after the last byte was read, why the copy
    /// is not what was asked for, if it is not.
    ///
    /// # Errors
    /// [`Error::Incomplete`] leaves everything for a resumed run; any other leaves nothing.
    pub(crate) async fn run(mut self, reason: impl FnOnce() -> Option<String>) -> Result<Finished, Error> {
        let already = self.done();
        let header = &self.journal.header;
        (self.observer)(&Event::Begun {
            copy: header.copy,
            volume: header.volume.name.clone(),
            snapshot: header.snapshot.as_ref().map(|snapshot| snapshot.name.clone()),
            t0: header.t0,
            size: header.volume.size,
            pause_us: header.pause_us,
            resumed: self.resumed,
            already,
        });
        let verified = match self.work().await {
            Ok(verified) => verified,
            Err(stop) => return Err(self.stop(stop).await),
        };
        let manifest = self.manifest(reason());
        let manifest = match manifest.and_then(|manifest| {
            self.site.declare(&manifest, self.replace)?;
            Ok(manifest)
        }) {
            Ok(manifest) => manifest,
            Err(error) => return Err(self.stop(error.into()).await),
        };
        (self.observer)(&Event::Progress { phase: Phase::Declare, done: 1, total: 1 });
        let copy = Copy::new(self.site.clone(), manifest);
        self.close(&copy).await;
        Ok(Finished { copy, verified })
    }

    fn range_of(&self, index: u64) -> ByteRange {
        let header = &self.journal.header;
        chunk_range(index, header.chunk, header.volume.size)
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

    fn done(&self) -> u64 {
        self.records.keys().map(|index| self.range_of(*index).len()).sum()
    }

    /// Everything up to the point where only names are missing.
    async fn work(&mut self) -> Result<bool, Stop> {
        if self.resumed {
            self.distrust_another_boot().await?;
        }
        self.copy().await?;
        self.flush().await?;
        if self.verify {
            self.read_back().await?;
        }
        self.source.check().map_err(|fault| self.source_fault(ByteRange::new(0, self.source.size()), fault))?;
        if let Some(mut session) = self.session.take() {
            let (session, result) = blocking(move || {
                let result = session.check();
                (session, result)
            })
            .await;
            self.session = Some(session);
            result.map_err(|fault| self.daemon_fault(fault))?;
        }
        Ok(self.verify)
    }

    /// After a restart of the machine, what was written may be lost although the journal has it: read it again.
    async fn distrust_another_boot(&mut self) -> Result<(), Stop> {
        let boot = system::boot_id().map_err(Error::Runtime)?;
        if crate::hex::decode(&self.journal.header.boot) == Some(boot) || self.records.is_empty() {
            return Ok(());
        }
        let device = self.reader()?;
        let records = &self.records;
        let steps = records.iter().map(|(index, record)| Step {
            index: *index,
            range: self.range_of(*index),
            expect: Some(record.digest),
        });
        let mut recheck = Recheck { lost: Vec::new() };
        let mut image = PlainSource::new(Arc::new(device), self.source.size());
        if flow::run(&mut image, None::<Target<FileDevice>>, steps, self.cancel, &mut recheck).await? == End::Cancelled
        {
            return Err(Stop::Resumable(StopCause::Cancelled));
        }
        for index in &recheck.lost {
            self.records.remove(index);
            self.journal.append_lost(*index).map_err(Error::file(FileAction::Write, &self.site.journal))?;
        }
        if !recheck.lost.is_empty() {
            let chunks = recheck.lost.len() as u64;
            (self.observer)(&Event::Notice(Notice::Recopied { chunks }));
        }
        Ok(())
    }

    fn reader(&self) -> Result<FileDevice, Error> {
        let path = &self.site.partial;
        let file = self.file.try_clone().map_err(Error::file(FileAction::Open, path))?;
        FileDevice::from_file(file, false).map_err(Error::file(FileAction::Open, path))
    }

    async fn copy(&mut self) -> Result<(), Stop> {
        let device = Arc::new(self.reader()?);
        let blank = self.site.device.is_none() && !self.resumed;
        let target = Target { device, blank };
        let header = &self.journal.header;
        let (chunk, size, total) = (header.chunk, header.volume.size, header.volume.size);
        let missing: Vec<u64> = (0..header.chunks()).filter(|index| !self.records.contains_key(index)).collect();
        let steps =
            missing.into_iter().map(|index| Step { index, range: chunk_range(index, chunk, size), expect: None });
        let already = self.recorded();
        let mut captures = self.session.take().map(Captures::new);
        if let Some(captures) = &mut captures {
            // The last batch of the interrupted run may not have been reported.
            for range in already {
                captures.add(range).await.map_err(|fault| self.daemon_fault(fault))?;
            }
        }
        let mut landing = Landing {
            done: self.done(),
            total,
            file: &self.file,
            journal: &mut self.journal,
            records: &mut self.records,
            source_name: &self.source_name,
            site: &self.site,
            captures,
            behind: FlushBehind::default(),
            observer: &mut *self.observer,
        };
        let ended = flow::run(&mut self.source, Some(target), steps, self.cancel, &mut landing).await;
        let Landing { captures, behind, .. } = landing;
        let flushed = behind.finish(&self.site.partial).await;
        let ended = ended.and_then(|end| flushed.map(|()| end));
        if let Some(captures) = captures {
            match &ended {
                Ok(_) => {
                    let session = captures.finish().await.map_err(|fault| self.daemon_fault(fault))?;
                    self.session = Some(session);
                }
                Err(_) => self.session = captures.abort().await,
            }
        }
        match ended? {
            End::Done => Ok(()),
            End::Cancelled => Err(Stop::Resumable(StopCause::Cancelled)),
        }
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        let total = self.source.size();
        (self.observer)(&Event::Progress { phase: Phase::Flush, done: 0, total });
        let file = self.file.try_clone().map_err(Error::file(FileAction::Flush, &self.site.partial))?;
        blocking(move || file.sync_all()).await.map_err(Error::file(FileAction::Flush, &self.site.partial))?;
        (self.observer)(&Event::Progress { phase: Phase::Flush, done: total, total });
        Ok(())
    }

    async fn read_back(&mut self) -> Result<(), Stop> {
        let header = &self.journal.header;
        let expected = Expected { size: header.volume.size, chunk: header.chunk };
        let digests = self.records.values().map(|record| record.digest);
        let device = self.reader()?;
        let comparison = compare(device, expected, digests, &mut *self.observer, self.cancel).await?;
        let comparison = comparison.ok_or(Stop::Resumable(StopCause::Cancelled))?;
        match comparison.damage.first() {
            None => Ok(()),
            Some(damage) => {
                let range = ByteRange::new(damage.offset, damage.length);
                Err(Stop::Final(Error::ReadBack { path: self.site.partial.clone(), range }))
            }
        }
    }

    fn manifest(&self, reason: Option<String>) -> Result<Manifest, Error> {
        let header = &self.journal.header;
        let sum = |part: fn(&ChunkRecord) -> u64| self.records.values().map(part).sum();
        let image = match &self.site.device {
            Some(_) => None,
            None => {
                let metadata = self.file.metadata().map_err(Error::file(FileAction::Open, &self.site.partial))?;
                Some(ImageRecord { inode: metadata.ino(), size: metadata.len() })
            }
        };
        Ok(Manifest::new(ManifestFields {
            id: header.copy,
            volume: header.volume.clone(),
            t0: header.t0,
            completed: Timestamp(system::wall_ns()),
            mode_asked: header.mode_asked,
            mode_used: self.mode_used,
            reason,
            bytes_read: sum(|record| record.read),
            bytes_changed: sum(|record| record.changed),
            bytes_written: sum(|record| record.written),
            pause_us: header.pause_us,
            chunk: header.chunk,
            image,
            device: self.site.device.clone(),
            digests: self.records.values().map(|record| record.digest).collect(),
        }))
    }

    /// After the declaration: whatever fails here does not make the copy worse.
    async fn close(self, copy: &Copy) {
        let header = self.journal.header.clone();
        let finished = match self.session {
            Some(session) => blocking(move || session.finish()).await.is_ok(),
            None => true,
        };
        if let (false, Some(snapshot)) = (finished, header.snapshot.filter(|snapshot| snapshot.private)) {
            let stands = Notice::SnapshotStands { volume: header.volume.name, snapshot: snapshot.name };
            (self.observer)(&Event::Notice(stands));
        }
        // A journal that cannot be removed is known for what it is by the next run.
        let _ = self.journal.remove();
        enter(&self.state, copy, self.observer);
    }

    fn source_fault(&self, range: ByteRange, fault: crate::error::SourceFault) -> Error {
        Error::Source { source_name: self.source_name.clone(), range, fault }
    }

    fn daemon_fault(&self, fault: DaemonFault) -> Error {
        daemon_fault(&self.source_name, fault)
    }

    /// Leaves everything for later, or nothing.
    async fn stop(self, stop: Stop) -> Error {
        let done = self.done();
        match stop {
            // A destination that took nothing at all has nothing to go on with.
            Stop::Resumable(StopCause::Full) if done == 0 => {
                let source = std::io::ErrorKind::StorageFull.into();
                let error = Error::File { action: FileAction::Write, path: self.site.partial.clone(), source };
                self.give_up().await;
                error
            }
            Stop::Resumable(cause) => {
                let header = &self.journal.header;
                Error::Incomplete(Box::new(Incomplete {
                    cause,
                    volume: header.snapshot.as_ref().map(|_| header.volume.name.clone()),
                    snapshot: header.snapshot.as_ref().map(|snapshot| snapshot.name.clone()),
                    private: header.snapshot.as_ref().is_some_and(|snapshot| snapshot.private),
                    source: self.source_name.clone(),
                    destination: self.site.image.clone(),
                    unfinished: self.site.unfinished().to_owned(),
                    done,
                    total: header.volume.size,
                }))
            }
            Stop::Final(error) => {
                self.give_up().await;
                error
            }
        }
    }

    /// The image goes before the journal: a journal without an image is known for what it is.
    async fn give_up(self) {
        let _ = self.site.discard_partial();
        if let Some(session) = self.session {
            let _ = blocking(move || session.abandon()).await;
        }
        let _ = self.journal.remove();
    }
}

pub(crate) fn daemon_fault(volume: &str, fault: DaemonFault) -> Error {
    Error::Daemon { volume: volume.to_owned(), fault }
}

/// What a refusal to resume means.
pub(crate) fn resume_fault(site: &Site, volume: &str, fault: DaemonFault) -> Error {
    match fault {
        DaemonFault::Refused { code: FailureCode::Unknown, .. } => {
            Error::Resume { path: site.image.clone(), fault: ResumeFault::SnapshotGone }
        }
        fault => daemon_fault(volume, fault),
    }
}

struct Recheck {
    lost: Vec<u64>,
}

impl Sink for Recheck {
    async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        if !matches!(landed.outcome, Outcome::Good(_)) {
            self.lost.push(landed.index);
        }
        Ok(())
    }
}
