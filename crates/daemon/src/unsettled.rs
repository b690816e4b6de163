//! Snapshots of a volume that stands on an export, until the servers have made durable what was before their T0: nobody is given one before.
//!
//! ```text
//!   noted ─▶ taken ─▶ straddlers landed, servers flushed ─▶ note removed ─▶ given out
//!                └── the flush fails, or the daemon ends: deleted, at the next opening of the volume at the latest
//! ```
//!
//! A server that crashes before that may have lost changes from before T0, and no original tells of them. So what is noted is never shown, whoever
//! asks for it by its name; and as the note is there before the snapshot is, no death of the daemon brings one into the light.
//!
//! The notes, empty files `volumes/NAME/unsettled/SNAPSHOT`, outlive the process, not the machine: a restart of that breaks what was not confirmed.
//! The private snapshots of backups have notes of their own ([`crate::backups`]).

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tzero_api::{Name, SnapshotPath};
use tzero_block::ByteRange;
use tzero_engine::{SnapshotInfo, SnapshotKind};

use crate::backups::Backups;
use crate::platform::Engine;
use crate::record::VolumeDirectory;
use crate::refusal::Refusal;
use crate::threads::DataThreads;
use crate::volume::Volume;

/// Those of a volume, by name.
pub(crate) struct Unsettled {
    directory: PathBuf,
    names: Mutex<BTreeSet<String>>,
    /// One is taken at a time: a note is of a name, and must not become another's.
    taking: tokio::sync::Mutex<()>,
}

impl Unsettled {
    /// None yet.
    pub(crate) fn of(directory: &VolumeDirectory) -> Self {
        Self { directory: directory.unsettled(), names: Mutex::default(), taking: tokio::sync::Mutex::default() }
    }

    /// Whether a snapshot of this name is none that anybody may have.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.lock().expect("nothing panics under this lock").contains(name)
    }

    fn note(&self, name: &str) -> io::Result<()> {
        DirBuilder::new().mode(0o700).recursive(true).create(&self.directory)?;
        File::create(self.directory.join(name))?;
        self.names.lock().expect("nothing panics under this lock").insert(name.to_owned());
        Ok(())
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.names.lock().expect("nothing panics under this lock").remove(name);
        Ok(())
    }

    fn is_noted(&self, name: &str) -> bool {
        self.directory.join(name).exists()
    }

    /// Deletes what an earlier daemon took and gave to nobody. Before the volume is anybody's.
    pub(crate) async fn sweep(&self, threads: &DataThreads, engine: &Arc<Engine>, directory: &VolumeDirectory) {
        let backups = Backups::of(directory);
        for info in engine.snapshots() {
            let left = if info.private { backups.is_begun(&info.name) } else { self.is_noted(&info.name) };
            if !left {
                continue;
            }
            let theirs = Arc::clone(engine);
            let deleted = threads.run(move || async move { theirs.delete_snapshot(info.id).await }).await;
            match deleted {
                Ok(Ok(())) => tracing::info!(snapshot = %info.name, "deleted: it was never given out"),
                Ok(Err(error)) => {
                    tracing::warn!(snapshot = %info.name, "it was never given out, and cannot be deleted: {error}");
                    self.names.lock().expect("nothing panics under this lock").insert(info.name);
                    continue;
                }
                Err(_) => return,
            }
        }
        // What is left of the notes is of none that stands.
        let notes = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for note in notes.filter(|note| !note.file_name().to_str().is_some_and(|name| self.has(name))) {
            if let Err(error) = fs::remove_file(note.path()) {
                tracing::warn!(note = %note.path().display(), "it cannot be removed: {error}");
            }
        }
    }
}

impl Volume {
    /// Takes a snapshot for somebody, and makes sure of its T0 before they have it.
    ///
    /// # Errors
    /// When it cannot be taken, or the servers of the base may have lost what was before T0. There is none then.
    pub(crate) async fn take_snapshot(
        &self,
        threads: &DataThreads,
        name: &Name,
        kind: SnapshotKind,
        scope: Option<Vec<ByteRange>>,
    ) -> Result<SnapshotInfo, Refusal> {
        let _gate = self.enter()?;
        let serving = self.whole()?;
        let engine = Arc::clone(&serving.engine);
        let path = SnapshotPath { volume: self.name.clone(), snapshot: name.clone() };
        let unnoted = |source| Refusal::Unnoted { volume: self.name.clone(), source };
        let remote = serving.base.components.iter().any(|component| component.remote().is_some());
        let _taking = if remote { Some(self.unsettled.taking.lock().await) } else { None };
        // The name of one that stands is refused below.
        let noted = remote && engine.snapshot(name.as_str()).is_none();
        if noted {
            self.unsettled.note(name.as_str()).map_err(unnoted)?;
        }
        let before = self.losses();
        let (taking, wanted) = (Arc::clone(&engine), name.to_string());
        let created =
            threads.run(move || async move { taking.create_snapshot_of(&wanted, kind, scope.as_deref()).await }).await;
        let taken = match created.map_err(|_| Refusal::Stopping)? {
            Ok(info) => {
                self.settle(threads, info.id, before).await.map(|()| info.clone()).map_err(|why| (Some(info), why))
            }
            Err(error) => Err((None, Refusal::of_snapshot(&path, error))),
        };
        if let Err((Some(info), _)) = &taken {
            let id = info.id;
            let deleted = threads.run(move || async move { engine.delete_snapshot(id).await }).await;
            if !matches!(deleted, Ok(Ok(()))) {
                tracing::warn!(snapshot = %path, "it is given to nobody, and is deleted at the next start");
                return taken.map_err(|(_, why)| why);
            }
        }
        if noted {
            self.unsettled.forget(name.as_str()).map_err(unnoted)?;
        }
        taken.map_err(|(_, why)| why)
    }
}
