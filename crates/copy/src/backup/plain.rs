//! A copy of a file or device that is no volume, without a daemon. Nothing holds writers off, and the copy says so,
//! unless something does (see `protection`).

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tzero_block::{BlockDevice, FileDevice};
use tzero_io::system;

use super::job::{Finished, Job, Judgement};
use super::protection::protection_of;
use super::{BackupOutcome, BackupRequest, Shortfall, destination};
use crate::digests::CHUNK;
use crate::error::{FileAction, ResumeFault};
use crate::journal::{ChunkRecord, Journal, JournalHeader, PlainRecord};
use crate::manifest::{Durability, Engine, ModeUsed, Protection, VolumeRecord};
use crate::medium::Medium;
use crate::opening::is_image;
use crate::placement::Identity;
use crate::released::Released;
use crate::site::Site;
use crate::source::PlainSource;
use crate::{Cancel, CopyId, Error, ModeAsked, Observer, Timestamp, hex, opening};

/// A file or device to be read as it is.
struct Plain {
    path: PathBuf,
    file: File,
    device: Arc<FileDevice>,
    before: Metadata,
    protection: Option<Protection>,
}

impl Plain {
    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::file(FileAction::Open, path)(source);
        let path = fs::canonicalize(path).map_err(failed)?;
        if !is_image(&fs::metadata(&path).map_err(failed)?) {
            return Err(Error::WrongKind { path, what: "copied" });
        }
        let file = opening::open(&path).map_err(failed)?;
        let before = file.metadata().map_err(failed)?;
        let device = file.try_clone().and_then(|file| FileDevice::from_file(file, false)).map_err(failed)?;
        refuse_unmeasured(&path, &before)?;
        let protection = protection_of(&path, &file, &before);
        Ok(Self { path, file, device: Arc::new(device), before, protection })
    }

    fn size(&self) -> u64 {
        self.device.geometry().size
    }

    fn record(&self) -> VolumeRecord {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned();
        let digest = blake3::hash(self.path.as_os_str().as_bytes());
        VolumeRecord { name, id: hex::encode(&digest.as_bytes()[..16]), generation: 0, size: self.size() }
    }

    fn plain_record(&self) -> PlainRecord {
        PlainRecord { path: self.path.clone(), modified_ns: modified_ns(&self.before) }
    }

    /// Asked after the last byte was read. A run that goes on knows nothing of what a lock did to a device in between; a file
    /// it knows by its times.
    fn verdict(&self, resumed: bool) -> Result<Protection, Shortfall> {
        let is_device = self.before.file_type().is_block_device();
        let now = self.file.metadata().ok();
        // Another file may have taken the name, that is no change of what was read.
        let same =
            now.is_some_and(|now| modified_ns(&now) == modified_ns(&self.before) && now.len() == self.before.len());
        if !is_device && !same {
            return Err(Shortfall::Changed);
        }
        let still = self.protection.filter(|_| protection_of(&self.path, &self.file, &self.before) == self.protection);
        match still {
            Some(Protection::Locked) if is_device && resumed => Err(Shortfall::Unprotected),
            Some(protection) => Ok(protection),
            None => Err(Shortfall::Unprotected),
        }
    }
}

/// Refuses a file that goes on beyond its size, as those of `/proc` do, which have none.
fn refuse_unmeasured(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    if !metadata.is_file() {
        return Ok(());
    }
    let size = metadata.len();
    let look = || {
        // Some of them would wait for something to say.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let more = file.read_at(&mut [0], size)? > 0;
        Ok::<_, io::Error>(more && file.metadata()?.len() == size)
    };
    match look() {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::Unmeasured { path: path.to_owned(), size }),
        Err(error) => Err(Error::file(FileAction::Read, path)(error)),
    }
}

fn modified_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

