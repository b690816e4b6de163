//! The note of a restore that overwrites its target in place, from before the first byte until it is declared.
//!
//! What is half restored is neither what it was nor the copy. The note says so to everybody (`tzero status`), and how to go on. The format is
//! `tzero_api::restores`.
//!
//! # Invariants
//! 1. (INV-9) The note is durable before the first byte is written, and goes, durably, only after the target was flushed and compared.
//!    Its going is the declaration.
//! 2. A note that is locked belongs to a restore that runs. Nobody else writes to its target: not another run of the same restore, and none of
//!    another copy.
//! 3. There is one note for a restore, however often it was begun. Notes of other restores to the same place go with the declaration where that
//!    covers all of theirs; else they stay.
//!
//! | | begin | begin at the same place | tell | end, dismiss |
//! |---|---|---|---|---|
//! | **begin** | the directory's lock | the directory's lock; the later one is refused | a note appears by a rename, whole | the note's lock |
//! | **end** | the note's lock | waits a little for the lock, then finds it gone | its file is gone: left out | the note's lock |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tzero_api::control::Part;
use tzero_api::restores::{self, LONGEST_RECORD, RECORD_VERSION, RestoreRecord, RestoreState};
use tzero_io::{LockError, lock_exclusive};

use crate::error::{FileAction, Refusal};
use crate::opening::{self, lock_patiently};
use crate::{Error, durable};

/// Locked while somebody looks which notes there are and makes one.
const LOCK: &str = ".lock";

/// The note of this run.
#[derive(Debug)]
pub(super) struct Note {
    record: RestoreRecord,
    state: PathBuf,
    /// Held for its lock.
    file: File,
    /// Notes of other restores to the same place, and their locks.
    others: Vec<(RestoreRecord, File)>,
}

impl Note {
    /// Makes it, durably, or takes over the one that an interrupted run of the same restore left.
    ///
    /// # Errors
    /// When another restore to the same place runs, or there is no room for a note.
    pub(super) fn begin(mut record: RestoreRecord, state: &Path) -> Result<Self, Error> {
        let directory = restores::directory(state);
        let made = |source| Error::file(FileAction::Create, &directory)(source);
        durable::create_directory(&directory).and_then(|()| durable::sync_parent(&directory)).map_err(made)?;
        let lock = opening::open_or_create(&directory.join(LOCK), durable::PRIVATE).map_err(made)?;
        lock_patiently(&lock).map_err(|fault| match fault {
            LockError::Held => Error::refused(record.target.as_ref(), Refusal::Busy),
            LockError::Failed(source) => Error::file(FileAction::Lock, &directory.join(LOCK))(source),
        })?;
        let mut others = Vec::new();
        // The note that is taken over keeps its lock until the new one has its name.
        let mut same = None;
        for (theirs, file) in at_place(&record, state)? {
            if theirs.is_same(&record) {
                record.id.clone_from(&theirs.id);
                same = Some(file);
            } else {
                others.push((theirs, file));
            }
        }
        let file = write(&record, state)?;
        drop(same);
        Ok(Self { record, state: state.to_owned(), file, others })
    }

    /// What it says.
    pub(super) fn record(&self) -> &RestoreRecord {
        &self.record
    }

    /// Says why the run stopped. Where that cannot be written, the note stands as it was.
    pub(super) fn stop(&mut self, reason: &str) {
        let record =
            RestoreRecord { state: RestoreState::Stopped, reason: Some(reason.to_owned()), ..self.record.clone() };
        if let Ok(file) = write(&record, &self.state) {
            (self.record, self.file) = (record, file);
        }
    }

    /// The target is what was to be restored: nothing is unfinished there any more.
    pub(super) fn end(self) -> Result<(), Error> {
        for (theirs, _lock) in self.others.iter().filter(|(theirs, _)| covers(&self.record, theirs)) {
            remove(&restores::place(&self.state, &theirs.id))?;
        }
        remove(&restores::place(&self.state, &self.record.id))
    }
}

