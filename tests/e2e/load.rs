//! A volume of stamped units, and writers that never rest on it.

use std::sync::Arc;

use e2e::daemon::Setting;
use e2e::{Daemon, History, Instant, Scratch, Writers};

/// How many writers.
const WRITERS: u64 = 3;

/// The scene of most tests: a daemon, its volume `vol`, and everything that was ever written to it.
pub(crate) struct Load {
    pub(crate) history: Arc<History>,
    pub(crate) scratch: Scratch,
    size: u64,
}

impl Load {
    /// A base of stamped units.
    pub(crate) fn new(size: u64) -> Self {
        let scratch = Scratch::new();
        let _ = scratch.stamped("base", size);
        Self { history: Arc::new(History::new(size)), scratch, size }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// How its daemon is started.
    pub(crate) fn setting(&self) -> Setting {
        Setting::new(&self.scratch.join("state"))
    }

    /// A daemon that serves it.
    pub(crate) fn serve(&self) -> Daemon {
        Daemon::serving(&self.scratch, &self.scratch.join("base"))
    }

    /// Lets the writers loose.
    pub(crate) fn writers(&self, daemon: &Daemon, seed: u64) -> Writers {
        Writers::start(&daemon.socket(), "vol", &self.history, WRITERS, seed)
    }

    /// Takes a snapshot of `vol`.
    pub(crate) fn snapshot(&self, daemon: &Daemon, name: &str) -> Instant {
        self.history.instant(|| daemon.ok(&format!("snapshot create {name} vol"))).0
    }

    /// Proves that a view is its instant.
    pub(crate) fn prove(&self, daemon: &Daemon, export: &str, instant: Instant) {
        self.history.prove(export, &daemon.contents(export), instant);
    }
}
