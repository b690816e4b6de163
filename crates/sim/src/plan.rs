//! What a schedule does: devices, clients, their operations, faults and deaths, all drawn from one seed.
//!
//! A plan is data: it can be printed, and operations can be taken out of it to find the few that matter. Who runs when
//! is not in it; that follows from the schedule's second seed and the executor.

use tzero_block::{ByteRange, Zeroes};

use tzero_engine::{Durability, Planted};
use tzero_originals::{MapShape, OnFull};

use crate::contents::Cells;
use crate::disk::{Effect, Latency};
use crate::executor::{Chaos, CrashPlan};
use crate::power::Loss;
use crate::random::Random;
use crate::storage::StorageCall;

mod draw;

/// An operation's number within its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u32);

/// Most components of a base.
pub const MOST_COMPONENTS: usize = 4;
/// No write to the cache takes as long.
pub const PATIENT_NS: u64 = 1_000_000_000;

/// The devices.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Bytes of a grain.
    pub grain: u32,
    /// How clients' bytes are told apart.
    pub cells: Cells,
    /// Alignment of base and cache.
    pub alignment: u32,
    /// Bytes of each component of the base, in order, once it is as long as it will ever be.
    pub components: Vec<u64>,
    /// Bytes of the volume at the start: its last component may be shorter then.
    pub first_size: u64,
    /// What originals outlive.
    pub durability: Durability,
    /// Bytes of each tier of the cache, in order.
    pub tiers: Vec<u64>,
    /// The cache is too small for what could be saved.
    pub cache_scarce: bool,
    /// Of 100 slots of the first tier, where there are two, how many are lost at a start of the machine after a clean stop.
    pub memory_loss: u32,
    /// Of 16 cells, how many hold something at the start.
    pub filled: u64,
    /// How long the base takes.
    pub base_latency: Latency,
    /// How long the cache takes.
    pub cache_latency: Latency,
    /// Whether the base zeroes fast.
    pub fast_zeroes: bool,
    /// The first size of the map, and its ring.
    pub map: MapShape,
    /// How long a change waits for a write to the cache.
    pub longest_save_ns: u64,
    /// Bytes of an increment of a large change.
    pub increment: u64,
    /// Positions of the map that a mover looks at in one go.
    pub scan_at_once: u32,
}

impl Shape {
    /// Whether originals outlive a loss of power. Then no tier is memory.
    pub fn outlives_power(&self) -> bool {
        self.durability == Durability::Power
    }
}

/// One thing that a client does.
#[derive(Clone, Debug)]
pub enum Op {
    /// Writes its own pattern.
    Write {
        /// Where.
        range: ByteRange,
        /// With FUA.
        fua: bool,
    },
    /// Zeroes.
    Zeroes {
        /// Where.
        range: ByteRange,
        /// How.
        zeroes: Zeroes,
    },
    /// Trims.
    Trim {
        /// Where.
        range: ByteRange,
    },
    /// Flushes.
    Flush,
    /// Reads the host export.
    Read {
        /// Where.
        range: ByteRange,
    },
    /// Asks the host export for its holes.
    Status {
        /// Where.
        range: ByteRange,
    },
    /// Drops its session and opens another.
    Reconnect,
    /// Takes a snapshot.
    Create {
        /// It releases (and is read by movers only), or keeps.
        release: bool,
        /// What gives when the cache is full.
        on_full: OnFull,
        /// What it is of; empty: the whole volume.
        scope: Vec<ByteRange>,
    },
    /// Deletes a snapshot: which of those that stand follows from the number.
    Delete {
        /// Which.
        pick: u64,
    },
    /// Reads the view of a snapshot.
    View {
        /// Which.
        pick: u64,
        /// Where.
        ranges: Vec<ByteRange>,
        /// After so many polls its client goes away, or (`true`) stalls for ever.
        stall: Option<(u64, bool)>,
        /// Of a snapshot that releases, its one consumer: says what was delivered.
        consumes: bool,
    },
    /// Saves originals before anybody changes them.
    Ahead {
        /// Where.
        range: ByteRange,
    },
    /// Asks a view for its holes.
    ViewStatus {
        /// Which.
        pick: u64,
        /// Where.
        range: ByteRange,
    },
    /// Releases a range of a release snapshot that stands, as a mover that has captured it does.
    Release {
        /// Which.
        pick: u64,
        /// Where.
        range: ByteRange,
    },
    /// Begins a copy with a snapshot of its own, or takes up an interrupted one.
    Backup {
        /// Grains that the mover reads at a time.
        chunk: u64,
        /// Chunks between two journal entries.
        batch: u64,
        /// The mover is killed after so many chunks.
        dies_after: Option<u64>,
        /// The copy keeps its originals.
        keep: bool,
        /// How long the mover rests between chunks.
        rest_ns: u64,
    },
    /// Copies the base with no regard to anything, then the originals.
    Outboard {
        /// Grains that are read at a time.
        chunk: u64,
        /// Which originals.
        boundary: Boundary,
        /// How long the originals wait to be copied.
        pause_ns: u64,
    },
    /// Makes the volume longer, up to what its cells have.
    Grow {
        /// Bytes that it has then.
        size: u64,
    },
    /// Arms a fault.
    Fault(FaultOp),
    /// Does nothing for a while.
    Pause {
        /// How long.
        ns: u64,
    },
}

