//! Where a restore writes: what is refused there, and how it is filled.
//!
//! | target | filled | needs |
//! |---|---|---|
//! | a file that is not there | beside, then renamed | |
//! | a file, all of the copy | beside, then renamed over it | `force` |
//! | a file, ranges, a copy of a part, or what differs | in place | its length; `force` unless what is overwritten is blank or the copy's own |
//! | a block device, an export | in place | the size of the copy or more; the same |
//! | a served volume | in place, through the daemon | the size of the copy exactly, or what the ranges need; the same |

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};

use tzero_api::StatePaths;
use tzero_io::blocking;
use tzero_nbd::Uri;

use super::beside::Beside;
use super::selection::Selection;
use super::{RestoreRequest, RestoreTarget};
use crate::Error;
use crate::error::{FileAction, Refusal};
use crate::export::{self, Server};
use crate::forbidden::refuse_forbidden;
use crate::location;
use crate::medium::Medium;
use crate::opening::{self, open_device_for_writing, open_file_for_writing, refuse_locked};
use crate::placement::{Identity, lies_on};
use crate::registry::refuse_registered_export;
use crate::served::{Served, ServedVolume};
use crate::site::Site;
use crate::standing::Standing;

/// A target that may be written.
pub(super) enum Place {
    Beside(Box<BesidePlace>),
    InPlace(Box<InPlace>),
}

/// A file that is made beside the target.
pub(super) struct BesidePlace {
    /// Final name.
    path: PathBuf,
    file: Beside,
    /// The file that will be replaced; held open for its lock.
    replaced: Option<File>,
    standing: Standing,
    state: PathBuf,
    force: bool,
}

/// A target that is overwritten where it is.
pub(super) struct InPlace {
    /// As `--to` takes it.
    pub(super) path: PathBuf,
    pub(super) medium: Medium,
    /// What stands there as a copy. A served volume's base is nobody's place for copies.
    standing: Option<Standing>,
    /// The volume, where it is one.
    pub(super) volume: Option<ServedVolume>,
    pub(super) is_device: bool,
}

/// Looks at the target of a request and opens it.
pub(super) async fn open(request: &RestoreRequest, selection: &Selection, image: &Medium) -> Result<Place, Error> {
    match &request.target {
        RestoreTarget::Path(path) => open_path(path, request, selection, image),
        RestoreTarget::Volume(name) => {
            let state = StatePaths::new(request.state.clone());
            let found = blocking({
                let name = name.clone();
                move || ServedVolume::find(&name, &state)
            });
            open_volume(found.await?, request, selection).await
        }
        RestoreTarget::Export(uri) => open_export(&location::resolved(uri), request, selection).await,
    }
}

fn open_path(path: &Path, request: &RestoreRequest, selection: &Selection, image: &Medium) -> Result<Place, Error> {
    let path = std::path::absolute(path).map_err(Error::file(FileAction::Open, path))?;
    refuse_forbidden(&path, &request.state, None)?;
    refuse_the_copy_itself(&path, request, image)?;
    match fs::metadata(&path) {
        Ok(metadata) if metadata.file_type().is_block_device() => {
            let file = open_device_for_writing(&path, selection.end())?;
            in_place(path, file, true, request)
        }
        Ok(metadata) if metadata.is_file() => {
            // A link stays one: what it leads to is written.
            let path = fs::canonicalize(&path).map_err(Error::file(FileAction::Open, &path))?;
            if !selection.is_everything() || request.differing {
                return open_file_in_place(path, request, selection);
            }
            beside(path, request, Some(metadata))
        }
        Ok(_) => Err(Error::refused(&path, Refusal::NotAFile)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(&path).is_ok() || path.file_name().is_none() {
                return Err(Error::refused(&path, Refusal::NotAFile));
            }
            beside(path, request, None)
        }
        Err(error) => Err(Error::file(FileAction::Open, &path)(error)),
    }
}

fn open_file_in_place(path: PathBuf, request: &RestoreRequest, selection: &Selection) -> Result<Place, Error> {
    let file = open_file_for_writing(&path)?;
    let has = file.metadata().map_err(Error::file(FileAction::Open, &path))?.len();
    let needs = selection.end();
    if selection.is_everything() && has != needs {
        return Err(Error::refused(&path, Refusal::OtherLength { has, needs }));
    }
    if has < needs {
        return Err(Error::refused(&path, Refusal::TooShort { has, needs }));
    }
    in_place(path, file, false, request)
}

fn in_place(path: PathBuf, file: File, is_device: bool, request: &RestoreRequest) -> Result<Place, Error> {
    let standing = Standing::at(&path, &request.state, request.force)?;
    let medium = Medium::over(file).map_err(Error::file(FileAction::Open, &path))?;
    Ok(Place::InPlace(Box::new(InPlace { path, medium, standing: Some(standing), volume: None, is_device })))
}

fn beside(path: PathBuf, request: &RestoreRequest, existing: Option<Metadata>) -> Result<Place, Error> {
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
    let place = BesidePlace { path, file, replaced, standing, state, force };
    match prepared {
        Ok(()) => Ok(Place::Beside(Box::new(place))),
        Err(error) => {
            place.give_up();
            Err(error)
        }
    }
}

