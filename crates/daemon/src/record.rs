//! What is remembered of a volume: `volumes/NAME/volume.json`.
//!
//! Version 4. Read, and written as 4 when the volume is opened, are version 3, in which nothing is saved ahead, version 2, in which also no base
//! is on its way to another size, and version 1, whose volumes have one base.
//!
//! Written beside, made durable and renamed, so that it is there in full, old or new. A directory whose name holds a `~` (which no
//! volume's name does) is one that was being removed; it is swept at start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tzero_api::control::Durability;
use tzero_api::{Name, Place, Rate, StatePaths};
use tzero_engine::TABLE_NAME;

use crate::cache_file::sync_parent;
use crate::file_identity::FileIdentity;
use crate::held::read_file;
use crate::identity::{BaseIdentity, CleanStop};
use crate::memory::{self, MemoryRecord};
use crate::salvage::copy_of;
use crate::set_aside::aside_of;

/// Version of the file that this program writes.
const VERSION: u32 = 4;
const FILE: &str = "volume.json";
/// Longest file of a volume's directory that is read whole, in bytes.
const LONGEST: u64 = 16 << 20;
/// What the base looked like at the last clean stop, in JSON, padded with spaces; nothing but spaces while a daemon serves it.
const CLEAN_STOP: &str = "clean-stop";
/// Its length in bytes. It is allocated once and overwritten in place, so that a full disk stops no daemon and no host.
const CLEAN_STOP_LEN: usize = 512;
const GONE: &str = "~gone";
/// A copy of the snapshot table as of the last snapshot that came or went. See `salvage`.
const KNOWN: &str = "snapshots-known";
/// The engine's own files.
const ENGINE: &str = "state";
/// What is known of unfinished backups.
const BACKUPS: &str = "backups";
const UNSETTLED: &str = "unsettled";
/// Originals in memory as of a clean stop. See `put_by`.
const PUT_BY: &str = "originals-put-by";
/// The original cache, where it has no directory of its own.
const CACHE: &str = "originals";

/// A volume as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeRecord {
    /// Version of this format.
    pub(crate) version: u32,
    /// Stable id, 32 hexadecimal digits.
    pub(crate) id: String,
    pub(crate) name: Name,
    /// What it stands on, in order.
    pub(crate) bases: Vec<BaseRecord>,
    pub(crate) grain: u32,
    pub(crate) direct: bool,
    pub(crate) cache_dir: Option<Place>,
    pub(crate) cache_limit: Option<u64>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) durability: Durability,
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) save_ahead: Option<Rate>,
    /// From the configuration file.
    pub(crate) declared: bool,
    pub(crate) generation: u64,
    /// The file that was made for its originals; absent until then, and where they are on an export.
    #[serde(default)]
    pub(crate) cache: Option<FileIdentity>,
    /// What the export was claimed with that holds its originals, 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) claim: Option<String>,
    /// The file in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<MemoryRecord>,
}

/// A component of a volume's base as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BaseRecord {
    pub(crate) place: Place,
    /// Absent until the volume has been opened for the first time.
    pub(crate) identity: Option<BaseIdentity>,
    /// The size in bytes that it is being given: it may have this one by now, or the one of its identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) becoming: Option<u64>,
}

impl BaseRecord {
    pub(crate) fn new(place: Place, identity: Option<BaseIdentity>) -> Self {
        Self { place, identity, becoming: None }
    }

    /// What it was left as, for one that is `size` bytes long now.
    pub(crate) fn left(&self, size: u64) -> Option<BaseIdentity> {
        let left = self.identity.clone()?;
        Some(if self.becoming == Some(size) { left.resized(size) } else { left })
    }
}

impl VolumeRecord {
    /// Where what it stands on is, in order.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.bases.iter().map(|base| base.place.clone()).collect()
    }

    /// How long it is in bytes, as far as it was ever opened.
    pub(crate) fn size(&self) -> u64 {
        self.bases.iter().filter_map(|base| base.identity.as_ref()).map(BaseIdentity::size).sum()
    }

    /// How many bytes of originals are kept in memory: whole slots.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_limit.unwrap_or(0) / u64::from(self.grain) * u64::from(self.grain)
    }

    /// Whether it was never served.
    pub(crate) fn is_new(&self) -> bool {
        self.bases.iter().any(|base| base.identity.is_none())
    }

    /// Whether an earlier version of this program has written it.
    pub(crate) fn is_old(&self) -> bool {
        self.version != VERSION
    }

    /// The record with this program's version.
    pub(crate) fn of_today(self) -> Self {
        Self { version: VERSION, ..self }
    }
}

