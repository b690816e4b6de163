//! A copy of a served volume, as of one instant.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use tzero_api::control::{self, Originals};
use tzero_api::mover::{Begun, FailureCode, PROTOCOL, Request};
use tzero_io::{blocking, system};
use tzero_originals::RangeSet;

use super::job::{Finished, Job, Judgement};
use super::{BackupOutcome, BackupRequest, destination};
use crate::digests::CHUNK;
use crate::error::{DaemonFault, FileAction, ModeFault, ResumeFault};
use crate::journal::{JournalHeader, SnapshotRecord};
use crate::manifest::{Durability, Engine, ModeUsed, Transport, VolumeRecord};
use crate::patience::patiently;
use crate::placement::Identity;
use crate::released::Released;
use crate::session::{Opened, Session};
use crate::site::Site;
use crate::source::{SnapshotSource, Source};
use crate::{Cancel, CopyId, Error, Event, ModeAsked, Notice, Observer, Timestamp, hex};

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

    async fn open(&self, request: Request) -> Result<Opened, DaemonFault> {
        let socket = self.socket.to_owned();
        // The daemon may not have noticed yet that the mover before this one was killed.
        let is_held = |fault: &DaemonFault| matches!(fault, DaemonFault::Refused { code: FailureCode::Busy, .. });
        blocking(move || patiently(|| Session::open(&socket, &request), is_held)).await
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
    let copy = CopyId::random();
    let mode = mode_of(request.mode);
    let begin = Request::Begin {
        protocol: PROTOCOL,
        volume: volume.name.to_owned(),
        snapshot: volume.snapshot.map(str::to_owned),
        scope: (!request.scope.is_empty())
            .then(|| request.scope.iter().map(|part| (part.offset, part.length)).collect()),
        on_full: request.on_full,
        // What an outboard copy needs is kept until it has it; of a standing snapshot this is settled.
        originals: (mode == ModeUsed::Outboard && volume.snapshot.is_none()).then_some(Originals::Keep),
        destination: Some(site.named(copy)),
    };
    let opened = volume.open(begin).await.map_err(Error::daemon(&volume.source_name()))?;
    let Opened { session, begun, descriptors, released } = opened;
    let released = Released::new(released.unwrap_or_default(), begun.keep);
    let prepared = prepare(volume, request, &site, (&begun, copy), (descriptors, released.clone()), observer).await;
    let (source, opened) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            // Nothing of it can be used; a daemon that cannot be told keeps a snapshot that an operator can delete.
            let _ = blocking(move || session.abandon()).await;
            return Err(error);
        }
    };
    let job = Job {
        transport: Some(source.transport()),
        source,
        source_name: volume.source_name(),
        session: Some(session),
        released,
        site,
        medium: opened.medium,
        journal: opened.journal,
        records: BTreeMap::new(),
        resumed: false,
        boundary: None,
        engine: Engine::Read,
        durability: durability(&begun),
        replace: request.replace,
        verify: request.verify,
        state: request.state.clone(),
        observer,
        cancel,
    };
    run(job, request).await
}

/// What a volume is copied by, given what was asked for.
fn mode_of(asked: ModeAsked) -> ModeUsed {
    match asked {
        ModeAsked::Auto | ModeAsked::TimeZero => ModeUsed::TimeZero,
        ModeAsked::Reconciled => ModeUsed::Reconciled,
        ModeAsked::Outboard => ModeUsed::Outboard,
    }
}

async fn run(mut job: Job<'_, SnapshotSource>, request: &BackupRequest) -> Result<BackupOutcome, Error> {
    if !request.hurries {
        job.source.hurry().never();
    }
    if !job.source.restrain(request.restraint) {
        (job.observer)(&Event::Notice(Notice::Unheard));
    }
    let finished = match job.journal.header.mode_used {
        ModeUsed::Outboard => job.run_with(async |job| job.copy_outboard().await, Judgement::default).await,
        _ => job.run(Judgement::default).await,
    };
    finished.map(outcome)
}

async fn prepare(
    volume: &Volume<'_>,
    request: &BackupRequest,
    site: &Site,
    (begun, copy): (&Begun, CopyId),
    (descriptors, released): (Vec<OwnedFd>, Released),
    observer: Observer<'_>,
) -> Result<(SnapshotSource, destination::Opened), Error> {
    if request.mode == ModeAsked::Outboard && !begun.keep {
        return Err(Error::Mode { source_name: volume.source_name(), fault: ModeFault::Releases });
    }
    let source =
        SnapshotSource::open(begun, descriptors, released).await.map_err(Error::daemon(&volume.source_name()))?;
    if request.mode == ModeAsked::Outboard && source.transport() == Transport::View {
        return Err(Error::Mode { source_name: volume.source_name(), fault: ModeFault::View });
    }
    refuse_source(site, &source, begun)?;
    let boot = system::boot_id().map_err(Error::Runtime)?;
    let header = JournalHeader {
        copy,
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
        mode_used: mode_of(request.mode),
        outboard: (request.mode == ModeAsked::Outboard).then(|| request.outboard.unwrap_or_default()),
        chunk: CHUNK,
        replace: request.replace,
        inode: None,
        device: None,
        boot: hex::encode(&boot),
    };
    let opened = destination::create(site, request, header, observer).await?;
    Ok((source, opened))
}

