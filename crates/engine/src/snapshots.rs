//! The snapshots that stand, in memory and on record.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use tzero_block::ByteRange;
use tzero_originals::{
    BrokenReason, Epoch, GrainIndex, Grains, OnFull, Originals, RangeSet, Record, RecordState, Sequence, SnapshotId,
    SnapshotRef,
};

/// A snapshot of a volume.
pub(crate) struct Snapshot {
    pub(crate) slot: u32,
    pub(crate) id: SnapshotId,
    pub(crate) name: String,
    pub(crate) epoch: Epoch,
    pub(crate) created_ns: u64,
    pub(crate) pause_ns: OnceLock<u64>,
    pub(crate) size: u64,
    pub(crate) originals: Originals,
    pub(crate) private: bool,
    /// What it is of; `None`: the whole volume.
    pub(crate) scope: Option<RangeSet>,
    /// What gives when the cache is full.
    pub(crate) on_full: OnFull,
    /// Ranges that are not needed: outside the scope from the beginning, later what was released, which is recorded before it comes here.
    pub(crate) released: RwLock<RangeSet>,
    /// Bytes outside the scope.
    outside_bytes: u64,
    /// It is marked broken on record; still saved for until nobody can find it unmarked any more.
    pub(crate) doomed: OnceLock<(BrokenReason, u64)>,
    pub(crate) broken: OnceLock<(BrokenReason, u64)>,
    /// It is broken and that is not on record yet.
    pub(crate) unmarked: AtomicBool,
    pub(crate) end: OnceLock<Sequence>,
    /// Its record is cleared; still saved for until that is durable.
    pub(crate) leaving: AtomicBool,
    pub(crate) deleted: AtomicBool,
    /// The base was flushed since the straddlers of its T0 had landed,
    pub(crate) flushed: AtomicBool,
    /// and that is on record.
    pub(crate) confirmed: AtomicBool,
    /// It is broken and its originals were freed.
    pub(crate) swept: AtomicBool,
    /// What a view could not show because an original is not in the cache as it was saved.
    damaged: Mutex<RangeSet>,
}

/// So many stretches of damage are remembered; of more it is said only that there are some.
const MOST_DAMAGED: usize = 4096;

impl Snapshot {
    /// `outside` is what a scope leaves out; see [`crate::scope::outside`].
    pub(crate) fn from_record(slot: u32, record: &Record, outside: RangeSet, scope: Option<RangeSet>) -> Self {
        let snapshot = Self {
            slot,
            id: record.id,
            name: record.name.clone(),
            epoch: record.epoch,
            created_ns: record.created_ns,
            pause_ns: if record.pause_ns == 0 { OnceLock::new() } else { OnceLock::from(record.pause_ns) },
            size: record.size,
            originals: record.originals,
            private: record.private,
            scope,
            on_full: record.on_full,
            outside_bytes: outside.bytes(),
            released: RwLock::new(outside),
            doomed: OnceLock::new(),
            broken: OnceLock::new(),
            unmarked: AtomicBool::new(false),
            end: OnceLock::new(),
            leaving: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
            flushed: AtomicBool::new(record.confirmed),
            confirmed: AtomicBool::new(record.confirmed),
            swept: AtomicBool::new(false),
            damaged: Mutex::default(),
        };
        match record.state {
            RecordState::Live => {}
            RecordState::Ended(sequence) => snapshot.end.set(sequence).expect("just made"),
            RecordState::Broken(reason) => snapshot.set_broken(reason, record.broken_at),
        }
        snapshot
    }

    /// It is broken, on record and for everybody.
    pub(crate) fn set_broken(&self, reason: BrokenReason, at: u64) {
        let _ = self.doomed.set((reason, at));
        let _ = self.broken.set((reason, at));
    }

    /// Whether it still reads originals: it stands unbroken, ended or not.
    pub(crate) fn holds(&self) -> bool {
        !self.deleted.load(Ordering::Acquire) && self.broken.get().is_none()
    }

    /// Whether its record says, or is about to say, that it does not stand.
    pub(crate) fn goes(&self) -> bool {
        !self.holds() || self.leaving.load(Ordering::Acquire) || self.doomed.get().is_some()
    }

    /// Whether updates are still saved for it.
    pub(crate) fn is_live(&self) -> bool {
        self.holds() && self.end.get().is_none()
    }

