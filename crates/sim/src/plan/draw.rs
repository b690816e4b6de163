//! Drawing a plan.

use tzero_block::{Action, ByteRange, Zeroes};
use tzero_engine::Durability;
use tzero_originals::{MapShape, OnFull};

use super::{Actor, Boundary, End, FaultOp, MOST_COMPONENTS, Op, OpId, PATIENT_NS, Plan, Shape, Theme};
use crate::contents::Cells;
use crate::disk::{Effect, Latency};
use crate::executor::{Chaos, Crash, CrashPlan};
use crate::power::Loss;
use crate::random::Random;
use crate::storage::StorageCall;

/// Largest device in bytes.
const MOST_BYTES: u64 = 1 << 20;
/// Grains of a chunk of the pending bitmap, and of what shares a shard of the index.
const CHUNK: u64 = 4096;
const LEAST_OPS: u64 = 200;
const MOST_OPS: u64 = 280;

/// With `of_power` originals outlive a loss of power, else they may.
pub(super) fn plan(seed: u64, random: &mut Random, of_power: bool, theme: Option<Theme>) -> Plan {
    let mut shape = shape(random, &mut Random::labelled(seed, "rows"), theme);
    let mut increments = Random::labelled(seed, "increments");
    shape.increment = if increments.chance(80) { u64::from(shape.grain) << increments.below(7) } else { MOST_BYTES };
    let mut durable = Random::labelled(seed, "durable");
    if durable.chance(30) || of_power || theme.is_some_and(Theme::is_of_power) {
        outlive_power(&mut shape);
    }
    let faults = shape.longest_save_ns < PATIENT_NS || random.chance(40);
    let chaos = chaos(random);
    let mut ends = ends(random);
    let lost: Vec<bool> = ends.iter().map(|end| matches!(end, End::Kill(_)) && random.chance(8)).collect();
    let mut power_loss = power(&mut ends, &lost, &mut Random::labelled(seed, "power"));
    let mut draw = Draw { shape: &shape, hot: hot(&shape, random), random, faults, next: 0 };
    let mut actors = draw.actors();
    let drawn = *durable.pick(&[Theme::Damage, Theme::Marks, Theme::Restarts]);
    let theme = theme.or_else(|| (shape.durability == Durability::Power && durable.chance(30)).then_some(drawn));
    if let Some(theme @ (Theme::Damage | Theme::Marks | Theme::Restarts | Theme::Scarce)) = theme {
        themed(&mut actors, &mut ends, &mut power_loss, &mut durable, theme);
    } else if shape.durability == Durability::Power {
        power_loss.iter_mut().filter(|_| durable.chance(70)).for_each(|loss| *loss = Some(Loss::Sampled));
        if faults {
            flush_faults(&mut actors, &mut durable);
        }
    }
    // What was marked for want of space is looked at once more as the next start finds it.
    let restart_at_end = random.chance(30) || shape.cache_scarce;
    Plan { seed, run_seed: seed, chaos, actors, ends, power_loss, restart_at_end, shape }
}

