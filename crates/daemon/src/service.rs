//! What the daemon's servers share.

use std::sync::Arc;

use tzero_api::StatePaths;

use crate::address::Address;
use crate::jobs::Jobs;
use crate::threads::DataThreads;
use crate::volumes::Volumes;

/// The daemon, as its servers know it.
pub(crate) struct Daemon {
    pub(crate) paths: StatePaths,
    pub(crate) threads: Arc<DataThreads>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) jobs: Arc<Jobs>,
    /// What the operator should know of the state directory, a sentence each.
    pub(crate) notices: Vec<String>,
}

impl Daemon {
    /// Where NBD clients connect.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.volumes.listening.get().into_iter().flatten().map(Address::to_string).collect()
    }
}
