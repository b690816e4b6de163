//! A copy of a file or device that is no volume, without a daemon. Nothing holds writers off, and the copy says so,
//! unless nobody could write: a read-only device or file system, a file that is immutable or that has no permission to
//! be written.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tzero_block::{BlockDevice, FileDevice};
use tzero_io::system;

use super::job::{Finished, Job};
use super::{BackupOutcome, BackupRequest, Shortfall, destination, volume::declared};
use crate::digests::CHUNK;
use crate::error::{FileAction, Refusal, ResumeFault};
use crate::journal::{ChunkRecord, Journal, JournalHeader, PlainRecord};
use crate::manifest::{ModeUsed, VolumeRecord};
use crate::placement::Identity;
use crate::site::Site;
use crate::source::PlainSource;
use crate::{Cancel, CopyId, Error, Observer, Timestamp, hex};

/// A file or device to be read as it is.
struct Plain {
    path: PathBuf,
    file: File,
    device: Arc<FileDevice>,
    before: Metadata,
    protected: bool,
}

impl Plain {
    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::file(FileAction::Open, path)(source);
        let path = fs::canonicalize(path).map_err(failed)?;
        let kind = fs::metadata(&path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::refused(&path, Refusal::NotAFile));
        }
        let file = File::open(&path).map_err(failed)?;
        let before = file.metadata().map_err(failed)?;
        let device = file.try_clone().and_then(|file| FileDevice::from_file(file, false)).map_err(failed)?;
        let protected = nobody_can_write(&path, &file, &before);
        Ok(Self { path, file, device: Arc::new(device), before, protected })
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

    /// Asked after the last byte was read.
    fn shortfall(path: &Path, file: &File, before: &Metadata, protected: bool) -> Option<Shortfall> {
        let now = file.metadata().ok();
        // Another file may have taken the name, that is no change of what was read.
        let same = now.is_some_and(|now| modified_ns(&now) == modified_ns(before) && now.len() == before.len());
        let still = before.file_type().is_block_device() || same;
        match (still, protected && nobody_can_write(path, file, before)) {
            (false, _) => Some(Shortfall::Changed),
            (true, false) => Some(Shortfall::Unprotected),
            (true, true) => None,
        }
    }
}

fn modified_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

fn nobody_can_write(path: &Path, file: &File, metadata: &Metadata) -> bool {
    if metadata.file_type().is_block_device() {
        return system::device_is_read_only(file).unwrap_or(false);
    }
    if metadata.permissions().mode() & 0o222 == 0 {
        return true;
    }
    // A read-only file system or an immutable file refuses even its owner. Opening changes nothing.
    match OpenOptions::new().write(true).open(path) {
        Ok(_) => false,
        Err(error) => {
            matches!(error.raw_os_error(), Some(libc::EROFS | libc::EPERM))
                || error.kind() == io::ErrorKind::ExecutableFileBusy
        }
    }
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
    let Unfinished { file, journal, records } = if request.resume {
        match reopen(&plain, &site, request, &mut *observer)? {
            Reopened::Declared(outcome) => return Ok(*outcome),
            Reopened::Unfinished(unfinished) => *unfinished,
        }
    } else {
        destination::inspect(&site, request, None)?;
        let opened = destination::create(&site, request, header(&plain, request)?, &mut *observer).await?;
        Unfinished { file: opened.file, journal: opened.journal, records: BTreeMap::new() }
    };
    let replace = request.replace || journal.header.replace;
    let job = Job {
        source: PlainSource::new(Arc::clone(&plain.device), plain.size()),
        source_name: plain.path.display().to_string(),
        session: None,
        site,
        file,
        journal,
        records,
        resumed: request.resume,
        mode_used: ModeUsed::Plain,
        replace,
        verify: request.verify,
        state: request.state.clone(),
        observer,
        cancel,
    };
    let mut shortfall = None;
    let ask = || {
        shortfall = Plain::shortfall(&plain.path, &plain.file, &plain.before, plain.protected);
        shortfall.map(|shortfall| shortfall.to_string())
    };
    let Finished { copy, verified } = job.run(ask).await?;
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
        chunk: CHUNK,
        replace: request.replace,
        inode: None,
        device: None,
        boot: hex::encode(&boot),
    })
}

struct Unfinished {
    file: File,
    journal: Journal,
    records: BTreeMap<u64, ChunkRecord>,
}

enum Reopened {
    Declared(Box<BackupOutcome>),
    Unfinished(Box<Unfinished>),
}

fn reopen(plain: &Plain, site: &Site, request: &BackupRequest, observer: Observer<'_>) -> Result<Reopened, Error> {
    let fault = |fault| Error::Resume { path: site.image.clone(), fault };
    if !site.journal.exists() {
        return Err(fault(ResumeFault::Nothing));
    }
    let claim = destination::claim(site)?;
    let left = destination::load(&claim, site)?.ok_or_else(|| fault(ResumeFault::Nothing))?;
    let Some(record) = &left.header.plain else { return Err(fault(ResumeFault::OtherSource)) };
    if record.path != plain.path {
        return Err(fault(ResumeFault::OtherSource));
    }
    if let Some(copy) = declared(site, &left)? {
        destination::tidy(site, claim, request, &copy, observer);
        let shortfall = copy.manifest().reason.is_some().then_some(Shortfall::Unprotected);
        let outcome = BackupOutcome { copy: copy.summary(), shortfall, verified: false };
        return Ok(Reopened::Declared(Box::new(outcome)));
    }
    if *record != plain.plain_record() || left.header.volume != plain.record() {
        return Err(fault(ResumeFault::SourceChanged));
    }
    let file = destination::reopen(site, &left.header)?;
    let journal = claim.resume(&left);
    Ok(Reopened::Unfinished(Box::new(Unfinished { file, journal, records: left.records })))
}
