//! Which copies there are, for finding them by name.
//!
//! One small JSON file for each copy, `STATE/catalogue/ID.json`. It is a convenience: everything in it comes from the
//! copy's own manifest and can be had from there again ([`Catalogue::rebuild`]). A copy named by its path needs none
//! of it.
//!
//! Deliberately absent: digests, and any state that a copy does not carry itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::FileAction;
use crate::manifest::{CopyKind, ModeUsed, VolumeRecord};
use crate::site::{MANIFEST_SUFFIX, Site};
use crate::{Copy, CopyId, Error, Timestamp, durable, opening};

/// Longest entry that is read, in bytes.
const LONGEST_ENTRY: u64 = 1 << 16;
/// How deep [`Catalogue::rebuild`] looks into directories.
const DEPTH: usize = 32;
const VERSION: u32 = 1;

/// The copies that a state directory knows.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub(crate) state: PathBuf,
}

/// A copy, as the catalogue knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CatalogueEntry {
    /// Its stable name.
    pub id: CopyId,
    /// What it consists of.
    pub kind: CopyKind,
    /// The image, or the device that holds it.
    pub image: PathBuf,
    /// Its manifest.
    pub manifest: PathBuf,
    /// Whether a block device holds it.
    pub device: bool,
    /// What it is of.
    pub volumes: Vec<VolumeRecord>,
    /// The instant that it shows.
    pub t0: Timestamp,
    /// How it was made.
    pub mode_used: ModeUsed,
    /// Length of the image in bytes.
    pub size: u64,
    /// The manifest is where it should be.
    pub present: bool,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    version: u32,
    id: CopyId,
    kind: CopyKind,
    image: PathBuf,
    manifest: PathBuf,
    device: bool,
    volumes: Vec<VolumeRecord>,
    t0: Timestamp,
    mode_used: ModeUsed,
    size: u64,
}

/// What [`Catalogue::list`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// By T0, oldest first.
    pub copies: Vec<CatalogueEntry>,
    /// Entries that make no sense; [`Catalogue::rebuild`] replaces those whose copies it finds.
    pub unreadable: Vec<PathBuf>,
}

/// What [`Catalogue::rebuild`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// Copies that are in the catalogue now.
    pub found: Vec<CopyId>,
    /// Manifests that cannot be used, and directories that cannot be read.
    pub bad: Vec<PathBuf>,
}

impl Stored {
    fn of(copy: &Copy) -> Self {
        let manifest = copy.manifest();
        Self {
            version: VERSION,
            id: copy.id(),
            kind: manifest.kind,
            image: copy.image().to_owned(),
            manifest: copy.manifest_path().to_owned(),
            device: copy.is_device(),
            volumes: manifest.volumes.clone(),
            t0: manifest.t0,
            mode_used: manifest.mode_used,
            size: manifest.size(),
        }
    }
}

impl From<Stored> for CatalogueEntry {
    fn from(stored: Stored) -> Self {
        let Stored { version: _, id, kind, image, manifest, device, volumes, t0, mode_used, size } = stored;
        let present = manifest.exists();
        Self { id, kind, image, manifest, device, volumes, t0, mode_used, size, present }
    }
}

impl Catalogue {
    /// Of a state directory. Touches nothing.
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    fn directory(&self) -> PathBuf {
        self.state.join("catalogue")
    }

    fn place(&self, id: CopyId) -> PathBuf {
        self.directory().join(format!("{id}.json"))
    }

