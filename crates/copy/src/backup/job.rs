//! One run of a copy, new or resumed, from the first chunk to the declaration.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tzero_block::ByteRange;
use tzero_io::{blocking, system};

use super::destination::enter;
use super::stop::Stop;
use crate::digests::chunk_range;
use crate::error::{DaemonFault, FileAction, Incomplete, StopCause};
use crate::forbidden::refuse_forbidden;
use crate::journal::{ChunkRecord, Journal};
use crate::manifest::{
    Durability, Engine, ImageRecord, Manifest, ManifestFields, ModeUsed, Outboard, OutboardRecord, Protection,
    Transport,
};
use crate::medium::Medium;
use crate::opening::refuse_locked;
use crate::released::Released;
use crate::session::Session;
use crate::site::{Site, Undeclared};
use crate::source::Source;
use crate::verify::{Expected, compare};
use crate::{Cancel, Copy, Error, Event, Notice, Observer, Phase, Timestamp, opening};

/// A copy in the making.
pub(crate) struct Job<'a, S> {
    pub(crate) source: S,
    /// What to call it: `VOLUME`, `VOLUME@SNAPSHOT`, or a path.
    pub(crate) source_name: String,
    pub(crate) session: Option<Session>,
    /// What the source can never give again.
    pub(crate) released: Released,
    pub(crate) site: Site,
    pub(crate) medium: Medium,
    pub(crate) journal: Journal,
    /// What an earlier run did.
    pub(crate) records: BTreeMap<u64, ChunkRecord>,
    pub(crate) resumed: bool,
    /// The last original that belongs to an outboard copy, once that is known.
    pub(crate) boundary: Option<u64>,
    /// What moves the base's bytes of an outboard copy.
    pub(crate) engine: Engine,
    /// What the volume's originals outlive.
    pub(crate) durability: Durability,
    /// How a volume's bytes come here.
    pub(crate) transport: Option<Transport>,
    pub(crate) replace: bool,
    pub(crate) verify: bool,
    pub(crate) state: PathBuf,
    pub(crate) observer: Observer<'a>,
    pub(crate) cancel: &'a Cancel,
}

/// What is to be said of a copy beside its bytes.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// Why it is not what was asked for, if it is not.
    pub(crate) reason: Option<String>,
    /// What protected a plain source.
    pub(crate) protection: Option<Protection>,
}

/// What a finished run has to tell.
pub(crate) struct Finished {
    pub(crate) copy: Copy,
    pub(crate) verified: bool,
}

