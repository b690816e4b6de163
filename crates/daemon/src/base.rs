//! Opening what a volume stands on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tzero_api::Place;
use tzero_io::{LockError, system};

use crate::directory::linger;
use crate::held::Held;
use crate::identity::{BaseIdentity, CleanStop};
use crate::loops;
use crate::remote::{Purpose, Remote, RemoteError};
use crate::threads::DataThreads;

/// Bases are made of whole sectors of this many bytes.
const SECTOR: u64 = 512;
/// How long requests that a killed daemon left in the kernel may hold the lock at start.
const LINGER: Duration = Duration::from_secs(5);

/// A base, open for reading and writing, and locked: its components in order.
#[derive(Debug)]
pub(crate) struct OpenBase {
    pub(crate) components: Vec<Component>,
}

/// A component of a base.
#[derive(Debug)]
pub(crate) struct Component {
    /// As it was given.
    pub(crate) place: Place,
    pub(crate) medium: Medium,
    /// As it was opened.
    identity: BaseIdentity,
    /// Bytes that it has by now: the last one of a volume may grow.
    size: AtomicU64,
}

/// What a component is.
#[derive(Debug)]
pub(crate) enum Medium {
    /// A file or block device of this machine, locked.
    File(File),
    /// An export, which cannot be locked.
    Export(Remote),
}

impl Component {
    fn new(place: Place, medium: Medium, identity: BaseIdentity) -> Self {
        Self { place, medium, size: AtomicU64::new(identity.size()), identity }
    }

    /// How long it is, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// It is longer from now on.
    pub(crate) fn has_grown(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// What makes it this one and no other, with the size that it has.
    pub(crate) fn identity(&self) -> BaseIdentity {
        self.identity.clone().resized(self.size())
    }

    /// Where it is and the open file, of a file or block device.
    pub(crate) fn local(&self) -> Option<(&Path, &File)> {
        match (&self.place, &self.medium) {
            (Place::Path(path), Medium::File(file)) => Some((path, file)),
            _ => None,
        }
    }

    /// The export, where it is one.
    pub(crate) fn remote(&self) -> Option<&Remote> {
        match &self.medium {
            Medium::File(_) => None,
            Medium::Export(remote) => Some(remote),
        }
    }

    /// How often its server may have lost changes that it had acknowledged.
    pub(crate) fn losses(&self) -> u64 {
        self.remote().map_or(0, |remote| remote.device().losses())
    }
}

impl OpenBase {
    /// Opens, checks and locks what is at these places. Blocking.
    pub(crate) fn open(
        threads: &Arc<DataThreads>,
        places: &[Place],
        direct: bool,
        patience: Patience,
    ) -> Result<Self, BaseError> {
        let component = |place: &Place| match place {
            Place::Path(path) => open(path, direct, patience),
            Place::Export(uri) => open_export(threads, uri),
        };
        Ok(Self { components: places.iter().map(component).collect::<Result<_, _>>()? })
    }

    /// How long each component is, in bytes.
    pub(crate) fn lengths(&self) -> Vec<u64> {
        self.components.iter().map(|component| component.size()).collect()
    }

    /// What it looks like now. Blocking.
    pub(crate) fn look(&self) -> Result<CleanStop, BaseError> {
        let look = |component: &Component| {
            let looked = match &component.medium {
                Medium::File(file) => CleanStop::of_component(file, component.size()),
                Medium::Export(remote) => CleanStop::of_export(remote),
            };
            looked.map_err(|source| BaseError::Unlooked { place: component.place.clone(), source })
        };
        Ok(CleanStop::of(self.components.iter().map(look).collect::<Result<_, _>>()?))
    }
}

/// Why a base cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BaseError {
    #[error("the base {} does not exist: create it first, or correct the path", .0.display())]
    Missing(PathBuf),
    #[error("the base {} is neither a file nor a block device", .0.display())]
    Kind(PathBuf),
    #[error("the base {} cannot be opened for reading and writing: {source}", .path.display())]
    Unopenable { path: PathBuf, source: io::Error },
    #[error("the base {} is in use: unmount it, or stop the program that holds it", .0.display())]
    InUse(PathBuf),
    #[error("the base {} is in use through {}: unmount that, or stop the program that holds it", .path.display(), .device.display())]
    InUseThrough { path: PathBuf, device: PathBuf },
    #[error("the base {} is read-only and a volume must be writable", .0.display())]
    ReadOnly(PathBuf),
    #[error("the base {} allows no direct I/O ({source}): leave --direct out", .path.display())]
    NotDirect { path: PathBuf, source: io::Error },
    #[error("the base {} is empty: give it a size first", .0.display())]
    Empty(PathBuf),
    #[error("the base {} is {size} bytes long, which is not a multiple of {SECTOR}: extend or cut it", .path.display())]
    Unaligned { path: PathBuf, size: u64 },
    #[error("the base {} is locked by another process: stop what serves or restores it", .0.display())]
    Locked(PathBuf),
    #[error("the base {place} cannot be looked at: {source}")]
    Unlooked { place: Place, source: io::Error },
    #[error("the base cannot be used: {0}")]
    Export(#[from] RemoteError),
    #[error("the base {uri} is {size} bytes long, which is no multiple of {SECTOR}, or nothing: choose another export")]
    ExportSize { uri: String, size: u64 },
}

/// Whether to wait for what a killed daemon's last requests still hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    Linger,
}

