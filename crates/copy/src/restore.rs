//! Giving a volume back: a whole image to a file or a block device, in one pass (R43).
//!
//! # Invariants
//! 1. A chunk is written only after its bytes were compared with its digest: damage is never restored.
//! 2. (INV-9, R46) A restore is declared only after the target was flushed, read again from its medium, and compared.
//! 3. A file appears under its name only then. A device is overwritten in place: until it is declared, its contents are
//!    neither old nor new, and the error says so.
//!
//! Deliberately absent: parts of volumes, archives, and restoring through a daemon.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tzero_block::{BlockDevice, FileDevice};
use tzero_io::{Backend, LockError, Runtime, lock_exclusive, system};

use crate::digests::chunk_range;
use crate::error::{FileAction, Refusal};
use crate::flow::{self, End, Landed, Outcome, Sink, Step, Target};
use crate::placement::{Identity, lies_on};
use crate::source::PlainSource;
use crate::verify::{Expected, compare, open_for_reading};
use crate::{Cancel, Copy, CopyId, Error, Event, Observer, Phase, durable};

/// What to restore, and where.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The copy.
    pub copy: Copy,
    /// A file, which is made, or a block device.
    pub target: PathBuf,
    /// An existing file is replaced once the restore is complete.
    pub force: bool,
}

/// A restore that was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Which copy.
    pub copy: CopyId,
    /// Where it is now.
    pub target: PathBuf,
    /// Whether the target is a block device.
    pub device: bool,
    /// Bytes of the volume.
    pub bytes_restored: u64,
    /// Bytes written, holes excluded.
    pub bytes_written: u64,
    /// The target was read again and is as it should be.
    pub verified: bool,
}

/// Restores a whole copy.
///
/// # Errors
/// When the target is refused, the copy is damaged, or the target does not take or keep the bytes.
pub fn restore(request: &RestoreRequest, observer: Observer<'_>, cancel: &Cancel) -> Result<Restored, Error> {
    let runtime = Runtime::new(Backend::Auto).map_err(Error::Runtime)?;
    let copy = &request.copy;
    let size = copy.manifest().size();
    let image = open_for_reading(copy.image())?;
    let found = image.geometry().size;
    if found < size || (!copy.is_device() && found != size) {
        return Err(Error::WrongSize { path: copy.image().to_owned(), found, expected: size });
    }
    let mut place = Place::open(request, &image)?;
    let done = runtime.block_on(fill(request, image, &place, observer, cancel));
    match done.and_then(|written| place.declare().map(|()| written)) {
        Ok(written) => Ok(Restored {
            copy: copy.id(),
            target: place.path,
            device: place.beside.is_none(),
            bytes_restored: size,
            bytes_written: written,
            verified: true,
        }),
        Err(error) => {
            place.give_up();
            match place.beside {
                Some(_) => Err(error),
                None => Err(Error::Overwritten { path: place.path, cause: Box::new(error) }),
            }
        }
    }
}

async fn fill(
    request: &RestoreRequest,
    image: FileDevice,
    place: &Place,
    observer: Observer<'_>,
    cancel: &Cancel,
) -> Result<u64, Error> {
    let manifest = request.copy.manifest();
    let (size, chunk) = (manifest.size(), manifest.chunk);
    let path = &place.path;
    let interrupted = || Error::Interrupted { path: path.clone(), what: "restored" };
    let writable = place.file.try_clone().map_err(Error::file(FileAction::Open, path))?;
    let device = FileDevice::from_file(writable, false).map_err(Error::file(FileAction::Open, path))?;
    let device = Arc::new(device);
    let target = Target { device: Arc::clone(&device), blank: place.beside.is_some() };
    let steps = (0..).zip(manifest.digests.iter()).map(|(index, expect)| Step {
        index,
        range: chunk_range(index, chunk, size),
        expect: Some(expect),
    });
    let mut filling = Filling { request, path, done: 0, total: size, written: 0, observer };
    let mut source = PlainSource::new(Arc::new(image), size);
    let end = flow::run(&mut source, Some(target), steps, cancel, &mut filling).await?;
    if end == End::Cancelled {
        return Err(interrupted());
    }
    let Filling { written, observer, .. } = filling;
    observer(&Event::Progress { phase: Phase::Flush, done: 0, total: size });
    device.flush().await.map_err(|source| Error::Target { path: path.clone(), source })?;
    observer(&Event::Progress { phase: Phase::Flush, done: size, total: size });
    let again = place.file.try_clone().map_err(Error::file(FileAction::Open, path))?;
    let again = FileDevice::from_file(again, false).map_err(Error::file(FileAction::Open, path))?;
    let compared = compare(again, Expected { size, chunk }, manifest.digests.iter(), observer, cancel).await?;
    match compared.ok_or_else(interrupted)?.damage.first() {
        None => Ok(written),
        Some(damage) => {
            let range = tzero_block::ByteRange::new(damage.offset, damage.length);
            Err(Error::ReadBack { path: path.clone(), range })
        }
    }
}

