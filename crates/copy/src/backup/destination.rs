//! What may be written to, and the files that a copy in the making has.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tzero_api::StatePaths;
use tzero_api::mover::{PROTOCOL, Request};
use tzero_io::blocking;
use tzero_nbd::Uri;

use crate::backup::{BackupRequest, BackupSource};
use crate::blank::is_blank;
use crate::error::{FileAction, Refusal, ResumeFault};
use crate::journal::{Claim, Journal, JournalHeader, Left};
use crate::medium::Medium;
use crate::opening::refuse_locked;
use crate::placement::{Identity, lies_on};
use crate::served::Served;
use crate::session::Session;
use crate::site::Site;
use crate::{Catalogue, Copy, Error, Event, Notice, Observer, abandoned, opening};

/// Refuses a destination on which something stands that the request does not allow to be replaced, one that is locked
/// (a served volume's base is never replaced), and one beside which are files of somebody else's. Writes nothing.
pub(crate) fn inspect(site: &Site, request: &BackupRequest, volume: Option<&str>) -> Result<(), Error> {
    site.refuse_foreign(|| !abandoned::known(site, &request.state).is_empty())?;
    if site.device.is_none() {
        match opening::open(&site.image) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) if request.replace => {}
            Err(error) => return Err(Error::file(FileAction::Open, &site.image)(error)),
            Ok(there) => refuse_locked(&there, &site.image)?,
        }
    }
    if request.replace {
        return Ok(());
    }
    match site.load() {
        Ok(Some(manifest)) if volume.is_none_or(|volume| manifest.volume().name == volume) => {
            Err(Error::refused(&site.image, Refusal::CompleteCopy))
        }
        Ok(None) if site.device.is_some() => Ok(()),
        _ => Err(Error::refused(&site.image, Refusal::NoCopyOfIt)),
    }
}

/// Refuses a destination that is or lies on the source, or that the source lies on.
pub(crate) fn refuse_source(site: &Site, sources: &[Identity]) -> Result<(), Error> {
    if site.is_export() {
        // Only its server knows what it lies on: see `refuse_own_export`.
        return Ok(());
    }
    for source in sources {
        if lies_on(&site.image, source).map_err(Error::file(FileAction::Open, &site.image))? {
            return Err(Error::refused(&site.image, Refusal::IsSource));
        }
    }
    Ok(())
}

/// Refuses an export of the daemon of this state directory that is the source, or lies with it on the same bytes. What other servers'
/// exports lie on cannot be seen from here; a base that a daemon serves is locked, but not every server asks for locks.
pub(crate) fn refuse_own_export(uri: &Uri, request: &BackupRequest) -> Result<(), Error> {
    let Some(served) = Served::ask(&StatePaths::new(request.state.clone()))? else { return Ok(()) };
    let Some(export) = served.own(uri) else { return Ok(()) };
    let bases_of = |name: &str| -> Vec<PathBuf> {
        let volume = served.volumes().iter().find(|volume| volume.name.as_str() == name);
        let places = volume.into_iter().flat_map(|volume| &volume.bases).filter_map(|base| base.place.path());
        places.map(Path::to_owned).collect()
    };
    let sources = match &request.source {
        BackupSource::Volume { volume, .. } => bases_of(volume),
        BackupSource::Path(path) => vec![path.clone()],
    };
    let shares =
        |one: &Path, other: &Path| Identity::of_path(other).and_then(|other| lies_on(one, &other)).unwrap_or(false);
    let targets = bases_of(export);
    let mut pairs = sources.iter().flat_map(|source| targets.iter().map(move |target| (source, target)));
    let is_source = request.source.volume() == export.split('@').next()
        || pairs.any(|(source, target)| shares(source, target) || shares(target, source));
    if is_source { Err(Error::refused(uri.to_string().as_ref(), Refusal::ServesSource)) } else { Ok(()) }
}

/// What a resumed run goes on with.
///
/// # Errors
/// When there is no journal, with the way to give up whatever is left without one.
pub(crate) fn claim_left(site: &Site, request: &BackupRequest) -> Result<(Claim, Left), Error> {
    let nothing = || match abandoned::known(site, &request.state).first() {
        Some(snapshot) => Error::JournalLost { path: site.image.clone(), way: abandoned::way(site, snapshot) },
        None => Error::Resume { path: site.image.clone(), fault: ResumeFault::Nothing },
    };
    if !site.journal.exists() {
        return Err(nothing());
    }
    let claim = site.claim()?;
    let left = load(&claim, site)?.ok_or_else(nothing)?;
    Ok((claim, left))
}

/// What an interrupted run left.
pub(crate) fn load(claim: &Claim, site: &Site) -> Result<Option<Left>, Error> {
    claim.load().map_err(Error::file(FileAction::Read, &site.journal))
}

/// The destination of a new copy, open and empty, and its journal.
pub(crate) struct Opened {
    pub(crate) medium: Medium,
    pub(crate) journal: Journal,
}