/// Which originals an outboard copy takes (R33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// All up to the end of copy-on-write, which comes before them.
    Terminate,
    /// Those up to the end of the outboard reads, while copy-on-write goes on.
    Marker,
    /// Those up to when each is looked for.
    All,
}

/// A fault to be armed.
#[derive(Clone, Debug)]
pub enum FaultOp {
    /// Of the base.
    Base(tzero_block::Action, u64, Effect),
    /// Of the cache.
    Cache(tzero_block::Action, u64, Effect),
    /// A byte of the cache turns into another: of a sector that follows from the number.
    Corrupt(u64),
    /// Of the state files.
    State(StorageCall, u64),
}

/// A client: its operations in order.
#[derive(Clone, Debug)]
pub struct Actor {
    /// For people.
    pub name: &'static str,
    /// Most operations in flight.
    pub depth: usize,
    /// What it does.
    pub ops: Vec<(OpId, Op)>,
}

/// How an incarnation of the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is killed.
    Kill(CrashPlan),
    /// It is stopped cleanly after so many operations, and the machine may reboot.
    Stop {
        /// Operations since the schedule began.
        after_ops: u64,
        /// The boot id is another one afterwards.
        reboot: bool,
        /// It is killed while it stops, at the moment of this kind and number from then on.
        killed: Option<CrashPlan>,
        /// The base is cut to so many bytes afterwards, if it is longer, the stop was clean and no snapshot stands.
        cut: Option<u64>,
    },
}

/// What a schedule has much of, where it is to meet what is rare else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// The volume grows.
    Growth,
    /// More grains than a mover's ring of publications holds, and copies.
    Large,
    /// The cache is too small.
    Scarce,
    /// Writes to the cache take longer than a save may.
    Slow,
    /// The cache is damaged before the power is lost.
    Damage,
    /// Saves fail while marks cannot be made durable.
    Marks,
    /// The daemon is killed, and the power is lost soon after.
    Restarts,
}

impl Theme {
    /// All of them.
    pub const ALL: &[Theme] =
        &[Self::Growth, Self::Large, Self::Scarce, Self::Slow, Self::Damage, Self::Marks, Self::Restarts];

    /// That in which a fault shows, where it is rare else.
    pub fn of(planted: Planted) -> Option<Self> {
        use Planted::{
            DamagedRecordsIgnored, DeletedBreaks, EndOfBroken, EpochReused, FoundNotDurable, GrownForAll,
            HungSlotReused, MarkNotDurable, MarkRevives, SaveCutTwice, ScanTakesNewer, ShortEndNotReleased,
            ShortOriginalFreed, SizeRecordedFirst, TornPayloadBelieved,
        };
        Some(match planted {
            GrownForAll | ShortOriginalFreed | SaveCutTwice | ShortEndNotReleased | SizeRecordedFirst => Self::Growth,
            ScanTakesNewer => Self::Large,
            DeletedBreaks => Self::Scarce,
            HungSlotReused => Self::Slow,
            TornPayloadBelieved | DamagedRecordsIgnored => Self::Damage,
            MarkNotDurable | EndOfBroken | MarkRevives => Self::Marks,
            EpochReused | FoundNotDurable => Self::Restarts,
            _ => return None,
        })
    }

