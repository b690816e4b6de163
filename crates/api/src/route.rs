//! Where the control interface answers.
//!
//! | method | path | body | answer |
//! |---|---|---|---|
//! | GET | [`STATUS`] | – | [`Status`](crate::control::Status) |
//! | GET | [`VOLUMES`] | – | list of [`Volume`](crate::control::Volume) |
//! | POST | [`VOLUMES`] | [`AddVolume`](crate::control::AddVolume) | [`Volume`](crate::control::Volume) |
//! | GET, DELETE | [`VOLUME`] | – | [`Volume`](crate::control::Volume) |
//! | GET | [`VOLUME_FORECAST`] | – | [`Forecast`](crate::control::Forecast) |
//! | PUT | [`VOLUME_BASE`] | [`RebaseVolume`](crate::RebaseVolume) | [`Volume`](crate::control::Volume), on its new base |
//! | PUT | [`VOLUME_SIZE`] | [`ResizeVolume`](crate::ResizeVolume) | [`Volume`](crate::control::Volume), of its new size |
//! | GET | [`SNAPSHOTS`] | – | list of [`Snapshot`](crate::control::Snapshot) |
//! | POST | [`VOLUME_SNAPSHOTS`] | [`CreateSnapshot`](crate::control::CreateSnapshot) | [`Snapshot`](crate::control::Snapshot) |
//! | GET, DELETE | [`SNAPSHOT`] | – | [`Snapshot`](crate::control::Snapshot) |
//! | GET | [`SNAPSHOT_MAP`] | – | text, a line per entry: unit, block, state, cache offset, tab-separated |
//! | POST | [`RESTORES`] | [`StartRestore`](crate::jobs::StartRestore) | [`Job`](crate::jobs::Job) |
//! | GET | [`JOBS`] | – | list of [`Job`](crate::jobs::Job) |
//! | GET | [`JOB`] | – | [`Job`](crate::jobs::Job) |
//! | DELETE | [`JOB`] | – | [`Job`](crate::jobs::Job), told to stop; one that is over is forgotten |
//!
//! A refusal has a status of 4xx or 5xx and a [`Failure`](crate::Failure) as its body.

use crate::{Name, SnapshotPath};

/// The daemon as a whole.
pub const STATUS: &str = "/v1/status";
/// All volumes.
pub const VOLUMES: &str = "/v1/volumes";
/// One volume.
pub const VOLUME: &str = "/v1/volumes/{volume}";
/// When one volume's cache would be full.
pub const VOLUME_FORECAST: &str = "/v1/volumes/{volume}/forecast";
/// What one volume stands on.
pub const VOLUME_BASE: &str = "/v1/volumes/{volume}/base";
/// How long one volume is.
pub const VOLUME_SIZE: &str = "/v1/volumes/{volume}/size";
/// All snapshots of all volumes.
pub const SNAPSHOTS: &str = "/v1/snapshots";
/// The snapshots of one volume.
pub const VOLUME_SNAPSHOTS: &str = "/v1/volumes/{volume}/snapshots";
/// One snapshot.
pub const SNAPSHOT: &str = "/v1/volumes/{volume}/snapshots/{snapshot}";
/// What was saved for one snapshot.
pub const SNAPSHOT_MAP: &str = "/v1/volumes/{volume}/snapshots/{snapshot}/map";

/// Restores, to be begun.
pub const RESTORES: &str = "/v1/restores";
/// All that was begun.
pub const JOBS: &str = "/v1/jobs";
/// One of it.
pub const JOB: &str = "/v1/jobs/{job}";

/// [`JOB`] of a job.
pub fn job(id: &str) -> String {
    JOB.replace("{job}", id)
}

/// [`VOLUME`] of a volume.
pub fn volume(name: &Name) -> String {
    VOLUME.replace("{volume}", name.as_str())
}

/// [`VOLUME_FORECAST`] of a volume.
pub fn volume_forecast(volume: &Name) -> String {
    VOLUME_FORECAST.replace("{volume}", volume.as_str())
}

/// [`VOLUME_BASE`] of a volume.
pub fn volume_base(volume: &Name) -> String {
    VOLUME_BASE.replace("{volume}", volume.as_str())
}

/// [`VOLUME_SIZE`] of a volume.
pub fn volume_size(volume: &Name) -> String {
    VOLUME_SIZE.replace("{volume}", volume.as_str())
}

/// [`VOLUME_SNAPSHOTS`] of a volume.
pub fn volume_snapshots(volume: &Name) -> String {
    VOLUME_SNAPSHOTS.replace("{volume}", volume.as_str())
}

/// [`SNAPSHOT`] of a snapshot.
pub fn snapshot(path: &SnapshotPath) -> String {
    SNAPSHOT.replace("{volume}", path.volume.as_str()).replace("{snapshot}", path.snapshot.as_str())
}

/// [`SNAPSHOT_MAP`] of a snapshot.
pub fn snapshot_map(path: &SnapshotPath) -> String {
    SNAPSHOT_MAP.replace("{volume}", path.volume.as_str()).replace("{snapshot}", path.snapshot.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_take_their_places() {
        assert_eq!(snapshot_map(&"v.1@s-2".parse().unwrap()), "/v1/volumes/v.1/snapshots/s-2/map");
    }
}
