//! The original cache's file: made once, with its volume, and never again in silence.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tzero_io::LockError;

use crate::base::{self, Patience};
use crate::claim::ExportFault;
use crate::held::open_file;

/// Why a cache cannot be had.
#[derive(Debug)]
pub(crate) enum CacheFault {
    /// Somebody else has it.
    Locked,
    /// The system refuses.
    Io(io::Error),
    /// The export that it is on cannot be used.
    Export(ExportFault),
}

impl From<ExportFault> for CacheFault {
    fn from(fault: ExportFault) -> Self {
        Self::Export(fault)
    }
}

impl std::fmt::Display for CacheFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Locked => f.write_str("another process has it"),
            Self::Io(source) => source.fmt(f),
            Self::Export(source) => source.fmt(f),
        }
    }
}

impl From<io::Error> for CacheFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Opens and locks the file that is there, private; `None` if there is none.
pub(crate) fn open(path: &Path, patience: Patience) -> Result<Option<File>, CacheFault> {
    let file = match open_file(path, OpenOptions::new().read(true).write(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    lock(&file, patience)?;
    Ok(Some(file))
}

/// Makes the file, durably; there must be none.
pub(crate) fn create(path: &Path) -> Result<File, CacheFault> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    lock(&file, Patience::None)?;
    file.sync_all()?;
    sync_parent(path)?;
    Ok(file)
}

/// An empty file without a name in a directory, for a volume whose own cache cannot be had: nothing is ever kept in it.
pub(crate) fn nameless(directory: &Path) -> io::Result<File> {
    let path = directory.join(".no-originals");
    let _ = fs::remove_file(&path);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Requests of a killed daemon must not land in slots that this one uses again.
pub(crate) fn lock(file: &File, patience: Patience) -> Result<(), CacheFault> {
    base::lock(file, patience).map_err(|error| match error {
        LockError::Held => CacheFault::Locked,
        LockError::Failed(source) => CacheFault::Io(source),
    })
}

/// Makes a new or changed name durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
