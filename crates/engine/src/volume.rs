//! A volume: the host's base, its snapshots, and what they need.
//!
//! # Invariants
//! 1. INV-2: an original and its locator are saved before the update is visible on the base.
//! 2. INV-10: what a snapshot suffers never becomes the host's error; the two have different types.
//! 3. Locks, outermost first: volume, a shard of the index, snapshots, a released set, space of the cache. None is held over an `await`.
//!
//! What may happen together, and what makes it safe:
//!
//! | | host change | view read | create | release | delete | grow |
//! |---|---|---|---|---|---|---|
//! | **host change** | claims per grain | entry before base write, look-up after base read | tag and straddlers | bits cleared after the record | a wasted save is freed by whoever comes second | bits before the size; a save is cut once |
//! | **view read** | | none needed | views start after straddlers | last check | last check | a snapshot keeps its size |
//! | **create** | | | volume's lock | volume's lock | volume's lock | volume's lock |
//! | **release** | | | | volume's lock for bits, shard for entries | sweep and release both ask the snapshots | cut by the snapshot's size |
//! | **grow** | | | | | no matter | volume's lock |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::{Notify, Storage};
use tzero_originals::{
    BrokenReason, Components, FirstTier, Grains, MapError, MapShape, OriginalCache, OriginalsUse, RecordState,
    SnapshotId, SnapshotTable, TableError,
};

use crate::admission::Admission;
use crate::commit::Commits;
use crate::confirm::Confirming;
use crate::control::ReleasedLog;
use crate::first::within;
use crate::ladder::Movers;
use crate::pending::{NoMemory, Pending};
use crate::platform::Platform;
use crate::reuse::Delivered;
use crate::save::{BadOriginals, SavedAhead};
use crate::snapshots::{Snapshot, SnapshotInfo, Snapshots};

pub(crate) type StateOf<P> = <<P as Platform>::Storage as Storage>::Mapping;

/// What originals outlive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The process.
    #[default]
    Process,
    /// A loss of power, too: what is acknowledged is durable in the cache by then (group commit), and a mark before an error is served.
    Power,
}

/// What is fixed about a volume.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// Its name: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Stable id.
    pub id: [u8; 16],
    /// Grain in bytes: a power of two from 512 to 1 MiB.
    pub grain: u32,
    /// What the base is made of, in order.
    pub components: Components,
    /// Id of the machine's running boot.
    pub boot_id: [u8; 16],
    /// The base is not what it was when the daemon stopped: no snapshot can be right.
    pub base_changed: bool,
    /// What its originals outlive; always the same for one volume.
    pub durability: Durability,
    /// How large a new modified map is.
    pub map_shape: MapShape,
    /// What the cache is like.
    pub cache: CacheOptions,
}

/// What the cache of a volume is like.
#[derive(Clone, Debug, Default)]
pub struct CacheOptions {
    /// Its first tier.
    pub first_tier: FirstTier,
    /// Stretches of it, in bytes, that do not hold what was saved there any more: whoever needs an original from there breaks.
    pub lost: Vec<ByteRange>,
}

/// Why a volume cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The grain is not allowed.
    Grain,
    /// The modified map.
    Map(MapError),
    /// The snapshot table.
    Table(TableError),
    /// The state cannot be read or written.
    State(std::io::Error),
    /// There is no memory for the bits of its grains.
    Memory(NoMemory),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grain => f.write_str("the grain must be a power of two from 512 bytes to 1 MiB"),
            Self::Map(source) => source.fmt(f),
            Self::Table(source) => source.fmt(f),
            Self::State(source) => write!(f, "the volume's state cannot be used: {source}"),
            Self::Memory(source) => source.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Grain => None,
            Self::Map(source) => Some(source),
            Self::Table(source) => Some(source),
            Self::State(source) => Some(source),
            Self::Memory(source) => Some(source),
        }
    }
}

