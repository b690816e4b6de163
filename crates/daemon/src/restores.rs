//! Restores that overwrite their target in place and are not declared, as their records tell.
//!
//! Whoever moves the bytes writes the records (`tzero_api::restores`); the daemon only looks.

use std::fs::{self, File};
use std::path::Path;

use tzero_api::control::{UnfinishedRestore, Volume};
use tzero_api::restores::{self, LONGEST_RECORD, MOST_RECORDS, RECORD_VERSION, RestoreRecord};
use tzero_io::{LockError, lock_exclusive};

use crate::held::read_file;

/// All of a state directory, oldest first. What makes no sense is left out.
pub(crate) fn unfinished(state: &Path) -> Vec<UnfinishedRestore> {
    let entries = fs::read_dir(restores::directory(state)).into_iter().flatten().flatten();
    let records = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "json"));
    let mut all: Vec<_> = records.take(MOST_RECORDS).filter_map(|path| look_at(&path, state)).collect();
    all.sort_by(|one, other| (&one.record.begun, &one.record.id).cmp(&(&other.record.begun, &other.record.id)));
    all
}

/// Tells each volume which of them overwrite it.
pub(crate) fn tell(state: &Path, volumes: &mut [Volume]) {
    let all = unfinished(state);
    for volume in volumes {
        let own = all.iter().filter(|restore| restore.record.volume_id.as_ref() == Some(&volume.id));
        volume.restores = own.cloned().collect();
    }
}

fn look_at(path: &Path, state: &Path) -> Option<UnfinishedRestore> {
    let record: RestoreRecord = serde_json::from_slice(&read_file(path, LONGEST_RECORD).ok()?).ok()?;
    if record.version != RECORD_VERSION || path.file_stem().is_none_or(|stem| *stem != *record.id) {
        return None;
    }
    // Held by the process that restores, as long as it lives.
    let running = matches!(lock_exclusive(&File::open(path).ok()?), Err(LockError::Held));
    Some(UnfinishedRestore { running, resume: record.again(), discard: record.dismissal(state), record })
}