struct Filling<'a> {
    request: &'a RestoreRequest,
    path: &'a Path,
    done: u64,
    total: u64,
    written: u64,
    observer: Observer<'a>,
}

impl Sink for Filling<'_> {
    async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        let copy = &self.request.copy;
        match landed.outcome {
            Outcome::Good(_) => {}
            Outcome::Unwritable(source) => return Err(Error::Target { path: self.path.to_owned(), source }),
            Outcome::Mismatch | Outcome::Unreadable(..) => {
                return Err(Error::Damaged {
                    copy: copy.id(),
                    t0: copy.manifest().t0,
                    range: landed.range,
                    target: self.path.to_owned(),
                });
            }
        }
        self.written += landed.written;
        self.done += landed.range.len();
        (self.observer)(&Event::Progress { phase: Phase::Copy, done: self.done, total: self.total });
        Ok(())
    }
}

/// Where a restore writes.
struct Place {
    /// Final name, or the device.
    path: PathBuf,
    /// The file that gets the final name; none for a device.
    beside: Option<PathBuf>,
    file: File,
    /// The file that will be replaced; held open for its lock.
    replaced: Option<File>,
    force: bool,
}

impl Place {
    fn open(request: &RestoreRequest, image: &FileDevice) -> Result<Self, Error> {
        let path = std::path::absolute(&request.target).map_err(Error::file(FileAction::Open, &request.target))?;
        refuse_the_copy_itself(&path, request, image)?;
        match fs::metadata(&path) {
            Ok(metadata) if metadata.file_type().is_block_device() => Self::open_device(path, request),
            Ok(metadata) if metadata.is_file() => {
                // A link stays one: what it leads to is replaced.
                let path = fs::canonicalize(&path).map_err(Error::file(FileAction::Open, &path))?;
                Self::open_file(path, request, Some(metadata))
            }
            Ok(_) => Err(Error::refused(&path, Refusal::NotAFile)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(&path).is_ok() || path.file_name().is_none() {
                    return Err(Error::refused(&path, Refusal::NotAFile));
                }
                Self::open_file(path, request, None)
            }
            Err(error) => Err(Error::file(FileAction::Open, &path)(error)),
        }
    }

    fn open_device(path: PathBuf, request: &RestoreRequest) -> Result<Self, Error> {
        let file = open_device_for_writing(&path, request.copy.manifest().size())?;
        Ok(Self { path, beside: None, file, replaced: None, force: true })
    }

    fn open_file(path: PathBuf, request: &RestoreRequest, existing: Option<fs::Metadata>) -> Result<Self, Error> {
        let mut replaced = None;
        if existing.is_some() {
            let file = File::open(&path).map_err(Error::file(FileAction::Open, &path))?;
            refuse_locked(&file, &path)?;
            if !request.force {
                return Err(Error::refused(&path, Refusal::Exists));
            }
            replaced = Some(file);
        }
        let beside = durable::with_suffix(&path, ".tzero-restore");
        let file = claim_beside(&beside, &path)?;
        let prepare = || {
            if let Some(existing) = &existing {
                file.set_permissions(existing.permissions())?;
                if let Err(error) = fchown(&file, Some(existing.uid()), Some(existing.gid()))
                    && error.kind() != io::ErrorKind::PermissionDenied
                {
                    return Err(error);
                }
            }
            file.set_len(request.copy.manifest().size())
        };
        let prepared = prepare().map_err(Error::file(FileAction::Create, &beside));
        let place = Self { path, beside: Some(beside), file, replaced, force: request.force };
        match prepared {
            Ok(()) => Ok(place),
            Err(error) => {
                place.give_up();
                Err(error)
            }
        }
    }