impl Patience {
    fn duration(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Linger => LINGER,
        }
    }
}

/// Opens, checks and locks the component at `path`. Blocking.
fn open(path: &Path, direct: bool, patience: Patience) -> Result<Component, BaseError> {
    let unopenable = |source| BaseError::Unopenable { path: path.into(), source };
    let held = match Held::take(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BaseError::Missing(path.into())),
        other => other.map_err(unopenable)?,
    };
    let kind = held.metadata().file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BaseError::Kind(path.into()));
    }
    let exclusive = if kind.is_block_device() { system::EXCLUSIVE } else { 0 };
    let flags = exclusive | if direct { system::DIRECT } else { 0 };
    // A block device, too, stays held until the last requests of a killed daemon have left the kernel.
    let busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
    let file = match linger(patience.duration(), || held.open(&writable(flags)), busy) {
        Err(source) if direct && source.kind() == io::ErrorKind::InvalidInput => {
            return Err(BaseError::NotDirect { path: path.into(), source });
        }
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Err(BaseError::InUse(path.into())),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return Err(BaseError::ReadOnly(path.into()));
        }
        other => other.map_err(unopenable)?,
    };
    if kind.is_block_device() && system::device_is_read_only(&file).map_err(unopenable)? {
        return Err(BaseError::ReadOnly(path.into()));
    }
    let identity = BaseIdentity::of(&file).map_err(unopenable)?;
    match identity.size() {
        0 => return Err(BaseError::Empty(path.into())),
        size if size % SECTOR != 0 => return Err(BaseError::Unaligned { path: path.into(), size }),
        _ => {}
    }
    lock(&file, patience).map_err(|error| match error {
        LockError::Held => BaseError::Locked(path.into()),
        LockError::Failed(source) => unopenable(source),
    })?;
    Ok(Component::new(Place::Path(path.into()), Medium::File(file), identity))
}

/// Connects to an export. Blocking.
fn open_export(threads: &Arc<DataThreads>, uri: &str) -> Result<Component, BaseError> {
    let remote = Remote::open(threads, uri, Purpose::Base)?;
    let size = remote.size();
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(BaseError::ExportSize { uri: uri.into(), size });
    }
    let identity = BaseIdentity::Export { uri: remote.device().uri().to_string(), size };
    Ok(Component::new(Place::Export(uri.into()), Medium::Export(remote), identity))
}

fn writable(flags: i32) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options
}

/// Refuses a base whose bytes somebody uses through a loop device: a host and a mounted file system, say, would overwrite each other.
/// Blocking.
pub(crate) fn refuse_in_use_through(base: &OpenBase) -> Result<(), BaseError> {
    let locals = base.components.iter().filter_map(Component::local);
    locals.into_iter().try_for_each(|(path, file)| match loops::in_use_over(file) {
        Some(device) => Err(BaseError::InUseThrough { path: path.into(), device }),
        None => Ok(()),
    })
}

/// Locks an open file, waiting for a killed daemon's last requests where told to.
pub(crate) fn lock(file: &File, patience: Patience) -> Result<(), LockError> {
    linger(patience.duration(), || tzero_io::lock_exclusive(file), |error| matches!(error, LockError::Held))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::held::tests::fifo;

    #[test]
    fn what_no_volume_can_stand_on() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("base");
        let attempt = |path: &Path| open(path, false, Patience::None);
        assert!(matches!(attempt(&path), Err(BaseError::Missing(_))));
        assert!(matches!(attempt(scratch.path()), Err(BaseError::Kind(_))));
        assert!(matches!(attempt(Path::new("/dev/null")), Err(BaseError::Kind(_))));
        assert!(matches!(attempt(&fifo(scratch.path())), Err(BaseError::Kind(_))));
        fs::write(&path, "").unwrap();
        assert!(matches!(attempt(&path), Err(BaseError::Empty(_))));
        fs::write(&path, [0; 513]).unwrap();
        assert!(matches!(attempt(&path), Err(BaseError::Unaligned { size: 513, .. })));
        fs::write(&path, [0; 1024]).unwrap();
        let held = attempt(&path).unwrap();
        assert_eq!(held.size(), 1024);
        assert!(matches!(attempt(&path), Err(BaseError::Locked(_))));
        drop(held);
        attempt(&path).unwrap();
    }
}