/// Lets some volumes begin shorter than they end; all with `must`.
pub(super) fn sizes(plan: &mut Plan, random: &mut Random, must: bool) {
    if !random.chance(25) && !must {
        return;
    }
    let (grain, cells) = (u64::from(plan.shape.grain), plan.shape.cells);
    let cell = cells.cell;
    let least = cells.size - plan.shape.components.last().expect("a base has a component");
    // What is not a whole grain long is what may go wrong.
    let size = |random: &mut Random| {
        let below = match random.below(4) {
            0 => random.between(1, grain.div_ceil(cell)) * cell,
            1 => random.between(1, 3 * grain.div_ceil(cell)) * cell,
            2 => random.between(1, 16) * grain,
            _ => random.between(1, (cells.size - least).div_ceil(cell)) * cell,
        };
        (cells.size.saturating_sub(below) / cell * cell).max(least + cell).min(cells.size)
    };
    let mut steps: Vec<u64> = (0..random.between(1, 4)).map(|_| size(random)).collect();
    steps.sort_unstable();
    plan.shape.first_size = steps[0];
    let cut = size(random);
    for end in &mut plan.ends {
        if let End::Stop { cut: place, .. } = end {
            *place = random.chance(50).then_some(cut);
        }
    }
    if random.chance(12) {
        // Only where no snapshot stands can it be cut.
        let of_snapshots =
            plan.actors.iter_mut().filter(|actor| matches!(actor.name, "snapshots" | "viewer" | "backups"));
        of_snapshots.flat_map(|actor| &mut actor.ops).for_each(|(_, op)| *op = Op::Pause { ns: 1000 });
        let reboot = random.chance(50);
        plan.ends.push(End::Stop { after_ops: random.between(10, LEAST_OPS), reboot, killed: None, cut: Some(cut) });
        plan.power_loss.push(None);
    }
    // Again and again: after a cut there is room once more.
    steps.remove(0);
    steps.push(cells.size);
    let again = if random.chance(40) { vec![cells.size; 2] } else { Vec::new() };
    let mut next = plan.actors.iter().flat_map(|actor| &actor.ops).map(|(id, _)| id.0 + 1).max().unwrap_or(0);
    let mut ops = Vec::new();
    for size in steps.into_iter().chain(again) {
        for op in [Op::Pause { ns: random.magnitude(60_000_000) }, Op::Grow { size }] {
            ops.push((OpId(next), op));
            next += 1;
        }
    }
    plan.actors.push(Actor { name: "operator", depth: 1, ops });
}

fn shape(random: &mut Random, rows: &mut Random, theme: Option<Theme>) -> Shape {
    let is = |of| theme == Some(of);
    let alignment = *random.pick(&[1, 512]);
    let cell = if alignment == 512 || is(Theme::Large) { 512 } else { *random.pick(&[512, 512, 64, 16]) };
    let most = if cell < 512 { MOST_BYTES / 16 } else { MOST_BYTES };
    // Now and then more grains than one chunk of the pending bitmap has.
    let many = cell == 512 && random.chance(12) || is(Theme::Large);
    let (grain, grains) = if many {
        (512, random.between(CHUNK + 1, 2 * CHUNK + 300))
    } else {
        let grain = 512_u64 << random.below(8);
        (grain, random.between(16, 512).min((most / grain).max(16)))
    };
    let mut size = grains * grain;
    if random.chance(60) {
        // A short last grain; where the base allows it, of any length.
        size -= random.below(grain.div_ceil(cell)) * cell;
        if alignment == 1 && random.chance(40) {
            size -= random.below(cell);
        }
    }
    let scarce = random.chance(18) || is(Theme::Scarce);
    let slots = if scarce { random.between(1, grains.min(512)) } else { grains * 10 };
    Shape {
        grain: grain as u32,
        cells: Cells { cell, size },
        alignment,
        first_size: size,
        components: if rows.chance(40) { row(rows, grain, size, MOST_COMPONENTS) } else { vec![size] },
        durability: Durability::Process,
        tiers: if rows.chance(40) { row(rows, grain, slots * grain, 2) } else { vec![slots * grain] },
        cache_scarce: scarce,
        memory_loss: *rows.pick(&[0, 1, 5, 30, 100]),
        filled: *random.pick(&[0, 8, 12, 16, 16, 16]),
        base_latency: latency(random),
        cache_latency: latency(random),
        fast_zeroes: random.chance(50),
        map: MapShape { ring_words: 16 << random.below(9), first_entries: random.between(1, 200) },
        longest_save_ns: if random.chance(20) || is(Theme::Slow) {
            random.between(1, 80) * 100_000
        } else {
            PATIENT_NS
        },
        increment: MOST_BYTES,
        scan_at_once: 1 << random.below(3),
    }
}

