//! Making a volume's state ready for the engine, whatever became of it while no daemon ran.
//!
//! The host comes first: state that was lost costs the snapshots that need it, never the volume. What is lost is said: the snapshots are
//! on record as broken, by name as far as names can be found; what is damaged is set aside; the volume carries a notice.
//!
//! | lost | the snapshots | then |
//! |---|---|---|
//! | snapshot table | names from the damaged one and from its copy | a new table that lists them as broken |
//! | modified map | marked broken | the engine makes a new one |
//! | original cache | marked broken | a new one is made and recorded |
//! | the cache's directory | marked broken | no room for originals until the next start |
//! | anything else that the engine cannot use | as with the table | all state is set aside |
//!
//! Order: names and marks are durable before anything is renamed, so that a death at any step leaves something that the next start takes for
//! lost too.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use tzero_engine::{MAP_NAME, TABLE_NAME};
use tzero_io::{Directory, Mapping, Storage};
use tzero_originals::{BrokenReason, Components, RecordState, SnapshotTable};

use crate::base::Patience;
use crate::cache_file::{self, CacheFault};
use crate::file_identity::FileIdentity;
use crate::held::read_file;
use crate::inspection::{Findings, Inspected, Wrong, is_passing};
use crate::record::{VolumeDirectory, VolumeRecord};
use crate::salvage::Salvage;
use crate::set_aside::set_aside;

/// Longest damaged snapshot table that is searched for names, in bytes; a whole one is much shorter.
const LONGEST_TABLE: u64 = 16 << 20;

/// What the engine is opened with.
pub(crate) struct Ready {
    /// The cache, open and locked.
    pub(crate) cache: File,
    /// What it is known by; none where nothing can be kept.
    pub(crate) identity: Option<FileIdentity>,
    /// Why nothing can be kept, where that is so.
    pub(crate) no_room: Option<Box<str>>,
    /// What the operator should know, a sentence each.
    pub(crate) notices: Vec<String>,
}

/// Why a volume's state cannot be made ready now.
#[derive(Debug)]
pub(crate) enum NotReady {
    /// The cache.
    Cache(CacheFault),
    /// A file of the state.
    State(io::Error),
}

impl From<io::Error> for NotReady {
    fn from(error: io::Error) -> Self {
        Self::State(error)
    }
}

impl From<CacheFault> for NotReady {
    fn from(fault: CacheFault) -> Self {
        Self::Cache(fault)
    }
}

/// A volume whose state is to be made ready.
pub(crate) struct Volume<'a> {
    pub(crate) directory: &'a VolumeDirectory,
    pub(crate) record: &'a VolumeRecord,
    pub(crate) id: [u8; 16],
    pub(crate) components: &'a Components,
    pub(crate) boot: [u8; 16],
    pub(crate) patience: Patience,
}

