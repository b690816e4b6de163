//! Opening what is read and written, without waiting: a fifo that took a file's place holds nobody up.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use tzero_io::{LockError, lock_exclusive, system};

use crate::Error;
use crate::error::{FileAction, Refusal};
use crate::medium::Medium;
use crate::patience::patiently;

/// Whether an image can be there.
pub(crate) fn is_image(metadata: &Metadata) -> bool {
    metadata.is_file() || metadata.file_type().is_block_device()
}

/// Opens a file or block device for reading; anything else is `InvalidInput`.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !is_image(&file.metadata()?) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a block device"));
    }
    // Reads of this one would not wait for the medium either.
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// An image that is only read.
pub(crate) fn open_for_reading(path: &Path) -> Result<Medium, Error> {
    open(path).and_then(Medium::over).map_err(Error::file(FileAction::Open, path))
}

/// Reads a file of at most `longest` bytes; a longer one is `FileTooLarge`, what is no file `InvalidInput`.
pub(crate) fn read(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    file.take(longest + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > longest { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Opens a file that only one run writes at a time, or makes it; links are not followed.
///
/// # Errors
/// Also when it is no file: `InvalidInput`.
pub(crate) fn open_or_create(path: &Path, mode: u32) -> io::Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path);
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "it is no file");
    match opened {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(none()),
        Err(error) if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) => {
            if error.kind() == io::ErrorKind::PermissionDenied { Err(error) } else { Err(none()) }
        }
        Err(error) => Err(error),
    }
}

/// Opens a block device that nobody uses and that has `needs` bytes.
pub(crate) fn open_device_for_writing(path: &Path, needs: u64) -> Result<File, Error> {
    let open = || OpenOptions::new().read(true).write(true).custom_flags(system::EXCLUSIVE).open(path);
    let file = match patiently(open, |error| error.kind() == io::ErrorKind::ResourceBusy) {
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

/// Opens a file that is written in place, and that nobody has locked.
pub(crate) fn open_file_for_writing(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::file(FileAction::Open, path)(source);
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::refused(path, Refusal::NotAFile));
    }
    refuse_locked(&file, path)?;
    Ok(file)
}

/// Locks a file; refuses one on which another process has a lock.
pub(crate) fn refuse_locked(file: &File, path: &Path) -> Result<(), Error> {
    match lock_patiently(file) {
        Ok(()) => Ok(()),
        Err(LockError::Held) => Err(Error::refused(path, Refusal::Locked)),
        Err(LockError::Failed(source)) => Err(Error::file(FileAction::Lock, path)(source)),
    }
}

/// Locks a file, and waits a little for whoever may just be letting go of it.
pub(crate) fn lock_patiently(file: &File) -> Result<(), LockError> {
    patiently(|| lock_exclusive(file), |error| matches!(error, LockError::Held))
}
