//! A volume of stamped units, and writers that never rest on it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use e2e::daemon::Setting;
use e2e::scratch::read;
use e2e::{Daemon, History, Instant, Program, Scratch, Writers};

/// How many writers.
const WRITERS: u64 = 3;

/// What the volume of a test is like: whatever holds of one holds of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One file, grains of 4 KiB.
    Plain,
    /// The file is read and written past the page cache.
    Direct,
    /// The smallest grains in use.
    Fine,
    /// Large grains.
    Coarse,
    /// Two files of which the first ends within the volume's first half, off every large boundary.
    Two,
    /// Its originals outlive a loss of power.
    Power,
    /// One file with next to no room for originals: snapshots break.
    Scarce,
}

impl Shape {
    /// All whose snapshots must stand: a lane goes through them.
    pub(crate) const ALL: &[Shape] =
        &[Shape::Plain, Shape::Direct, Shape::Fine, Shape::Coarse, Shape::Two, Shape::Power];
    /// Those that are not plain.
    pub(crate) const OTHERS: &[Shape] = Shape::ALL.split_at(1).1;

    /// Options of `volume add`.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Shape::Plain | Shape::Two => &[],
            Shape::Direct => &["--direct"],
            Shape::Fine => &["--grain", "512"],
            Shape::Coarse => &["--grain", "64K"],
            Shape::Power => &["--durability", "power"],
            Shape::Scarce => &["--cache-limit", "64K"],
        }
    }

    /// What requests of the host are a multiple of.
    pub(crate) fn block(self) -> u64 {
        if self == Shape::Direct { 512 } else { 1 }
    }

    /// Bytes of a grain.
    pub(crate) fn grain(self) -> u64 {
        match self {
            Shape::Fine => 512,
            Shape::Coarse => 64 << 10,
            _ => 4096,
        }
    }

    /// The base, or what it is cut into.
    pub(crate) fn bases(self, base: PathBuf) -> Vec<PathBuf> {
        if self != Shape::Two {
            return vec![base];
        }
        let whole = read(&base);
        let cut = (whole.len() * 3 / 8 + 3 * 4096) / 4096 * 4096;
        let second = base.with_extension("second");
        fs::write(&second, &whole[cut..]).expect("the second component can be written");
        Program::new("fallocate").arg("--dig-holes").arg(&second).ok();
        fs::OpenOptions::new()
            .write(true)
            .open(&base)
            .and_then(|file| file.set_len(cut as u64))
            .expect("the first component can be cut");
        vec![base, second]
    }

    /// A daemon that serves a volume `vol` of this shape.
    pub(crate) fn serve(self, setting: &Setting, base: PathBuf) -> Daemon {
        let daemon = setting.start();
        daemon.command(["volume", "add", "vol"]).args(self.bases(base)).args(self.options()).run().exited(0);
        daemon
    }
}

/// The scene of most tests: a daemon, its volume `vol`, and everything that was ever written to it.
pub(crate) struct Load {
    pub(crate) history: Arc<History>,
    pub(crate) scratch: Scratch,
    size: u64,
    shape: Shape,
}

impl Load {
    /// A base of stamped units.
    pub(crate) fn new(size: u64) -> Self {
        Self::shaped(size, Shape::Plain)
    }

    /// A base of stamped units, of a volume of some shape.
    pub(crate) fn shaped(size: u64, shape: Shape) -> Self {
        let scratch = Scratch::new();
        let _ = scratch.stamped("base", size);
        Self { history: Arc::new(History::new(size)), scratch, size, shape }
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
        self.shape.serve(&self.setting(), self.scratch.join("base"))
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
