//! Interrupted backups that the daemon knows and whose journal is lost.
//!
//! Nobody can go on with one: what of it is done is not known. Its snapshot stands until it is given up, which nobody does
//! unasked, for the files may only have been moved.

use std::path::Path;

use tzero_api::control::Snapshot;
use tzero_api::{Client, ClientError, Code, SnapshotPath, StatePaths};

use crate::site::Site;

/// The private snapshots, in no mover's hands, whose copies were to go to this place. None where no daemon tells.
pub(crate) fn known(site: &Site, state: &Path) -> Vec<Snapshot> {
    let image = site.image.to_string_lossy();
    let snapshots = Client::new(&StatePaths::new(state)).and_then(|daemon| daemon.snapshots());
    let is_to = |snapshot: &Snapshot| snapshot.destination.as_ref().is_some_and(|to| to.path == image);
    let mut snapshots = snapshots.unwrap_or_default();
    snapshots.retain(|snapshot| snapshot.private && !snapshot.mover && is_to(snapshot));
    snapshots
}

/// Deletes one; that it is gone already is fine.
pub(crate) fn give_up(snapshot: &Snapshot, state: &Path) -> Result<(), ClientError> {
    let path = path_of(snapshot);
    match Client::new(&StatePaths::new(state))?.delete_snapshot(&path) {
        Err(ClientError::Refused(refusal)) if refusal.code == Code::Unknown => Ok(()),
        other => other.map(drop),
    }
}

/// The command that gives up what is left of the copy at this place.
pub(crate) fn way(site: &Site, snapshot: &Snapshot) -> String {
    if site.device.is_none() && site.partial.exists() {
        return format!("tzero copy remove {}", tzero_api::quoted(&site.partial.to_string_lossy()));
    }
    format!("tzero snapshot delete {}", path_of(snapshot))
}

fn path_of(snapshot: &Snapshot) -> SnapshotPath {
    SnapshotPath { volume: snapshot.volume.clone(), snapshot: snapshot.name.clone() }
}