    /// All copies, whether their files are still there or not.
    ///
    /// # Errors
    /// When the catalogue cannot be read. One that does not exist is empty.
    pub fn list(&self) -> Result<Listing, Error> {
        let directory = self.directory();
        let files = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
            other => other.map_err(Error::file(FileAction::Read, &directory))?,
        };
        let mut listing = Listing::default();
        for file in files {
            let path = file.map_err(Error::file(FileAction::Read, &directory))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let bytes = match opening::read(&path, LONGEST_ENTRY) {
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.ok(),
            };
            let stored = bytes.and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
            match stored.filter(|stored| stored.version == VERSION && self.place(stored.id) == path) {
                Some(stored) => listing.copies.push(stored.into()),
                None => listing.unreadable.push(path),
            }
        }
        listing.copies.sort_by_key(|entry| (entry.t0, entry.id));
        listing.unreadable.sort();
        Ok(listing)
    }

    /// The copy that `name` names: by its id or the unique beginning of it, or by the path of its image or manifest.
    /// Text with a slash or `.tzero` in it is always a path.
    ///
    /// # Errors
    /// When it names none or several, or the copy's manifest cannot be used.
    pub fn find(&self, name: &str) -> Result<Copy, Error> {
        if let Some(entry) = self.entry(name)? {
            // Another copy may have taken the place since.
            return match Copy::open(&entry.manifest, &self.state) {
                Ok(copy) if copy.id() != entry.id => Err(Error::UnknownCopy { name: name.to_owned() }),
                other => other,
            };
        }
        if !is_path(name) && !Path::new(name).exists() {
            return Err(Error::UnknownCopy { name: name.to_owned() });
        }
        Copy::open(Path::new(name), &self.state)
    }

    pub(crate) fn entry(&self, name: &str) -> Result<Option<CatalogueEntry>, Error> {
        if is_path(name) || name.is_empty() {
            return Ok(None);
        }
        let mut copies = self.list()?.copies;
        copies.retain(|entry| entry.id.to_string().starts_with(name));
        match copies.len() {
            // A file in the working directory may have such a name too.
            2.. if !Path::new(name).exists() => {
                Err(Error::AmbiguousCopy { name: name.to_owned(), count: copies.len() })
            }
            1 => Ok(copies.pop()),
            _ => Ok(None),
        }
    }

    /// Enters a copy, in place of one that had the same manifest before.
    pub(crate) fn add(&self, copy: &Copy) -> Result<(), Error> {
        let directory = self.directory();
        durable::create_directory(&directory).map_err(Error::file(FileAction::Create, &directory))?;
        let place = self.place(copy.id());
        let bytes = serde_json::to_vec_pretty(&Stored::of(copy)).expect("an entry has nothing that JSON cannot say");
        durable::replace(&place, &bytes).map_err(Error::file(FileAction::Write, &place))?;
        let stale = self.list()?.copies.into_iter();
        stale
            .filter(|entry| entry.manifest == copy.manifest_path() && entry.id != copy.id())
            .try_for_each(|entry| self.forget(entry.id))
    }

    /// Where a copy's entry is or would be.
    pub(crate) fn place_of(&self, copy: &Copy) -> PathBuf {
        self.place(copy.id())
    }

    pub(crate) fn forget(&self, id: CopyId) -> Result<(), Error> {
        let place = self.place(id);
        durable::remove(&place).map_err(Error::file(FileAction::Remove, &place))
    }

    /// What stands at the site is no copy any more, here and by its manifest, durably. Called under the journal's lock.
    pub(crate) fn retire(&self, site: &Site) -> Result<(), Error> {
        let known = self.list()?.copies.into_iter().filter(|entry| entry.manifest == site.manifest);
        let loaded = site.load().ok().flatten().map(|manifest| manifest.id);
        known.map(|entry| entry.id).chain(loaded).try_for_each(|id| self.forget(id))?;
        site.undeclare()
    }

    /// Removes a copy: image, manifest, entry, in this order, so that an interrupted removal can be repeated. A device
    /// keeps its bytes.
    ///
    /// # Errors
    /// When another run is writing there, when what stands at the image's place is not of the copy's size, or a file
    /// cannot be removed.
    pub fn remove(&self, copy: &Copy) -> Result<(), Error> {
        let site = &copy.site;
        site.prepare()?;
        let claim = site.claim()?;
        let removed = self.remove_files(copy);
        // What an unfinished copy at the same place has recorded is not this copy's to remove.
        if matches!(claim.load(), Ok(None)) {
            claim.remove().map_err(Error::file(FileAction::Remove, &site.journal))?;
        }
        removed
    }

    fn remove_files(&self, copy: &Copy) -> Result<(), Error> {
        let (image, expected) = (copy.image(), copy.manifest().size());
        if !copy.is_device() {
            match fs::metadata(image) {
                Ok(metadata) if metadata.len() != expected => {
                    return Err(Error::NotItsImage { path: image.to_owned(), found: metadata.len(), expected });
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file(FileAction::Open, image)(error));
                }
                _ => durable::remove(image).map_err(Error::file(FileAction::Remove, image))?,
            }
        }
        let manifest = copy.manifest_path();
        durable::remove(manifest).map_err(Error::file(FileAction::Remove, manifest))?;
        self.forget(copy.id())
    }

    /// Enters every copy whose manifest lies in one of the directories or below, and every device's. Links are not
    /// followed.
    ///
    /// # Errors
    /// When the catalogue cannot be written.
    pub fn rebuild(&self, directories: &[PathBuf]) -> Result<Rebuilt, Error> {
        let mut rebuilt = Rebuilt::default();
        let devices = self.state.join("devices");
        let devices = devices.exists().then_some((devices, DEPTH));
        let mut waiting: Vec<(PathBuf, usize)> = Vec::new();
        for directory in directories {
            let directory = std::path::absolute(directory).map_err(Error::file(FileAction::Open, directory))?;
            waiting.push((directory, 0));
        }
        waiting.extend(devices);
        while let Some((directory, depth)) = waiting.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                rebuilt.bad.push(directory);
                continue;
            };
            for entry in entries.flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let path = entry.path();
                let is_manifest = path.as_os_str().as_encoded_bytes().ends_with(MANIFEST_SUFFIX.as_bytes());
                if kind.is_dir() && depth < DEPTH {
                    waiting.push((path, depth + 1));
                } else if kind.is_file() && is_manifest {
                    match Copy::open(&path, &self.state) {
                        Ok(copy) => {
                            self.add(&copy)?;
                            rebuilt.found.push(copy.id());
                        }
                        Err(_) => rebuilt.bad.push(path),
                    }
                }
            }
        }
        rebuilt.found.sort();
        rebuilt.bad.sort();
        Ok(rebuilt)
    }
}

pub(crate) fn is_path(name: &str) -> bool {
    name.contains('/') || name.contains(MANIFEST_SUFFIX)
}
