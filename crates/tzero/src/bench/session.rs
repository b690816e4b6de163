//! tzero as one of the subjects: a daemon, a volume, and both gone afterwards.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::bench::load::{Link, Load, Taken};
use crate::bench::{Bench, failed};
use crate::ending::Ending;
use crate::stage::{Stage, cpu_of};

/// The volume, and its export.
pub(super) const VOLUME: &str = "v";

impl Bench {
    /// Starts the daemon with a volume on `base`.
    pub(super) fn begin(&mut self, base: &Path, direct: bool) -> Result<(), Ending> {
        self.stage.go_on()?;
        self.stage.serve()?;
        let base = base.to_str().ok_or_else(|| Ending::usage("the directory is not UTF-8: name another with --dir"))?;
        let mut arguments = vec!["volume", "add", VOLUME, base];
        arguments.extend(direct.then_some("--direct"));
        self.stage.run(&arguments).map(drop)
    }

    /// Ends it, and forgets all it knows.
    pub(super) fn end(&mut self) -> Result<(), Ending> {
        self.stage.kill();
        fs::remove_dir_all(self.stage.path("state")).map_err(failed("clearing the daemon's state away"))
    }

    /// A connection to the daemon's volume, or to a snapshot of it.
    pub(super) fn link(&self, export: &str) -> Result<Link, Ending> {
        Link::open(&self.stage.socket(), export).map_err(failed("connecting to tzero"))
    }

    pub(super) fn snapshot(&self, name: &str) -> Result<Value, Ending> {
        self.stage.run(&["snapshot", "create", name, VOLUME])
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), Ending> {
        self.stage.run(&["snapshot", "delete", &format!("{VOLUME}@{name}")]).map(drop)
    }

    /// Processor time that the daemon has used, in seconds.
    pub(super) fn daemon_cpu(&self) -> f64 {
        self.stage.daemon().and_then(|daemon| cpu_of(daemon).ok()).unwrap_or(0.0)
    }
}

/// Carries out a load of a subject, and reads some of what was written again.
pub(super) fn carry_out(stage: &Stage, subject: &str, link: &mut Link, load: &Load<'_>) -> Result<Taken, Ending> {
    stage.go_on()?;
    let taken = link.run(load).map_err(failed(&format!("the load of {subject}")))?;
    look_again(subject, link, load, &taken)?;
    Ok(taken)
}

/// Reads some of what was written again.
pub(super) fn look_again(subject: &str, link: &mut Link, load: &Load<'_>, taken: &Taken) -> Result<(), Ending> {
    for offset in &taken.sample {
        let block = link.read(*offset).map_err(failed(&format!("reading from {subject}")))?;
        if !load.content.is(&block, *offset) {
            return Err(wrong(subject, *offset, "what was written"));
        }
    }
    Ok(())
}

/// Data is not what it should be.
pub(super) fn wrong(subject: &str, offset: u64, what: &str) -> Ending {
    Ending::failed(format!("WRONG DATA: {subject} does not have {what} at byte {offset}; its figures say nothing"))
}
