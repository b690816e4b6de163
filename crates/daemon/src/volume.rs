//! One volume of the daemon: its record, the engine that serves it, and who uses it.
//!
//! ```text
//!            open: base, checks, cache, engine                  close: sync, clean stop on record
//!   record ────────────────────────────────────▶ Serving ────────────────────────────────────────▶ gone
//!      └── something is missing or wrong ──────▶ Failed (with the reason; other volumes are unharmed)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::RwLock;
use tzero_api::control::{self, VolumeState};
use tzero_api::{Name, SnapshotPath, is_private, sentence};
use tzero_engine::{SnapshotInfo, SnapshotState};
use tzero_io::Sender;
use tzero_originals::{Originals, SnapshotId};

use crate::base::OpenBase;
use crate::identity::CleanStop;
use crate::opening::{self, Opening};
use crate::platform::Production;
use crate::record::{VolumeDirectory, VolumeRecord};
use crate::refusal::Refusal;
use crate::threads::DataThreads;

/// The engine of one volume.
pub(crate) type Engine = tzero_engine::Volume<Production>;

/// A volume, served or not.
pub(crate) struct Volume {
    pub(crate) name: Name,
    /// Absent only where the record itself is damaged.
    pub(crate) record: Option<VolumeRecord>,
    pub(crate) directory: VolumeDirectory,
    pub(crate) condition: Condition,
    /// Held shared by whatever changes the volume's snapshots, exclusively by what ends the volume.
    pub(crate) gate: RwLock<()>,
    host_sessions: AtomicU64,
    readers: Mutex<BTreeMap<SnapshotId, u64>>,
    movers: Mutex<BTreeSet<SnapshotId>>,
}

/// Whether a volume is served.
pub(crate) enum Condition {
    Serving(Serving),
    Failed(Box<str>),
}

/// What is open while a volume is served.
pub(crate) struct Serving {
    pub(crate) engine: Arc<Engine>,
    /// The base's locked open file. For looking at it, and for others' separate opens of it; never handed out itself.
    pub(crate) base: File,
    pub(crate) cache: PathBuf,
    /// Dropping it ends the engine's maintenance, which holds the engine.
    _maintained: Sender<()>,
}

impl Volume {
    fn new(name: Name, record: Option<VolumeRecord>, directory: VolumeDirectory, condition: Condition) -> Self {
        Self {
            name,
            record,
            directory,
            condition,
            gate: RwLock::new(()),
            host_sessions: AtomicU64::new(0),
            readers: Mutex::default(),
            movers: Mutex::default(),
        }
    }

    /// A volume that cannot be served.
    pub(crate) fn failed(name: Name, record: Option<VolumeRecord>, directory: VolumeDirectory, why: &Refusal) -> Self {
        tracing::error!(volume = %name, "not served: {why}");
        Self::new(name, record, directory, Condition::Failed(sentence(why).into()))
    }

    /// Opens the engine on an open base, and brings the record up to date.
    pub(crate) async fn open(
        threads: &DataThreads,
        opening: &Opening,
        directory: VolumeDirectory,
        mut record: VolumeRecord,
        base: OpenBase,
    ) -> Result<Self, Refusal> {
        let base_changed = opening::changed(&record, directory.clean_stop().as_ref(), &base)?;
        let is_other = record.identity.as_ref().is_some_and(|left| !base.identity.same_base(left));
        let cache = directory.cache(&record);
        let engine = opening::open_engine(threads, opening, &directory, &record, &base, &cache, base_changed).await?;
        if record.identity.as_ref() != Some(&base.identity) {
            record.identity = Some(base.identity);
            record.generation += u64::from(is_other);
            directory.write(&record)?;
        }
        // After the engine has on record what the comparison found, and before the first change. Left over, it could only break
        // snapshots that are right.
        if let Err(error) = directory.record_clean_stop(None) {
            tracing::warn!(volume = %record.name, "the last clean stop stays on record: {error}");
        }
        let serving = Serving { _maintained: opening::maintain(threads, &engine), engine, base: base.file, cache };
        Ok(Self::new(record.name.clone(), Some(record), directory, Condition::Serving(serving)))
    }

