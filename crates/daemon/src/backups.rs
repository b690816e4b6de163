//! What is known of the backups whose private snapshots stand: a small file each, `volumes/NAME/backups/SNAPSHOT`.
//!
//! ```text
//!   before the snapshot is made         the mover has its journal         declared or given up
//!   ───────────────────────────▶ ~begun ─────────────────────────▶ noted ─────────────────────▶ removed
//!                                   └── mover or daemon ends: the snapshot is deleted
//! ```
//!
//! # Invariants
//! 1. A snapshot is deleted unasked only where its file says `~begun`: nothing was recorded by which anybody could resume
//!    it. One without a file is left alone, so a full disk costs no backup its snapshot.
//! 2. To be noted takes no space: it is a rename, and where that fails a removal.
//!
//! The files outlive the process, not the machine: a restart of that breaks the snapshots anyway.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tzero_api::mover::Destination;

use crate::held::read_file;
use crate::record::VolumeDirectory;

const VERSION: u32 = 1;
/// Longest note that is read, in bytes.
const LONGEST: u64 = 64 << 10;
/// Ends the names of those that nobody can resume. No snapshot's name holds a `~`.
const BEGUN: &str = "~begun";
/// Ends the names of files that are being written.
const NEW: &str = "~new";

#[derive(Serialize, Deserialize)]
struct Note {
    version: u32,
    destination: Option<Destination>,
}

/// The notes of one volume's backups. Snapshots are named without the volume.
pub(crate) struct Backups {
    directory: PathBuf,
}

impl Backups {
    /// Of a volume.
    pub(crate) fn of(volume: &VolumeDirectory) -> Self {
        Self { directory: volume.backups() }
    }

    fn noted(&self, snapshot: &str) -> PathBuf {
        self.directory.join(snapshot)
    }

    fn begun(&self, snapshot: &str) -> PathBuf {
        self.directory.join(format!("{snapshot}{BEGUN}"))
    }

    /// A backup is about to take this snapshot.
    pub(crate) fn begin(&self, snapshot: &str, destination: Option<Destination>) -> io::Result<()> {
        DirBuilder::new().mode(0o700).recursive(true).create(&self.directory)?;
        self.write(&self.begun(snapshot), destination)
    }

    fn write(&self, path: &std::path::Path, destination: Option<Destination>) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(NEW);
        let beside = PathBuf::from(name);
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&serde_json::to_vec(&Note { version: VERSION, destination })?)?;
            fs::rename(&beside, path)
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&beside);
        })
    }

    /// The backup can be resumed from here on.
    ///
    /// # Errors
    /// When it still counts as one that cannot.
    pub(crate) fn note(&self, snapshot: &str) -> io::Result<()> {
        let begun = self.begun(snapshot);
        match fs::rename(&begun, self.noted(snapshot)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(_) => remove(&begun),
        }
    }

    /// The backup goes on, perhaps to where its files were moved.
    ///
    /// # Errors
    /// When the old place stays on record.
    pub(crate) fn go_on(&self, snapshot: &str, destination: Destination) -> io::Result<()> {
        if self.destination(snapshot).as_ref() == Some(&destination) {
            return Ok(());
        }
        DirBuilder::new().mode(0o700).recursive(true).create(&self.directory)?;
        self.write(&self.noted(snapshot), Some(destination))
    }

    /// The snapshot is gone.
    pub(crate) fn forget(&self, snapshot: &str) -> io::Result<()> {
        remove(&self.begun(snapshot))?;
        remove(&self.noted(snapshot))
    }

    /// Where the backup's copy goes, if that is known.
    pub(crate) fn destination(&self, snapshot: &str) -> Option<Destination> {
        let bytes =
            read_file(&self.noted(snapshot), LONGEST).or_else(|_| read_file(&self.begun(snapshot), LONGEST)).ok()?;
        let note: Note = serde_json::from_slice(&bytes).ok()?;
        note.destination.filter(|_| note.version == VERSION)
    }

    /// Whether nobody could resume it.
    pub(crate) fn is_begun(&self, snapshot: &str) -> bool {
        self.begun(snapshot).exists()
    }

    /// Removes what is about none of the `standing` snapshots.
    pub(crate) fn sweep(&self, standing: &[String]) -> io::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let snapshot = name.strip_suffix(BEGUN).unwrap_or(&name);
            if !standing.iter().any(|standing| standing == snapshot) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn remove(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use tzero_api::StatePaths;

    use super::*;

    fn destination(path: &str) -> Destination {
        Destination { path: path.into(), unfinished: format!("{path}.tzero-partial"), copy: None }
    }

    #[test]
    fn from_begun_to_noted_to_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StatePaths::new(scratch.path());
        let volume = VolumeDirectory::new(&state, &"v".parse().unwrap());
        let backups = Backups::of(&volume);
        backups.sweep(&[]).unwrap();
        assert!(!backups.is_begun("a"), "without a file it is left alone");
        backups.begin("a", Some(destination("/x"))).unwrap();
        backups.begin("b", None).unwrap();
        assert!(backups.is_begun("a") && backups.is_begun("b"));
        assert_eq!((backups.destination("a"), backups.destination("b")), (Some(destination("/x")), None));
        for _ in 0..2 {
            backups.note("a").unwrap();
            assert!(!backups.is_begun("a"));
        }
        backups.go_on("a", destination("/y")).unwrap();
        assert_eq!(backups.destination("a"), Some(destination("/y")));
        backups.sweep(&["a".into()]).unwrap();
        assert!(!backups.is_begun("b") && backups.destination("a").is_some());
        backups.forget("a").unwrap();
        assert_eq!(fs::read_dir(&backups.directory).unwrap().count(), 0);
        backups.note("a").unwrap();
        assert_eq!(backups.destination("a"), None);
    }
}