/// Why something about a snapshot cannot be done. Never a host's error (INV-10).
#[derive(Debug)]
pub enum SnapshotError {
    /// There is none of this name or id.
    Unknown,
    /// The name is taken.
    Taken,
    /// The name is not allowed.
    Name,
    /// There are as many as can be.
    TooMany,
    /// It is broken, ended or being deleted.
    NotLive,
    /// The scope is empty, or not within the volume.
    Scope,
    /// The state cannot be written.
    State(std::io::Error),
    /// The state cannot be made durable.
    NotDurable(std::io::Error),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("there is no such snapshot"),
            Self::Taken => f.write_str("there is a snapshot of this name already"),
            Self::Name => f.write_str("a name has 1 to 64 letters, digits, '-', '_' or '.'"),
            Self::TooMany => f.write_str("the volume has as many snapshots as it can have"),
            Self::NotLive => f.write_str("the snapshot is broken or has ended"),
            Self::Scope => f.write_str("a scope must be parts of the volume that are not empty"),
            Self::State(source) => write!(f, "the snapshot's state cannot be written: {source}"),
            Self::NotDurable(source) => write!(f, "the snapshot's state cannot be made durable: {source}"),
        }
    }
}

impl std::error::Error for SnapshotError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::State(source) | Self::NotDurable(source) => Some(source),
            _ => None,
        }
    }
}

/// What opening a volume found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The snapshots that stand or are broken.
    pub snapshots: Vec<SnapshotInfo>,
    /// Originals that were found and are needed.
    pub originals: u64,
    /// Entries that did not fit their checksum.
    pub damaged: usize,
}

/// Figures of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The cache and the map.
    pub originals: OriginalsUse,
    /// Snapshots that are not deleted.
    pub snapshots: usize,
    /// Grains being saved now.
    pub saving: usize,
}

/// A line of [`Volume::map_lines`]: one saved grain (R17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLine {
    /// Component of the volume.
    pub unit: u32,
    /// First 512-byte block, within the component.
    pub block: u64,
    /// Whether it was consumed.
    pub read: bool,
    /// Byte offset in the cache; none for holes and bad originals.
    pub cache_offset: Option<u64>,
}

/// A volume that is served.
pub struct Volume<P: Platform> {
    pub(crate) platform: P,
    pub(crate) base: P::Base,
    pub(crate) storage: P::Storage,
    pub(crate) name: String,
    pub(crate) boot_id: [u8; 16],
    /// How it is cut, over no matter how many bytes: see [`Self::grains`].
    pub(crate) cut: Grains,
    /// Bytes that it has. Only grows, under the volume's lock.
    pub(crate) size: AtomicU64,
    pub(crate) table: SnapshotTable<StateOf<P>>,
    pub(crate) originals: OriginalCache<StateOf<P>, P::Cache>,
    pub(crate) snapshots: Snapshots,
    pub(crate) admission: Admission,
    pub(crate) pending: Pending,
    /// The volume's lock: grains that are being saved.
    pub(crate) claims: Mutex<BTreeSet<u64>>,
    /// Logs of released ranges, once they are open. No host change ever waits for them.
    pub(crate) released_logs: Mutex<BTreeMap<SnapshotId, Arc<ReleasedLog<StateOf<P>>>>>,
    pub(crate) durability: Durability,
    /// Saves on their way to be durable.
    pub(crate) commits: Commits,
    /// What is to be known of the base before snapshots outlive a loss of power.
    pub(crate) confirming: Confirming,
    /// Most bytes of originals that there was room for when somebody looked last.
    pub(crate) most_used: AtomicU64,
    /// See [`Self::bad_originals`].
    pub(crate) bad: Mutex<BadOriginals>,
    /// See [`Self::uncleared`].
    pub(crate) uncleared: Mutex<BTreeSet<u32>>,
    /// See [`Self::saved_ahead`].
    pub(crate) ahead: SavedAhead,
    /// A snapshot has broken.
    pub(crate) broke: Notify,
    /// Until then, in monotonic nanoseconds, saves fail at once because the cache hangs.
    pub(crate) cache_hangs_until: AtomicU64,
    /// What consumers of `release` snapshots have had.
    pub(crate) delivered: Delivered,
    /// How many movers are at work.
    pub(crate) movers: Movers,
    /// Slots of the cache were freed, or a mover has gone.
    pub(crate) freed: Notify,
}

