//! Which races were reached, and how often.
//!
//! Some are told by the engine's events, some are seen from outside: two requests of clients in flight at once. The table is
//! printed at the end of a run; a race that is hardly reached is a hole in the proof.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use tzero_block::ByteRange;
use tzero_engine::Event;
use tzero_originals::{BrokenReason, SnapshotId};

use crate::oracle::ChangeId;

macro_rules! races {
    ($($name:ident = $text:literal,)*) => {
        /// A race or edge case.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Race { $(#[doc = $text] $name,)* }

        impl Race {
            /// All of them.
            pub const ALL: &[Race] = &[$(Race::$name,)*];

            /// In words.
            pub const fn text(self) -> &'static str {
                match self { $(Race::$name => $text,)* }
            }
        }
    };
}

races! {
    ViewCaught = "first write published while a view reads the base: map looked up after",
    ViewRefused = "view refused at its last check",
    ViewOfReleased = "released range read again: an error, no bytes",
    SlotReused = "cache slot given out again",
    SlotReusedUnderReader = "cache slot given out again while a view or mover reads",
    TwoFirstWrites = "two first writes to one grain",
    Crossing = "multi-grain changes that overlap in two grains or more, in flight together",
    PartGrain = "change of a part of a grain while a snapshot stands",
    EndOfDevice = "change at the end of the device, in a short grain, while a snapshot stands",
    AcrossComponents = "change over the boundary of two components while a snapshot stands",
    TrimHeldBack = "trim over pending grains",
    ZeroesOverSnapshot = "write-zeroes while a snapshot stands",
    HoleLeft = "write-zeroes over a hole: nothing saved",
    Straddler = "T0 with changes in flight",
    SaveWaitedForStraddler = "save that waited for a straddler",
    ViewWaitedForStraddler = "view that waited for a straddler",
    ClearRefused = "bit kept because a younger snapshot needs the grain",
    CreateDuringChange = "snapshot taken while a change is in flight",
    CreateDuringView = "snapshot taken while a view is read",
    DeleteDuringChange = "snapshot deleted while a change is in flight",
    DeleteDuringView = "snapshot deleted while its view is read",
    EndDuringChange = "snapshot ended while a change is in flight",
    EndDuringView = "snapshot ended while its view is read",
    ReleaseDuringChange = "range released while a change of it is in flight",
    ReleaseDuringView = "range released while it is read",
    SaveWasted = "save for a snapshot that went meanwhile",
    CacheFull = "cache full: snapshot broken, host goes on",
    MapFull = "map cannot grow: snapshot broken, host goes on",
    SaveFailed = "payload cannot be written: snapshot broken, host goes on",
    Ahead = "originals saved ahead of any change",
    ReadReused = "slot of an original that its consumer has had is used again",
    CacheHangs = "cache hangs: given up on, host goes on",
    SlowedDown = "first write slowed down while a mover works and the cache is nearly full",
    WaitedForSpace = "first write waits for a mover to make space in the full cache",
    WriteFailed = "host write fails because a snapshot was made so",
    MarkLost = "mark of a broken snapshot cannot be stored",
    BadOriginal = "original cannot be read from the base: that grain errors",
    Corrupted = "cache damaged: an error, never wrong bytes",
    SourceReadError = "source read error during a copy: the copy fails",
    ViewStalled = "view reader stalled for ever, or went away, in mid-read",
    CrashWithChange = "daemon killed with changes in flight",
    CrashInSave = "daemon killed with saves under way",
    CrashInRecovery = "daemon killed in recovery",
    CrashInCreate = "daemon killed in create",
    CrashInDelete = "daemon killed in delete",
    CrashInRelease = "daemon killed in release",
    PowerLost = "machine stopped: snapshots reported broken",
    MemoryLost = "originals in memory lost with the machine's stop: snapshot broken",
    MemoryLostElsewhere = "originals in memory lost with the machine's stop: snapshot stands, it needs none of them",
    OutlivedPower = "machine stopped: snapshot stands, its map made anew",
    Confirmed = "snapshot confirmed: base flushed since T0's straddlers landed",
    CommittedTogether = "saves that share a flush of the cache",
    CommitFailed = "saves that cannot be made durable",
    BaseInDoubt = "flush of the base failed: nothing is confirmed any more",
    MarkedInCache = "table cannot say durably that a snapshot is broken: the cache does",
    NotConfirmed = "machine stopped: snapshot reported broken, it was not confirmed",
    RecordsDamaged = "machine stopped and records damaged: no snapshot is believed",
    CleanStop = "clean stop and start, with or without reboot",
    MoverKilled = "mover killed",
    FellBehind = "mover fell behind the ring of publications: the whole map is looked at again",
    CopyResumed = "copy resumed with the same T0",
    CopyGood = "copy declared good",
    OutboardGood = "outboard copy with originals up to its end equals T0",
    OutboardToMarker = "outboard copy with originals up to its marker, copy-on-write going on, equals T0",
    OutboardToAll = "outboard copy with all originals, copy-on-write going on, equals T0",
    FailureTold = "flush of the daemon's own failed: the host's next one fails",
    Increment = "increment of a large change lands before the others",
    SnapshotAmidIncrements = "snapshot taken between two increments of a change",
    Grown = "volume grown while a snapshot stands",
    GrowDuringChange = "volume grown while a change is in flight",
    GrowDuringCreate = "snapshot taken while the volume grows",
    CrashInGrow = "daemon killed while the volume grows",
    Cut = "base cut while nobody uses it, and used again",
    SnapshotsAtOnce = "five snapshots or more at once",
}

