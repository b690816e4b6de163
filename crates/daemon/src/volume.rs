//! One volume of the daemon: its record, the engine that serves it, and who uses it.
//!
//! ```text
//!            open: base, state, cache, engine                   close: sync, clean stop on record
//!   record ────────────────────────────────────▶ Serving ────────────────────────────────────────▶ closed
//!      └── something is missing or wrong ──────▶ Failed (with the reason; tried again, see `attempts`)
//! ```
//!
//! | | change of snapshots | close |
//! |---|---|---|
//! | **change of snapshots** | the engine orders them | the gate; who comes after the close is refused |
//! | **host's requests** | the engine orders them | none may run: else the stop is not clean |

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::timeout;
use tzero_api::{Name, SnapshotPath, is_private, sentence};
use tzero_block::BlockDevice;
use tzero_engine::{SnapshotInfo, SnapshotState};
use tzero_originals::SnapshotId;

use crate::ahead::Ahead;
use crate::base::{OpenBase, Patience};
use crate::breaks::Told;
use crate::claim;
use crate::dormant;
use crate::filling::Filling;
use crate::maintenance::Maintenance;
use crate::opening::{self, Opening, id_bytes};
use crate::platform::Engine;
use crate::record::{VolumeDirectory, VolumeRecord};
use crate::refusal::Refusal;
use crate::remote::Remote;
use crate::shrinking::Cut;
use crate::store::Store;
use crate::threads::{DataThreads, off_thread};
use crate::tiers::Tiers;
use crate::unsettled::Unsettled;
use crate::volumes::ATTEMPT;

/// A volume, served or not.
pub(crate) struct Volume {
    pub(crate) name: Name,
    /// Absent only where the record itself is damaged.
    record: Mutex<Option<Arc<VolumeRecord>>>,
    pub(crate) directory: VolumeDirectory,
    pub(crate) condition: Condition,
    /// Held shared by whatever changes the volume's snapshots, exclusively by what ends the volume.
    pub(crate) gate: RwLock<()>,
    /// Set under the gate: whoever waited for it changes nothing any more.
    closed: AtomicBool,
    /// Held by whoever copies the names of the snapshots.
    copying: Mutex<()>,
    host_sessions: AtomicU64,
    readers: Mutex<BTreeMap<SnapshotId, u64>>,
    movers: Mutex<BTreeSet<SnapshotId>>,
    /// Told of each client that leaves.
    left: Notify,
    pub(crate) unsettled: Unsettled,
}

/// How long a client that has said goodbye is waited for: it may be gone, and its connection not yet closed on this side.
const FAREWELL: Duration = Duration::from_millis(500);

/// Whether a volume is served.
pub(crate) enum Condition {
    Serving(Box<Serving>),
    Failed(Box<str>),
}

/// What is open while a volume is served.
pub(crate) struct Serving {
    pub(crate) engine: Arc<Engine>,
    /// The base's locked open files. For looking at them, and for others' separate opens of them; never handed out themselves.
    pub(crate) base: OpenBase,
    /// What its originals are in.
    pub(crate) tiers: Tiers,
    /// How fast the cache fills up.
    pub(crate) filling: Arc<Filling>,
    /// How far originals are saved ahead.
    pub(crate) ahead: Arc<Ahead>,
    /// What is missing of the base since it was found to have lost a part.
    pub(crate) lost: OnceLock<Cut>,
    /// Which broken snapshots the log has.
    pub(crate) told: Told,
    /// Why no snapshot can be taken, where that is so.
    no_room: Option<Box<str>>,
    pub(crate) notices: Vec<String>,
    maintenance: Maintenance,
}

impl Volume {
    fn new(name: Name, record: Option<VolumeRecord>, directory: VolumeDirectory, condition: Condition) -> Self {
        let unsettled = Unsettled::of(&directory);
        Self {
            name,
            record: Mutex::new(record.map(Arc::new)),
            directory,
            condition,
            gate: RwLock::new(()),
            closed: AtomicBool::new(false),
            copying: Mutex::default(),
            host_sessions: AtomicU64::new(0),
            readers: Mutex::default(),
            movers: Mutex::default(),
            left: Notify::new(),
            unsettled,
        }
    }