/// Cuts a size between grains into 2 to `most` lengths, as far as there are grains; pieces of one grain, and all but one grain, often.
fn row(random: &mut Random, grain: u64, size: u64, most: usize) -> Vec<u64> {
    let mut lengths = Vec::new();
    let mut left = size;
    for _ in 1..random.between(2, most as u64) {
        let grains = left.div_ceil(grain) - 1;
        if grains == 0 {
            break;
        }
        let cut = match random.below(4) {
            0 => 1,
            1 => grains,
            _ => random.between(1, grains),
        };
        lengths.push(cut * grain);
        left -= cut * grain;
    }
    lengths.push(left);
    lengths
}

fn latency(random: &mut Random) -> Latency {
    let usual_ns = 1_000_u64 << random.below(8);
    Latency { usual_ns, slow_percent: *random.pick(&[0, 1, 5, 20]), slow_ns: usual_ns * random.between(4, 100) }
}

fn chaos(random: &mut Random) -> Chaos {
    Chaos {
        tick_ns: 32 << random.below(8),
        task_percent: random.between(20, 95) as u32,
        yield_percent: *random.pick(&[0, 5, 20, 40, 60]),
        sleep_percent: *random.pick(&[0, 10, 30]),
        sleep_ns: 4_000 << random.below(8),
        focus: (0..random.below(4)).map(|_| random.below(64) as u32).collect(),
    }
}

fn ends(random: &mut Random) -> Vec<End> {
    let incarnations = *random.pick(&[0, 0, 1, 1, 1, 2, 3]);
    let mut ends = Vec::new();
    for _ in 0..incarnations {
        ends.push(if random.chance(20) {
            End::Stop { after_ops: random.between(10, LEAST_OPS), reboot: random.chance(50), killed: None, cut: None }
        } else {
            let at = *random.pick(&Crash::ALL);
            // About as many moments as a schedule has; small numbers die in recovery itself.
            let reach = match at {
                Crash::Store if random.chance(25) => 40,
                Crash::Point if random.chance(25) => 8,
                Crash::Store => 3_000,
                Crash::Submit => 900,
                Crash::Complete => 450,
                Crash::Point => 1_200,
            };
            End::Kill(CrashPlan { at, number: random.between(1, reach) })
        });
    }
    ends
}

/// Makes of a shape one whose originals outlive a loss of power: its cache has room for records, too.
fn outlive_power(shape: &mut Shape) {
    let (grain, size): (u64, u64) = (shape.grain.into(), shape.tiers.iter().sum());
    // Records share what there is; more than they need does not matter.
    shape.tiers[0] += (size / 8 + (64 << 10)).next_multiple_of(grain);
    shape.durability = Durability::Power;
}

/// What a theme adds to clients and ends.
fn themed(
    actors: &mut Vec<Actor>,
    ends: &mut Vec<End>,
    power_loss: &mut Vec<Option<Loss>>,
    random: &mut Random,
    theme: Theme,
) {
    let mut next = actors.iter().flat_map(|actor| &actor.ops).map(|(id, _)| id.0).max().unwrap_or(0);
    let mut actor = |name, ops: Vec<Op>| {
        let numbered = ops.into_iter().map(|op| {
            next += 1;
            (OpId(next), op)
        });
        actors.push(Actor { name, depth: 1, ops: numbered.collect() });
    };
    match theme {
        Theme::Damage => {
            let op = |random: &mut Random| {
                [Op::Pause { ns: random.magnitude(20_000) }, Op::Fault(FaultOp::Corrupt(random.word()))]
            };
            actor("faults", (0..16).flat_map(|_| op(random)).collect());
        }
        Theme::Marks => {
            let op = |random: &mut Random| {
                // Whoever is made meanwhile takes its part of the failing syncs.
                let state = *random.pick(&[StorageCall::Sync, StorageCall::Sync, StorageCall::Store]);
                let faults = [FaultOp::Cache(Action::Write, 1, Effect::Fail), FaultOp::State(state, 2)];
                std::iter::once(Op::Pause { ns: random.magnitude(400_000) }).chain(faults.map(Op::Fault))
            };
            actor("faults", (0..16).flat_map(|_| op(random)).collect());
            actor("snapshots", (0..8).flat_map(|_| short_lived(random)).collect());
            actor("backups", (0..8).map(|_| terminating(random)).collect());
        }
        Theme::Scarce => actor("backups", (0..16).map(|_| terminating(random)).collect()),
        _ => actor("snapshots", (0..12).flat_map(|_| short_lived(random)).collect()),
    }
    let mut end = |number: u64, loss: bool| {
        ends.push(End::Kill(CrashPlan { at: Crash::Submit, number }));
        power_loss.push(loss.then_some(Loss::Sampled));
    };
    match theme {
        Theme::Damage => end(random.between(100, 600), true),
        Theme::Marks if random.chance(50) => end(random.between(100, 400), true),
        Theme::Restarts => {
            for _ in 0..random.between(2, 4) {
                end(random.magnitude(400), random.chance(60));
            }
        }
        _ => {}
    }
}