impl Volume<'_> {
    /// Makes it ready. Blocking.
    ///
    /// # Errors
    /// For what may be otherwise at the next attempt.
    pub(crate) fn make_ready(&self) -> Result<Ready, NotReady> {
        let path = self.directory.cache(self.record);
        if self.record.is_new() {
            // It was never served. A file that is there is what an earlier attempt has made, or not ours.
            let cache = match cache_file::open(&path, self.patience)? {
                Some(file) if file.metadata()?.len() == 0 => file,
                found => {
                    drop(found);
                    set_aside(&path)?;
                    cache_file::create(&path)?
                }
            };
            return Self::with(cache, Vec::new());
        }
        let (found, is_unusable) = match cache_file::open(&path, self.patience) {
            Err(CacheFault::Io(error)) if !is_passing(&error) => (None, true),
            other => (other?, false),
        };
        let mut findings = self.inspect(found.as_ref())?;
        if is_unusable {
            findings.cache = Some(Wrong::Damaged);
        }
        let mut notices = self.mend(&findings)?;
        let Some(wrong) = findings.cache else {
            let cache = found.expect("what is missing is wrong");
            cut(&cache, findings.end)?;
            return Self::with(cache, notices);
        };
        drop(found);
        let replaced =
            set_aside(&path).map_err(CacheFault::Io).and_then(|aside| Ok((aside, cache_file::create(&path)?)));
        match replaced {
            Ok((aside, cache)) => {
                notices.extend(self.notice("original cache", &path, wrong, aside.as_deref(), &findings));
                Self::with(cache, notices)
            }
            Err(CacheFault::Io(error)) => self.without_room(&path, &error, notices),
            Err(fault) => Err(fault.into()),
        }
    }

    fn with(cache: File, notices: Vec<String>) -> Result<Ready, NotReady> {
        let identity = Some(FileIdentity::of(&cache)?);
        Ok(Ready { cache, identity, no_room: None, notices })
    }

    /// The volume without a place for originals.
    fn without_room(&self, path: &Path, error: &io::Error, mut notices: Vec<String>) -> Result<Ready, NotReady> {
        let reason = format!(
            "the originals of volume {} cannot be kept at {} ({error}): no snapshot of it can be taken until that is mended and the daemon restarted",
            self.record.name,
            path.display()
        );
        tracing::warn!(volume = %self.record.name, "{reason}");
        notices.push(reason.clone());
        let cache = cache_file::nameless(&self.directory.engine())?;
        Ok(Ready { cache, identity: None, no_room: Some(reason.into()), notices })
    }

    fn inspect(&self, cache: Option<&File>) -> io::Result<Findings> {
        let identity = cache.map(FileIdentity::of).transpose()?;
        let known = self.record.cache.as_ref();
        let is_other_cache = identity.zip(known).is_some_and(|(found, known)| !found.is_same(known));
        let engine = self.directory.engine();
        let (grain, components) = (self.record.grain, self.components);
        Inspected { engine: &engine, volume: self.id, grain, components, boot: self.boot, cache, is_other_cache }
            .inspect()
    }

    /// Puts on record what the findings mean for the snapshots, and the damaged state out of the way; gives notices.
    fn mend(&self, findings: &Findings) -> io::Result<Vec<String>> {
        let engine = self.directory.engine();
        if !engine.exists() {
            make_directory(&engine)?;
        }
        let storage = Directory::new(&engine);
        let mut notices = Vec::new();
        let table = engine.join(TABLE_NAME);
        if let Some(wrong) = findings.table {
            let salvage = self.salvage(&table, wrong);
            let aside = set_aside(&table)?;
            self.write_table(&storage, &salvage)?;
            notices.extend(self.notice("snapshot table", &table, wrong, aside.as_deref(), findings));
        } else if findings.standing > 0 && (findings.map.is_some() || findings.cache.is_some()) {
            let table = SnapshotTable::open(storage.open(TABLE_NAME, 0)?).map_err(io::Error::other)?;
            mark_all(&table)?;
        }
        if let Some(wrong) = findings.map {
            let map = engine.join(MAP_NAME);
            let aside = set_aside(&map)?;
            notices.extend(self.notice("modified map", &map, wrong, aside.as_deref(), findings));
        }
        Ok(notices)
    }

    fn write_table(&self, storage: &Directory, salvage: &Salvage) -> io::Result<()> {
        let new = storage.open(TABLE_NAME, SnapshotTable::<<Directory as Storage>::Mapping>::LEN)?;
        salvage.write(&SnapshotTable::create_or_open(new, self.id).map_err(io::Error::other)?)?;
        storage.sync()
    }

    /// Sets all state aside: for what the engine refuses although it looked right. Gives the notice. Blocking.
    ///
    /// # Errors
    /// When new state cannot be made; the old is then away, and the next attempt finds it missing.
    pub(crate) fn begin_anew(&self, why: &dyn std::error::Error) -> io::Result<String> {
        let engine = self.directory.engine();
        let salvage = self.salvage(&engine.join(TABLE_NAME), Wrong::Damaged);
        let aside = set_aside(&engine)?;
        make_directory(&engine)?;
        self.write_table(&Directory::new(&engine), &salvage)?;
        let notice = format!(
            "the state {} could not be used ({why}){}: the snapshots of volume {} that stood are broken, the volume itself is whole",
            engine.display(),
            kept(aside.as_deref()),
            self.record.name
        );
        tracing::warn!(volume = %self.record.name, "{notice}");
        Ok(notice)
    }

    /// What is known of the snapshots of a lost table; on record before the table goes.
    fn salvage(&self, table: &Path, wrong: Wrong) -> Salvage {
        let mut salvage = Salvage::default();
        if wrong != Wrong::Foreign {
            salvage.add(&read_file(table, LONGEST_TABLE).unwrap_or_default(), self.id);
        }
        salvage.add(&self.directory.known_snapshots(), self.id);
        if let Err(error) = self.directory.remember_snapshots(&salvage.copy(self.id)) {
            tracing::warn!(volume = %self.record.name, "names of lost snapshots cannot be written down: {error}");
        }
        salvage
    }

    /// Says what was lost; nothing where nobody misses it.
    fn notice(
        &self,
        what: &str,
        path: &Path,
        wrong: Wrong,
        aside: Option<&Path>,
        findings: &Findings,
    ) -> Option<String> {
        let kept = kept(aside);
        if findings.table.is_none() && findings.standing == 0 {
            tracing::info!(volume = %self.record.name, "the {what} {} {wrong} and no snapshot needs it{kept}", path.display());
            return None;
        }
        let notice = format!(
            "the {what} {} {wrong}{kept}: the snapshots of volume {} that stood are broken, the volume itself is whole",
            path.display(),
            self.record.name
        );
        tracing::warn!(volume = %self.record.name, "{notice}");
        Some(notice)
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    cache_file::sync_parent(path)
}

fn kept(aside: Option<&Path>) -> String {
    aside.map(|aside| format!("; it is kept as {}", aside.display())).unwrap_or_default()
}

/// Marks every snapshot that stands as broken, durably.
fn mark_all<M: Mapping>(table: &SnapshotTable<M>) -> io::Result<()> {
    for (slot, record) in table.records() {
        if !matches!(record.state, RecordState::Broken(_)) {
            table.set_state(slot, RecordState::Broken(BrokenReason::Damaged), 0)?;
        }
    }
    table.sync()
}

/// Gives back what lies behind the last original: a daemon that was killed had no time to.
fn cut(cache: &File, end: Option<u64>) -> io::Result<()> {
    match end {
        Some(end) if cache.metadata()?.len() > end => cache.set_len(end),
        _ => Ok(()),
    }
}
