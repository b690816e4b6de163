//! Snapshots that are broken: each is said in the log, once as long as the daemon runs.
//!
//! What a snapshot's user asks (`snapshot show`, a view, a backup) is answered at once. The log is for who asks nothing: it hears within
//! a [`crate::filling::STEP`], and at the latest when the volume is closed. Never on a host's way: a log may take its time.

use std::collections::BTreeSet;
use std::sync::Mutex;

use tzero_originals::SnapshotId;

use crate::volume::{Volume, broken};

/// The broken snapshots of a volume that the log has.
#[derive(Default)]
pub(crate) struct Told(Mutex<BTreeSet<SnapshotId>>);

impl Volume {
    /// Says which snapshots have broken since it was called last. Blocking.
    pub(crate) fn tell_of_breaks(&self) {
        let Ok(serving) = self.serving() else { return };
        let broken = serving.engine.snapshots().into_iter().filter_map(|info| Some((broken(&info.state)?, info)));
        let mut told = serving.told.0.lock().expect("nothing panics under this lock");
        for (reason, info) in broken {
            if told.insert(info.id) {
                tracing::warn!(snapshot = %format_args!("{}@{}", self.name, info.name), "broken: {reason}");
            }
        }
    }
}