    /// A volume that cannot be served.
    pub(crate) fn failed(
        name: Name,
        record: Option<VolumeRecord>,
        directory: VolumeDirectory,
        why: impl std::fmt::Display,
    ) -> Self {
        Self::new(name, record, directory, Condition::Failed(sentence(why).into()))
    }

    /// Opens the engine on an open base, and brings the record up to date.
    pub(crate) async fn open(
        threads: &Arc<DataThreads>,
        opening: &Opening,
        directory: VolumeDirectory,
        record: VolumeRecord,
        base: OpenBase,
        patience: Patience,
    ) -> Result<Self, Refusal> {
        let (theirs, left) = (directory.clone(), record.clone());
        let (base, compared) = off_thread(move || {
            let compared = opening::compare(&left, theirs.clean_stop().as_ref(), &base);
            compared.map(|compared| (base, compared))
        })
        .await?;
        let components = opening::components_of(&base, &record.name, record.grain)?;
        let ready = opening::make_ready(threads, opening, &directory, &record, &components, patience).await?;
        let mut notices = ready.notices.clone();
        let open = || opening::open_engine(threads, opening, &directory, &record, &base, &ready, compared.changed);
        let engine = match open().await {
            Err(refusal) if !record.is_new() => {
                notices.push(opening::begin_anew(threads, opening, &directory, &record, &components, refusal).await?);
                open().await?
            }
            other => other?,
        };
        let limit = match ready.store {
            Store::File(_) => record.cache_limit,
            Store::Export(_) => Some(opening::store_limit(&record, &ready)),
        };
        let place = directory.cache(&record);
        let bases = base.components.iter().map(|component| component.identity()).collect();
        let found = opening::Found { bases, cache: ready.known, is_other: compared.is_other };
        let (theirs, has_room) = (directory.clone(), ready.no_room.is_none());
        let (record, more) = off_thread(move || opening::put_on_record(&theirs, record, found, has_room)).await?;
        notices.extend(more);
        let unsettled = Unsettled::of(&directory);
        unsettled.sweep(threads, &engine, &directory).await;
        let filling = Arc::default();
        let ahead = Arc::default();
        let maintenance =
            Maintenance::start(threads, &engine, &filling, record.save_ahead.map(|rate| (rate, Arc::clone(&ahead))));
        let (lost, no_room, told) = (OnceLock::new(), ready.no_room, Told::default());
        let memory_bytes = ready.options.first_tier.bytes;
        let tiers = Tiers { memory: ready.memory, memory_bytes, store: ready.store, place, limit };
        let serving =
            Box::new(Serving { engine, base, tiers, filling, ahead, lost, told, no_room, notices, maintenance });
        let opened = Self::new(record.name.clone(), Some(record), directory, Condition::Serving(serving));
        Ok(Self { unsettled, ..opened })
    }