    /// Makes the finished file the target.
    fn declare(&mut self) -> Result<(), Error> {
        let Some(beside) = &self.beside else { return Ok(()) };
        self.file.sync_all().map_err(Error::file(FileAction::Flush, beside))?;
        match (&self.replaced, fs::symlink_metadata(&self.path).is_ok()) {
            (None, true) if !self.force => return Err(Error::refused(&self.path, Refusal::Exists)),
            _ => {}
        }
        durable::rename(beside, &self.path).map_err(Error::file(FileAction::Rename, &self.path))
    }

    fn give_up(&self) {
        if let Some(beside) = &self.beside {
            // What is left is no more than a file with a telling name, which the next restore takes over.
            let _ = durable::remove(beside);
        }
    }
}

fn refuse_the_copy_itself(path: &Path, request: &RestoreRequest, image: &FileDevice) -> Result<(), Error> {
    let look = Error::file(FileAction::Open, path);
    let identity =
        Identity::of_file(image.file().get()).map_err(Error::file(FileAction::Open, request.copy.image()))?;
    let itself = lies_on(path, &identity).map_err(look)?;
    let target = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device());
    let holds = match target {
        Some(metadata) => lies_on(request.copy.image(), &Identity::Device { number: metadata.rdev() })
            .map_err(Error::file(FileAction::Open, path))?,
        None => false,
    };
    if itself || holds { Err(Error::refused(path, Refusal::HoldsCopy)) } else { Ok(()) }
}

/// Refuses a file on which another process has a lock.
pub(crate) fn refuse_locked(file: &File, path: &Path) -> Result<(), Error> {
    match lock_exclusive(file) {
        Ok(()) => Ok(()),
        Err(LockError::Held) => Err(Error::refused(path, Refusal::Locked)),
        Err(LockError::Failed(source)) => Err(Error::file(FileAction::Lock, path)(source)),
    }
}

/// Takes a file beside the target that only this run writes; one that a dead run left is emptied.
fn claim_beside(beside: &Path, target: &Path) -> Result<File, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(durable::PRIVATE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(beside)
        .map_err(Error::file(FileAction::Create, beside))?;
    match lock_exclusive(&file) {
        Ok(()) => {}
        Err(LockError::Held) => return Err(Error::refused(target, Refusal::Busy)),
        Err(LockError::Failed(source)) => return Err(Error::file(FileAction::Lock, beside)(source)),
    }
    let there = Identity::of_path(beside).map_err(Error::file(FileAction::Open, beside))?;
    if there != Identity::of_file(&file).map_err(Error::file(FileAction::Open, beside))? {
        return Err(Error::refused(target, Refusal::Busy));
    }
    file.set_len(0).map_err(Error::file(FileAction::Write, beside))?;
    Ok(file)
}

/// Opens a block device that nobody uses and that has `needs` bytes.
pub(crate) fn open_device_for_writing(path: &Path, needs: u64) -> Result<File, Error> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(system::EXCLUSIVE).open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return Err(Error::refused(path, Refusal::DeviceInUse));
        }
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return Err(Error::refused(path, Refusal::ReadOnly));
        }
        other => other.map_err(Error::file(FileAction::Open, path))?,
    };
    refuse_locked(&file, path)?;
    if system::device_is_read_only(&file).map_err(Error::file(FileAction::Open, path))? {
        return Err(Error::refused(path, Refusal::ReadOnly));
    }
    let has = system::device_size(&file).map_err(Error::file(FileAction::Open, path))?;
    if has < needs {
        return Err(Error::refused(path, Refusal::TooSmall { has, needs }));
    }
    Ok(file)
}