/// Claims the destination and makes the files of a new copy. What an unfinished one left is thrown away, its private
/// snapshot included. On an error nothing new is left.
///
/// The destination's part of `header` is filled in here.
pub(crate) async fn create(
    site: &Site,
    request: &BackupRequest,
    header: JournalHeader,
    observer: Observer<'_>,
) -> Result<Opened, Error> {
    let claim = site.claim()?;
    let created = create_claimed(site, &claim, request, header, observer).await;
    if let Err(error) = &created
        && matches!(claim.load(), Ok(None))
    {
        // What is beside may be somebody else's: then only an empty journal can be this run's.
        let is_foreign = matches!(error, Error::Foreign { .. });
        let is_clear = if is_foreign { !claim.is_begun().unwrap_or(true) } else { site.discard_partial().is_ok() };
        if is_clear {
            let _ = claim.remove();
        }
    }
    created
}

async fn create_claimed(
    site: &Site,
    claim: &Claim,
    request: &BackupRequest,
    mut header: JournalHeader,
    observer: Observer<'_>,
) -> Result<Opened, Error> {
    inspect(site, request, Some(&header.volume.name))?;
    let failed = |action| Error::file(action, &site.journal);
    let left = load(claim, site)?;
    if let Some(left) = &left {
        discard_unfinished(left, site, request, &header, observer).await?;
    }
    let size = header.volume.size;
    let medium = if site.device.is_some() {
        let medium = site.open_in_place(size).await?;
        let unfinished = left.is_some();
        if !request.replace
            && !unfinished
            && !is_blank(&medium, medium.whole()).await.map_err(Error::unread(&site.image))?
        {
            return Err(Error::refused(&site.image, Refusal::NotBlank));
        }
        Catalogue::new(&request.state).retire(site)?;
        claim.clear().map_err(failed(FileAction::Write))?;
        medium
    } else {
        site.discard_partial()?;
        claim.clear().map_err(failed(FileAction::Write))?;
        let file = site.create_partial(size)?;
        header.inode = Some(file.metadata().map_err(Error::file(FileAction::Open, &site.partial))?.ino());
        Medium::over(file).map_err(Error::file(FileAction::Open, &site.partial))?
    };
    header.device = site.device.clone();
    let journal = claim.start(header).map_err(failed(FileAction::Create))?;
    Ok(Opened { medium, journal })
}

async fn discard_unfinished(
    left: &Left,
    site: &Site,
    request: &BackupRequest,
    new: &JournalHeader,
    observer: Observer<'_>,
) -> Result<(), Error> {
    let old = &left.header;
    if old.volume.id != new.volume.id && !request.replace {
        return Err(Error::refused(&site.image, Refusal::OtherUnfinished));
    }
    if let (Some(snapshot), BackupSource::Volume { mover_socket, .. }) = (&old.snapshot, &request.source)
        && snapshot.private
    {
        let resume = Request::Resume {
            protocol: PROTOCOL,
            volume: old.volume.name.clone(),
            snapshot_id: snapshot.id.clone(),
            destination: None,
        };
        let socket = mover_socket.clone();
        // The snapshot may be gone, and the volume too: then there is nothing to give up.
        let _ = blocking(move || Session::open(&socket, &resume).and_then(|opened| opened.session.abandon())).await;
    }
    observer(&Event::Notice(Notice::Discarded { path: site.image.clone(), t0: old.t0 }));
    Ok(())
}

/// The copy that the journal is of, if it was declared already, durably.
///
/// # Errors
/// When its names cannot be made durable: then it is not declared yet, and can go on.
pub(crate) fn declared(site: &Site, left: &Left) -> Result<Option<Copy>, Error> {
    let Some(manifest) = site.load().ok().flatten().filter(|manifest| manifest.id == left.header.copy) else {
        return Ok(None);
    };
    // The run that gave the names may have ended on just this.
    site.sync_names()?;
    Ok(Some(Copy::new(site.clone(), manifest)))
}

/// After an interrupted run that came as far as the declaration: what is left of it goes, and the catalogue hears of
/// the copy.
pub(crate) fn tidy(site: &Site, claim: Claim, request: &BackupRequest, copy: &Copy, observer: Observer<'_>) {
    // Names that cannot be removed now are known for what they are by the next run.
    let _ = site.discard_partial();
    let _ = claim.remove();
    enter(&request.state, copy, observer);
}

/// Enters a declared copy in the catalogue; a failure makes the copy no worse.
pub(crate) fn enter(state: &Path, copy: &Copy, observer: Observer<'_>) {
    let catalogue = Catalogue::new(state);
    if let Err(error) = catalogue.add(copy) {
        let reason = match error {
            Error::File { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        observer(&Event::Notice(Notice::NotCatalogued { path: catalogue.place_of(copy), reason }));
    }
}

/// Opens what an interrupted run was writing.
pub(crate) async fn reopen(site: &Site, header: &JournalHeader) -> Result<Medium, Error> {
    let gone = || Error::Resume { path: site.image.clone(), fault: ResumeFault::ImageGone };
    if let Some(device) = &header.device {
        if site.device.as_ref().map(|site| &site.key) != Some(&device.key) {
            return Err(gone());
        }
        return site.open_in_place(header.volume.size).await;
    }
    let options = &mut File::options();
    let file = match options.read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&site.partial) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
        other => other.map_err(Error::file(FileAction::Open, &site.partial))?,
    };
    let metadata = file.metadata().map_err(Error::file(FileAction::Open, &site.partial))?;
    if Some(metadata.ino()) != header.inode || metadata.len() != header.volume.size {
        return Err(gone());
    }
    Medium::over(file).map_err(Error::file(FileAction::Open, &site.partial))
}