/// Version 1.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordOne {
    version: u32,
    id: String,
    name: Name,
    base: PathBuf,
    grain: u32,
    direct: bool,
    cache_dir: Option<PathBuf>,
    cache_limit: Option<u64>,
    declared: bool,
    generation: u64,
    identity: Option<BaseIdentity>,
    #[serde(default)]
    cache: Option<FileIdentity>,
}

impl From<RecordOne> for VolumeRecord {
    fn from(one: RecordOne) -> Self {
        Self {
            version: one.version,
            id: one.id,
            name: one.name,
            // A name that looks like a URI was a path then.
            bases: vec![BaseRecord::new(Place::Path(one.base), one.identity)],
            grain: one.grain,
            direct: one.direct,
            cache_dir: one.cache_dir.map(Place::Path),
            cache_limit: one.cache_limit,
            memory_limit: None,
            durability: Durability::Process,
            save_ahead: None,
            declared: one.declared,
            generation: one.generation,
            cache: one.cache,
            claim: None,
            memory: None,
        }
    }
}

/// The record that a file holds, of whatever version.
fn parse(path: &Path, bytes: &[u8]) -> Result<VolumeRecord, RecordError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let malformed = |source| RecordError::Malformed { path: path.into(), source };
    match serde_json::from_slice(bytes).map_err(malformed)? {
        Versioned { version: 1 } => {
            serde_json::from_slice::<RecordOne>(bytes).map(VolumeRecord::from).map_err(malformed)
        }
        Versioned { version: 2..=VERSION } => serde_json::from_slice(bytes).map_err(malformed),
        Versioned { version } => Err(RecordError::Version { path: path.into(), version }),
    }
}

/// Why a record cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{} cannot be read or written: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {source}; restore the file, or forget the volume with `tzero volume remove`", .path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("{} has format {version} and this program reads 1 to {VERSION}: use the version that wrote it", .path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("{} speaks of volume {found}: the directory was renamed or copied; undo that", .path.display())]
    Name { path: PathBuf, found: Name },
}

/// One volume's directory.
#[derive(Clone, Debug)]
pub(crate) struct VolumeDirectory {
    path: PathBuf,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    |source| RecordError::Io { path, source }
}

impl VolumeDirectory {
    pub(crate) fn new(state: &StatePaths, name: &Name) -> Self {
        Self { path: state.volume(name) }
    }