async fn open_volume(found: ServedVolume, request: &RestoreRequest, selection: &Selection) -> Result<Place, Error> {
    let path = PathBuf::from(format!("volume:{}", found.volume.name));
    let (has, needs) = (found.volume.size, selection.end());
    if has < needs {
        return Err(Error::refused(&path, Refusal::TooSmall { has, needs }));
    }
    if selection.is_everything() && has != needs {
        return Err(Error::refused(&path, Refusal::OtherSize { has, needs }));
    }
    if holds_the_copy(&found, request)? {
        return Err(Error::refused(&path, Refusal::HoldsCopy));
    }
    let medium = export::open_for_writing(&found.uri, Server::Ours, needs).await?;
    if medium.size() != has {
        return Err(Error::refused(&path, Refusal::OtherSize { has: medium.size(), needs: has }));
    }
    Ok(Place::InPlace(Box::new(InPlace { path, medium, standing: None, volume: Some(found), is_device: false })))
}

/// Whether the copy lies on the volume's own base.
fn holds_the_copy(found: &ServedVolume, request: &RestoreRequest) -> Result<bool, Error> {
    let image = request.copy.image();
    if request.copy.is_export() {
        return Ok(found.volume.bases.iter().any(|base| base.place.uri().is_some_and(|uri| Path::new(uri) == image)));
    }
    let bases = found.volume.bases.iter().filter_map(|base| Identity::of_path(base.place.path()?).ok());
    for base in bases {
        if lies_on(image, &base).map_err(Error::file(FileAction::Open, image))? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn open_export(uri: &Uri, request: &RestoreRequest, selection: &Selection) -> Result<Place, Error> {
    let state = StatePaths::new(request.state.clone());
    let served = blocking({
        let state = state.clone();
        move || Served::ask(&state)
    });
    // An export of our own daemon is the volume, whichever way it was named: who knows it by the one must find it by the other.
    if let Some(name) = served.await?.as_ref().and_then(|served| served.own(uri))
        && let Ok(name) = name.parse()
    {
        let found = blocking(move || ServedVolume::find(&name, &state)).await?;
        return open_volume(found, request, selection).await;
    }
    refuse_registered_export(uri, &request.state)?;
    let path = PathBuf::from(uri.to_string());
    let site = Site::of_export(uri, &request.state);
    if request.copy.site.device.as_ref().map(|device| &device.key) == site.device.as_ref().map(|device| &device.key) {
        return Err(Error::refused(&path, Refusal::HoldsCopy));
    }
    let medium = export::open_for_writing(uri, Server::Foreign, selection.end()).await?;
    let standing = Standing::of(site, &path, &request.state, request.force)?;
    Ok(Place::InPlace(Box::new(InPlace { path, medium, standing: Some(standing), volume: None, is_device: false })))
}

impl InPlace {
    /// Before the first byte: what is overwritten is no copy any more.
    pub(super) fn retire(&self) -> Result<(), Error> {
        self.standing.as_ref().map_or(Ok(()), Standing::retire)
    }

    /// Whether others may write there too.
    pub(super) fn is_shared(&self) -> bool {
        self.medium.file().is_none()
    }

    /// The volume's name may belong to another one by now.
    pub(super) async fn refuse_another(self: &InPlace, state: &Path) -> Result<(), Error> {
        let Some(ServedVolume { volume, .. }) = &self.volume else { return Ok(()) };
        let (state, name) = (StatePaths::new(state), volume.name.clone());
        let now = blocking(move || ServedVolume::find(&name, &state)).await?.volume;
        if now.id == volume.id && now.size == volume.size {
            return Ok(());
        }
        Err(Error::refused(&self.path, Refusal::AnotherVolume))
    }
}

impl BesidePlace {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the image is written to.
    pub(super) fn medium(&self) -> Result<Medium, Error> {
        self.file.file.try_clone().and_then(Medium::over).map_err(Error::file(FileAction::Open, &self.path))
    }

    /// Makes the filled file the target.
    pub(super) fn declare(&self) -> Result<(), Error> {
        if self.replaced.is_none() && fs::symlink_metadata(&self.path).is_ok() {
            // It came since, and may be a volume's base by now.
            refuse_forbidden(&self.path, &self.state, None)?;
            if !self.force {
                return Err(Error::refused(&self.path, Refusal::Exists));
            }
        }
        // A restore that fails before this leaves the copy that it would have replaced.
        self.file.declare(&self.path, || self.standing.retire())
    }

    /// Leaves nothing of what was written.
    pub(super) fn give_up(&self) {
        self.file.remove();
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
    // What an export lies on cannot be seen from here.
    let Some(file) = image.file() else { return Ok(()) };
    let look = Error::file(FileAction::Open, path);
    let identity = Identity::of_file(file).map_err(Error::file(FileAction::Open, request.copy.image()))?;
    let itself = lies_on(path, &identity).map_err(look)?;
    let target = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device());
    let holds = match target {
        Some(metadata) => lies_on(request.copy.image(), &Identity::Device { number: metadata.rdev() })
            .map_err(Error::file(FileAction::Open, path))?,
        None => false,
    };
    if itself || holds { Err(Error::refused(path, Refusal::HoldsCopy)) } else { Ok(()) }
}