/// An outboard copy that ends the copy-on-write.
fn terminating(random: &mut Random) -> Op {
    Op::Outboard { chunk: random.between(8, 512), boundary: Boundary::Terminate, pause_ns: random.magnitude(20_000) }
}

/// A snapshot that is deleted soon.
fn short_lived(random: &mut Random) -> [Op; 4] {
    let mut pause = || Op::Pause { ns: random.magnitude(200_000) };
    let (first, then) = (pause(), pause());
    let create = Op::Create { release: false, on_full: OnFull::Break, scope: Vec::new() };
    [create, first, Op::Delete { pick: random.word() }, then]
}

/// Turns some faults into those of flushes and syncs.
fn flush_faults(actors: &mut [Actor], random: &mut Random) {
    for (_, op) in actors.iter_mut().flat_map(|actor| &mut actor.ops) {
        if let Op::Fault(fault) = op
            && random.chance(35)
        {
            let times = random.magnitude(3);
            *fault = match random.below(4) {
                0 => FaultOp::Cache(Action::Flush, times, Effect::Stall(random.magnitude(20_000_000))),
                1 => FaultOp::Base(Action::Flush, times, Effect::Fail),
                2 => FaultOp::State(StorageCall::Sync, times),
                _ => FaultOp::Cache(Action::Flush, times, Effect::Fail),
            };
        }
    }
}

/// Which ends are the machine's: the kills that `lost` says, and some stops, of which some are killed on their way.
fn power(ends: &mut [End], lost: &[bool], random: &mut Random) -> Vec<Option<Loss>> {
    let loss = |(end, lost): (&mut End, &bool)| {
        let End::Stop { killed, .. } = end else { return lost.then_some(Loss::Sampled) };
        let kinds = [(Crash::Submit, 4), (Crash::Complete, 2), (Crash::Store, 30), (Crash::Point, 1)];
        let (at, reach) = *random.pick(&kinds);
        *killed = random.chance(30).then(|| CrashPlan { at, number: random.between(1, reach) });
        random.chance(40).then_some(Loss::Sampled)
    };
    ends.iter_mut().zip(lost).map(loss).collect()
}

/// Most requests go where others go.
fn hot(shape: &Shape, random: &mut Random) -> ByteRange {
    let grain = u64::from(shape.grain);
    let grains = shape.cells.size.div_ceil(grain);
    let wide = random.between(2, 10).min(grains);
    let first = if grains > CHUNK && random.chance(70) {
        (CHUNK - random.below(wide)).min(grains - wide)
    } else if random.chance(30) {
        grains - wide
    } else {
        random.below(grains - wide + 1)
    };
    ByteRange::between(first * grain, ((first + wide) * grain).min(shape.cells.size))
}

struct Draw<'a> {
    shape: &'a Shape,
    hot: ByteRange,
    random: &'a mut Random,
    faults: bool,
    next: u32,
}

