//! Making a copy: of a served volume's snapshot, or of a plain file or device.
//!
//! ```text
//!   volume:  Begin ▶ descriptors ┐
//!   plain:   open                ┴▶ claim destination ▶ flow: read, settle, digest, write ▶ journal ▶ Captured
//!            ▶ flush ▶ (verify) ▶ Check ▶ manifest ▶ rename ▶ Finish ▶ journal removed ▶ catalogue
//! ```
//!
//! # Invariants
//! 1. (INV-9) The copy is declared, by one rename, only after all bytes are durable and the snapshot was found to
//!    stand unbroken after the last of them was read.
//! 2. What stood at the destination is as it was until then. (A device has no "until then": its old copy is un-declared
//!    first, and only on `replace`.)
//! 3. (INV-10) Nothing that goes wrong here reaches the host; what is left of it is a snapshot that can be deleted.
//! 4. A run that ends in any other way than declared or given up leaves a journal, and the same T0 can be resumed.
//! 5. What the daemon has released is never read again. A part that is released and, on resuming, not in the
//!    destination ends the copy for good.
//! 6. Nothing that the journal says of the destination is taken on trust by a run that goes on: it is read again and
//!    compared first (see `recheck`). Once the machine was restarted, or the destination has failed to take or keep
//!    something, from the medium.
//!
//! The mover reads the base as the daemon does (buffered or direct), so page cache and medium never disagree, and without a trace in the page
//! cache: see `docs/adr/0008-page-cache.md`. What it *wrote* it drops again behind itself as soon as it is durable, so that a large copy leaves no
//! dirty flood and does not push the host out.

mod capture;
mod copying;
mod destination;
mod discard;
mod job;
mod landing;
mod offload;
mod outboard;
mod plain;
mod protection;
mod recheck;
mod stop;
mod volume;

use std::path::PathBuf;

use serde::Serialize;
use tzero_api::control::Part;
use tzero_api::{Exit, OnFull};
use tzero_io::{Backend, Runtime};

use crate::error::FileAction;
use crate::forbidden::refuse_forbidden;
use crate::governor::Restraint;
use crate::location::{Location, resolved};
use crate::registry::refuse_registered_export;
use crate::site::Site;
use crate::{Cancel, CopySummary, Error, ModeAsked, Observer, Outboard};

pub(crate) use discard::discard;

/// What to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupSource {
    /// A served volume.
    Volume {
        /// The daemon's mover socket.
        mover_socket: PathBuf,
        /// Volume's name.
        volume: String,
        /// A standing snapshot's name without the volume's; a private one is taken where this is absent.
        snapshot: Option<String>,
    },
    /// A file or block device, without a daemon.
    Path(PathBuf),
}

impl BackupSource {
    /// The served volume's name.
    pub(crate) fn volume(&self) -> Option<&str> {
        match self {
            Self::Volume { volume, .. } => Some(volume),
            Self::Path(_) => None,
        }
    }
}

/// What to copy, where to, and how.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// What.
    pub source: BackupSource,
    /// A file or block device, or the URI of an export: see [`Location::of`].
    pub destination: PathBuf,
    /// The state directory: catalogue, and records of copies on devices.
    pub state: PathBuf,
    /// How.
    pub mode: ModeAsked,
    /// How an outboard copy is made, where that is said: else as it was begun, or as is usual.
    pub outboard: Option<Outboard>,
    /// What of the volume, of a snapshot that is taken for this copy; empty: all of it.
    pub scope: Vec<Part>,
    /// What gives when the original cache is full, of a snapshot that is taken for this copy.
    pub on_full: Option<OnFull>,
    /// Go first where originals are when the original cache is short of space; only tests do without.
    pub hurries: bool,
    /// How the mover is held back.
    pub restraint: Restraint,
    /// What stands at the destination may be replaced by the finished copy.
    pub replace: bool,
    /// Go on with the unfinished copy at the destination.
    pub resume: bool,
    /// Read the finished copy again from its medium before it is declared.
    pub verify: bool,
}

/// Why a good copy is not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Shortfall {
    /// Plain reads of something that others could write.
    #[error(
        "nothing protected the source from writers while it was read, so the copy may mix several instants; make it a volume"
    )]
    Unprotected,
    /// Plain reads of something that is no volume, though a mode was asked for.
    #[error("a file or device that is no volume is read as it is, in no mode of copying; make it a volume")]
    NoVolume,
    /// Plain reads of something that others did write.
    #[error("the source was changed while it was read, so the copy mixes several instants; make it a volume")]
    Changed,
}

/// A copy that was declared.
#[derive(Clone, Debug)]
pub struct BackupOutcome {
    /// Its record.
    pub copy: CopySummary,
    /// Why it is not what was asked for, if it is not; also the record's `reason`.
    pub shortfall: Option<Shortfall>,
    /// It was read again from its medium and is as it should be.
    pub verified: bool,
}

impl BackupOutcome {
    /// For the process's exit status.
    pub fn exit(&self) -> Exit {
        if self.shortfall.is_some() { Exit::NotAsAsked } else { Exit::AsAsked }
    }
}

/// Makes a copy and declares it.
///
/// # Errors
/// [`Error::Incomplete`] where it can go on later with the same T0. All others leave nothing of it, and whatever stood
/// at the destination still does.
pub fn backup(request: &BackupRequest, observer: Observer<'_>, cancel: &Cancel) -> Result<BackupOutcome, Error> {
    let runtime = Runtime::new(Backend::Auto).map_err(Error::Runtime)?;
    let site = match Location::of(&request.destination)? {
        Location::Path(path) => {
            let path = std::path::absolute(&path).map_err(Error::file(FileAction::Open, &path))?;
            refuse_forbidden(&path, &request.state, request.source.volume())?;
            Site::of_image(&path, &request.state)?
        }
        Location::Export(uri) => {
            let uri = resolved(&uri);
            refuse_registered_export(&uri, &request.state)?;
            destination::refuse_own_export(&uri, request)?;
            Site::of_export(&uri, &request.state)
        }
    };
    site.prepare()?;
    runtime.block_on(async {
        match &request.source {
            BackupSource::Volume { mover_socket, volume, snapshot } => {
                let volume = volume::Volume { socket: mover_socket, name: volume, snapshot: snapshot.as_deref() };
                volume::backup(&volume, request, site, observer, cancel).await
            }
            BackupSource::Path(path) => plain::backup(path, request, site, observer, cancel).await,
        }
    })
}

#[cfg(test)]
mod tests;
