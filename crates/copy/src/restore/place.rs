//! Where a restore writes: what is refused there, and how it is filled.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};

use super::RestoreRequest;
use super::beside::Beside;
use crate::Error;
use crate::blank::is_blank;
use crate::error::{FileAction, Refusal};
use crate::forbidden::refuse_forbidden;
use crate::medium::Medium;
use crate::opening::{self, open_device_for_writing, refuse_locked};
use crate::placement::{Identity, lies_on};
use crate::standing::Standing;

/// Where the bytes go.
enum Filled {
    Device(File),
    Beside {
        file: Beside,
        /// The file that will be replaced; held open for its lock.
        replaced: Option<File>,
    },
}

/// A target that may be written.
pub(super) struct Place {
    /// Final name, or the device.
    pub(super) path: PathBuf,
    filled: Filled,
    /// What stands there as a copy.
    standing: Standing,
    state: PathBuf,
    force: bool,
}

impl Place {
    pub(super) fn open(request: &RestoreRequest, image: &Medium) -> Result<Self, Error> {
        let path = std::path::absolute(&request.target).map_err(Error::file(FileAction::Open, &request.target))?;
        refuse_forbidden(&path, &request.state, None)?;
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
        let standing = Standing::at(&path, &request.state, request.force)?;
        if !request.force && !is_blank(&file).map_err(Error::file(FileAction::Read, &path))? {
            return Err(Error::refused(&path, Refusal::NotBlankTarget));
        }
        let state = request.state.clone();
        Ok(Self { path, filled: Filled::Device(file), standing, state, force: true })
    }

    fn open_file(path: PathBuf, request: &RestoreRequest, existing: Option<Metadata>) -> Result<Self, Error> {
        let mut replaced = None;
        if existing.is_some() {
            let file = opening::open(&path).map_err(Error::file(FileAction::Open, &path))?;
            refuse_locked(&file, &path)?;
            if !request.force {
                return Err(Error::refused(&path, Refusal::Exists));
            }
            replaced = Some(file);
        }
        let standing = Standing::at(&path, &request.state, request.force)?;
        let file = Beside::claim(&path, request.copy.manifest())?;
        let prepared = existing.map_or(Ok(()), |existing| take_after(&file.file, &existing));
        let prepared = prepared.map_err(Error::file(FileAction::Create, &path));
        let (state, force) = (request.state.clone(), request.force);
        let place = Self { path, filled: Filled::Beside { file, replaced }, standing, state, force };
        match prepared {
            Ok(()) => Ok(place),
            Err(error) => {
                place.give_up();
                Err(error)
            }
        }
    }

    /// What the image is written to.
    pub(super) fn file(&self) -> &File {
        match &self.filled {
            Filled::Device(file) => file,
            Filled::Beside { file, .. } => &file.file,
        }
    }

    /// Whether it is overwritten in place.
    pub(super) fn is_device(&self) -> bool {
        matches!(self.filled, Filled::Device(_))
    }

    /// Before the first byte: what is overwritten in place is no copy any more.
    pub(super) fn prepare(&self) -> Result<(), Error> {
        if self.is_device() { self.standing.retire() } else { Ok(()) }
    }

    /// Makes the filled file the target.
    pub(super) fn declare(&mut self) -> Result<(), Error> {
        let Filled::Beside { file, replaced } = &self.filled else { return Ok(()) };
        if replaced.is_none() && fs::symlink_metadata(&self.path).is_ok() {
            // It came since, and may be a volume's base by now.
            refuse_forbidden(&self.path, &self.state, None)?;
            if !self.force {
                return Err(Error::refused(&self.path, Refusal::Exists));
            }
        }
        // A restore that fails before this leaves the copy that it would have replaced.
        file.declare(&self.path, || self.standing.retire())
    }

    /// Leaves nothing of what was written beside.
    pub(super) fn give_up(&self) {
        if let Filled::Beside { file, .. } = &self.filled {
            file.remove();
        }
    }
}

/// Gives a file another one's owner and permissions.
fn take_after(file: &File, other: &Metadata) -> io::Result<()> {
    file.set_permissions(other.permissions())?;
    match fchown(file, Some(other.uid()), Some(other.gid())) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

fn refuse_the_copy_itself(path: &Path, request: &RestoreRequest, image: &Medium) -> Result<(), Error> {
    let look = Error::file(FileAction::Open, path);
    let itself = match image.file() {
        Some(file) => {
            let identity = Identity::of_file(file).map_err(Error::file(FileAction::Open, request.copy.image()))?;
            lies_on(path, &identity).map_err(look)?
        }
        None => false,
    };
    let target = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device());
    let holds = match target {
        Some(metadata) => lies_on(request.copy.image(), &Identity::Device { number: metadata.rdev() })
            .map_err(Error::file(FileAction::Open, path))?,
        None => false,
    };
    if itself || holds { Err(Error::refused(path, Refusal::HoldsCopy)) } else { Ok(()) }
}
