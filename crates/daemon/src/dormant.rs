//! The snapshots of a volume that is not served: told from their table, and deleted there.
//!
//! Nobody reads them and nothing is saved for them, but they stand: when the volume is served again, so are they.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use tzero_engine::{SnapshotInfo, SnapshotState, TABLE_NAME};
use tzero_io::{Directory, MappedFile, Storage};
use tzero_originals::{RangeLog, Record, RecordState, SnapshotId, SnapshotTable};

use crate::held::open_file;
use crate::record::VolumeDirectory;

/// What stands in the table, the oldest first; nothing where there is no table that can be read. Blocking.
pub(crate) fn snapshots(directory: &VolumeDirectory, volume: [u8; 16]) -> Vec<SnapshotInfo> {
    let engine = directory.engine();
    let Ok(table) = open(&engine, volume, false) else { return Vec::new() };
    let mut records = table.records();
    records.sort_by_key(|(_, record)| record.epoch);
    records.into_iter().map(|(slot, record)| info(&engine, slot, record)).collect()
}

/// Deletes one, durably. Its originals go when the volume is served again. The caller makes sure that nobody opens the volume meanwhile.
/// Blocking.
///
/// # Errors
/// `NotFound` where it is not there; else why the table cannot be written.
pub(crate) fn delete(directory: &VolumeDirectory, volume: [u8; 16], id: SnapshotId) -> io::Result<()> {
    let table = open(&directory.engine(), volume, true)?;
    let found = table.records().into_iter().find(|(_, record)| record.id == id);
    let (slot, _) = found.ok_or(io::ErrorKind::NotFound)?;
    table.clear(slot)?;
    table.sync()
}

fn open(engine: &Path, volume: [u8; 16], writable: bool) -> io::Result<SnapshotTable<MappedFile>> {
    let file = open_file(&engine.join(TABLE_NAME), OpenOptions::new().read(true).write(writable))?;
    // An empty one would be made, which is the engine's to do.
    if file.metadata()?.len() < SnapshotTable::<MappedFile>::LEN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    SnapshotTable::create_or_open(MappedFile::from_file(file, writable)?, volume).map_err(io::Error::other)
}

fn info(engine: &Path, slot: u32, record: Record) -> SnapshotInfo {
    let scope = record.scoped.then(|| scope(engine, record.id).unwrap_or_default());
    SnapshotInfo {
        id: record.id,
        slot,
        name: record.name,
        epoch: record.epoch,
        created_ns: record.created_ns,
        pause_ns: record.pause_ns,
        size: record.size,
        originals: record.originals,
        private: record.private,
        state: match record.state {
            RecordState::Live => SnapshotState::Live,
            RecordState::Ended(up_to) => SnapshotState::Ended { up_to },
            RecordState::Broken(reason) => SnapshotState::Broken { reason, at: record.broken_at },
        },
        scope,
        on_full: record.on_full,
        // What was released is the engine's to know.
        captured_bytes: 0,
        confirmed: record.confirmed,
        damaged_bytes: 0,
    }
}

/// As in `docs/formats/snapshots.md`.
fn scope(engine: &Path, id: SnapshotId) -> io::Result<Vec<tzero_block::ByteRange>> {
    let (storage, name) = (Directory::new(engine), format!("scope-{id}"));
    if !storage.exists(&name)? {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(RangeLog::open_or_create(&storage, &name)?.load()?.iter().collect())
}