pub(crate) async fn backup(
    path: &Path,
    request: &BackupRequest,
    site: Site,
    observer: Observer<'_>,
    cancel: &Cancel,
) -> Result<BackupOutcome, Error> {
    let plain = Plain::open(path)?;
    let identity = Identity::of_file(&plain.file).map_err(Error::file(FileAction::Open, &plain.path))?;
    destination::refuse_source(&site, &[identity])?;
    let Unfinished { medium, journal, records } = if request.resume {
        match reopen(&plain, &site, request, &mut *observer).await? {
            Reopened::Declared(outcome) => return Ok(*outcome),
            Reopened::Unfinished(unfinished) => *unfinished,
        }
    } else {
        destination::inspect(&site, request, None)?;
        let opened = destination::create(&site, request, header(&plain, request)?, &mut *observer).await?;
        Unfinished { medium: opened.medium, journal: opened.journal, records: BTreeMap::new() }
    };
    let replace = request.replace || journal.header.replace;
    let job = Job {
        source: PlainSource::new(Arc::clone(&plain.device), plain.size()).at_rate(request.restraint.rate),
        source_name: plain.path.display().to_string(),
        session: None,
        released: Released::default(),
        site,
        medium,
        journal,
        records,
        resumed: request.resume,
        boundary: None,
        engine: Engine::Read,
        durability: Durability::Process,
        transport: None,
        replace,
        verify: request.verify,
        state: request.state.clone(),
        observer,
        cancel,
    };
    let mut shortfall = None;
    let judge = || {
        let verdict = plain.verdict(request.resume);
        let other_mode = (request.mode != ModeAsked::Auto).then_some(Shortfall::NoVolume);
        shortfall = verdict.err().or(other_mode);
        Judgement { reason: shortfall.map(|why| why.to_string()), protection: verdict.ok() }
    };
    let Finished { copy, verified } = job.run(judge).await?;
    Ok(BackupOutcome { copy: copy.summary(), shortfall, verified })
}

fn header(plain: &Plain, request: &BackupRequest) -> Result<JournalHeader, Error> {
    let boot = system::boot_id().map_err(Error::Runtime)?;
    Ok(JournalHeader {
        copy: CopyId::random(),
        volume: plain.record(),
        snapshot: None,
        plain: Some(plain.plain_record()),
        t0: Timestamp(system::wall_ns()),
        pause_us: 0,
        mode_asked: request.mode,
        mode_used: ModeUsed::Plain,
        outboard: None,
        chunk: CHUNK,
        replace: request.replace,
        inode: None,
        device: None,
        boot: hex::encode(&boot),
    })
}

struct Unfinished {
    medium: Medium,
    journal: Journal,
    records: BTreeMap<u64, ChunkRecord>,
}

enum Reopened {
    Declared(Box<BackupOutcome>),
    Unfinished(Box<Unfinished>),
}

async fn reopen(
    plain: &Plain,
    site: &Site,
    request: &BackupRequest,
    observer: Observer<'_>,
) -> Result<Reopened, Error> {
    let fault = |fault| Error::Resume { path: site.image.clone(), fault };
    let (claim, left) = destination::claim_left(site, request)?;
    let Some(record) = &left.header.plain else { return Err(fault(ResumeFault::OtherSource)) };
    if record.path != plain.path {
        return Err(fault(ResumeFault::OtherSource));
    }
    if let Some(copy) = destination::declared(site, &left)? {
        destination::tidy(site, claim, request, &copy, observer);
        let shortfall = copy.manifest().reason.is_some().then_some(Shortfall::Unprotected);
        let outcome = BackupOutcome { copy: copy.summary(), shortfall, verified: false };
        return Ok(Reopened::Declared(Box::new(outcome)));
    }
    if *record != plain.plain_record() || left.header.volume != plain.record() {
        return Err(fault(ResumeFault::SourceChanged));
    }
    let medium = destination::reopen(site, &left.header).await?;
    let journal = claim.resume(&left);
    Ok(Reopened::Unfinished(Box::new(Unfinished { medium, journal, records: left.records })))
}