impl<S: Source> Job<'_, S> {
    /// Copies what is not copied yet and declares the copy. `judge` tells, after the last byte was read, what the source
    /// made of it.
    ///
    /// # Errors
    /// [`Error::Incomplete`] leaves everything for a resumed run; any other leaves nothing.
    pub(crate) async fn run(self, judge: impl FnOnce() -> Judgement) -> Result<Finished, Error> {
        self.run_with(async |job: &mut Self| job.copy().await, judge).await
    }

    /// [`Self::run`] with another way to bring the missing chunks to their last stage.
    pub(super) async fn run_with(
        mut self,
        copy: impl AsyncFnOnce(&mut Self) -> Result<(), Stop>,
        judge: impl FnOnce() -> Judgement,
    ) -> Result<Finished, Error> {
        if let Err(stop) = self.make_known().await {
            return Err(self.stop(stop).await);
        }
        let already = self.done();
        let header = &self.journal.header;
        (self.observer)(&Event::Begun {
            copy: header.copy,
            volume: header.volume.name.clone(),
            volume_id: header.volume.id.clone(),
            snapshot: header.snapshot.as_ref().map(|snapshot| snapshot.name.clone()),
            snapshot_id: header.snapshot.as_ref().map(|snapshot| snapshot.id.clone()),
            t0: header.t0,
            size: header.volume.size,
            pause_us: header.pause_us,
            resumed: self.resumed,
            already,
        });
        let verified = match self.work(copy).await {
            Ok(verified) => verified,
            Err(stop) => return Err(self.stop(stop).await),
        };
        let ready = self.manifest(judge()).and_then(|manifest| self.refuse_base().map(|()| manifest));
        let manifest = match ready {
            Ok(manifest) => manifest,
            Err(error) => return Err(self.stop(error.into()).await),
        };
        match self.site.declare(&manifest, self.replace) {
            Ok(()) => {}
            Err(Undeclared::Before(error)) => return Err(self.stop(error.into()).await),
            Err(Undeclared::After(error)) => {
                return Err(self.stop(Stop::Resumable(StopCause::Unnamed(Box::new(error)))).await);
            }
        }
        (self.observer)(&Event::Progress { phase: Phase::Declare, done: 1, total: 1 });
        let copy = Copy::new(self.site.clone(), manifest);
        self.close(&copy).await;
        Ok(Finished { copy, verified })
    }

    /// The snapshot outlives this run from here on; an earlier run said so before.
    async fn make_known(&mut self) -> Result<(), Stop> {
        if self.resumed {
            return Ok(());
        }
        self.ask(Session::recorded).await
    }

    /// Has the daemon answer, if there is one.
    async fn ask(&mut self, ask: fn(&mut Session) -> Result<(), DaemonFault>) -> Result<(), Stop> {
        if self.session.is_some() { self.answer_of(ask).await } else { Ok(()) }
    }

    /// What the daemon answers.
    ///
    /// # Panics
    /// If there is no session.
    pub(super) async fn answer_of<T: Send + 'static>(
        &mut self,
        ask: fn(&mut Session) -> Result<T, DaemonFault>,
    ) -> Result<T, Stop> {
        let mut session = self.session.take().expect("a volume is copied in a session");
        let (session, result) = blocking(move || {
            let result = ask(&mut session);
            (session, result)
        })
        .await;
        self.session = Some(session);
        result.map_err(|fault| Error::daemon(&self.source_name)(fault).into())
    }

    pub(super) fn range_of(&self, index: u64) -> ByteRange {
        let header = &self.journal.header;
        chunk_range(index, header.chunk, header.volume.size)
    }

    pub(super) fn done(&self) -> u64 {
        self.records.keys().map(|index| self.range_of(*index).len()).sum()
    }

    /// Everything up to the point where only names are missing.
    async fn work(&mut self, copy: impl AsyncFnOnce(&mut Self) -> Result<(), Stop>) -> Result<bool, Stop> {
        if self.resumed {
            self.recheck().await?;
            self.refuse_released()?;
        }
        copy(self).await?;
        self.flush().await?;
        if self.verify {
            self.read_back().await?;
        }
        self.source.check().map_err(|fault| self.source_fault(ByteRange::new(0, self.source.size()), fault))?;
        self.ask(Session::check).await?;
        Ok(self.verify)
    }

    /// What is missing must still be there to be read. What was captured once and is missing now, by whatever loss of
    /// journal or image, is not: the source would give later bytes for it.
    fn refuse_released(&self) -> Result<(), Stop> {
        let missing = self.missing().into_iter().flat_map(|index| self.source.scope().within(self.range_of(index)));
        match missing.into_iter().find(|range| self.released.overlaps(*range)) {
            None => Ok(()),
            Some(range) => Err(self.lost(range)),
        }
    }

    /// A part is lost, and the source does not give it again.
    pub(super) fn lost(&self, range: ByteRange) -> Stop {
        Stop::Final(Error::Lost {
            source_name: self.source_name.clone(),
            path: self.site.image.clone(),
            range,
            // A device is not blank any more.
            replace: self.replace || self.site.device.is_some(),
        })
    }

    /// What comes of a flush: one that failed has lost pages that the kernel will not speak of again.
    pub(super) fn kept(&mut self, flushed: Result<(), Error>) -> Result<(), Stop> {
        flushed.map_err(|error| {
            // The end of the run insists on it.
            let _ = self.journal.doubt();
            error.into()
        })
    }

    pub(super) async fn sync(&mut self) -> Result<(), Stop> {
        let flushed = self.medium.flush().await;
        self.kept(flushed.map_err(Error::unflushed(&self.site.partial)))
    }

    /// Whether only what was flushed, image and journal, is captured: where the mover's originals outlive more than processes, or the destination
    /// may lose what it has acknowledged while the mover lives.
    pub(super) fn flushes_captures(&self) -> bool {
        self.durability == Durability::Power || self.medium.file().is_none()
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        let total = self.source.size();
        (self.observer)(&Event::Progress { phase: Phase::Flush, done: 0, total });
        self.sync().await?;
        (self.observer)(&Event::Progress { phase: Phase::Flush, done: total, total });
        Ok(())
    }

    async fn read_back(&mut self) -> Result<(), Stop> {
        let header = &self.journal.header;
        let expected = Expected { size: header.volume.size, chunk: header.chunk, scope: self.source.scope().clone() };
        let digests = self.records.values().map(|record| record.digest);
        let comparison = compare(
            (&self.medium, &self.site.partial),
            expected,
            digests,
            &mut *self.observer,
            self.cancel,
            self.source.pace(),
        )
        .await?;
        let comparison = comparison.ok_or(Stop::Resumable(StopCause::Cancelled))?;
        match comparison.damage.first() {
            None => Ok(()),
            Some(damage) => {
                let range = ByteRange::new(damage.offset, damage.length);
                Err(Stop::Final(Error::ReadBack { path: self.site.partial.clone(), range }))
            }
        }
    }

    /// What stands in the image's place may have become a volume's base since the run began.
    fn refuse_base(&self) -> Result<(), Error> {
        if self.site.device.is_some() || !self.site.image.exists() {
            return Ok(());
        }
        refuse_forbidden(&self.site.image, &self.state, None)?;
        match opening::open(&self.site.image) {
            Ok(there) => refuse_locked(&there, &self.site.image),
            Err(_) => Ok(()),
        }
    }

    fn manifest(&self, Judgement { reason, protection }: Judgement) -> Result<Manifest, Error> {
        let header = &self.journal.header;
        let sum = |part: fn(&ChunkRecord) -> u64| self.records.values().map(part).sum();
        let image = match self.medium.file().filter(|_| self.site.device.is_none()) {
            None => None,
            Some(file) => {
                let metadata = file.metadata().map_err(Error::file(FileAction::Open, &self.site.partial))?;
                Some(ImageRecord { inode: metadata.ino(), size: metadata.len() })
            }
        };
        Ok(Manifest::new(ManifestFields {
            id: header.copy,
            volume: header.volume.clone(),
            t0: header.t0,
            completed: Timestamp(system::wall_ns()),
            mode_asked: header.mode_asked,
            mode_used: self.mode_used(),
            reason,
            protection,
            transport: self.transport,
            outboard: header.outboard.zip(self.boundary).map(|(plan, up_to)| {
                let Outboard { layout, boundary } = plan;
                (OutboardRecord { layout, boundary, engine: self.engine }, up_to)
            }),
            scope: self.source.scope().clone(),
            durability: self.durability,
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

    /// As the journal has it; the first ones told a plain source by its record alone.
    fn mode_used(&self) -> ModeUsed {
        let header = &self.journal.header;
        if header.plain.is_some() { ModeUsed::Plain } else { header.mode_used }
    }

    pub(super) fn source_fault(&self, range: ByteRange, fault: crate::error::SourceFault) -> Error {
        Error::Source { source_name: self.source_name.clone(), range, fault }
    }

    /// Leaves everything for later, or nothing.
    async fn stop(mut self, stop: Stop) -> Error {
        let done = self.done();
        let stop = match stop {
            // Without a word of doubt the next run would take on trust what a failed destination may have lost.
            Stop::Resumable(StopCause::Full) => match self.journal.doubt() {
                Ok(()) => Stop::Resumable(StopCause::Full),
                Err(source) => Stop::Final(Error::file(FileAction::Write, &self.site.journal)(source)),
            },
            other => other,
        };
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
        let discarded = self.site.discard_partial();
        if let Some(session) = self.session {
            let _ = blocking(move || session.abandon()).await;
        }
        // Without it nobody would know whose the image is.
        if discarded.is_ok() {
            let _ = self.journal.remove();
        }
    }
}
