//! Snapshots that belong to one backup and go with it. Everything here blocks.

use std::sync::Arc;

use tzero_api::mover::{Destination, FailureCode};
use tzero_api::{OnFull, SnapshotPath, control, private_name};
use tzero_engine::{SnapshotError, SnapshotInfo, SnapshotKind};
use tzero_io::system;
use tzero_originals::{Originals, SnapshotId};

use super::trouble::{Trouble, refused, serving, snapshot_trouble, stopped};
use crate::backups::Backups;
use crate::scope;
use crate::service::Daemon;
use crate::volume::Volume;
use crate::words;

/// What a backup asks of its own snapshot.
pub(super) struct Wanted {
    /// The parts of the volume that it is of, offset and length in bytes; `None`: the whole.
    pub(super) scope: Option<Vec<(u64, u64)>>,
    /// What gives when the cache is full.
    pub(super) on_full: Option<OnFull>,
    /// What becomes of captured originals.
    pub(super) originals: Option<control::Originals>,
    pub(super) destination: Option<Destination>,
}

/// Takes one. Until its backup is noted as one that can be resumed, a restart deletes it.
pub(super) fn create(
    daemon: &Daemon,
    volume: &Volume,
    wanted: Wanted,
) -> Result<(SnapshotPath, SnapshotInfo), Trouble> {
    let engine = Arc::clone(&serving(volume)?.engine);
    let _gate = volume.enter_blocking().map_err(|error| refused(FailureCode::Failed, error))?;
    volume.refuse_without_room().map_err(|error| refused(FailureCode::Failed, error))?;
    let scope = wanted.scope.map(|parts| scope::ranges(parts, engine.size())).transpose();
    let scope = scope.map_err(|error| refused(FailureCode::Invalid, error))?;
    let kind = SnapshotKind {
        originals: wanted.originals.map_or(Originals::Release, words::originals),
        private: true,
        on_full: words::on_full(wanted.on_full.unwrap_or_default()),
    };
    let random = system::random_id();
    let name = private_name([random[0], random[1], random[2], random[3]]);
    let path = SnapshotPath { volume: volume.name.clone(), snapshot: name.clone() };
    let backups = Backups::of(&volume.directory);
    if let Err(error) = backups.begin(name.as_str(), wanted.destination) {
        // Should this daemon die at once, the snapshot stands until it is deleted by hand.
        tracing::warn!(snapshot = %path, "its backup cannot be noted: {error}");
    }
    let before = volume.losses();
    let creating = daemon
        .threads
        .run(move || async move { engine.create_snapshot_of(name.as_str(), kind, scope.as_deref()).await });
    match creating.blocking_recv().map_err(|_| stopped())? {
        Ok(info) => {
            if let Err(refusal) = volume.settle_blocking(&daemon.threads, info.id, before) {
                if let Err(error) = delete(daemon, volume, &path, info.id) {
                    tracing::warn!(snapshot = %path, "left to the next start: {error}");
                }
                return Err(refused(FailureCode::Failed, refusal));
            }
            volume.copy_snapshots();
            tracing::info!(snapshot = %path, pause_us = info.pause_ns / 1000, "created for a backup");
            Ok((path, info))
        }
        Err(error) => {
            forget(&backups, &path);
            Err(snapshot_trouble(&path, &error))
        }
    }
}

/// Deletes one, and the note of its backup. That it is gone already is fine.
pub(super) fn delete(daemon: &Daemon, volume: &Volume, path: &SnapshotPath, id: SnapshotId) -> Result<(), Trouble> {
    let engine = Arc::clone(&serving(volume)?.engine);
    let _gate = volume.enter_blocking().map_err(|error| refused(FailureCode::Failed, error))?;
    let deleting = daemon.threads.run(move || async move { engine.delete_snapshot(id).await });
    match deleting.blocking_recv().map_err(|_| stopped())? {
        Ok(()) | Err(SnapshotError::Unknown) => {
            volume.copy_snapshots();
            forget(&Backups::of(&volume.directory), path);
            Ok(())
        }
        Err(error) => {
            Err(refused(FailureCode::Failed, format!("the backup's snapshot {path} cannot be deleted: {error}")))
        }
    }
}

fn forget(backups: &Backups, path: &SnapshotPath) {
    if let Err(error) = backups.forget(path.snapshot.as_str()) {
        // The next start removes it.
        tracing::info!(snapshot = %path, "the note of its backup stays behind: {error}");
    }
}