/// What a client has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Changes these bytes.
    Change(ByteRange),
    /// Reads these bytes of the snapshot with this number, through a view or as a mover.
    View(u32, ByteRange),
    /// Creates a snapshot.
    Create,
    /// Deletes the snapshot with this number.
    Delete(u32),
    /// Ends the snapshot with this number.
    End(u32),
    /// Releases a range of the snapshot with this number.
    Release(u32, ByteRange),
    /// Makes the volume longer.
    Grow,
    /// Opens the volume.
    Recovery,
}

#[derive(Default)]
struct State {
    counts: BTreeMap<Race, u64>,
    doing: BTreeMap<u64, Doing>,
    next: u64,
    freed: BTreeSet<u64>,
    saving: u64,
    grain: u64,
    size: u64,
    /// Where components end.
    ends: Vec<u64>,
    standing: usize,
    /// Changes in flight of which increments have landed.
    in_part: BTreeSet<ChangeId>,
    /// Flushes of this daemon's own that have failed, and how many of them some client was told of.
    own_failures: (u64, u64),
    /// How many of any daemon's own have failed.
    any_own_failures: u64,
    /// Snapshots that broke without a mark.
    lost_marks: BTreeSet<SnapshotId>,
    /// Snapshots that are broken for certain.
    broken: BTreeSet<SnapshotId>,
}

/// The counters of one schedule, and what is in flight in it.
#[derive(Clone, Default)]
pub struct Races(Arc<Mutex<State>>);

/// Something in flight; over when dropped.
pub struct InFlight {
    races: Races,
    number: u64,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.races.state().doing.remove(&self.number);
    }
}

