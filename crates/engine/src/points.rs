//! Named moments: where a schedule may switch tasks, where a test may kill the process, and what may be planted or seen there.
//!
//! In production every hook compiles to nothing, or to one relaxed load.

use tzero_originals::{BrokenReason, Epoch, GrainIndex, Sequence, SnapshotId};

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A moment between two steps whose order matters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point { $($(#[$doc])* $name,)* }

        impl Point {
            /// All of them.
            pub const ALL: &[Point] = &[$(Point::$name,)*];

            /// Its name in tests.
            pub const fn name(self) -> &'static str {
                match self { $(Point::$name => $text,)* }
            }
        }
    };
}

points! {
    /// A request has come; it is not registered.
    Arrived = "arrived",
    /// It is registered and has its tag; no bit is tested.
    Admitted = "admitted",
    /// Nothing of it is pending any more; the base write comes next.
    BaseWrite = "base-write",
    /// The base write is done; the request is still registered.
    BaseWritten = "base-written",
    /// Grains are claimed; their originals come next.
    Claimed = "claimed",
    /// The originals are read.
    OriginalRead = "original-read",
    /// Slots are chosen.
    Reserved = "reserved",
    /// Saves that are to be durable are taken together; nothing of them is written.
    Batch = "batch",
    /// The payload is in the cache.
    Payload = "payload",
    /// Payloads and records of a batch are durable; no entry is published.
    Flushed = "flushed",
    /// The entries are published in the map.
    Entry = "entry",
    /// The entries are in the index; the bits come next.
    Indexed = "indexed",
    /// The bits are cleared and the claims given back.
    Bit = "bit",
    /// A save has failed; the marks come next.
    SaveFailed = "save-failed",
    /// The snapshots that need the original are marked broken.
    Broken = "broken",
    /// The record of a new snapshot is written, its slot still free.
    CreatePrepared = "create-prepared",
    /// The snapshot stands.
    Create = "create",
    /// The record of a new snapshot is durable.
    CreateDurable = "create-durable",
    /// A snapshot's record is cleared; its originals are still there.
    Delete = "delete",
    /// Some of what nobody needs is freed.
    Swept = "swept",
    /// The straddlers of a snapshot's T0 have landed; the flush that confirms it comes next.
    ConfirmLanded = "confirm-landed",
    /// That a snapshot is confirmed is stored; it is not durable.
    Confirmed = "confirmed",
    /// A captured range is recorded; the bits come next.
    Capture = "capture",
    /// The bits of a captured range are cleared; its originals come next.
    CaptureCleared = "capture-cleared",
    /// The originals of a captured range are freed.
    CaptureFreed = "capture-freed",
    /// A snapshot is ended.
    Ended = "ended",
    /// A view's request has come.
    ViewArrived = "view-arrived",
    /// A view has read the base; it has not looked at the map.
    ViewBaseRead = "view-base-read",
    /// A view knows its originals.
    ViewResolved = "view-resolved",
    /// A view has its bytes; the last check comes next.
    ViewOverlaid = "view-overlaid",
    /// The state of a volume is open; nothing is decided.
    RecoveryOpened = "recovery-opened",
    /// Snapshots that cannot be right any more are marked.
    RecoveryMarked = "recovery-marked",
    /// Snapshots whose originals were lost are marked; their entries are still there.
    RecoveryLost = "recovery-lost",
    /// After a loss of power: the map is made anew from the cache's records.
    RecoveryRebuilt = "recovery-rebuilt",
    /// Originals are found, the unwanted freed.
    RecoveryIndexed = "recovery-indexed",
    /// A clean stop has synced everything; it is not recorded.
    CloseSynced = "close-synced",
}