    /// Lets nobody close the volume as long as the guard lives.
    ///
    /// # Errors
    /// When it is being opened, removed or closed, or was.
    pub(crate) fn enter(&self) -> Result<RwLockReadGuard<'_, ()>, Refusal> {
        let guard = self.gate.try_read().map_err(|_| Refusal::BeingChanged(self.name.clone()))?;
        self.unless_closed(guard)
    }

    /// [`Self::enter`] that waits, for threads that may. Blocking.
    ///
    /// # Errors
    /// When the volume was closed, meanwhile too.
    pub(crate) fn enter_blocking(&self) -> Result<RwLockReadGuard<'_, ()>, Refusal> {
        self.unless_closed(self.gate.blocking_read())
    }

    /// Lets nobody else in.
    ///
    /// # Errors
    /// When somebody is, and does not leave at once.
    pub(crate) async fn enter_alone(&self) -> Result<RwLockWriteGuard<'_, ()>, Refusal> {
        let gate = match &self.condition {
            Condition::Serving(_) => self.gate.try_write().ok(),
            // An attempt to open it may be under way.
            Condition::Failed(_) => tokio::time::timeout(ATTEMPT, self.gate.write()).await.ok(),
        };
        gate.ok_or_else(|| Refusal::BeingChanged(self.name.clone()))
    }

    fn unless_closed<'a>(&'a self, guard: RwLockReadGuard<'a, ()>) -> Result<RwLockReadGuard<'a, ()>, Refusal> {
        if self.closed.load(Ordering::Acquire) { Err(Refusal::Closed(self.name.clone())) } else { Ok(guard) }
    }

    /// Refuses where originals have no place to go.
    pub(crate) fn refuse_without_room(&self) -> Result<(), Refusal> {
        match &self.serving()?.no_room {
            Some(reason) => Err(Refusal::NoPlace(reason.clone())),
            None => Ok(()),
        }
    }

    /// How often servers of the base may have lost changes that they had acknowledged.
    pub(crate) fn losses(&self) -> u64 {
        let bases = self.serving().map(|serving| &serving.base.components[..]).unwrap_or_default();
        bases.iter().map(|component| component.losses()).sum()
    }

    /// Makes sure that a snapshot's T0 outlives a crash of a server that the base is at: the changes before it are made durable there. A local
    /// base has no need of that: when its machine dies, so do its snapshots. `before` are the [`Self::losses`] before T0.
    ///
    /// # Errors
    /// When they may be lost: the snapshot is none then, and is to be deleted.
    pub(crate) async fn settle(&self, threads: &DataThreads, id: SnapshotId, before: u64) -> Result<(), Refusal> {
        match self.settling(threads, id, before) {
            None => Ok(()),
            Some(settled) => self.unless_unsettled(settled.await),
        }
    }

    /// [`Self::settle`] for threads that may block.
    pub(crate) fn settle_blocking(&self, threads: &DataThreads, id: SnapshotId, before: u64) -> Result<(), Refusal> {
        match self.settling(threads, id, before) {
            None => Ok(()),
            Some(settled) => self.unless_unsettled(settled.blocking_recv()),
        }
    }

    fn settling(&self, threads: &DataThreads, id: SnapshotId, before: u64) -> Option<Receiver<io::Result<()>>> {
        let serving = self.serving().ok()?;
        let remotes: Vec<Remote> = serving.base.components.iter().filter_map(|base| base.remote().cloned()).collect();
        let engine = Arc::clone(&serving.engine);
        (!remotes.is_empty()).then(|| {
            threads.run(move || async move {
                engine.settled(id).await;
                for remote in &remotes {
                    remote.device().settle().await.map_err(io::Error::other)?;
                }
                let losses: u64 = remotes.iter().map(|remote| remote.device().losses()).sum();
                if losses == before { Ok(()) } else { Err(io::Error::other("its connection broke meanwhile")) }
            })
        })
    }

    fn unless_unsettled(&self, settled: Result<io::Result<()>, RecvError>) -> Result<(), Refusal> {
        let settled = settled.map_err(|_| Refusal::Stopping)?;
        settled.map_err(|source| Refusal::Unsettled { volume: self.name.clone(), source })
    }

    /// Copies the names of the snapshots, in case their table is lost. Blocking.
    pub(crate) fn copy_snapshots(&self) {
        let _copying = self.copying.lock().expect("nothing panics under this lock");
        if let Err(error) = self.directory.copy_snapshots() {
            tracing::warn!(volume = %self.name, "the names of the snapshots cannot be copied: {error}");
        }
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
        self.record().map(|record| record.id.clone()).unwrap_or_default()
    }

    /// What is remembered of it.
    pub(crate) fn record(&self) -> Option<Arc<VolumeRecord>> {
        self.record.lock().expect("nothing panics under this lock").clone()
    }

    /// Another record is written.
    pub(crate) fn put_record(&self, record: VolumeRecord) {
        *self.record.lock().expect("nothing panics under this lock") = Some(Arc::new(record));
    }

    /// All snapshots, the oldest first, whether the volume is served or not. Blocking.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotInfo> {
        match (&self.condition, self.record()) {
            (Condition::Serving(serving), _) => serving.engine.snapshots(),
            (Condition::Failed(_), Some(record)) => dormant::snapshots(&self.directory, id_bytes(&record.id)),
            (Condition::Failed(_), None) => Vec::new(),
        }
    }

    /// The snapshot of this name, whether the volume is served or not. Blocking.
    pub(crate) fn any_snapshot(&self, name: &Name) -> Result<SnapshotInfo, Refusal> {
        let found = self.snapshots().into_iter().find(|info| info.name == name.as_str());
        found.ok_or_else(|| self.no_snapshot(name))
    }

    /// The snapshot of this name, of a volume that is served.
    pub(crate) fn snapshot(&self, name: &Name) -> Result<SnapshotInfo, Refusal> {
        self.serving()?.engine.snapshot(name.as_str()).ok_or_else(|| self.no_snapshot(name))
    }

    fn no_snapshot(&self, name: &Name) -> Refusal {
        Refusal::NoSnapshot(SnapshotPath { volume: self.name.clone(), snapshot: name.clone() })
    }

    /// Makes everything durable and records a clean stop. With the gate held exclusively; nobody may use the volume any more.
    ///
    /// # Errors
    /// Why no clean stop is on record. Requests of the host that still run are one reason: what they write after the record would belie it.
    pub(crate) async fn close(self: &Arc<Self>, threads: &DataThreads) -> Result<(), Refusal> {
        self.closed.store(true, Ordering::Release);
        let Condition::Serving(serving) = &self.condition else { return Ok(()) };
        serving.maintenance.end().await;
        if self.host_sessions.load(Ordering::Acquire) > 0 {
            return Err(Refusal::StillRunning(self.name.clone()));
        }
        let theirs = Arc::clone(self);
        off_thread(move || theirs.tell_of_breaks()).await;
        let failed = |source| Refusal::Close { volume: self.name.clone(), source };
        let engine = Arc::clone(&serving.engine);
        self.hear_of_losses(threads).await;
        let closed = threads.run(move || async move { engine.close().await }).await;
        closed.map_err(|_| failed(io::ErrorKind::Interrupted.into()))?.map_err(failed)?;
        let closed = Arc::clone(self);
        off_thread(move || closed.record_clean_stop()).await.map_err(failed)
    }

    /// Has a server of the base say what it may have lost, where the host never asked: that is no reason not to stop cleanly. What nobody had
    /// flushed nobody was promised, and snapshots have no need of it.
    async fn hear_of_losses(&self, threads: &DataThreads) {
        let Ok(serving) = self.serving() else { return };
        if serving.base.components.iter().all(|component| component.losses() == 0) {
            return;
        }
        let engine = Arc::clone(&serving.engine);
        let flushed = threads.run(move || async move { engine.base().flush().await }).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(volume = %self.name, "{error}; nobody had asked for them to be durable");
        }
    }

    /// Puts on record what the base looks like. Blocking.
    fn record_clean_stop(&self) -> io::Result<()> {
        self.look_closely_at_base();
        // What a base has lost is on record already.
        let Ok(serving) = self.whole() else { return Ok(()) };
        if let Some(record) = self.record() {
            serving.tiers.put_by(record.name.as_str(), id_bytes(&record.id), &self.directory, &serving.engine);
        }
        let clean = serving.base.look().map_err(io::Error::other)?;
        if let Err(error) = self.directory.record_clean_stop(Some(&clean)) {
            // The next start then knows less of what happens to the base until then.
            tracing::warn!(volume = %self.name, "what the base looks like cannot be recorded: {error}");
        }
        Ok(())
    }

    /// Says on the export that held its originals that nobody needs it any more. Of a volume that is removed. Blocking.
    pub(crate) fn release_export(&self) {
        let Ok(Serving { tiers: Tiers { store: Store::Export(remote), place, .. }, .. }) = self.serving() else {
            return;
        };
        if let Err(error) = claim::release(remote) {
            tracing::warn!(volume = %self.name, "the claim on {place} stays, and keeps other volumes off it: {error}");
        }
    }

    /// How many clients are connected.
    pub(crate) fn connections(&self) -> u64 {
        let readers: u64 = self.readers.lock().expect("nothing panics under this lock").values().sum();
        self.host_sessions.load(Ordering::Acquire) + readers
    }

    /// Refuses while clients are connected.
    pub(crate) fn refuse_clients(&self) -> Result<(), Refusal> {
        match self.connections() {
            0 => Ok(()),
            count => Err(Refusal::HasClients { volume: self.name.clone(), count }),
        }
    }

    /// Refuses while clients are connected, but for those that leave at this moment.
    pub(crate) async fn without_clients(&self) -> Result<(), Refusal> {
        let gone = async {
            loop {
                let left = self.left.notified();
                if self.connections() == 0 {
                    return;
                }
                left.await;
            }
        };
        let _ = timeout(FAREWELL, gone).await;
        self.refuse_clients()
    }

    /// Refuses while movers are at work.
    pub(crate) fn refuse_movers(&self) -> Result<(), Refusal> {
        let movers = self.movers.lock().expect("nothing panics under this lock");
        if movers.is_empty() { Ok(()) } else { Err(Refusal::HasMovers(self.name.clone())) }
    }

    /// How many clients read a snapshot's view.
    pub(crate) fn readers_of(&self, snapshot: SnapshotId) -> u64 {
        self.readers.lock().expect("nothing panics under this lock").get(&snapshot).copied().unwrap_or(0)
    }

    /// Notes a client, of the host or of a snapshot's view, until the value is dropped.
    pub(crate) fn used(self: &Arc<Self>, snapshot: Option<SnapshotId>) -> Use {
        match snapshot {
            None => drop(self.host_sessions.fetch_add(1, Ordering::AcqRel)),
            Some(id) => *self.readers.lock().expect("nothing panics under this lock").entry(id).or_default() += 1,
        }
        Use { volume: Arc::clone(self), snapshot }
    }

    /// Notes the one consumer of a snapshot that releases, until the value is dropped; `None` if it has one.
    pub(crate) fn used_alone(self: &Arc<Self>, snapshot: SnapshotId) -> Option<Use> {
        let mut readers = self.readers.lock().expect("nothing panics under this lock");
        if readers.contains_key(&snapshot) || self.has_mover(snapshot) {
            return None;
        }
        readers.insert(snapshot, 1);
        drop(readers);
        Some(Use { volume: Arc::clone(self), snapshot: Some(snapshot) })
    }

    /// Notes a mover of a snapshot until the value is dropped; `None` if there is one already, or, where it has to be the only one that
    /// reads the snapshot, somebody else does.
    pub(crate) fn moved(self: &Arc<Self>, snapshot: SnapshotId, alone: bool) -> Option<Lease> {
        let readers = self.readers.lock().expect("nothing panics under this lock");
        if alone && readers.contains_key(&snapshot) {
            return None;
        }
        let new = self.movers.lock().expect("nothing panics under this lock").insert(snapshot);
        drop(readers);
        new.then(|| Lease { volume: Arc::clone(self), snapshot })
    }

    /// Whether a mover is copying the snapshot.
    pub(crate) fn has_mover(&self, snapshot: SnapshotId) -> bool {
        self.movers.lock().expect("nothing panics under this lock").contains(&snapshot)
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

impl Volume {
    /// Whether others may open a view of the snapshot: it stands, its T0 is certain, and it is no backup's own (R16).
    pub(crate) fn is_surfaced(&self, info: &SnapshotInfo) -> bool {
        let is_users = !info.private && !is_private(&info.name);
        is_users && info.state == SnapshotState::Live && !self.unsettled.has(&info.name)
    }
}

/// A client's use of a volume.
pub(crate) struct Use {
    volume: Arc<Volume>,
    snapshot: Option<SnapshotId>,
}

impl Drop for Use {
    fn drop(&mut self) {
        match self.snapshot {
            None => drop(self.volume.host_sessions.fetch_sub(1, Ordering::AcqRel)),
            Some(id) => {
                let mut readers = self.volume.readers.lock().expect("nothing panics under this lock");
                if let Some(count) = readers.get_mut(&id) {
                    *count -= 1;
                    if *count == 0 {
                        readers.remove(&id);
                    }
                }
            }
        }
        self.volume.left.notify_waiters();
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
