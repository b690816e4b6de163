//! What is looked at once in a while in every volume, as long as the daemon runs, because nothing else would tell of it.
//!
//! How much room the file system has for originals is looked at as well: the ladder of a full cache begins where that is less than the limit.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use crate::filling::STEP;
use crate::threads::off_thread;
use crate::volumes::Volumes;

/// Looks for bases that became shorter, for snapshots that broke, for originals that cannot be read, and for the room that originals have.
pub(crate) async fn watch(volumes: Arc<Volumes>) {
    let mut again = interval(STEP);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        again.tick().await;
        let all = volumes.all();
        off_thread(move || {
            for volume in all {
                volume.look_at_base();
                volume.tell_of_breaks();
                volume.look_for_room();
            }
        })
        .await;
    }
}