/// An earlier, interrupted run of a restore of which nothing is missing: it ended before it could say so.
pub(super) fn settle(record: &RestoreRecord, state: &Path) -> Result<(), Error> {
    if !restores::directory(state).exists() {
        return Ok(());
    }
    let notes = at_place(record, state)?;
    notes
        .iter()
        .filter(|(theirs, _)| covers(record, theirs))
        .try_for_each(|(theirs, _)| remove(&restores::place(state, &theirs.id)))
}

/// Forgets an interrupted restore; gives its id. `None`: the path is no note.
///
/// # Errors
/// When the restore is running.
pub(crate) fn dismiss(path: &Path, state: &Path) -> Result<Option<String>, Error> {
    if path.parent().and_then(|parent| fs::canonicalize(parent).ok())
        != fs::canonicalize(restores::directory(state)).ok()
        || path.extension().is_none_or(|extension| extension != "json")
    {
        return Ok(None);
    }
    let held = locked(path, || Error::refused(path, Refusal::Running))?;
    if held.is_none() {
        return Ok(None);
    }
    let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    remove(path).map(|()| Some(id))
}

fn remove(path: &Path) -> Result<(), Error> {
    durable::remove(path).map_err(Error::file(FileAction::Remove, path))
}

/// Whether all that `other` was to restore is restored by `record`.
fn covers(record: &RestoreRecord, other: &RestoreRecord) -> bool {
    let holds = |outer: &Part, inner: &Part| {
        let end = |part: &Part| part.offset.saturating_add(part.length);
        outer.offset <= inner.offset && end(inner) <= end(outer)
    };
    record.ranges.is_empty()
        || !other.ranges.is_empty()
            && other.ranges.iter().all(|inner| record.ranges.iter().any(|outer| holds(outer, inner)))
}

/// The notes of restores to the same place, locked.
fn at_place(record: &RestoreRecord, state: &Path) -> Result<Vec<(RestoreRecord, File)>, Error> {
    let directory = restores::directory(state);
    let failed = |source| Error::file(FileAction::Read, &directory)(source);
    let mut notes = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Some(theirs) = read(&path) else { continue };
        if !theirs.is_at(record) {
            continue;
        }
        let busy = || Error::refused(record.target.as_ref(), Refusal::Busy);
        let Some(file) = locked(&path, busy)? else { continue };
        notes.push((theirs, file));
    }
    Ok(notes)
}

/// What a note says; one that makes no sense is nobody's.
fn read(path: &Path) -> Option<RestoreRecord> {
    let record: RestoreRecord = serde_json::from_slice(&opening::read(path, LONGEST_RECORD).ok()?).ok()?;
    let is_named = path.file_stem().is_some_and(|stem| *stem == *record.id);
    (record.version == RECORD_VERSION && is_named).then_some(record)
}

/// Its lock; `None` where its restore was declared meanwhile.
fn locked(path: &Path, busy: impl Fn() -> Error) -> Result<Option<File>, Error> {
    let file = match opening::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::file(FileAction::Open, path))?,
    };
    match lock_patiently(&file) {
        Ok(()) => {}
        Err(LockError::Held) => return Err(busy()),
        Err(LockError::Failed(source)) => return Err(Error::file(FileAction::Lock, path)(source)),
    }
    let here = file.metadata().map_err(Error::file(FileAction::Open, path))?;
    let is_there = fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()));
    Ok(is_there.then_some(file))
}

/// Writes it, durably and whole, in place of what it said before; the new file is locked before it has the name.
fn write(record: &RestoreRecord, state: &Path) -> Result<File, Error> {
    let place = restores::place(state, &record.id);
    let beside = durable::with_suffix(&place, ".new");
    let write = || {
        durable::remove(&beside)?;
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(durable::PRIVATE).open(&beside)?;
        lock_exclusive(&file).map_err(|fault| match fault {
            LockError::Held => io::ErrorKind::ResourceBusy.into(),
            LockError::Failed(source) => source,
        })?;
        let text = serde_json::to_vec_pretty(record).expect("a note has nothing that JSON cannot say");
        file.write_all(&text)?;
        file.sync_all()?;
        durable::rename(&beside, &place)?;
        Ok(file)
    };
    write().map_err(Error::file(FileAction::Write, &place))
}

