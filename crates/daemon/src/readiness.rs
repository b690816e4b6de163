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
//! | the cache's first tier, in memory | those that need what was not put by are marked broken, by the engine | a new one is made |
//! | the cache's directory | marked broken | no room for originals until the next start |
//! | anything else that the engine cannot use | as with the table | all state is set aside |
//!
//! Order: names and marks are durable before anything is renamed, so that a death at any step leaves something that the next start takes for
//! lost too.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use tzero_api::Place;
use tzero_api::control::Durability;
use tzero_block::ByteRange;
use tzero_engine::{CacheOptions, FirstTier, MAP_NAME, TABLE_NAME};
use tzero_io::{Directory, Mapping, Storage};
use tzero_originals::{BrokenReason, Components, RecordState, SnapshotTable};

use crate::base::Patience;
use crate::cache_file::{self, CacheFault};
use crate::file_identity::FileIdentity;
use crate::held::read_file;
use crate::inspection::{Findings, Inspected, Wrong, is_passing};
use crate::memory::{self, Memory, MemoryFault, MemoryRecord};
use crate::put_by;
use crate::record::{VolumeDirectory, VolumeRecord};
use crate::salvage::Salvage;
use crate::set_aside::set_aside;
use crate::store::Store;
use crate::stores::{Found, Wanted};
use crate::threads::DataThreads;

/// Longest damaged snapshot table that is searched for names, in bytes; a whole one is much shorter.
const LONGEST_TABLE: u64 = 16 << 20;

/// What the engine is opened with.
pub(crate) struct Ready {
    /// The first tier, where there is one.
    pub(crate) memory: Option<Memory>,
    /// The tier after it.
    pub(crate) store: Store,
    /// What the engine has to know of them.
    pub(crate) options: CacheOptions,
    /// What they are known by from now on.
    pub(crate) known: Known,
    /// Why nothing can be kept, where that is so.
    pub(crate) no_room: Option<Box<str>>,
    /// What the operator should know, a sentence each.
    pub(crate) notices: Vec<String>,
}

/// What the tiers are known by; what is none is not the volume's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) file: Option<FileIdentity>,
    pub(crate) claim: Option<String>,
    pub(crate) memory: Option<MemoryRecord>,
}

/// Why a volume's state cannot be made ready now.
#[derive(Debug)]
pub(crate) enum NotReady {
    /// The cache.
    Cache(CacheFault),
    /// Its first tier.
    Memory(MemoryFault),
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
    pub(crate) threads: &'a Arc<DataThreads>,
    pub(crate) patience: Patience,
}