    /// What is open.
    pub(crate) fn serving(&self) -> Result<&Serving, Refusal> {
        match &self.condition {
            Condition::Serving(serving) => Ok(serving),
            Condition::Failed(reason) => Err(Refusal::NotServed { volume: self.name.clone(), reason: reason.clone() }),
        }
    }

    /// Stable id, empty where the record is damaged.
    pub(crate) fn id(&self) -> String {
        self.record.as_ref().map(|record| record.id.clone()).unwrap_or_default()
    }

    /// The snapshot of this name.
    pub(crate) fn snapshot(&self, name: &Name) -> Result<SnapshotInfo, Refusal> {
        let path = || SnapshotPath { volume: self.name.clone(), snapshot: name.clone() };
        self.serving()?.engine.snapshot(name.as_str()).ok_or_else(|| Refusal::NoSnapshot(path()))
    }

    /// Makes everything durable and records a clean stop. Nobody may use the volume any more.
    pub(crate) async fn close(&self, threads: &DataThreads) -> Result<(), Refusal> {
        let Condition::Serving(serving) = &self.condition else { return Ok(()) };
        let failed = |source| Refusal::Close { volume: self.name.clone(), source };
        let engine = Arc::clone(&serving.engine);
        let closed = threads.run(move || async move { engine.close().await }).await;
        closed.map_err(|_| failed(io::ErrorKind::Interrupted.into()))?.map_err(failed)?;
        if let Some(record) = &self.record
            && let Some(identity) = &record.identity
        {
            let clean = CleanStop::of(&serving.base, identity.size()).map_err(failed)?;
            if let Err(error) = self.directory.record_clean_stop(Some(&clean)) {
                // The next start then knows less of what happens to the base until then.
                tracing::warn!(volume = %self.name, "what the base looks like cannot be recorded: {error}");
            }
        }
        Ok(())
    }

    /// How many clients are connected.
    pub(crate) fn connections(&self) -> u64 {
        let readers: u64 = self.readers.lock().expect("nothing panics under this lock").values().sum();
        self.host_sessions.load(Ordering::Acquire) + readers
    }

    /// Notes a client, of the host or of a snapshot's view, until the value is dropped.
    pub(crate) fn used(self: &Arc<Self>, snapshot: Option<SnapshotId>) -> Use {
        match snapshot {
            None => drop(self.host_sessions.fetch_add(1, Ordering::AcqRel)),
            Some(id) => *self.readers.lock().expect("nothing panics under this lock").entry(id).or_default() += 1,
        }
        Use { volume: Arc::clone(self), snapshot }
    }

    /// Notes a mover of a snapshot until the value is dropped; `None` if there is one already.
    pub(crate) fn moved(self: &Arc<Self>, snapshot: SnapshotId) -> Option<Lease> {
        let new = self.movers.lock().expect("nothing panics under this lock").insert(snapshot);
        new.then(|| Lease { volume: Arc::clone(self), snapshot })
    }

    /// Whether a mover is copying the snapshot.
    pub(crate) fn has_mover(&self, snapshot: SnapshotId) -> bool {
        self.movers.lock().expect("nothing panics under this lock").contains(&snapshot)
    }