impl Draw<'_> {
    fn actors(&mut self) -> Vec<Actor> {
        let total = self.random.between(LEAST_OPS, MOST_OPS);
        let mut actors = Vec::new();
        let mut left = total;
        let others = [
            (self.random.between(1, 2), "snapshots", 12, Self::snapshot_op as fn(&mut Self) -> Op),
            (self.random.between(1, 3), "viewer", 14, Self::view_op),
            (self.random.between(0, 2), "backups", 4, Self::backup_op),
            (u64::from(self.faults), "faults", 6, Self::fault_op),
        ];
        for (count, name, most, op) in others {
            for _ in 0..count {
                let ops = self.random.between(most / 2, most);
                left -= ops;
                let depth = self.random.between(1, 2) as usize;
                actors.push(Actor { name, depth, ops: self.numbered(ops, op) });
            }
        }
        let writers = self.random.between(2, 4);
        for writer in 0..writers {
            let ops = left / (writers - writer);
            left -= ops;
            let depth = self.random.magnitude(8) as usize;
            actors.push(Actor { name: "writer", depth, ops: self.numbered(ops, Self::host_op) });
        }
        actors
    }

    fn numbered(&mut self, count: u64, op: fn(&mut Self) -> Op) -> Vec<(OpId, Op)> {
        (0..count)
            .map(|_| {
                self.next += 1;
                (OpId(self.next), op(self))
            })
            .collect()
    }

    fn host_op(&mut self) -> Op {
        let fua = self.random.chance(5);
        match self.random.below(100) {
            0..62 => Op::Write { range: self.range(), fua },
            62..70 => {
                let (may_unmap, fast) = (self.random.chance(60), self.random.chance(30));
                Op::Zeroes { range: self.range(), zeroes: Zeroes { may_unmap, fast, fua } }
            }
            70..77 => Op::Trim { range: self.range() },
            77..80 => Op::Flush,
            80..92 => Op::Read { range: self.range() },
            92..95 => Op::Status { range: self.range() },
            95..97 => Op::Reconnect,
            _ => self.pause(),
        }
    }

    fn snapshot_op(&mut self) -> Op {
        match self.random.below(100) {
            0..45 => Op::Create {
                release: self.random.chance(25),
                on_full: match self.random.below(10) {
                    0..6 => OnFull::Break,
                    6..9 => OnFull::Wait(self.random.magnitude(30) as u32),
                    _ => OnFull::FailWrites,
                },
                scope: (0..if self.random.chance(25) { self.random.between(1, 4) } else { 0 })
                    .map(|_| self.range())
                    .collect(),
            },
            45..65 => Op::Delete { pick: self.random.word() },
            65..78 => Op::Release { pick: self.random.word(), range: self.range() },
            _ => self.pause(),
        }
    }

    fn view_op(&mut self) -> Op {
        match self.random.below(100) {
            0..75 => {
                let ranges = (0..self.random.between(1, 4)).map(|_| self.range()).collect();
                let stall = self.random.chance(12).then(|| (self.random.magnitude(16), self.random.chance(60)));
                Op::View { pick: self.random.word(), ranges, stall, consumes: self.random.chance(50) }
            }
            _ if self.random.chance(8) => Op::Ahead { range: self.range() },
            75..85 => Op::ViewStatus { pick: self.random.word(), range: self.range() },
            _ => self.pause(),
        }
    }

    fn backup_op(&mut self) -> Op {
        if self.random.chance(20) {
            return self.pause();
        }
        let grains = self.shape.cells.size.div_ceil(u64::from(self.shape.grain));
        let chunk = self.random.between((grains / 24).max(1), (grains / 3).max(2));
        if self.random.chance(30) {
            let boundary =
                *self.random.pick(&[Boundary::Terminate, Boundary::Terminate, Boundary::Marker, Boundary::All]);
            return Op::Outboard { chunk, boundary, pause_ns: self.random.magnitude(20_000_000) };
        }
        Op::Backup {
            chunk,
            batch: self.random.between(1, 3),
            dies_after: self.random.chance(25).then(|| self.random.below(8)),
            keep: self.random.chance(25),
            rest_ns: if self.random.chance(if grains > CHUNK { 80 } else { 40 }) {
                self.random.magnitude(40_000_000)
            } else {
                0
            },
        }
    }

    fn fault_op(&mut self) -> Op {
        if self.random.chance(40) {
            return self.pause();
        }
        if self.shape.cells.size / u64::from(self.shape.grain) > CHUNK && self.random.chance(50) {
            // Only so many grains make the map grow.
            return Op::Fault(FaultOp::State(StorageCall::Grow, 2));
        }
        let longest_save = self.shape.longest_save_ns;
        if longest_save < PATIENT_NS && self.random.chance(60) {
            let stall = Effect::Stall(self.random.between(longest_save / 2, longest_save * 8));
            return Op::Fault(FaultOp::Cache(Action::Write, self.random.magnitude(4), stall));
        }
        let times = self.random.magnitude(4);
        let stall = Effect::Stall(self.random.magnitude(50_000_000));
        Op::Fault(match self.random.below(14) {
            0 | 1 | 11 | 12 => FaultOp::Base(Action::Read, times, Effect::Fail),
            2 => FaultOp::Base(Action::Write, times, *self.random.pick(&[Effect::Fail, Effect::NoSpace])),
            3 => FaultOp::Base(*self.random.pick(&[Action::Read, Action::Write]), times, stall),
            4 => FaultOp::Cache(Action::Write, times, Effect::NoSpace),
            5 => FaultOp::Cache(Action::Write, times, Effect::Fail),
            6 => FaultOp::Cache(Action::Read, times, Effect::Fail),
            7 => FaultOp::Cache(*self.random.pick(&[Action::Read, Action::Write]), times, stall),
            8 => FaultOp::Base(*self.random.pick(&[Action::WriteZeroes, Action::Discard]), times, Effect::Fail),
            9 => FaultOp::Corrupt(self.random.word()),
            10 => FaultOp::State(*self.random.pick(&[StorageCall::Create, StorageCall::Grow]), times),
            // Long enough to meet the save and the mark of what it breaks.
            _ => FaultOp::State(StorageCall::Store, self.random.magnitude(64)),
        })
    }

    fn pause(&mut self) -> Op {
        Op::Pause { ns: self.random.magnitude(2_000_000) }
    }

    /// A range of whole cells: a cell, a part of a grain, some grains, many grains, the end of the device.
    fn range(&mut self) -> ByteRange {
        let Shape { grain, cells, .. } = *self.shape;
        let (grain, within) = (u64::from(grain), ByteRange::new(0, cells.size));
        let many = cells.size / grain > CHUNK;
        let within = if self.random.chance(if many { 50 } else { 75 }) { self.hot } else { within };
        let start = within.start() + self.random.below(within.len());
        let len = match self.random.below(20) {
            // So that more is saved than a mover's ring of publications holds.
            _ if many && self.random.chance(25) => self.random.between(1, 600 * grain),
            0..4 => 1,
            4..9 => self.random.between(1, grain),
            9..17 => self.random.between(1, 6 * grain),
            17 => self.random.between(1, 32 * grain),
            _ => cells.size - start,
        };
        let (first, last) = (start / cells.cell, (start + len).min(cells.size).div_ceil(cells.cell));
        let aligned = self.random.chance(30);
        let (mut start, mut end) = (first * cells.cell, last * cells.cell);
        if aligned {
            (start, end) = (start / grain * grain, end.next_multiple_of(grain));
        }
        // The end of a device that is no multiple of the grain is reached often.
        let most = if self.random.chance(80) { 256 * 1024 } else { u64::MAX };
        end = end.min(cells.size).min(start.saturating_add(most.max(cells.cell)));
        ByteRange::between(start, end)
    }
}