#[cfg(test)]
mod tests {
    use tzero_api::restores::Restorer;

    use super::*;

    fn record(id: &str, copy: &str, ranges: &[(u64, u64)]) -> RestoreRecord {
        RestoreRecord {
            version: RECORD_VERSION,
            id: id.into(),
            copy: copy.into(),
            source: "/c.img".into(),
            target: "/dev/x".into(),
            volume_id: None,
            ranges: ranges.iter().map(|&(offset, length)| Part { offset, length }).collect(),
            differing: false,
            force: false,
            begun: "2026-01-31T12:00:00.000000000Z".into(),
            by: Restorer { uid: 0, pid: 1, job: None },
            state: RestoreState::Writing,
            reason: None,
        }
    }

    fn ids(state: &Path) -> Vec<String> {
        let names = fs::read_dir(restores::directory(state)).into_iter().flatten().flatten();
        let mut ids: Vec<_> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
        ids.retain(|name| name != LOCK);
        ids.sort();
        ids
    }

    #[test]
    fn one_note_for_a_restore_however_often_it_is_begun() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path();
        let mut note = Note::begin(record("a", "c", &[]), state).unwrap();
        let busy = Note::begin(record("b", "c", &[]), state).unwrap_err();
        assert!(matches!(busy, Error::Refused { refusal: Refusal::Busy, .. }), "{busy}");
        assert!(dismiss(&restores::place(state, "a"), state).is_err());
        note.stop("it was interrupted");
        assert!(
            matches!(Note::begin(record("b", "d", &[]), state), Err(Error::Refused { .. })),
            "the lock moved along"
        );
        drop(note);
        assert_eq!(read(&restores::place(state, "a")).unwrap().reason.as_deref(), Some("it was interrupted"));
        let again = Note::begin(record("b", "c", &[]), state).unwrap();
        assert_eq!((again.record().id.as_str(), ids(state)), ("a", vec!["a.json".to_owned()]));
        again.end().unwrap();
        assert_eq!(ids(state), [""; 0]);
        assert_eq!(dismiss(&restores::place(state, "a"), state).unwrap(), None);
    }

    #[test]
    fn a_declaration_takes_the_notes_that_it_covers() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path();
        for (id, ranges) in [("a", [(0, 512)]), ("b", [(1024, 512)])] {
            drop(Note::begin(record(id, "c", &ranges), state).unwrap());
        }
        Note::begin(record("d", "e", &[(0, 1024)]), state).unwrap().end().unwrap();
        assert_eq!(ids(state), ["b.json"]);
        let elsewhere = RestoreRecord { target: "/dev/y".into(), ..record("f", "c", &[]) };
        Note::begin(elsewhere, state).unwrap().end().unwrap();
        assert_eq!(ids(state), ["b.json"]);
        settle(&record("g", "e", &[(1024, 100)]), state).unwrap();
        assert_eq!(ids(state), ["b.json"]);
        settle(&record("g", "e", &[]), state).unwrap();
        assert_eq!(ids(state), [""; 0]);
    }

    #[test]
    fn what_is_no_note_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path();
        fs::create_dir(restores::directory(state)).unwrap();
        fs::write(restores::place(state, "x"), "{").unwrap();
        fs::write(root.path().join("y.json"), "{").unwrap();
        assert_eq!(dismiss(&root.path().join("y.json"), state).unwrap(), None);
        Note::begin(record("a", "c", &[]), state).unwrap().end().unwrap();
        assert_eq!(ids(state), ["x.json"]);
        assert_eq!(dismiss(&restores::place(state, "x"), state).unwrap(), Some("x".into()), "a damaged one can go");
    }
}