impl Volume<'_> {
    /// Makes it ready. Blocking.
    ///
    /// # Errors
    /// For what may be otherwise at the next attempt.
    pub(crate) fn make_ready(&self) -> Result<Ready, NotReady> {
        let place = self.directory.cache(self.record);
        let wanted = Wanted {
            place: &place,
            volume: self.id,
            grain: self.record.grain,
            threads: self.threads,
            patience: self.patience,
        };
        if self.record.is_new() {
            return self.make_new(&wanted);
        }
        let claim = self.record.claim.as_deref().and_then(|claim| u128::from_str_radix(claim, 16).ok());
        let (store, is_other, is_unusable) =
            match wanted.find(self.record.cache.as_ref(), claim.map(u128::to_be_bytes))? {
                Found::Store { store, is_other } => (Some(store), is_other, false),
                Found::Nothing => (None, false, false),
                Found::Unusable => (None, false, true),
            };
        let memory = self.find_memory()?;
        let mut findings = self.inspect(store.as_ref(), is_other, memory.as_ref())?;
        if is_unusable {
            findings.cache = Some(Wrong::Damaged);
        }
        let mut notices = self.mend(&findings)?;
        let (memory, options) = self.bring_memory(memory, &findings, &mut notices)?;
        let mut ready = match (store, findings.cache) {
            (Some(store), None) => {
                if let Store::File(file) = &store {
                    cut(file, findings.end)?;
                }
                let claim = self.record.claim.clone();
                self.with(store, claim, notices)?
            }
            (store, wrong) => {
                drop(store);
                self.replace(&wanted, wrong.unwrap_or(Wrong::Missing), &findings, notices)?
            }
        };
        if ready.no_room.is_none() {
            ready.known.memory = memory.as_ref().map(Memory::record).transpose()?;
            (ready.memory, ready.options) = (memory, options);
        }
        Ok(ready)
    }

    /// Of a volume that was never served. A file that is there is what an earlier attempt has made, or not ours.
    fn make_new(&self, wanted: &Wanted<'_>) -> Result<Ready, NotReady> {
        let bytes = self.record.memory_bytes();
        let memory = match bytes {
            0 => None,
            _ => Some(Memory::create(&self.record.id, bytes).map_err(NotReady::Memory)?),
        };
        let made = self.make_store(wanted);
        let (store, claim) = match made {
            Ok(made) => made,
            Err(error) => {
                if let Some(memory) = memory {
                    let _ = memory::remove(&memory.path);
                }
                return Err(error);
            }
        };
        let mut ready = self.with(store, claim, Vec::new())?;
        ready.known.memory = memory.as_ref().map(Memory::record).transpose()?;
        ready.memory = memory;
        ready.options.first_tier.bytes = bytes;
        Ok(ready)
    }

    fn make_store(&self, wanted: &Wanted<'_>) -> Result<(Store, Option<String>), NotReady> {
        if let Place::Path(path) = wanted.place
            && let Some(file) = cache_file::open(path, self.patience)?
            && file.metadata()?.len() == 0
        {
            return Ok((Store::File(file), None));
        }
        let made = wanted.make()?;
        Ok((made.store, made.claim.map(hex)))
    }

    /// The first tier as it was left; none where it is gone.
    fn find_memory(&self) -> Result<Option<Memory>, NotReady> {
        let bytes = self.record.memory_bytes();
        let Some(known) = self.record.memory.as_ref().filter(|_| bytes > 0) else { return Ok(None) };
        match Memory::find(known, bytes, self.patience) {
            Err(MemoryFault::Io { source, .. }) if !is_passing(&source) => Ok(None),
            other => other.map_err(NotReady::Memory),
        }
    }

    /// The first tier as it was left, or a new one with what was put by; and what is lost.
    fn bring_memory(
        &self,
        found: Option<Memory>,
        findings: &Findings,
        notices: &mut Vec<String>,
    ) -> Result<(Option<Memory>, CacheOptions), NotReady> {
        let bytes = self.record.memory_bytes();
        let mut options = CacheOptions { first_tier: FirstTier { bytes, withheld: false }, lost: Vec::new() };
        if bytes == 0 || (found.is_some() && findings.memory.is_none()) {
            return Ok((found, options));
        }
        drop(found);
        let memory = match Memory::create(&self.record.id, bytes) {
            Ok(memory) => memory,
            Err(fault) => {
                let notice = format!(
                    "originals of volume {} are not kept in memory until the daemon is restarted, but where they would go next: {fault}",
                    self.record.name
                );
                tracing::warn!(volume = %self.record.name, "{notice}");
                notices.push(notice);
                options.first_tier.withheld = true;
                options.lost = vec![ByteRange::new(0, bytes)];
                return Ok((None, options));
            }
        };
        let wanted = findings.in_memory.iter().map(|stored| {
            let entry = stored.entry;
            ((stored.offset, entry.len), move |bytes: &[u8]| entry.is_payload(bytes))
        });
        let missing = put_by::bring_back(&self.directory.put_by(), self.id, &memory.file, wanted)?;
        tracing::info!(
            volume = %self.record.name,
            brought = findings.in_memory.len() - missing.len(),
            lost = missing.len(),
            "the originals in memory were gone"
        );
        options.lost = put_by::stretches(&missing);
        Ok((Some(memory), options))
    }

    /// Another store in the place of one that is wrong.
    fn replace(
        &self,
        wanted: &Wanted<'_>,
        wrong: Wrong,
        findings: &Findings,
        mut notices: Vec<String>,
    ) -> Result<Ready, NotReady> {
        let made = match wanted.make() {
            Ok(made) => made,
            Err(CacheFault::Locked) => return Err(CacheFault::Locked.into()),
            Err(fault) => return self.without_room(wanted.place, &fault, notices),
        };
        notices.extend(self.notice("original cache", wanted.place, wrong, made.aside.as_deref(), findings));
        self.with(made.store, made.claim.map(hex), notices)
    }

    fn with(&self, store: Store, claim: Option<String>, notices: Vec<String>) -> Result<Ready, NotReady> {
        let file = match &store {
            Store::File(file) => Some(FileIdentity::of(file)?),
            Store::Export(_) => None,
        };
        let known = Known { file, claim, memory: None };
        Ok(Ready { memory: None, store, options: CacheOptions::default(), known, no_room: None, notices })
    }

    /// The volume without a place for originals.
    fn without_room(&self, place: &Place, fault: &CacheFault, mut notices: Vec<String>) -> Result<Ready, NotReady> {
        let reason = format!(
            "the originals of volume {} cannot be kept at {place} ({fault}): no snapshot of it can be taken until that is mended and the daemon restarted",
            self.record.name,
        );
        tracing::warn!(volume = %self.record.name, "{reason}");
        notices.push(reason.clone());
        Ok(Ready {
            memory: None,
            store: Store::File(cache_file::nameless(&self.directory.engine())?),
            options: CacheOptions::default(),
            known: Known::default(),
            no_room: Some(reason.into()),
            notices,
        })
    }

    fn inspect(&self, cache: Option<&Store>, is_other_cache: bool, memory: Option<&Memory>) -> io::Result<Findings> {
        Inspected {
            engine: &self.directory.engine(),
            volume: self.id,
            grain: self.record.grain,
            components: self.components,
            boot: self.boot,
            outlives_power: self.record.durability == Durability::Power,
            cache,
            is_other_cache,
            memory: memory.map(|memory| &memory.file),
            memory_bytes: self.record.memory_bytes(),
        }
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
            notices.extend(self.notice("snapshot table", table.display(), wrong, aside.as_deref(), findings));
        } else if findings.standing > 0 && (findings.map.is_some() || findings.cache.is_some()) {
            let table = SnapshotTable::open(storage.open(TABLE_NAME, 0)?).map_err(io::Error::other)?;
            mark_all(&table)?;
        }
        if let Some(wrong) = findings.map {
            let map = engine.join(MAP_NAME);
            let aside = set_aside(&map)?;
            notices.extend(self.notice("modified map", map.display(), wrong, aside.as_deref(), findings));
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
        place: impl std::fmt::Display,
        wrong: Wrong,
        aside: Option<&Path>,
        findings: &Findings,
    ) -> Option<String> {
        let kept = kept(aside);
        if findings.table.is_none() && findings.standing == 0 {
            tracing::info!(volume = %self.record.name, "the {what} {place} {wrong} and no snapshot needs it{kept}");
            return None;
        }
        let notice = format!(
            "the {what} {place} {wrong}{kept}: the snapshots of volume {} that stood are broken, the volume itself is whole",
            self.record.name
        );
        tracing::warn!(volume = %self.record.name, "{notice}");
        Some(notice)
    }
}

fn hex(token: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(token))
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
