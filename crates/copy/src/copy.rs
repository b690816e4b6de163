//! One complete copy: its manifest and where its files are.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{FileAction, Refusal};
use crate::export;
use crate::location::Location;
use crate::manifest::{
    CopyKind, Durability, Manifest, ModeAsked, ModeUsed, OutboardRecord, Protection, Transport, VolumeRecord,
};
use crate::medium::Medium;
use crate::opening::open_for_reading;
use crate::scope::Scope;
use crate::site::{MANIFEST_SUFFIX, Site, read_manifest};
use crate::{CopyId, Error, Timestamp};

/// A copy whose manifest was read and checked. Its image is another matter: see [`verify`](crate::verify()).
#[derive(Clone, Debug)]
pub struct Copy {
    pub(crate) site: Site,
    manifest: Manifest,
}

impl Copy {
    /// The copy whose image or manifest is at `path`. A block device's manifest is looked for in `state`.
    ///
    /// # Errors
    /// When there is no manifest, or it cannot be used.
    pub fn open(path: &Path, state: &Path) -> Result<Self, Error> {
        if let Location::Export(_) = Location::of(path)? {
            return Self::load(Site::of_image(path, state)?, path);
        }
        let path = std::path::absolute(path).map_err(Error::file(FileAction::Open, path))?;
        let image = path.as_os_str().as_bytes().strip_suffix(MANIFEST_SUFFIX.as_bytes());
        let Some(image) = image.map(|image| Path::new(OsStr::from_bytes(image))) else {
            return Self::load(site_of(&path, state)?, &path);
        };
        // A device's manifest has no image beside it.
        if let Some(manifest) = read_manifest(&path).ok().flatten()
            && let Some(device) = manifest.device.clone()
        {
            let site = Site { manifest: path, ..Site::of_known_device(device, state) };
            return Ok(Self { site, manifest });
        }
        Self::load(site_of(image, state)?, &path)
    }

    fn load(site: Site, named: &Path) -> Result<Self, Error> {
        match site.load()? {
            Some(manifest) => Ok(Self { site, manifest }),
            None => Err(Error::NoCopy { path: named.to_owned(), manifest: site.manifest }),
        }
    }

    pub(crate) fn new(site: Site, manifest: Manifest) -> Self {
        Self { site, manifest }
    }

    /// Its stable name.
    pub fn id(&self) -> CopyId {
        self.manifest.id
    }

    /// The image, or the device that holds it.
    pub fn image(&self) -> &Path {
        &self.site.image
    }

    /// Where its manifest is.
    pub fn manifest_path(&self) -> &Path {
        &self.site.manifest
    }

    /// Whether a block device or an export holds it, which may be larger.
    pub fn is_device(&self) -> bool {
        self.site.device.is_some()
    }

    /// Whether an export of an NBD server holds it.
    pub fn is_export(&self) -> bool {
        self.site.is_export()
    }

    /// Opens its image. How long that is may be wrong.
    pub(crate) async fn open_any_image(&self) -> Result<Medium, Error> {
        match Location::of(self.image())? {
            Location::Path(path) => open_for_reading(&path),
            Location::Export(uri) => export::open(&uri).await,
        }
    }

    /// Opens its image, which has all that it should have and, where it is a file, no more.
    pub(crate) async fn open_image(&self) -> Result<Medium, Error> {
        let (image, expected) = (self.open_any_image().await?, self.manifest.size());
        match image.size() {
            found if found < expected || (!self.is_device() && found != expected) => {
                Err(Error::WrongSize { path: self.image().to_owned(), found, expected })
            }
            _ => Ok(image),
        }
    }

    /// Its record.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its record without the digests.
    pub fn summary(&self) -> CopySummary {
        let manifest = &self.manifest;
        CopySummary {
            id: manifest.id,
            kind: manifest.kind,
            image: self.site.image.clone(),
            manifest: self.site.manifest.clone(),
            device: self.is_device(),
            volumes: manifest.volumes.clone(),
            size: manifest.size(),
            t0: manifest.t0,
            completed: manifest.completed,
            mode_asked: manifest.mode_asked,
            mode_used: manifest.mode_used,
            reason: manifest.reason.clone(),
            protection: manifest.protection,
            bytes_read: manifest.bytes_read,
            bytes_changed: manifest.bytes_changed,
            bytes_written: manifest.bytes_written,
            pause_us: manifest.pause_us,
            chunk: manifest.chunk,
            chunks: manifest.digests.len(),
            parent: manifest.parent,
            boundary: manifest.boundary,
            transport: manifest.transport,
            outboard: manifest.outboard,
            scope: manifest.scope.clone(),
            durability: manifest.durability,
            tool: manifest.tool.clone(),
        }
    }
}

fn site_of(image: &Path, state: &Path) -> Result<Site, Error> {
    Site::of_image(image, state).map_err(|error| match error {
        // Nothing is to be written there.
        Error::Refused { path, refusal: Refusal::NotAFile } => Error::WrongKind { path, what: "read as a copy" },
        error => error,
    })
}

/// What there is to tell of a copy. The fields are the manifest's, see [`Manifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopySummary {
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
    /// Length of the image in bytes.
    pub size: u64,
    /// The instant that it shows.
    pub t0: Timestamp,
    /// When it was declared.
    pub completed: Timestamp,
    /// What was asked for.
    pub mode_asked: ModeAsked,
    /// What was done.
    pub mode_used: ModeUsed,
    /// Why it is not all that was asked for, if it is not.
    pub reason: Option<String>,
    /// What protected a plain source from writers, if anything did.
    pub protection: Option<Protection>,
    /// Bytes read from the source, holes excluded.
    pub bytes_read: u64,
    /// Bytes that came from originals.
    pub bytes_changed: u64,
    /// Bytes written, holes excluded.
    pub bytes_written: u64,
    /// How long the host was held at T0, in microseconds.
    pub pause_us: u64,
    /// Bytes that one digest covers.
    pub chunk: u64,
    /// How many digests there are.
    pub chunks: u64,
    /// The copy that this one is an increment on.
    pub parent: Option<CopyId>,
    /// Last original that belongs to an outboard copy.
    pub boundary: Option<u64>,
    /// How the volume's bytes reached the mover.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// How an outboard copy was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outboard: Option<OutboardRecord>,
    /// What of the volume was copied; absent where all of it was.
    #[serde(skip_serializing_if = "Scope::is_whole")]
    pub scope: Scope,
    /// What the session's originals survived.
    pub durability: Durability,
    /// What made it.
    pub tool: String,
}