    /// Whether it is about originals that outlive a loss of power.
    fn is_of_power(self) -> bool {
        matches!(self, Self::Damage | Self::Marks | Self::Restarts)
    }
}

/// A whole schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// What the interleaving is drawn from.
    pub run_seed: u64,
    /// The devices.
    pub shape: Shape,
    /// How wild it is.
    pub chaos: Chaos,
    /// The clients.
    pub actors: Vec<Actor>,
    /// The incarnations that end before the last.
    pub ends: Vec<End>,
    /// The machine, not only the daemon, stops at these ends, and loses what was not flushed.
    pub power_loss: Vec<Option<Loss>>,
    /// Starts once more at the end, cleanly, before the last look at everything.
    pub restart_at_end: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        Self::of(seed, false, None)
    }

    /// The plan of a seed in which originals outlive a loss of power, where it is to be so, and of a theme, if there is one.
    pub fn of(seed: u64, power: bool, theme: Option<Theme>) -> Self {
        let mut plan = draw::plan(seed, &mut Random::labelled(seed, "plan"), power, theme);
        draw::sizes(&mut plan, &mut Random::labelled(seed, "sizes"), theme == Some(Theme::Growth));
        plan
    }

    /// How many operations there are.
    pub fn ops(&self) -> usize {
        self.actors.iter().map(|actor| actor.ops.len()).sum()
    }

    /// Keeps only what `keep` wants.
    pub fn retain(&mut self, keep: impl Fn(OpId) -> bool) {
        self.actors.iter_mut().for_each(|actor| actor.ops.retain(|(id, _)| keep(*id)));
        self.actors.retain(|actor| !actor.ops.is_empty());
    }

    /// Whether originals can go with the machine's memory.
    pub fn may_lose_memory(&self) -> bool {
        self.shape.tiers.len() > 1
            && !self.shape.outlives_power()
            && self.ends.iter().any(|end| matches!(end, End::Stop { reboot: true, .. }))
    }

    /// Whether something in it can break a snapshot.
    pub fn may_break(&self) -> bool {
        self.may_break_of_itself() || self.power_loss.iter().any(Option::is_some)
    }

    /// Whether something other than a loss of power can.
    pub fn may_break_of_itself(&self) -> bool {
        let faulty = |op: &Op| match op {
            Op::Fault(FaultOp::Base(..) | FaultOp::Corrupt(_)) => false,
            Op::Fault(FaultOp::Cache(_, _, effect)) => !matches!(effect, Effect::Stall(_)),
            Op::Fault(FaultOp::State(..)) => true,
            _ => false,
        };
        let faulty = self.actors.iter().flat_map(|actor| &actor.ops).any(|(_, op)| faulty(op));
        faulty || self.may_lose_memory() || self.shape.cache_scarce || self.shape.longest_save_ns < PATIENT_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_repeatable_and_large_enough() {
        for seed in 0..50 {
            let plan = Plan::new(seed);
            assert_eq!(format!("{plan:?}"), format!("{:?}", Plan::new(seed)));
            assert!(plan.ops() >= 200, "{} operations", plan.ops());
            let size = plan.shape.cells.size;
            assert_eq!(plan.shape.components.iter().sum::<u64>(), size);
            for (_, op) in plan.actors.iter().flat_map(|actor| &actor.ops) {
                if let Op::Write { range, .. } | Op::Zeroes { range, .. } | Op::Trim { range } | Op::Read { range } = op
                {
                    assert!(!range.is_empty() && range.end() <= size, "{op:?}");
                    assert!(!plan.shape.cells.of(*range).is_empty());
                }
            }
        }
    }
}
