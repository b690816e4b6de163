//! Where the files of a copy are, and how a new copy takes its place.
//!
//! ```text
//!   PATH                  the image                     only ever appears by a rename or link
//!   PATH.tzero            its manifest
//!   PATH.tzero-partial    an image that is being made   ┐ both under the journal's lock
//!   PATH.tzero-journal    what of it is done            ┘
//!   PATH.tzero.new        manifest of the image that is about to take its place
//! ```
//! For a block device the image is the device, and `STATE/devices/KEY.tzero` and `STATE/journals/KEY.tzero-journal`
//! take the places of manifest and journal.
//!
//! # Invariants
//! 1. (INV-9) Image and new manifest are durable before the image takes its name; that is the instant of declaration.
//! 2. The manifest that belongs to the image at `PATH` is the new one if that names the image's inode and size, else
//!    `PATH.tzero`. So a crash between the two renames leaves a good copy, which the next load completes.
//! 3. What stands at `PATH` is replaced only by a complete image, and only where that was asked for.
//! 4. A new manifest whose image is in place is never removed, only renamed: without it the image would be nothing.
//!
//! # Order of a declaration, and what a failure of each step leaves
//! | step | it fails | |
//! |---|---|---|
//! | 1 new manifest written and flushed, its name too | nothing has changed | [`Undeclared::Before`] |
//! | 2 image linked or renamed to `PATH` | nothing has changed | [`Undeclared::Before`] |
//! | 3 directory flushed: **declared** | the image is in place, perhaps not durably; the new manifest names it | [`Undeclared::After`] |
//! | 4 other name of a linked image removed, durably | as after 3, and durable | [`Undeclared::After`] |
//! | 5 new manifest renamed to `PATH.tzero`, directory flushed | as after 4 | [`Undeclared::After`] |
//!
//! Whether step 2 took place is looked up, not concluded from its error. After it, nothing is taken back: a run that
//! goes on (or whoever loads the copy) completes the rest, and only then is it a success.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tzero_api::mover::Destination;
use tzero_nbd::Uri;

use crate::device_key::device_key;
use crate::error::{FileAction, Refusal};
use crate::export::{self, Server};
use crate::journal::{Claim, Journal, JournalFault};
use crate::location::{Location, key_of, resolved};
use crate::manifest::{DeviceRecord, ImageRecord, LONGEST_MANIFEST, Manifest, ManifestFault};
use crate::medium::Medium;
use crate::opening::open_device_for_writing;
use crate::{CopyId, Error, durable, opening};

/// Suffix of a manifest.
pub(crate) const MANIFEST_SUFFIX: &str = ".tzero";
const PARTIAL_SUFFIX: &str = ".tzero-partial";
const JOURNAL_SUFFIX: &str = ".tzero-journal";

/// Why a finished image is not the copy yet.
#[derive(Debug)]
pub(crate) enum Undeclared {
    /// It did not take its place, and what stood there still does.
    Before(Error),
    /// It did: all that is missing can be done again.
    After(Error),
}

/// The places of one copy's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// The image, or the device.
    pub(crate) image: PathBuf,
    pub(crate) manifest: PathBuf,
    /// Where the image is made: beside it, or the device itself.
    pub(crate) partial: PathBuf,
    pub(crate) journal: PathBuf,
    pub(crate) device: Option<DeviceRecord>,
}