    /// Where the engine keeps its files.
    pub(crate) fn engine(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// Where it is noted which backups' snapshots stand.
    pub(crate) fn backups(&self) -> PathBuf {
        self.path.join(BACKUPS)
    }

    /// Where it is noted which snapshots are taken and given to nobody.
    pub(crate) fn unsettled(&self) -> PathBuf {
        self.path.join(UNSETTLED)
    }

    /// Where the originals are that are not in memory: a file, or an export.
    pub(crate) fn cache(&self, record: &VolumeRecord) -> Place {
        match &record.cache_dir {
            Some(Place::Path(directory)) => {
                Place::Path(directory.join(format!("{}-{}.originals", record.name, record.id)))
            }
            Some(Place::Export(uri)) => Place::Export(uri.clone()),
            None => Place::Path(self.path.join(CACHE)),
        }
    }

    /// Where originals in memory are put by at a clean stop.
    pub(crate) fn put_by(&self) -> PathBuf {
        self.path.join(PUT_BY)
    }

    /// Makes the directory and its first record.
    pub(crate) fn create(&self, record: &VolumeRecord) -> Result<(), RecordError> {
        for path in [self.path.clone(), self.engine()] {
            DirBuilder::new().mode(0o700).recursive(true).create(&path).map_err(failed(&path))?;
        }
        self.write(record)?;
        self.record_clean_stop(None)?;
        sync_parent(&self.path).map_err(failed(&self.path))
    }

    /// Records what the base looks like, or that somebody may be changing it.
    pub(crate) fn record_clean_stop(&self, stop: Option<&CleanStop>) -> Result<(), RecordError> {
        let path = self.path.join(CLEAN_STOP);
        let write = || {
            let mut bytes = stop.map(serde_json::to_vec).transpose()?.unwrap_or_default();
            bytes.resize(CLEAN_STOP_LEN, b' ');
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            file.write_all(&bytes)?;
            file.sync_data()
        };
        write().map_err(failed(&path))
    }

    /// What the base looked like when a daemon last let go of it in good order; `None` if none did, or one is serving it.
    pub(crate) fn clean_stop(&self) -> Option<CleanStop> {
        let bytes = read_file(&self.path.join(CLEAN_STOP), LONGEST).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) fn write(&self, record: &VolumeRecord) -> Result<(), RecordError> {
        let written = replace(&self.path, FILE, |file| {
            serde_json::to_writer_pretty(&mut *file, record)?;
            file.write_all(b"\n")
        });
        written.map_err(|source| RecordError::Io { path: self.path.join(FILE), source })
    }

    pub(crate) fn read(&self) -> Result<VolumeRecord, RecordError> {
        let path = self.path.join(FILE);
        let bytes = read_file(&path, LONGEST).map_err(failed(&path))?;
        let record = parse(&path, &bytes)?;
        if self.path.file_name() != Some(record.name.as_str().as_ref()) {
            return Err(RecordError::Name { path, found: record.name });
        }
        Ok(record)
    }

    /// Makes the snapshots durable that the table has now, and the files that they stand in. Blocking.
    pub(crate) fn sync_snapshots(&self) -> io::Result<()> {
        let engine = self.engine();
        File::open(engine.join(TABLE_NAME))?.sync_all()?;
        File::open(engine)?.sync_all()
    }

    /// Copies the table as it is, so that its names outlive it.
    pub(crate) fn copy_snapshots(&self) -> io::Result<()> {
        let table = read_file(&self.engine().join(TABLE_NAME), LONGEST)?;
        swap_in(&self.path, KNOWN, |file| file.write_all(copy_of(&table)))
    }

    /// Replaces the copy of the table, durably.
    pub(crate) fn remember_snapshots(&self, copy: &[u8]) -> io::Result<()> {
        replace(&self.path, KNOWN, |file| file.write_all(copy))
    }

    /// The copy of the table; empty where there is none.
    pub(crate) fn known_snapshots(&self) -> Vec<u8> {
        read_file(&self.path.join(KNOWN), LONGEST).unwrap_or_default()
    }

    /// Forgets the volume: from the rename on it is gone, whatever happens to its files. Without its record, originals that have a directory
    /// of their own stay behind.
    pub(crate) fn remove(&self, record: Option<&VolumeRecord>) -> Result<(), RecordError> {
        let mut gone = self.path.clone().into_os_string();
        gone.push(GONE);
        let gone = PathBuf::from(gone);
        fs::rename(&self.path, &gone).map_err(failed(&self.path))?;
        sync_parent(&self.path).map_err(failed(&self.path))?;
        discard(&gone, record).map_err(failed(&gone))
    }
}

/// Replaces a file whole, durably: it is there old or new.
fn replace(directory: &Path, name: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    swap_in(directory, name, |file| write(file).and_then(|()| file.sync_all()))?;
    File::open(directory)?.sync_all()
}

/// Replaces a file whole, as far as this machine does not die.
fn swap_in(directory: &Path, name: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let beside = directory.join(format!("{name}~new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    write(&mut file)?;
    fs::rename(&beside, directory.join(name))
}

fn discard(gone: &Path, record: Option<&VolumeRecord>) -> io::Result<()> {
    if let Some(memory) = record.and_then(|record| record.memory.as_ref()) {
        memory::remove(&memory.path)?;
    }
    if let Some(record) = record.filter(|record| record.cache_dir.is_some())
        && let Place::Path(cache) = (VolumeDirectory { path: gone.into() }).cache(record)
    {
        for path in aside_of(&cache).into_iter().chain([cache]) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    fs::remove_dir_all(gone)
}

/// A new record.
pub(crate) fn new_record(id: String, request: &tzero_api::control::AddVolume, declared: bool) -> VolumeRecord {
    VolumeRecord {
        version: VERSION,
        id,
        name: request.name.clone(),
        bases: request.bases.iter().map(|place| BaseRecord::new(place.clone(), None)).collect(),
        grain: request.grain.map_or(tzero_api::control::DEFAULT_GRAIN, |grain| grain.0 as u32),
        direct: request.direct,
        cache_dir: request.cache_dir.clone(),
        cache_limit: request.cache_limit.map(|limit| limit.0),
        memory_limit: request.memory_limit.map(|limit| limit.0),
        durability: request.durability,
        save_ahead: request.save_ahead,
        declared,
        generation: 1,
        cache: None,
        claim: None,
        memory: None,
    }
}

/// The names of all volumes that are remembered, sorted. Finishes removals that were interrupted.
pub(crate) fn remembered(state: &StatePaths) -> Result<Vec<Name>, RecordError> {
    let root = state.volumes();
    let mut names = Vec::new();
    for entry in fs::read_dir(&root).map_err(failed(&root))? {
        let path = entry.map_err(failed(&root))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(GONE) {
            let file = path.join(FILE);
            let record = read_file(&file, LONGEST).ok().and_then(|bytes| parse(&file, &bytes).ok());
            discard(&path, record.as_ref()).map_err(failed(&path))?;
        } else if let Ok(name) = name.parse() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tzero_api::Size;
    use tzero_api::control::AddVolume;

    use super::*;

    fn record(name: &str, cache_dir: Option<PathBuf>) -> VolumeRecord {
        let request = AddVolume {
            grain: Some(Size(512)),
            cache_dir: cache_dir.map(Place::Path),
            cache_limit: Some(Size(1 << 20)),
            direct: true,
            ..AddVolume::new(name.parse().unwrap(), "/dev/null".into())
        };
        new_record("0123456789abcdef0123456789abcdef".into(), &request, false)
    }

    #[test]
    fn kept_and_forgotten() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StatePaths::new(scratch.path());
        fs::create_dir(state.volumes()).unwrap();
        let fast = scratch.path().join("fast");
        fs::create_dir(&fast).unwrap();

        let written = record("v.1", Some(fast.clone()));
        let directory = VolumeDirectory::new(&state, &written.name);
        directory.create(&written).unwrap();
        fs::write(directory.cache(&written).path().unwrap(), "x").unwrap();
        assert_eq!(directory.read().unwrap(), written);
        let mode = fs::metadata(directory.path.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(remembered(&state).unwrap(), std::slice::from_ref(&written.name));

        directory.remove(Some(&written)).unwrap();
        assert_eq!(remembered(&state).unwrap(), []);
        assert_eq!(fs::read_dir(fast).unwrap().count(), 0);
    }

    /// A volume's directory as an earlier version has left it.
    fn left(text: &str) -> (tempfile::TempDir, VolumeDirectory) {
        let scratch = tempfile::tempdir().unwrap();
        let directory = VolumeDirectory::new(&StatePaths::new(scratch.path()), &"v".parse().unwrap());
        directory.create(&record("v", None)).unwrap();
        fs::write(directory.path.join(FILE), text).unwrap();
        (scratch, directory)
    }

    #[test]
    fn a_record_of_version_one_is_read_and_becomes_one_of_today() {
        const ONE: &str = r#"{
  "version": 1,
  "id": "0123456789abcdef0123456789abcdef",
  "name": "v",
  "base": "/dev/vg0/database",
  "grain": 4096,
  "direct": true,
  "cache_dir": "/fast/originals",
  "cache_limit": 1048576,
  "declared": false,
  "generation": 3,
  "identity": { "kind": "device", "number": 64768, "size": 8192, "name": "LVM-x" },
  "cache": { "device": 5, "inode": 7, "born_ns": 9 }
}
"#;
        let (_scratch, directory) = left(ONE);
        let read = directory.read().unwrap();
        assert!(read.is_old() && !read.is_new());
        assert_eq!(read.places(), ["/dev/vg0/database".into()]);
        assert_eq!(read.bases[0].identity.as_ref().unwrap().size(), 8192);
        assert_eq!((read.generation, read.memory_limit, read.durability), (3, None, Durability::Process));
        assert_eq!(read.cache.as_ref().unwrap().inode, 7);
        let today = read.clone().of_today();
        directory.write(&today).unwrap();
        assert_eq!(directory.read().unwrap(), today);
        assert!(!today.is_old() && VolumeRecord { version: 1, ..today } == read);
        // What another program has added to it says something that this one would lose.
        fs::write(directory.path.join(FILE), ONE.replace("\"declared\"", "\"more\": 1, \"declared\"")).unwrap();
        assert!(matches!(directory.read(), Err(RecordError::Malformed { .. })));
    }

    #[test]
    fn a_record_of_version_two_is_read_and_becomes_one_of_today() {
        const TWO: &str = r#"{
  "version": 2,
  "id": "0123456789abcdef0123456789abcdef",
  "name": "v",
  "bases": [
    { "place": "/srv/a", "identity": { "kind": "file", "device": 5, "inode": 7, "born_ns": 9, "size": 8192 } },
    { "place": "nbd://h/e", "identity": { "kind": "export", "uri": "nbd://h:10809/e", "size": 512 } }
  ],
  "grain": 4096,
  "direct": false,
  "cache_dir": null,
  "cache_limit": null,
  "memory_limit": 65536,
  "durability": "process",
  "declared": false,
  "generation": 1,
  "cache": { "device": 5, "inode": 8 }
}
"#;
        let (_scratch, directory) = left(TWO);
        let mut read = directory.read().unwrap();
        assert!(read.is_old() && !read.is_new());
        assert_eq!((read.size(), read.bases[1].becoming), (8704, None));
        read = read.of_today();
        read.bases[1].becoming = Some(1024);
        directory.write(&read).unwrap();
        let read = directory.read().unwrap();
        let left = |size| read.bases[1].left(size).unwrap().size();
        assert_eq!([512, 1024, 1536].map(left), [512, 1024, 512], "either size is its own, no other");
    }

    #[test]
    fn a_record_of_version_three_is_read_and_becomes_one_of_today() {
        const THREE: &str = r#"{
  "version": 3,
  "id": "0123456789abcdef0123456789abcdef",
  "name": "v",
  "bases": [
    {
      "place": "/srv/a",
      "identity": { "kind": "file", "device": 5, "inode": 7, "born_ns": 9, "size": 8192 },
      "becoming": 16384
    }
  ],
  "grain": 4096,
  "direct": true,
  "cache_dir": "/fast",
  "cache_limit": 1048576,
  "memory_limit": null,
  "durability": "power",
  "declared": true,
  "generation": 2,
  "cache": { "device": 5, "inode": 8 }
}
"#;
        let (_scratch, directory) = left(THREE);
        let read = directory.read().unwrap();
        assert!(read.is_old() && read.save_ahead.is_none());
        assert_eq!((read.durability, read.bases[0].becoming), (Durability::Power, Some(16384)));
        directory.write(&VolumeRecord { save_ahead: Some(Rate(1 << 20)), ..read.of_today() }).unwrap();
        assert_eq!(directory.read().unwrap().save_ahead, Some(Rate(1 << 20)));
    }

    #[test]
    fn an_interrupted_removal_is_finished() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StatePaths::new(scratch.path());
        fs::create_dir(state.volumes()).unwrap();
        let written = record("v", None);
        let directory = VolumeDirectory::new(&state, &written.name);
        directory.create(&written).unwrap();
        let gone = state.volumes().join("v~gone");
        fs::rename(&directory.path, &gone).unwrap();
        assert_eq!(remembered(&state).unwrap(), []);
        assert!(!gone.exists());
    }

    #[test]
    fn a_clean_stop_is_kept_in_place() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StatePaths::new(scratch.path());
        let written = record("v", None);
        let directory = VolumeDirectory::new(&state, &written.name);
        directory.create(&written).unwrap();
        let file = directory.path.join(CLEAN_STOP);
        let len = || fs::metadata(&file).unwrap().len();
        assert_eq!((directory.clean_stop(), len()), (None, CLEAN_STOP_LEN as u64));

        let base = scratch.path().join("base");
        fs::write(&base, [1; 4096]).unwrap();
        let stop = CleanStop::of_component(&File::open(&base).unwrap(), 4096).unwrap();
        directory.record_clean_stop(Some(&stop)).unwrap();
        assert_eq!((directory.clean_stop().as_ref(), len()), (Some(&stop), CLEAN_STOP_LEN as u64));
        directory.record_clean_stop(None).unwrap();
        assert_eq!((directory.clean_stop(), len()), (None, CLEAN_STOP_LEN as u64));
    }

    #[test]
    fn a_wrong_record_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StatePaths::new(scratch.path());
        fs::create_dir(state.volumes()).unwrap();
        let mut written = record("v", None);
        let directory = VolumeDirectory::new(&state, &written.name);
        directory.create(&written).unwrap();

        written.version = 9;
        directory.write(&written).unwrap();
        assert!(matches!(directory.read(), Err(RecordError::Version { version: 9, .. })));
        fs::write(directory.path.join(FILE), "{\"version\":2,").unwrap();
        assert!(matches!(directory.read(), Err(RecordError::Malformed { .. })));
        directory.write(&record("w", None)).unwrap();
        assert!(matches!(directory.read(), Err(RecordError::Name { .. })));
    }
}