/// By what is open, and by the paths that were given for it, which may lead elsewhere by now.
fn refuse_source(site: &Site, source: &SnapshotSource, begun: &Begun) -> Result<(), Error> {
    let places = || begun.components.iter().filter_map(|component| component.place.path());
    let looked_at = places().next().unwrap_or(Path::new("/"));
    let mut sources = Vec::new();
    for file in source.base_files() {
        sources.push(Identity::of_file(file).map_err(Error::file(FileAction::Open, looked_at))?);
    }
    sources.extend(places().filter_map(|place| Identity::of_path(place).ok()));
    destination::refuse_source(site, &sources)
}

fn durability(begun: &Begun) -> Durability {
    match begun.durability {
        control::Durability::Process => Durability::Process,
        control::Durability::Power => Durability::Power,
    }
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
    let image = site.image.clone();
    let fault_of = |fault| Error::Resume { path: image.clone(), fault };
    let (claim, left) = destination::claim_left(&site, request)?;
    let header = left.header.clone();
    let Some(snapshot) = header.snapshot.clone() else { return Err(fault_of(ResumeFault::OtherSource)) };
    if header.volume.name != volume.name || volume.snapshot.is_some_and(|asked| asked != snapshot.name) {
        return Err(fault_of(ResumeFault::OtherSource));
    }
    if request.mode != ModeAsked::Auto && mode_of(request.mode) != header.mode_used {
        return Err(fault_of(ResumeFault::OtherMode));
    }
    if request.outboard.is_some() && request.outboard != header.outboard {
        return Err(fault_of(ResumeFault::OtherBoundary));
    }
    let resume = Request::Resume {
        protocol: PROTOCOL,
        volume: header.volume.name.clone(),
        snapshot_id: snapshot.id.clone(),
        destination: Some(site.named(header.copy)),
    };
    if let Some(copy) = destination::declared(&site, &left)? {
        // The interrupted run came as far as the declaration: only the snapshot and the journal are left of it.
        if let Ok(opened) = volume.open(resume).await {
            let _ = blocking(move || opened.session.finish()).await;
        }
        destination::tidy(&site, claim, request, &copy, observer);
        return Ok(outcome(Finished { copy, verified: false }));
    }
    let medium = destination::reopen(&site, &header).await?;
    let opened = volume.open(resume).await.map_err(|fault| match fault {
        DaemonFault::Refused { code: FailureCode::Unknown, .. } => fault_of(ResumeFault::SnapshotGone),
        fault => Error::daemon(&volume.source_name())(fault),
    })?;
    let Opened { session, begun, descriptors, released } = opened;
    let same =
        record(&begun) == header.volume && begun.snapshot_id == snapshot.id && Timestamp(begun.t0_ns) == header.t0;
    if !same {
        return Err(fault_of(ResumeFault::OtherSnapshot));
    }
    let daemon_fault = Error::daemon(&volume.source_name());
    let released = match released {
        None if begun.keep => Released::new(RangeSet::default(), true),
        // What is not known to be there is not read: a daemon that does not say what it released is no help here.
        None => return Err(daemon_fault(DaemonFault::Protocol)),
        Some(known) => Released::new(known, begun.keep),
    };
    let source = SnapshotSource::open(&begun, descriptors, released.clone()).await.map_err(daemon_fault)?;
    if !request.scope.is_empty() && !source.scope().is_of(&request.scope) {
        return Err(fault_of(ResumeFault::OtherScope));
    }
    refuse_source(&site, &source, &begun)?;
    let journal = claim.resume(&left);
    let job = Job {
        transport: Some(source.transport()),
        source,
        source_name: volume.source_name(),
        session: Some(session),
        released,
        site,
        medium,
        journal,
        records: left.records,
        resumed: true,
        boundary: left.boundary,
        engine: Engine::Read,
        durability: durability(&begun),
        replace: request.replace || header.replace,
        verify: request.verify,
        state: request.state.clone(),
        observer,
        cancel,
    };
    run(job, request).await
}

fn outcome(finished: Finished) -> BackupOutcome {
    BackupOutcome { copy: finished.copy.summary(), shortfall: None, verified: finished.verified }
}
