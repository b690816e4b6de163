//! Finding and making what holds a volume's originals that are not in memory: a file, or an export with a claim on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tzero_api::Place;
use tzero_io::system;

use crate::base::Patience;
use crate::cache_file::{self, CacheFault};
use crate::claim::{self, Claimed, ExportFault};
use crate::file_identity::FileIdentity;
use crate::inspection::is_passing;
use crate::remote::{Purpose, Remote};
use crate::set_aside::set_aside;
use crate::store::Store;
use crate::threads::DataThreads;

/// How long the server of an export is waited for at a start before its originals are given up: as long as the engine waits for a save.
const EXPORT: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

/// Whose originals, and where they are.
pub(crate) struct Wanted<'a> {
    pub(crate) place: &'a Place,
    pub(crate) volume: [u8; 16],
    pub(crate) grain: u32,
    pub(crate) threads: &'a Arc<DataThreads>,
    pub(crate) patience: Patience,
}

/// What there is.
pub(crate) enum Found {
    /// It is there; `is_other` where it is not known to be the one that was made for the volume.
    Store { store: Store, is_other: bool },
    /// There is none.
    Nothing,
    /// There is something that cannot be used.
    Unusable,
}

/// What was made.
pub(crate) struct Made {
    pub(crate) store: Store,
    /// What an export was claimed with.
    pub(crate) claim: Option<[u8; 16]>,
    /// Where what was there is kept.
    pub(crate) aside: Option<PathBuf>,
}

impl Wanted<'_> {
    /// Looks for the volume's own, which `file` or `claim` is known by. Blocking.
    ///
    /// # Errors
    /// For what may be otherwise at the next attempt.
    pub(crate) fn find(&self, file: Option<&FileIdentity>, claim: Option<[u8; 16]>) -> Result<Found, CacheFault> {
        match self.place {
            Place::Path(path) => self.find_file(path, file),
            Place::Export(uri) => self.find_export(uri, claim),
        }
    }

    fn find_file(&self, path: &Path, known: Option<&FileIdentity>) -> Result<Found, CacheFault> {
        let found = match cache_file::open(path, self.patience) {
            Err(CacheFault::Io(error)) if !is_passing(&error) => return Ok(Found::Unusable),
            other => other?,
        };
        let Some(file) = found else { return Ok(Found::Nothing) };
        let identity = FileIdentity::of(&file)?;
        let is_other = known.is_some_and(|known| !identity.is_same(known));
        Ok(Found::Store { store: Store::File(file), is_other })
    }

    fn find_export(&self, uri: &str, known: Option<[u8; 16]>) -> Result<Found, CacheFault> {
        // Whatever the patience with locks: after the wait its originals are given up.
        let deadline = Instant::now() + EXPORT;
        let remote = loop {
            match Remote::open(self.threads, uri, Purpose::Cache) {
                Ok(remote) => break remote,
                Err(error) if Instant::now() < deadline => {
                    tracing::info!("{error}: tried again");
                    thread::sleep(AGAIN);
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    return Ok(Found::Unusable);
                }
            }
        };
        let claimed = match claim::of(&remote, self.grain) {
            Ok(claimed) => claimed,
            Err(source) => {
                tracing::warn!("{}", ExportFault::Io { uri: uri.into(), source });
                return Ok(Found::Unusable);
            }
        };
        Ok(match claimed {
            Claimed::By { volume, token } if volume == self.volume => {
                Found::Store { store: Store::Export(remote), is_other: known != Some(token) }
            }
            Claimed::ByNobody => Found::Nothing,
            Claimed::By { .. } | Claimed::InUse | Claimed::TooSmall => Found::Unusable,
        })
    }

    /// Makes it anew, with nothing in it. Blocking.
    pub(crate) fn make(&self) -> Result<Made, CacheFault> {
        match self.place {
            Place::Path(path) => {
                let aside = set_aside(path)?;
                Ok(Made { store: Store::File(cache_file::create(path)?), claim: None, aside })
            }
            Place::Export(uri) => {
                let remote = Remote::open(self.threads, uri, Purpose::Cache).map_err(ExportFault::from)?;
                let io = |source| ExportFault::Io { uri: uri.clone(), source };
                match claim::of(&remote, self.grain).map_err(io)? {
                    Claimed::By { volume, .. } if volume != self.volume => {
                        let volume = format!("{:032x}", u128::from_be_bytes(volume));
                        return Err(ExportFault::Taken { uri: uri.clone(), volume }.into());
                    }
                    Claimed::ByNobody | Claimed::By { .. } => {}
                    Claimed::InUse => return Err(ExportFault::InUse(uri.clone()).into()),
                    Claimed::TooSmall => return Err(ExportFault::TooSmall(uri.clone()).into()),
                }
                let token = system::random_id();
                claim::claim(&remote, self.volume, token).map_err(io)?;
                Ok(Made { store: Store::Export(remote), claim: Some(token), aside: None })
            }
        }
    }
}