    /// The volume as the control interface describes it.
    pub(crate) fn describe(&self) -> control::Volume {
        let record = self.record.as_ref();
        let mut described = control::Volume {
            id: self.id(),
            name: self.name.clone(),
            state: VolumeState::Failed,
            reason: None,
            base: record.map(|record| record.base.clone()).unwrap_or_default(),
            size: record.and_then(|record| record.identity.as_ref()).map_or(0, |identity| identity.size()),
            grain: record.map_or(0, |record| record.grain),
            direct: record.is_some_and(|record| record.direct),
            generation: record.map_or(0, |record| record.generation),
            cache: record.map(|record| self.directory.cache(record)).unwrap_or_default(),
            cache_used: 0,
            cache_file: 0,
            cache_limit: record.and_then(|record| record.cache_limit),
            declared: record.is_some_and(|record| record.declared),
            connections: self.connections(),
            snapshots: 0,
        };
        match &self.condition {
            Condition::Failed(reason) => described.reason = Some(reason.to_string()),
            Condition::Serving(serving) => {
                use std::os::unix::fs::MetadataExt;
                let statistics = serving.engine.statistics();
                described.state = VolumeState::Serving;
                described.size = serving.engine.size();
                described.cache_used = statistics.originals.bytes;
                described.cache_file = std::fs::metadata(&serving.cache).map_or(0, |file| file.blocks() * 512);
                described.snapshots = statistics.snapshots as u64;
            }
        }
        described
    }

    /// Snapshots as the control interface describes them. Goes through all originals.
    pub(crate) fn describe_snapshots(&self, infos: &[SnapshotInfo]) -> Vec<control::Snapshot> {
        let Condition::Serving(serving) = &self.condition else { return Vec::new() };
        let unique = serving.engine.unique_bytes();
        infos.iter().filter_map(|info| self.describe_snapshot(serving, info, unique.get(&info.id).copied())).collect()
    }

    fn describe_snapshot(
        &self,
        serving: &Serving,
        info: &SnapshotInfo,
        unique: Option<u64>,
    ) -> Option<control::Snapshot> {
        let readers = self.readers.lock().expect("nothing panics under this lock").get(&info.id).copied();
        let reason = broken(&info.state);
        Some(control::Snapshot {
            id: info.id.to_string(),
            volume: self.name.clone(),
            volume_id: self.id(),
            name: info.name.parse().ok()?,
            state: if reason.is_some() { control::SnapshotState::Broken } else { control::SnapshotState::Live },
            reason,
            t0_ns: info.created_ns,
            pause_us: info.pause_ns.div_ceil(1000),
            size: info.size,
            grain: serving.engine.grain() as u32,
            epoch: info.epoch.0,
            originals: match info.originals {
                Originals::Keep => control::Originals::Keep,
                Originals::Release => control::Originals::Release,
            },
            captured_bytes: info.captured_bytes,
            unique_bytes: unique.unwrap_or(0),
            private: info.private,
            mover: self.has_mover(info.id),
            readers: readers.unwrap_or(0),
        })
    }
}

/// Why a snapshot is broken, if it is.
pub(crate) fn broken(state: &SnapshotState) -> Option<String> {
    match state {
        SnapshotState::Broken { reason, at: 0 } => Some(reason.to_string()),
        SnapshotState::Broken { reason, at } => Some(format!("{reason}, at byte {at} of the volume")),
        _ => None,
    }
}

/// Whether others may open a view of the snapshot: it stands and is no backup's own (R16).
pub(crate) fn is_surfaced(info: &SnapshotInfo) -> bool {
    !info.private && !is_private(&info.name) && info.state == SnapshotState::Live
}

/// A client's use of a volume.
pub(crate) struct Use {
    volume: Arc<Volume>,
    snapshot: Option<SnapshotId>,
}

impl Drop for Use {
    fn drop(&mut self) {
        let Some(id) = self.snapshot else {
            self.volume.host_sessions.fetch_sub(1, Ordering::AcqRel);
            return;
        };
        let mut readers = self.volume.readers.lock().expect("nothing panics under this lock");
        if let Some(count) = readers.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&id);
            }
        }
    }
}

/// A mover's hold on a snapshot.
pub(crate) struct Lease {
    volume: Arc<Volume>,
    snapshot: SnapshotId,
}

impl Lease {
    /// The volume.
    pub(crate) fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.volume.movers.lock().expect("nothing panics under this lock").remove(&self.snapshot);
    }
}
