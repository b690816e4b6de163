//! A copy of a served volume, as of one instant.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use tzero_api::mover::{Begun, Request};
use tzero_io::{blocking, system};

use super::job::{Finished, Job, daemon_fault, resume_fault};
use super::{BackupOutcome, BackupRequest, destination};
use crate::digests::CHUNK;
use crate::error::{FileAction, ResumeFault};
use crate::journal::{JournalHeader, Left, SnapshotRecord};
use crate::manifest::{ModeUsed, VolumeRecord};
use crate::placement::Identity;
use crate::session::{Opened, Session};
use crate::site::Site;
use crate::source::SnapshotSource;
use crate::{Cancel, Copy, CopyId, Error, Observer, Timestamp, hex};

/// What the daemon knows the source by.
pub(crate) struct Volume<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) snapshot: Option<&'a str>,
}

impl Volume<'_> {
    /// What names it on the command line.
    fn source_name(&self) -> String {
        match self.snapshot {
            Some(snapshot) => format!("{}@{snapshot}", self.name),
            None => self.name.to_owned(),
        }
    }

    async fn open(&self, request: Request) -> Result<Opened, crate::DaemonFault> {
        let socket = self.socket.to_owned();
        blocking(move || Session::open(&socket, &request)).await
    }
}

pub(crate) async fn backup(
    volume: &Volume<'_>,
    request: &BackupRequest,
    site: Site,
    observer: Observer<'_>,
    cancel: &Cancel,
) -> Result<BackupOutcome, Error> {
    if request.resume {
        return resume(volume, request, site, observer, cancel).await;
    }
    destination::inspect(&site, request, Some(volume.name))?;
    let begin = Request::Begin { volume: volume.name.to_owned(), snapshot: volume.snapshot.map(str::to_owned) };
    let opened = volume.open(begin).await.map_err(|fault| daemon_fault(&volume.source_name(), fault))?;
    let Opened { session, begun, descriptors } = opened;
    let prepared = prepare(volume, request, &site, &begun, descriptors, observer).await;
    let (source, opened) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            // Nothing of it can be used; a daemon that cannot be told keeps a snapshot that an operator can delete.
            let _ = blocking(move || session.abandon()).await;
            return Err(error);
        }
    };
    let job = Job {
        source,
        source_name: volume.source_name(),
        session: Some(session),
        site,
        file: opened.file,
        journal: opened.journal,
        records: BTreeMap::new(),
        resumed: false,
        mode_used: ModeUsed::TimeZero,
        replace: request.replace,
        verify: request.verify,
        state: request.state.clone(),
        observer,
        cancel,
    };
    job.run(|| None).await.map(outcome)
}

async fn prepare(
    volume: &Volume<'_>,
    request: &BackupRequest,
    site: &Site,
    begun: &Begun,
    descriptors: Vec<std::os::fd::OwnedFd>,
    observer: Observer<'_>,
) -> Result<(SnapshotSource, destination::Opened), Error> {
    let source =
        SnapshotSource::open(begun, descriptors).map_err(|fault| daemon_fault(&volume.source_name(), fault))?;
    refuse_source(site, source.base_file(), begun)?;
    let boot = system::boot_id().map_err(Error::Runtime)?;
    let header = JournalHeader {
        copy: CopyId::random(),
        volume: record(begun),
        snapshot: Some(SnapshotRecord {
            id: begun.snapshot_id.clone(),
            name: begun.snapshot.clone(),
            private: begun.private,
        }),
        plain: None,
        t0: Timestamp(begun.t0_ns),
        pause_us: begun.pause_us,
        mode_asked: request.mode,
        chunk: CHUNK,
        replace: request.replace,
        inode: None,
        device: None,
        boot: hex::encode(&boot),
    };
    let opened = destination::create(site, request, header, observer).await?;
    Ok((source, opened))
}

fn refuse_source(site: &Site, base: &File, begun: &Begun) -> Result<(), Error> {
    let base_path = Path::new(&begun.base_path);
    let mut sources = vec![Identity::of_file(base).map_err(Error::file(FileAction::Open, base_path))?];
    sources.extend(Identity::of_path(base_path).ok());
    destination::refuse_source(site, &sources)
}

fn record(begun: &Begun) -> VolumeRecord {
    VolumeRecord {
        name: begun.volume.clone(),
        id: begun.volume_id.clone(),
        generation: begun.generation,
        size: begun.size,
    }
}

async fn resume(
    volume: &Volume<'_>,
    request: &BackupRequest,
    site: Site,
    observer: Observer<'_>,
    cancel: &Cancel,
) -> Result<BackupOutcome, Error> {
    let fault = |fault| Error::Resume { path: site.image.clone(), fault };
    if !site.journal.exists() {
        return Err(fault(ResumeFault::Nothing));
    }
    let claim = destination::claim(&site)?;
    let left = destination::load(&claim, &site)?.ok_or_else(|| fault(ResumeFault::Nothing))?;
    let header = left.header.clone();
    let Some(snapshot) = header.snapshot.clone() else { return Err(fault(ResumeFault::OtherSource)) };
    if header.volume.name != volume.name || volume.snapshot.is_some_and(|asked| asked != snapshot.name) {
        return Err(fault(ResumeFault::OtherSource));
    }
    let resume = Request::Resume { volume: header.volume.name.clone(), snapshot_id: snapshot.id.clone() };
    if let Some(copy) = declared(&site, &left)? {
        // The interrupted run came as far as the declaration: only the snapshot and the journal are left of it.
        if let Ok(opened) = volume.open(resume).await {
            let _ = blocking(move || opened.session.finish()).await;
        }
        destination::tidy(&site, claim, request, &copy, observer);
        return Ok(outcome(Finished { copy, verified: false }));
    }
    let file = destination::reopen(&site, &header)?;
    let opened = volume.open(resume).await.map_err(|fault| resume_fault(&site, &volume.source_name(), fault))?;
    let Opened { session, begun, descriptors } = opened;
    let same =
        record(&begun) == header.volume && begun.snapshot_id == snapshot.id && Timestamp(begun.t0_ns) == header.t0;
    if !same {
        return Err(fault(ResumeFault::OtherSnapshot));
    }
    let source =
        SnapshotSource::open(&begun, descriptors).map_err(|fault| daemon_fault(&volume.source_name(), fault))?;
    refuse_source(&site, source.base_file(), &begun)?;
    let journal = claim.resume(&left);
    let job = Job {
        source,
        source_name: volume.source_name(),
        session: Some(session),
        site,
        file,
        journal,
        records: left.records,
        resumed: true,
        mode_used: ModeUsed::TimeZero,
        replace: request.replace || header.replace,
        verify: request.verify,
        state: request.state.clone(),
        observer,
        cancel,
    };
    job.run(|| None).await.map(outcome)
}

/// The copy that the journal is of, if it was declared already.
pub(crate) fn declared(site: &Site, left: &Left) -> Result<Option<Copy>, Error> {
    let manifest = site.load().ok().flatten().filter(|manifest| manifest.id == left.header.copy);
    Ok(manifest.map(|manifest| Copy::new(site.clone(), manifest)))
}

fn outcome(finished: Finished) -> BackupOutcome {
    BackupOutcome { copy: finished.copy.summary(), shortfall: None, verified: finished.verified }
}
