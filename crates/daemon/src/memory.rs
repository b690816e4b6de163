//! The first tier of a volume's originals: a file in memory (R53).
//!
//! All its space is allocated when it is made, so that saving to it cannot fail for want of memory, and it is only ever read and written by
//! calls, so that nothing is killed for want of it either. It outlives the daemon, not the machine's boot; what is put by of it at a clean stop is in
//! [`put_by`](crate::put_by).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::Patience;
use crate::cache_file::{self, CacheFault};
use crate::file_identity::FileIdentity;

/// Names another directory than the usual ones.
const DIRECTORY: &str = "TZERO_MEMORY_DIR";
/// Where every Linux has memory as files,
const USUAL: &str = "/dev/shm";
/// and where a user's own are.
const OF_USER: &str = "XDG_RUNTIME_DIR";

/// The file as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryRecord {
    pub(crate) path: PathBuf,
    pub(crate) file: FileIdentity,
}

/// The file, open and locked.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryFault {
    #[error(
        "there is no memory to keep originals in: neither {USUAL} nor {OF_USER} is a tmpfs; name one with {DIRECTORY}, or leave the memory limit out"
    )]
    Nowhere,
    #[error("{} is not in memory (a tmpfs): name another with {DIRECTORY}, or leave the memory limit out", .0.display())]
    NotMemory(PathBuf),
    #[error("{} has no room for {size} bytes of originals in memory: lower the memory limit, or make the tmpfs larger", .directory.display())]
    Full { directory: PathBuf, size: u64 },
    #[error("the originals in memory at {} are in use by another process", .0.display())]
    Locked(PathBuf),
    #[error("originals cannot be kept in memory at {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn failed(path: &Path) -> impl FnOnce(CacheFault) -> MemoryFault {
    let path = path.to_owned();
    |fault| match fault {
        CacheFault::Locked => MemoryFault::Locked(path),
        CacheFault::Io(source) => MemoryFault::Io { path, source },
        CacheFault::Export(_) => unreachable!("it is a file"),
    }
}

/// Where new files go.
fn directory() -> Result<PathBuf, MemoryFault> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(asked) = variable(DIRECTORY) {
        return if is_memory(&asked)? { Ok(asked) } else { Err(MemoryFault::NotMemory(asked)) };
    }
    let usual = [Some(PathBuf::from(USUAL)), variable(OF_USER)];
    usual.into_iter().flatten().find(|path| is_memory(path).unwrap_or(false)).ok_or(MemoryFault::Nowhere)
}

fn is_memory(directory: &Path) -> Result<bool, MemoryFault> {
    let looked = File::open(directory).and_then(|directory| tzero_io::is_in_memory(&directory));
    looked.map_err(|source| MemoryFault::Io { path: directory.into(), source })
}

impl Memory {
    /// The file that is remembered, if it is there and the same; `None` where it is gone, or is another.
    pub(crate) fn find(record: &MemoryRecord, size: u64, patience: Patience) -> Result<Option<Self>, MemoryFault> {
        let found = match cache_file::open(&record.path, patience) {
            Err(CacheFault::Io(error)) if error.kind() == io::ErrorKind::InvalidData => None,
            other => other.map_err(failed(&record.path))?,
        };
        let is_same = |file: &File| {
            let fits = file.metadata()?.len() == size;
            Ok(fits && FileIdentity::of(file)?.is_same(&record.file) && tzero_io::is_in_memory(file)?)
        };
        let Some(file) = found else { return Ok(None) };
        let same = is_same(&file).map_err(|source| MemoryFault::Io { path: record.path.clone(), source })?;
        Ok(same.then(|| Self { path: record.path.clone(), file }))
    }

    /// Makes it anew, with nothing in it, for the volume of this id. What was left of an earlier one goes.
    pub(crate) fn create(id: &str, size: u64) -> Result<Self, MemoryFault> {
        let directory = directory()?;
        let path = directory.join(format!("tzero-{id}.originals"));
        let io = |source| MemoryFault::Io { path: path.clone(), source };
        remove(&path).map_err(io)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
        let made = tzero_io::allocate(&file, size);
        if let Err(error) = made {
            // Nobody has seen it.
            let _ = remove(&path);
            return Err(match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    MemoryFault::Full { directory, size }
                }
                _ => io(error),
            });
        }
        cache_file::lock(&file, Patience::None).map_err(failed(&path))?;
        Ok(Self { path, file })
    }

    /// What to remember of it.
    pub(crate) fn record(&self) -> io::Result<MemoryRecord> {
        Ok(MemoryRecord { path: self.path.clone(), file: FileIdentity::of(&self.file)? })
    }
}

/// Removes such a file; that there is none is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn made_found_again_and_not_taken_for_another() {
        let id = format!("test{}", std::process::id());
        let made = Memory::create(&id, 1 << 20).unwrap();
        let metadata = made.file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (1 << 20, 0o600));
        let record = made.record().unwrap();
        let find = |size| Memory::find(&record, size, Patience::None);
        assert!(matches!(find(1 << 20), Err(MemoryFault::Locked(_))));
        drop(made);
        assert!(find(1 << 20).unwrap().is_some());
        assert!(find(2 << 20).unwrap().is_none(), "another size");
        let again = Memory::create(&id, 1 << 20).unwrap();
        drop(again);
        assert!(find(1 << 20).unwrap().is_none(), "another file");
        remove(&record.path).unwrap();
        assert!(find(1 << 20).unwrap().is_none(), "none");
        assert!(matches!(Memory::create(&id, 1 << 60), Err(MemoryFault::Full { .. })));
        assert!(!record.path.exists(), "nothing stays behind");
    }
}