impl Site {
    /// Of an image at `path`, which need not exist; its directory must. Records of a block device, and of an export, whose URI is its path, are
    /// in `state`.
    ///
    /// # Errors
    /// When `path` is neither a file nor a block device, or cannot be looked at.
    pub(crate) fn of_image(path: &Path, state: &Path) -> Result<Self, Error> {
        if let Location::Export(uri) = Location::of(path)? {
            return Ok(Self::of_export(&resolved(&uri), state));
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => Self::of_device(path, metadata.rdev(), state),
            Ok(metadata) if metadata.is_file() => {
                fs::canonicalize(path).map(Self::of_file).map_err(Error::file(FileAction::Open, path))
            }
            Ok(_) => Err(Error::refused(path, Refusal::NotAFile)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = path.file_name().ok_or_else(|| Error::refused(path, Refusal::NotAFile))?;
                if fs::symlink_metadata(path).is_ok() {
                    // A link that leads nowhere.
                    return Err(Error::refused(path, Refusal::NotAFile));
                }
                let directory =
                    fs::canonicalize(durable::parent(path)).map_err(Error::file(FileAction::Create, path))?;
                Ok(Self::of_file(directory.join(name)))
            }
            Err(error) => Err(Error::file(FileAction::Open, path)(error)),
        }
    }

    fn of_file(image: PathBuf) -> Self {
        Self {
            manifest: durable::with_suffix(&image, MANIFEST_SUFFIX),
            partial: durable::with_suffix(&image, PARTIAL_SUFFIX),
            journal: durable::with_suffix(&image, JOURNAL_SUFFIX),
            image,
            device: None,
        }
    }

    fn of_device(path: &Path, number: u64, state: &Path) -> Result<Self, Error> {
        let path = fs::canonicalize(path).map_err(Error::file(FileAction::Open, path))?;
        let key = device_key(number).map_err(Error::file(FileAction::Open, &path))?;
        Ok(Self::of_known_device(DeviceRecord { path, key }, state))
    }

    /// Of an export, whose records are where a device's are.
    pub(crate) fn of_export(uri: &Uri, state: &Path) -> Self {
        Self::of_known_device(DeviceRecord { path: uri.to_string().into(), key: key_of(uri) }, state)
    }

    /// Whether it is an export of an NBD server.
    pub(crate) fn is_export(&self) -> bool {
        matches!(Location::of(&self.image), Ok(Location::Export(_)))
    }

    /// Opens what is written in place: a device or an export that has `needs` bytes.
    ///
    /// # Errors
    /// When it is smaller, read-only, or somebody uses it.
    pub(crate) async fn open_in_place(&self, needs: u64) -> Result<Medium, Error> {
        match Location::of(&self.image)? {
            Location::Path(path) => {
                let file = open_device_for_writing(&path, needs)?;
                Medium::over(file).map_err(Error::file(FileAction::Open, &path))
            }
            Location::Export(uri) => export::open_for_writing(&uri, Server::Foreign, needs).await,
        }
    }

    /// Of a device by what a manifest says of it. It need not be there.
    pub(crate) fn of_known_device(device: DeviceRecord, state: &Path) -> Self {
        Self {
            image: device.path.clone(),
            partial: device.path.clone(),
            manifest: state.join("devices").join(format!("{}{MANIFEST_SUFFIX}", device.key)),
            journal: state.join("journals").join(format!("{}{JOURNAL_SUFFIX}", device.key)),
            device: Some(device),
        }
    }

