//! Snapshots that are broken, originals that the base did not give, and originals that the cache does not give back: each is said in the log, once as long as the daemon runs.
//!
//! What a snapshot's user asks (`snapshot show`, a view, a backup) is answered at once. The log is for who asks nothing: it hears within
//! a [`crate::filling::STEP`], and at the latest when the volume is closed. Never on a host's way: a log may take its time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use tzero_engine::BadOriginals;
use tzero_originals::SnapshotId;

use crate::volume::{Volume, broken};

/// What the log has of a volume.
#[derive(Default)]
pub(crate) struct Told(Mutex<Said>);

#[derive(Default)]
struct Said {
    broken: BTreeSet<SnapshotId>,
    /// How many grains could not be saved because the base could not be read.
    unreadable: u64,
    /// How much of a snapshot's originals was found damaged, in bytes.
    damaged: BTreeMap<SnapshotId, u64>,
}

impl Volume {
    /// Says which snapshots have broken, and what could not be saved, since it was called last. Blocking.
    pub(crate) fn tell_of_breaks(&self) {
        let Ok(serving) = self.serving() else { return };
        let snapshots = serving.engine.snapshots();
        let mut said = serving.told.0.lock().expect("nothing panics under this lock");
        let BadOriginals { grains, newest } = serving.engine.bad_originals();
        if grains > said.unreadable {
            tracing::warn!(
                volume = %self.name,
                "the base gave an error where originals were to be saved, at byte {newest} last ({} grains more): snapshots that need them have an error there (`tzero snapshot show`: unreadable)",
                grains - said.unreadable
            );
            said.unreadable = grains;
        }
        for info in &snapshots {
            let known = said.damaged.entry(info.id).or_default();
            if info.damaged_bytes > *known {
                *known = info.damaged_bytes;
                tracing::warn!(
                    snapshot = %format_args!("{}@{}", self.name, info.name),
                    "{} bytes of originals are not in the original cache as they were saved: it has an error there (`tzero snapshot show`: unreadable)",
                    info.damaged_bytes
                );
            }
        }
        for (reason, info) in snapshots.iter().filter_map(|info| Some((broken(&info.state)?, info))) {
            if said.broken.insert(info.id) {
                tracing::warn!(snapshot = %format_args!("{}@{}", self.name, info.name), "broken: {reason}");
            }
        }
    }
}