impl<P: Platform> Volume<P> {
    /// Name, as in [`VolumeOptions`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    /// Grain in bytes.
    pub fn grain(&self) -> u64 {
        self.cut.grain()
    }

    /// How it is cut now.
    pub(crate) fn grains(&self) -> Grains {
        self.cut.over(self.size())
    }

    /// The base that the host's bytes are on.
    pub fn base(&self) -> &P::Base {
        &self.base
    }

    /// Where originals are.
    pub fn cache(&self) -> &P::Cache {
        self.originals.device()
    }

    /// What it stands on.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// All snapshots, the oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.snapshots.all().iter().map(|snapshot| snapshot.info()).collect()
    }

    /// The snapshot of this name.
    pub fn snapshot(&self, name: &str) -> Option<SnapshotInfo> {
        self.snapshots.find(|snapshot| snapshot.name == name).map(|snapshot| snapshot.info())
    }

    /// The snapshot of this id.
    pub fn snapshot_by_id(&self, id: SnapshotId) -> Option<SnapshotInfo> {
        self.snapshots.find(|snapshot| snapshot.id == id).map(|snapshot| snapshot.info())
    }

    /// Waits until the straddlers of a snapshot's T0 have landed: from then on the base may be read by others.
    pub async fn settled(&self, id: SnapshotId) {
        if let Some(snapshot) = self.snapshots.find(|snapshot| snapshot.id == id) {
            self.admission.landed(ByteRange::new(0, self.grains().size()), snapshot.epoch).await;
        }
    }

    /// The originals that a snapshot resolves to, by block.
    ///
    /// # Errors
    /// When there is no such snapshot.
    pub fn map_lines(&self, name: &str) -> Result<Vec<MapLine>, SnapshotError> {
        let snapshot = self.snapshots.find(|snapshot| snapshot.name == name).ok_or(SnapshotError::Unknown)?;
        Ok(self.map_of(&snapshot))
    }

    fn map_of(&self, snapshot: &Snapshot) -> Vec<MapLine> {
        let mut lines: Vec<MapLine> = Vec::new();
        let mut last = None;
        for (grain, entry) in self.originals.all() {
            let serves = entry.tag >= snapshot.epoch && last != Some(grain) && snapshot.needs(self.grains(), grain);
            if serves && snapshot.end.get().is_none_or(|end| entry.sequence <= *end) {
                last = Some(grain);
                let (unit, within) = self.originals.components().place(entry.offset);
                lines.push(MapLine {
                    unit,
                    block: within / 512,
                    read: entry.state == tzero_originals::EntryState::Read,
                    cache_offset: match entry.payload {
                        tzero_originals::Payload::Stored { offset, .. } => Some(offset),
                        _ => None,
                    },
                });
            }
        }
        lines
    }

    /// Figures of now.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            originals: self.originals.usage(),
            snapshots: self.snapshots.all().len(),
            saving: self.lock().len(),
        }
    }

    /// Where the payloads lie that are in the first so many bytes of the cache, and how long each is, ascending. Goes through all originals.
    pub fn stored_before(&self, end: u64) -> Vec<(u64, u32)> {
        let place = |(_, entry): (_, tzero_originals::Entry)| match entry.payload {
            tzero_originals::Payload::Stored { offset, .. } if offset < end => Some((offset, entry.len)),
            _ => None,
        };
        let parts = 0..OriginalCache::<StateOf<P>, P::Cache>::parts();
        let mut places: Vec<_> = parts.flat_map(|part| self.originals.entries_of(part)).filter_map(place).collect();
        places.sort_unstable();
        places
    }

    /// Makes everything durable and records a clean stop. No session may change anything any more.
    ///
    /// # Errors
    /// When a device fails: the stop is then not clean.
    pub async fn close(&self) -> Result<(), std::io::Error> {
        let failed = |error: tzero_block::Error| std::io::Error::other(error);
        if self.platform.planted(crate::Planted::CleanStopBeforeSync) {
            self.table.set_boot(self.boot_id, true)?;
            self.table.sync()?;
        }
        self.flush_base().await.map_err(failed)?;
        self.cache().flush().await.map_err(failed)?;
        self.originals.sync_map()?;
        for snapshot in self.snapshots.all() {
            for name in [released_name(snapshot.id), crate::scope::name(snapshot.id)] {
                if self.storage.exists(&name)? {
                    tzero_io::Mapping::sync(&self.storage.open(&name, 0)?)?;
                }
            }
        }
        self.mark_broken().await?;
        self.table.sync()?;
        self.storage.sync()?;
        if self.confirming.is_in_doubt() {
            return Err(std::io::Error::other("a flush of the base has failed since the machine was started"));
        }
        self.platform.point(crate::Point::CloseSynced).await;
        self.table.set_boot(self.boot_id, true)?;
        self.table.sync()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.claims.lock().expect("nothing panics under the volume's lock")
    }

    /// Marks a snapshot, which is not deleted, broken: on record, and no more. Under the volume's lock. Nothing is to rely on it before
    /// [`Self::break_marked`] has returned: it goes on being saved for.
    ///
    /// The mark needs no space. Where stores go through `pwrite` it can fail all the same; then the witness goes, which takes only a
    /// removal, and the mark is tried again. Without its witness no snapshot is believed after a death.
    pub(crate) fn mark(&self, snapshot: &Snapshot, reason: BrokenReason, at: u64) {
        if snapshot.doomed.get().is_some() {
            return;
        }
        // A record that is being cleared may not come back.
        if !snapshot.leaving.load(Ordering::Acquire)
            && self.table.set_state(snapshot.slot, RecordState::Broken(reason), at).is_err()
        {
            self.lose_mark(snapshot);
        }
        let _ = snapshot.doomed.set((reason, at));
    }

    /// A mark is not on record, or not certain to be.
    pub(crate) fn lose_mark(&self, snapshot: &Snapshot) {
        let forgotten = self.platform.planted(crate::Planted::LostMarkForgotten);
        snapshot.unmarked.store(!forgotten, Ordering::Release);
        let _ = if forgotten { Ok(()) } else { self.storage.remove(WITNESS) };
        self.platform.observe(crate::Event::MarkLost { id: snapshot.id });
    }

    /// Marked snapshots are broken for everybody from now on. With `durability = power` the marks are durable first, as far as that can be had.
    pub(crate) async fn break_marked(&self, marked: &[Arc<Snapshot>]) {
        if self.durability == Durability::Power && !marked.is_empty() && !self.marks_durable(marked).await {
            let _claims = self.lock();
            marked.iter().for_each(|snapshot| self.lose_mark(snapshot));
        }
        let _claims = self.lock();
        for snapshot in marked {
            let Some((reason, at)) = snapshot.doomed.get().copied() else { continue };
            if snapshot.broken.set((reason, at)).is_ok() {
                self.platform.observe(crate::Event::Broken { id: snapshot.id, reason });
                self.broke.notify_all();
            }
        }
        if !self.snapshots.any_live() {
            self.pending.disarm();
        }
    }

    /// Makes the marks durable, one way or the other, again and again for twice as long as a save may take: each of the two may hang for as long.
    /// `false`: both the state's place and the cache have refused all that time.
    async fn marks_durable(&self, marked: &[Arc<Snapshot>]) -> bool {
        if self.platform.planted(crate::Planted::MarkNotDurable) {
            return true;
        }
        let limit = self.platform.longest_save();
        let tries = async {
            while !self.try_marks_durable(marked).await {
                self.platform.sleep(limit / MARK_TRIES).await;
            }
        };
        within(tries, self.platform.sleep(2 * limit)).await.is_some()
    }

    /// Makes the marks durable: in the table, or that they are not there; where that fails or takes too long, by a word in the cache that no
    /// snapshot is to be believed after a loss of power.
    async fn try_marks_durable(&self, marked: &[Arc<Snapshot>]) -> bool {
        let limit = self.platform.longest_save();
        let missing = marked.iter().any(|snapshot| snapshot.unmarked.load(Ordering::Acquire));
        let said = async {
            if !missing {
                return self.table.durable().await.is_ok();
            }
            // The witness tells of the missing marks by not being there.
            matches!(self.storage.exists(WITNESS), Ok(false)) && self.storage.names_durable().await.is_ok()
        };
        if within(said, self.platform.sleep(limit)).await == Some(true) {
            return true;
        }
        let Some(recording) = self.originals.recording() else { return false };
        let voided = within(recording.area.store(self.cache(), true), self.platform.sleep(limit)).await;
        let voided = matches!(voided, Some(Ok(())));
        if voided {
            self.platform.observe(crate::Event::MarkedInCache);
        }
        voided
    }

    /// Puts on record which snapshots are broken, or gone, where that failed when they broke, or went.
    pub(crate) async fn mark_broken(&self) -> std::io::Result<()> {
        self.mark_missing()?;
        if self.storage.exists(WITNESS)? {
            return Ok(());
        }
        // What the witness says must not be older than it.
        if self.durability == Durability::Power {
            self.table.durable().await?;
        }
        // Only if nobody has lost a mark meanwhile: the volume's lock is held where one is lost.
        let _claims = self.lock();
        let marked = self.snapshots.all().iter().all(|snapshot| !snapshot.unmarked.load(Ordering::Acquire));
        if marked && self.uncleared().is_empty() {
            self.storage.open(WITNESS, WITNESS_LEN)?;
        }
        Ok(())
    }

    fn mark_missing(&self) -> std::io::Result<()> {
        for snapshot in self.snapshots.all() {
            if let Some((reason, at)) = snapshot.broken.get()
                && snapshot.unmarked.load(Ordering::Acquire)
            {
                let _claims = self.lock();
                // A record that is being cleared may not come back; where it is to stay after all, whoever puts it back puts this back.
                let leaving = snapshot.leaving.load(Ordering::Acquire);
                let revived = self.platform.planted(crate::Planted::MarkRevives);
                if !snapshot.deleted.load(Ordering::Acquire) && (!leaving || revived) {
                    self.table.set_state(snapshot.slot, RecordState::Broken(*reason), *at)?;
                }
                snapshot.unmarked.store(false, Ordering::Release);
            }
        }
        let _claims = self.lock();
        let mut uncleared = self.uncleared();
        while let Some(slot) = uncleared.first().copied() {
            self.table.clear(slot)?;
            uncleared.remove(&slot);
        }
        Ok(())
    }

    /// Slots of records that could not be cleared when their snapshots went. Nobody gets such a slot.
    pub(crate) fn uncleared(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.uncleared.lock().expect("nothing panics under this lock")
    }
}

/// So many times, about, it is tried to make marks durable.
const MARK_TRIES: u64 = 64;

/// A file that is there as long as every snapshot that broke is marked.
pub(crate) const WITNESS: &str = "marks-complete";
pub(crate) const WITNESS_LEN: u64 = 8;

/// Name of the record of what a snapshot has released.
pub(crate) fn released_name(id: SnapshotId) -> String {
    format!("released-{id}")
}