    /// Makes the directories that a device's records need.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        if self.device.is_some() {
            for file in [&self.manifest, &self.journal] {
                let directory = durable::parent(file);
                durable::create_directory(directory).map_err(Error::file(FileAction::Create, directory))?;
            }
        }
        Ok(())
    }

    /// The path that stands for the unfinished copy.
    pub(crate) fn unfinished(&self) -> &Path {
        if self.device.is_some() { &self.journal } else { &self.partial }
    }

    /// What the daemon tells operators of the copy in the making.
    pub(crate) fn named(&self, copy: CopyId) -> Destination {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (path, unfinished) = (text(&self.image), text(self.unfinished()));
        Destination { path, unfinished, copy: Some(copy.to_string()) }
    }

    /// Takes the right to write the copy's files.
    ///
    /// # Errors
    /// When another run has it, or something else stands at the journal's place.
    pub(crate) fn claim(&self) -> Result<Claim, Error> {
        Claim::take(&self.journal).map_err(|fault| match fault {
            JournalFault::Locked => Error::refused(&self.image, Refusal::Busy),
            JournalFault::Foreign => Error::foreign(&self.image, &self.journal),
            JournalFault::Io(source) => Error::file(FileAction::Create, &self.journal)(source),
        })
    }

    /// Of the unfinished copy that `path`, its image or its journal, stands for.
    pub(crate) fn of_unfinished(path: &Path, state: &Path) -> Option<Self> {
        let name = path.as_os_str().as_bytes();
        let image = [PARTIAL_SUFFIX, JOURNAL_SUFFIX].iter().find_map(|suffix| name.strip_suffix(suffix.as_bytes()))?;
        let device = Journal::peek(path).and_then(|header| header.device);
        Some(match device {
            Some(device) => Self { journal: path.to_owned(), ..Self::of_known_device(device, state) },
            None => Self::of_file(PathBuf::from(OsStr::from_bytes(image))),
        })
    }

    pub(crate) fn fresh(&self) -> PathBuf {
        durable::with_suffix(&self.manifest, ".new")
    }

    /// The manifest of what stands at the image's place, if that is a copy.
    ///
    /// # Errors
    /// When there is one that cannot be used.
    pub(crate) fn load(&self) -> Result<Option<Manifest>, Error> {
        if let Some(manifest) = self.fresh_in_place() {
            // The run that made it did not come to this. Where it cannot be done (a read-only medium) nothing is lost.
            let _ = durable::rename(&self.fresh(), &self.manifest);
            return Ok(Some(manifest));
        }
        read_manifest(&self.manifest)
    }

    /// The new manifest, if its image is in place.
    fn fresh_in_place(&self) -> Option<Manifest> {
        let manifest = read_manifest(&self.fresh()).ok().flatten()?;
        let image = fs::metadata(&self.image).ok()?;
        let record = manifest.image?;
        (record == ImageRecord { inode: image.ino(), size: image.len() }).then_some(manifest)
    }

    /// Makes the finished image at [`Site::partial`] the copy. Its bytes must be durable. Called under the journal's
    /// lock.
    ///
    /// # Errors
    /// When something appeared at the image's place and `replace` is not set, or a step fails. Which of the two kinds it
    /// is says what may be removed.
    pub(crate) fn declare(&self, manifest: &Manifest, replace: bool) -> Result<(), Undeclared> {
        // It may have come since the copy began.
        self.refuse_foreign_manifest().map_err(Undeclared::Before)?;
        let bytes = manifest.encode();
        if self.device.is_some() {
            let replaced = durable::replace(&self.manifest, &bytes);
            return replaced.map_err(Error::file(FileAction::Write, &self.manifest)).map_err(
                |error| match read_manifest(&self.manifest).map(|there| there.map(|there| there.id)) {
                    Ok(there) if there != Some(manifest.id) => Undeclared::Before(error),
                    _ => Undeclared::After(error),
                },
            );
        }
        let fresh = self.fresh();
        durable::write(&fresh, &bytes).map_err(Error::file(FileAction::Write, &fresh)).map_err(Undeclared::Before)?;
        self.put_in_place(replace).map_err(|error| match self.holds(manifest) {
            Some(false) => Undeclared::Before(error),
            // Where it cannot be told, nothing is taken back.
            Some(true) | None => Undeclared::After(error),
        })?;
        self.name_manifest(manifest).map_err(Undeclared::After)
    }

    /// Whether the image of `manifest` is in its place; `None` where that cannot be seen.
    fn holds(&self, manifest: &Manifest) -> Option<bool> {
        match fs::metadata(&self.image) {
            Ok(there) => Some(manifest.image == Some(ImageRecord { inode: there.ino(), size: there.len() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
            Err(_) => None,
        }
    }

    fn name_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        let fresh = self.fresh();
        match durable::rename(&fresh, &self.manifest) {
            // Someone who loaded the copy meanwhile was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match read_manifest(&self.manifest)? {
                Some(there) if there.id == manifest.id => self.sync_names(),
                _ => Err(Error::file(FileAction::Rename, &fresh)(error)),
            },
            other => other.map_err(Error::file(FileAction::Rename, &fresh)),
        }
    }

    /// Makes the names of image and manifest durable, which a run that failed on just that has left to the next one.
    pub(crate) fn sync_names(&self) -> Result<(), Error> {
        let directory = durable::parent(&self.manifest);
        durable::sync_parent(&self.manifest).map_err(Error::file(FileAction::Flush, directory))
    }

    fn put_in_place(&self, replace: bool) -> Result<(), Error> {
        if !replace {
            // A link never replaces anything, which a rename cannot promise.
            match durable::link(&self.partial, &self.image) {
                Ok(()) => {
                    durable::sync_parent(&self.image).map_err(Error::file(FileAction::Rename, &self.image))?;
                    return durable::remove(&self.partial).map_err(Error::file(FileAction::Remove, &self.partial));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(Error::refused(&self.image, Refusal::NoCopyOfIt));
                }
                // A file system without links.
                Err(_) if fs::symlink_metadata(&self.image).is_ok() => {
                    return Err(Error::refused(&self.image, Refusal::NoCopyOfIt));
                }
                Err(_) => {}
            }
        }
        durable::rename(&self.partial, &self.image).map_err(Error::file(FileAction::Rename, &self.image))
    }

    /// Removes what an unfinished copy left, the journal excepted. Called under the journal's lock.
    ///
    /// One that had taken its place before is none: its manifest gets its name, and the copy stays.
    pub(crate) fn discard_partial(&self) -> Result<(), Error> {
        let fresh = self.fresh();
        match self.fresh_in_place() {
            Some(_) => durable::rename(&fresh, &self.manifest).map_err(Error::file(FileAction::Rename, &fresh))?,
            None => durable::remove(&fresh).map_err(Error::file(FileAction::Remove, &fresh))?,
        }
        if self.device.is_none() {
            durable::remove(&self.partial).map_err(Error::file(FileAction::Remove, &self.partial))?;
        }
        Ok(())
    }

    /// What stands at the image's place is no copy from here on, durably. Called under the journal's lock.
    pub(crate) fn undeclare(&self) -> Result<(), Error> {
        for manifest in [self.fresh(), self.manifest.clone()] {
            durable::remove(&manifest).map_err(Error::file(FileAction::Remove, &manifest))?;
        }
        Ok(())
    }

    /// Whether a manifest of whatever worth says that a copy stands, or stood, at the image's place.
    pub(crate) fn has_manifest(&self) -> bool {
        [self.fresh(), self.manifest.clone()].iter().any(|manifest| fs::symlink_metadata(manifest).is_ok())
    }

    /// Makes the empty image that a copy fills. Called under the journal's lock, after [`Site::discard_partial`].
    pub(crate) fn create_partial(&self, size: u64) -> Result<fs::File, Error> {
        let create = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(durable::PRIVATE)
                .open(&self.partial)?;
            file.set_len(size)?;
            durable::sync_parent(&self.partial)?;
            Ok(file)
        };
        create().map_err(Error::file(FileAction::Create, &self.partial))
    }
}

/// A manifest file; `None` where there is none.
pub(crate) fn read_manifest(path: &Path) -> Result<Option<Manifest>, Error> {
    let fault = |fault| Error::Manifest { path: path.to_owned(), fault };
    match opening::read(path, LONGEST_MANIFEST) {
        Ok(bytes) => Manifest::decode(&bytes).map(Some).map_err(fault),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(fault(ManifestFault::Seal)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(fault(ManifestFault::NoFile)),
        Err(error) => Err(Error::file(FileAction::Read, path)(error)),
    }
}

#[cfg(test)]
mod tests;