macro_rules! planted {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What is deliberately done wrong, to show that the simulator would notice.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Planted { $($(#[$doc])* $name,)* }

        impl Planted {
            /// All of them.
            pub const ALL: &[Planted] = &[$(Planted::$name,)*];
        }
    };
}

planted! {
    /// A view looks at the map before it reads the base.
    MapLookedUpFirst,
    /// A later original of a grain and epoch replaces the first.
    LastOriginalWins,
    /// A bit is cleared before the entry is visible.
    BitClearedBeforeEntry,
    /// A request tests bits before it registers.
    BitsTestedBeforeRegistering,
    /// A bit is cleared by a decision from before an arming.
    ArmThenStaleClear,
    /// Freeing looks only at the snapshot that goes.
    SlotReusedWhileNeeded,
    /// A view reads a released grain from the base.
    ReleasedServedFromBase,
    /// A release is recorded after the bits are cleared.
    ReleasePersistedAfterClear,
    /// An ended snapshot takes an entry from after its end.
    EndedTakesLaterEntry,
    /// A save does not wait for straddlers.
    SaveIgnoresStraddlers,
    /// A view does not wait for straddlers.
    ViewIgnoresStraddlers,
    /// The second first-writer of a grain does not wait for the first.
    SecondWriterDoesNotWait,
    /// A payload is written after its entry is published.
    PayloadAfterEntry,
    /// A failed save breaks nothing.
    FailedSaveIgnored,
    /// Trim passes through over pending grains.
    TrimNotHeldBack,
    /// Write-zeroes saves nothing.
    ZeroesNotSaved,
    /// A view does not check again at last.
    ViewWithoutLastCheck,
    /// The short grain at the end of the device is forgotten.
    LastGrainForgotten,
    /// An original that cannot be read from the base is saved as zeroes.
    BadOriginalAsZeroes,
    /// A mark of a broken snapshot that cannot be stored leaves no trace.
    LostMarkForgotten,
    /// A mover that looks at the whole map takes what is published meanwhile.
    ScanTakesNewer,
    /// After the largest snapshot broke for want of space, the save it made room for is left out.
    RoomMadeNotUsed,
    /// Slots that a write to the cache was given up on are used again while it may still land.
    HungSlotReused,
    /// A save ahead of any change breaks snapshots when it fails.
    AheadBreaks,
    /// The marker of an outboard copy is taken while its last read is still to come.
    MarkerTooEarly,
    /// The snapshot that is to make room is marked broken though it was deleted meanwhile.
    DeletedBreaks,
    /// An outboard copy takes the originals that were known before its last read, not those that were saved meanwhile.
    OverlayNotCaughtUp,
    /// A snapshot whose copy-on-write has ended breaks to make room, though its originals are not copied yet.
    RetainedMakesRoom,
    /// A place in the map is taken for one of the first component, whatever its unit.
    UnitIgnored,
    /// A clean stop is recorded before what it promises is durable.
    CleanStopBeforeSync,
    /// Snapshots that need originals from a lost part of the cache stand on.
    LostForgotten,
    /// Originals that are to be durable are published before their flush.
    CommitBeforeFlush,
    /// A payload is written after the flush that its record waits for.
    PayloadNotDurable,
    /// After a loss of power an original is believed by its record alone, whatever became of its payload.
    TornPayloadBelieved,
    /// A snapshot is confirmed before the base was flushed.
    ConfirmedBeforeFlush,
    /// A change goes on before the mark of the snapshot that it breaks is durable.
    MarkNotDurable,
    /// A bit is cleared before the release is durable.
    ReleaseNotDurable,
    /// A snapshot is no longer saved for before its deletion is durable.
    DeletionNotDurable,
    /// After a loss of power epochs go on from the snapshots that are known, whatever records are there.
    EpochReused,
    /// A snapshot needs what the volume has become longer by since its T0.
    GrownForAll,
    /// The original of a last grain that was short is given up at a start, because the grain is longer now.
    ShortOriginalFreed,
    /// An entry is cut by another size than its payload.
    SaveCutTwice,
    /// What a snapshot has captured of its short last grain does not count, because the grain is longer now.
    ShortEndNotReleased,
    /// A new size is on record before the base has it. Of the simulator's daemon.
    SizeRecordedFirst,
    /// After a loss of power damaged records count as none.
    DamagedRecordsIgnored,
    /// A snapshot is confirmed by a flush of the base that came after one that failed.
    DoubtForgotten,
    /// The end of a copy-on-write is told though the snapshot broke before it was durable.
    EndOfBroken,
    /// A start frees slots by what it has found in the page cache alone.
    FoundNotDurable,
    /// A mark that is made up for brings back a record that is being cleared.
    MarkRevives,
    /// Each increment of a large change is admitted by itself: T0 may fall between them.
    IncrementAdmittedAnew,
    /// An increment counts as landed before its base write.
    LandedTooEarly,
    /// No host is told that a flush of our own has failed.
    FailureKept,
    /// A record that could not be cleared leaves no trace.
    FailedClearForgotten,
}

/// What has just happened, for whoever watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host change was registered with this tag; in the same step.
    Admitted {
        /// Its tag.
        tag: Epoch,
    },
    /// A flush of the base that no host asked for has failed.
    OwnFlushFailed,
    /// A host is told that one had failed.
    FailureTold,
    /// An increment of a large change has landed, and others have not.
    IncrementLanded {
        /// The change's tag.
        tag: Epoch,
    },
    /// The volume is longer from here on.
    Grown {
        /// Bytes before,
        from: u64,
        /// and now.
        to: u64,
    },
    /// A snapshot stands from here on.
    Armed {
        /// Its epoch.
        epoch: Epoch,
        /// Requests in flight that belong before it.
        straddlers: usize,
    },
    /// An original is published.
    Published {
        /// Its grain.
        grain: GrainIndex,
        /// Its tag.
        tag: Epoch,
        /// Its sequence.
        sequence: Sequence,
        /// Where in the cache, if anywhere.
        cache_offset: Option<u64>,
    },
    /// An original was freed.
    Freed {
        /// Its grain.
        grain: GrainIndex,
        /// Where it was in the cache, if anywhere.
        cache_offset: Option<u64>,
    },
    /// A bit was cleared.
    BitCleared {
        /// Its grain.
        grain: GrainIndex,
    },
    /// A bit was kept because a younger snapshot needs the grain.
    ClearRefused {
        /// Its grain.
        grain: GrainIndex,
    },
    /// A write waits for another's save of a grain.
    WaitedForSave {
        /// The grain.
        grain: GrainIndex,
    },
    /// A write waits for a straddler.
    WaitedForStraddler {
        /// The grain.
        grain: GrainIndex,
    },
    /// A view waits for a straddler.
    ViewWaited,
    /// A view found after its base read an original that was published during it.
    ViewCaught,
    /// A view refused its bytes at the last check.
    ViewRefused,
    /// The original of a grain could not be kept.
    SaveFailed {
        /// The grain.
        grain: GrainIndex,
    },
    /// The original of a grain could not be read.
    BadOriginal {
        /// The grain.
        grain: GrainIndex,
    },
    /// A snapshot broke.
    Broken {
        /// Which.
        id: SnapshotId,
        /// Why.
        reason: BrokenReason,
    },
    /// A snapshot broke, and that cannot be put on record yet.
    MarkLost {
        /// Which.
        id: SnapshotId,
    },
    /// A snapshot outlives a loss of power from here on.
    Confirmed {
        /// Which.
        id: SnapshotId,
    },
    /// Several saves share a flush of the cache.
    CommittedTogether,
    /// Saves could not be made durable.
    CommitFailed,
    /// A flush of the base has failed where originals outlive a loss of power.
    BaseInDoubt,
    /// The table could not say durably that a snapshot is broken; the cache does.
    MarkedInCache,
    /// After a loss of power the map was made anew from so many records.
    Rebuilt {
        /// How many.
        records: u64,
    },
    /// A grain that its consumer has had was released, for its slot.
    ReadReleased {
        /// The grain.
        grain: GrainIndex,
    },
    /// A write to the cache took too long.
    CacheHangs,
    /// A first write was slowed down because the cache is nearly full.
    SlowedDown,
    /// A first write waits for a mover to make space in the full cache.
    WaitedForSpace,
    /// A host's write failed because a snapshot was made so.
    WriteFailed,
    /// A trim was held back over pending grains.
    TrimHeldBack,
    /// Zeroing a hole saved nothing: nothing changes.
    HoleLeft,
    /// A snapshot was deleted or ended while a save for it was under way.
    SaveWasted {
        /// The grain.
        grain: GrainIndex,
    },
}