impl Races {
    /// Nothing yet, over components of these lengths with this grain.
    pub fn new(grain: u64, components: &[u64]) -> Self {
        let ends = components.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let (ends, size) = (ends.collect(), components.iter().sum());
        Self(Arc::new(Mutex::new(State { grain, size, ends, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the counters")
    }

    /// How often each race was reached.
    pub fn counts(&self) -> BTreeMap<Race, u64> {
        self.state().counts.clone()
    }

    /// A race was reached.
    pub fn reach(&self, race: Race) {
        self.state().reach(race);
    }

    /// How many snapshots stand.
    pub fn standing(&self, count: usize) {
        let mut state = self.state();
        state.standing = count;
        if count >= 5 {
            state.reach(Race::SnapshotsAtOnce);
        }
    }

    /// Something begins.
    pub fn begin(&self, doing: Doing) -> InFlight {
        let mut state = self.state();
        let others: Vec<Doing> = state.doing.values().copied().collect();
        for other in others {
            state.meet(doing, other);
            state.meet(other, doing);
        }
        state.alone(doing);
        state.next += 1;
        let number = state.next;
        state.doing.insert(number, doing);
        InFlight { races: self.clone(), number }
    }

    /// The daemon is killed.
    pub fn crash(&self) {
        let mut state = self.state();
        let doing: Vec<Doing> = state.doing.values().copied().collect();
        let mut reached = BTreeSet::new();
        for doing in doing {
            reached.extend(match doing {
                Doing::Change(_) => Some(Race::CrashWithChange),
                Doing::Create => Some(Race::CrashInCreate),
                Doing::Delete(_) => Some(Race::CrashInDelete),
                Doing::Release(..) => Some(Race::CrashInRelease),
                Doing::Recovery => Some(Race::CrashInRecovery),
                Doing::Grow => Some(Race::CrashInGrow),
                Doing::View(..) | Doing::End(_) => None,
            });
        }
        if std::mem::take(&mut state.saving) > 0 {
            reached.insert(Race::CrashInSave);
        }
        reached.into_iter().for_each(|race| state.reach(race));
        state.freed.clear();
        state.in_part.clear();
        state.own_failures = (0, 0);
    }

    /// How many flushes of this daemon's own have failed, and how many of them some session was told of.
    pub fn own_failures(&self) -> (u64, u64) {
        self.state().own_failures
    }

    /// How many flushes of any daemon's own have failed.
    pub fn any_own_failures(&self) -> u64 {
        self.state().any_own_failures
    }

    /// A part of the change has landed.
    pub fn landed_in_part(&self, change: ChangeId) {
        let mut state = self.state();
        state.in_part.insert(change);
        state.reach(Race::Increment);
    }

    /// The change is over.
    pub fn over(&self, change: ChangeId) {
        self.state().in_part.remove(&change);
    }

    /// The engine says what it does.
    pub fn observe(&self, event: Event) {
        let mut state = self.state();
        if let Event::Broken { id, .. } = event {
            state.broken.insert(id);
        }
        if matches!(event, Event::Armed { .. }) && !state.in_part.is_empty() {
            state.reach(Race::SnapshotAmidIncrements);
        }
        match event {
            Event::OwnFlushFailed => {
                state.own_failures.0 += 1;
                state.any_own_failures += 1;
            }
            Event::FailureTold => {
                state.own_failures.1 = state.own_failures.0;
                state.reach(Race::FailureTold);
            }
            Event::Armed { straddlers, .. } if straddlers > 0 => state.reach(Race::Straddler),
            Event::Published { cache_offset: Some(offset), .. } if state.freed.remove(&offset) => {
                state.reach(Race::SlotReused);
                if state.doing.values().any(|doing| matches!(doing, Doing::View(..))) {
                    state.reach(Race::SlotReusedUnderReader);
                }
            }
            Event::Freed { cache_offset: Some(offset), .. } => {
                state.freed.insert(offset);
            }
            Event::ClearRefused { .. } => state.reach(Race::ClearRefused),
            Event::WaitedForSave { .. } => state.reach(Race::TwoFirstWrites),
            Event::WaitedForStraddler { .. } => state.reach(Race::SaveWaitedForStraddler),
            Event::ViewWaited => state.reach(Race::ViewWaitedForStraddler),
            Event::ViewCaught => state.reach(Race::ViewCaught),
            Event::ViewRefused => state.reach(Race::ViewRefused),
            Event::BadOriginal { .. } => state.reach(Race::BadOriginal),
            Event::Broken { reason, .. } => match reason {
                BrokenReason::CacheFull => state.reach(Race::CacheFull),
                BrokenReason::MapFull => state.reach(Race::MapFull),
                BrokenReason::SaveFailed => state.reach(Race::SaveFailed),
                BrokenReason::PowerLost
                | BrokenReason::BaseChanged
                | BrokenReason::Damaged
                | BrokenReason::MemoryLost => {}
            },
            Event::MarkLost { id } => {
                state.reach(Race::MarkLost);
                state.lost_marks.insert(id);
            }
            Event::Confirmed { .. } => state.reach(Race::Confirmed),
            Event::CommittedTogether => state.reach(Race::CommittedTogether),
            Event::CommitFailed => state.reach(Race::CommitFailed),
            Event::BaseInDoubt => state.reach(Race::BaseInDoubt),
            Event::MarkedInCache => state.reach(Race::MarkedInCache),
            Event::ReadReleased { .. } => state.reach(Race::ReadReused),
            Event::CacheHangs => state.reach(Race::CacheHangs),
            Event::SlowedDown => state.reach(Race::SlowedDown),
            Event::WaitedForSpace => state.reach(Race::WaitedForSpace),
            Event::WriteFailed => state.reach(Race::WriteFailed),
            Event::TrimHeldBack => state.reach(Race::TrimHeldBack),
            Event::HoleLeft => state.reach(Race::HoleLeft),
            Event::SaveWasted { .. } => state.reach(Race::SaveWasted),
            _ => {}
        }
    }

    /// Whether the snapshot is broken in a way that was not put on record at once: only its daemon knows.
    pub fn mark_lost(&self, id: SnapshotId) -> bool {
        self.state().lost_marks.contains(&id)
    }

    /// A start has found the snapshot broken: it stays so.
    pub fn found_broken(&self, id: SnapshotId) {
        self.state().broken.insert(id);
    }

    /// Whether the snapshot is broken for certain, so that changes have gone on without it.
    pub fn is_broken(&self, id: SnapshotId) -> bool {
        self.state().broken.contains(&id)
    }

    /// A save has begun (`true`) or is over.
    pub fn saving(&self, begins: bool) {
        let mut state = self.state();
        state.saving = if begins { state.saving + 1 } else { state.saving.saturating_sub(1) };
    }
}

impl State {
    fn reach(&mut self, race: Race) {
        *self.counts.entry(race).or_default() += 1;
    }

    fn alone(&mut self, doing: Doing) {
        if self.standing == 0 {
            return;
        }
        if doing == Doing::Grow {
            self.reach(Race::Grown);
        }
        let Doing::Change(range) = doing else { return };
        let part = range.start() % self.grain != 0 || (range.end() % self.grain != 0 && range.end() != self.size);
        if part {
            self.reach(Race::PartGrain);
        }
        if self.ends.iter().any(|end| range.start() < *end && *end < range.end()) {
            self.reach(Race::AcrossComponents);
        }
        if range.end() == self.size && !self.size.is_multiple_of(self.grain) {
            self.reach(Race::EndOfDevice);
        }
    }

    fn meet(&mut self, one: Doing, other: Doing) {
        match (one, other) {
            (Doing::Change(a), Doing::Change(b)) if a.start() < b.start() => {
                let shared =
                    a.intersection(b).map_or(0, |both| both.end().div_ceil(self.grain) - both.start() / self.grain);
                if shared >= 2 {
                    self.reach(Race::Crossing);
                }
            }
            (Doing::Grow, Doing::Change(_)) => self.reach(Race::GrowDuringChange),
            (Doing::Grow, Doing::Create) => self.reach(Race::GrowDuringCreate),
            (Doing::Create, Doing::Change(_)) => self.reach(Race::CreateDuringChange),
            (Doing::Create, Doing::View(..)) => self.reach(Race::CreateDuringView),
            (Doing::Delete(_), Doing::Change(_)) => self.reach(Race::DeleteDuringChange),
            (Doing::Delete(number), Doing::View(other, _)) if number == other => self.reach(Race::DeleteDuringView),
            (Doing::End(_), Doing::Change(_)) => self.reach(Race::EndDuringChange),
            (Doing::End(number), Doing::View(other, _)) if number == other => self.reach(Race::EndDuringView),
            (Doing::Release(_, range), Doing::Change(other)) if range.overlaps(other) => {
                self.reach(Race::ReleaseDuringChange);
            }
            (Doing::Release(number, range), Doing::View(other, read)) if number == other && range.overlaps(read) => {
                self.reach(Race::ReleaseDuringView);
            }
            _ => {}
        }
    }
}