    pub(crate) fn has_released(&self, range: ByteRange) -> bool {
        self.may_leave_out() && self.released.read().expect("nothing panics under this lock").overlaps(range)
    }

    fn has_released_all(&self, range: ByteRange) -> bool {
        self.may_leave_out() && self.released.read().expect("nothing panics under this lock").contains(range)
    }

    fn may_leave_out(&self) -> bool {
        self.originals == Originals::Release || self.scope.is_some()
    }

    /// Whether it shows all of the range, as far as its scope goes.
    pub(crate) fn has_in_scope(&self, range: ByteRange) -> bool {
        self.scope.as_ref().is_none_or(|scope| range.is_empty() || scope.contains(range))
    }

    /// Adds what was released before a restart.
    pub(crate) fn add_released(&self, released: &RangeSet) {
        let mut all = self.released.write().expect("nothing panics under this lock");
        released.iter().for_each(|range| all.insert(range));
    }

    /// An original that it needs is not in the cache as it was saved.
    pub(crate) fn note_damaged(&self, range: ByteRange) {
        let mut damaged = self.damaged.lock().expect("nothing panics under this lock");
        if damaged.iter().count() < MOST_DAMAGED {
            damaged.insert(range);
        }
    }

    /// Whether its *needed* set has the grain.
    pub(crate) fn needs(&self, grains: Grains, grain: GrainIndex) -> bool {
        let range = grains.range(grain);
        range.start() < self.size && !self.has_released(range)
    }

    pub(crate) fn info(&self) -> SnapshotInfo {
        // As soon as it is marked, as in the table, which movers read. Until that is durable a loss of power may leave it standing, and right.
        let state = match (self.doomed.get(), self.end.get()) {
            (Some((reason, at)), _) => SnapshotState::Broken { reason: *reason, at: *at },
            (None, Some(up_to)) => SnapshotState::Ended { up_to: *up_to },
            (None, None) => SnapshotState::Live,
        };
        SnapshotInfo {
            id: self.id,
            slot: self.slot,
            name: self.name.clone(),
            epoch: self.epoch,
            created_ns: self.created_ns,
            pause_ns: self.pause_ns.get().copied().unwrap_or(0),
            size: self.size,
            originals: self.originals,
            private: self.private,
            state,
            scope: self.scope.as_ref().map(|scope| scope.iter().collect()),
            on_full: self.on_full,
            captured_bytes: self.released.read().expect("nothing panics under this lock").bytes() - self.outside_bytes,
            confirmed: self.confirmed.load(Ordering::Acquire),
            damaged_bytes: self.damaged.lock().expect("nothing panics under this lock").bytes(),
        }
    }
}

/// What a snapshot is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// It stands.
    Live,
    /// Its copy-on-write has ended.
    Ended {
        /// The last original that it retains.
        up_to: Sequence,
    },
    /// It is lost.
    Broken {
        /// Why.
        reason: BrokenReason,
        /// Byte offset of the grain whose original was lost; 0 where it was none.
        at: u64,
    },
}

/// All there is to know about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Stable id.
    pub id: SnapshotId,
    /// Slot of its record in the snapshot table.
    pub slot: u32,
    /// Name within its volume.
    pub name: String,
    /// Epoch that it began.
    pub epoch: Epoch,
    /// T0, nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// How long the host's requests could have been held at T0, in nanoseconds (R2).
    pub pause_ns: u64,
    /// Size of the volume at T0 in bytes.
    pub size: u64,
    /// Keeps or releases its originals.
    pub originals: Originals,
    /// Belongs to one copy and goes with it.
    pub private: bool,
    /// What it is now.
    pub state: SnapshotState,
    /// What it is of, ascending; `None`: the whole volume.
    pub scope: Option<Vec<ByteRange>>,
    /// What gives when the cache is full.
    pub on_full: OnFull,
    /// Bytes that its consumer has captured and it has released.
    pub captured_bytes: u64,
    /// It outlives a loss of power. Never where originals do not.
    pub confirmed: bool,
    /// Bytes of originals that were asked for and are not in the cache as they were saved (INV-11), since the volume was opened.
    pub damaged_bytes: u64,
}

impl SnapshotInfo {
    /// The snapshot as a mover is told of it.
    pub fn reference(&self) -> SnapshotRef {
        SnapshotRef { slot: self.slot, id: self.id, epoch: self.epoch }
    }
}

