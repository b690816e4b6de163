//! What is looked at once in a while in every volume, as long as the daemon runs, because nothing else would tell of it.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use crate::filling::STEP;
use crate::threads::off_thread;
use crate::volumes::Volumes;

/// Looks for bases that became shorter and for snapshots that broke.
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
            }
        })
        .await;
    }
}