/// Those that are not deleted, by ascending epoch.
#[derive(Default)]
pub(crate) struct Snapshots(RwLock<Vec<Arc<Snapshot>>>);

impl Snapshots {
    pub(crate) fn new(mut all: Vec<Snapshot>) -> Self {
        all.sort_by_key(|snapshot| snapshot.epoch);
        Self(RwLock::new(all.into_iter().map(Arc::new).collect()))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Snapshot>> {
        self.0.read().expect("nothing panics under this lock").clone()
    }

    pub(crate) fn find(&self, matches: impl Fn(&Snapshot) -> bool) -> Option<Arc<Snapshot>> {
        self.0.read().expect("nothing panics under this lock").iter().find(|snapshot| matches(snapshot)).cloned()
    }

    pub(crate) fn push(&self, snapshot: Arc<Snapshot>) {
        self.0.write().expect("nothing panics under this lock").push(snapshot);
    }

    pub(crate) fn remove(&self, id: SnapshotId) {
        self.0.write().expect("nothing panics under this lock").retain(|snapshot| snapshot.id != id);
    }

    pub(crate) fn any_live(&self) -> bool {
        self.find(Snapshot::is_live).is_some()
    }

    /// Live snapshots of an epoch in `after < epoch <= up_to` that need the grain: those that a save with the tag `up_to` would serve
    /// when the newest original of the grain has the tag `after`.
    pub(crate) fn needing(
        &self,
        grains: Grains,
        grain: GrainIndex,
        after: Option<Epoch>,
        up_to: Epoch,
    ) -> Vec<Arc<Snapshot>> {
        self.0
            .read()
            .expect("nothing panics under this lock")
            .iter()
            .filter(|snapshot| is_between(snapshot.epoch, after, up_to))
            .filter(|snapshot| snapshot.is_live() && snapshot.needs(grains, grain))
            .cloned()
            .collect()
    }

    /// As [`Self::needing`], only whether there is one.
    pub(crate) fn any_needing(&self, grains: Grains, grain: GrainIndex, after: Option<Epoch>, up_to: Epoch) -> bool {
        self.0.read().expect("nothing panics under this lock").iter().any(|snapshot| {
            is_between(snapshot.epoch, after, up_to) && snapshot.is_live() && snapshot.needs(grains, grain)
        })
    }

    /// Whether no live snapshot needs a byte of the range, whatever is saved.
    pub(crate) fn none_needs_any(&self, range: ByteRange) -> bool {
        self.0.read().expect("nothing panics under this lock").iter().filter(|snapshot| snapshot.is_live()).all(
            |snapshot| {
                // Of a volume that has grown since: what is behind its end was never its own.
                let own = range.intersection(ByteRange::new(0, snapshot.size));
                own.is_none_or(|own| snapshot.has_released_all(own))
            },
        )
    }

    /// The snapshots that resolve to the original of a grain with this tag and sequence, the one before it having the tag `before`. Of
    /// what came after its end an ended snapshot has no use.
    pub(crate) fn resolving(
        &self,
        grains: Grains,
        grain: GrainIndex,
        before: Option<Epoch>,
        tag: Epoch,
        sequence: Sequence,
    ) -> Vec<Arc<Snapshot>> {
        let all = self.0.read().expect("nothing panics under this lock");
        all.iter().filter(|snapshot| resolves(snapshot, grains, grain, before, tag, sequence)).cloned().collect()
    }

    /// As [`Self::resolving`], only whether there is one.
    pub(crate) fn any_resolving(
        &self,
        grains: Grains,
        grain: GrainIndex,
        before: Option<Epoch>,
        tag: Epoch,
        sequence: Sequence,
    ) -> bool {
        let all = self.0.read().expect("nothing panics under this lock");
        all.iter().any(|snapshot| resolves(snapshot, grains, grain, before, tag, sequence))
    }
}

fn resolves(
    snapshot: &Snapshot,
    grains: Grains,
    grain: GrainIndex,
    before: Option<Epoch>,
    tag: Epoch,
    sequence: Sequence,
) -> bool {
    is_between(snapshot.epoch, before, tag)
        && snapshot.holds()
        && snapshot.end.get().is_none_or(|end| sequence <= *end)
        && snapshot.needs(grains, grain)
}

fn is_between(epoch: Epoch, after: Option<Epoch>, up_to: Epoch) -> bool {
    after.is_none_or(|after| after < epoch) && epoch <= up_to
}
