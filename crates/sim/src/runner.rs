//! Running many schedules on a few threads.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use tzero_engine::Planted;

use crate::executor::{Crash, CrashPlan};
use crate::plan::{End, Plan, Theme};
use crate::power::Loss;
use crate::races::Race;
use crate::random::mix;
use crate::schedule::{self, Verdict, add};

/// What many schedules have shown.
#[derive(Clone, Debug, Default)]
pub struct Total {
    /// Schedules that were run.
    pub schedules: u64,
    /// Operations in them.
    pub ops: u64,
    /// Steps of the executor in them.
    pub steps: u64,
    /// Races reached.
    pub races: BTreeMap<Race, u64>,
    /// Seeds that failed, with what was wrong.
    pub failures: Vec<(u64, String)>,
}

/// The seed of schedule `number` of a run.
pub fn seed_of(run: u64, number: u64) -> u64 {
    mix(run ^ mix(number))
}

/// Whether a fault shows only where originals outlive a loss of power.
fn shows_with_power(planted: Planted) -> bool {
    use Planted::{
        CommitBeforeFlush, ConfirmedBeforeFlush, DeletionNotDurable, DoubtForgotten, FailureKept, PayloadNotDurable,
        ReleaseNotDurable,
    };
    matches!(
        planted,
        CommitBeforeFlush
            | ConfirmedBeforeFlush
            | DeletionNotDurable
            | DoubtForgotten
            | FailureKept
            | PayloadNotDurable
            | ReleaseNotDurable
    )
}

/// Which schedules are run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// The fault that is planted in the engine.
    pub planted: Option<Planted>,
    /// In all of them originals outlive a loss of power, not only in some.
    pub power: bool,
    /// What all of them have much of.
    pub theme: Option<Theme>,
    /// Each is run twice, whether it fails or not, and must go the same way.
    pub twice: bool,
}

impl Kind {
    /// Those that can show a fault.
    pub fn of(planted: Option<Planted>) -> Self {
        Self { planted, power: planted.is_some_and(shows_with_power), theme: planted.and_then(Theme::of), twice: false }
    }

    /// The plan of a seed.
    pub fn plan(self, seed: u64) -> Plan {
        Plan::of(seed, self.power, self.theme)
    }

    /// Runs the schedule of a seed.
    pub fn run(self, seed: u64) -> Verdict {
        schedule::run(&self.plan(seed), self.planted)
    }
}

/// Kills the daemon of one schedule at every `stride`-th moment of every kind in turn: every mapped store, every request, every named
/// point. The schedule up to there is always the same. Gives how many runs that were, and what failed first.
pub fn sweep(seed: u64, stride: u64, threads: usize, planted: Option<Planted>) -> (u64, Option<(CrashPlan, String)>) {
    let mut plan = Plan::new(seed);
    plan.ends.clear();
    plan.power_loss.clear();
    plan.restart_at_end = false;
    let whole = schedule::run(&plan, planted);
    if let Some(failure) = whole.failure {
        return (1, Some((CrashPlan { at: Crash::Point, number: u64::MAX }, failure)));
    }
    let kills: Vec<CrashPlan> = Crash::ALL
        .into_iter()
        .zip(whole.moments)
        .flat_map(|(at, count)| (1..=count).step_by(stride as usize).map(move |number| CrashPlan { at, number }))
        .collect();
    let (next, failed) = (AtomicU64::new(0), Mutex::new(None));
    let work = || {
        while failed.lock().expect("no schedule panics while it is counted").is_none() {
            let Some(kill) = kills.get(next.fetch_add(1, Ordering::Relaxed) as usize) else { break };
            let mut plan = plan.clone();
            plan.ends.push(End::Kill(*kill));
            plan.power_loss.push(None);
            if let Some(failure) = schedule::run(&plan, planted).failure {
                failed.lock().expect("no schedule panics while it is counted").get_or_insert((*kill, failure));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().expect("no schedule panics while it is counted");
    (next.into_inner().min(kills.len() as u64), failed)
}

/// A small schedule of a seed, and a moment somewhere in it.
pub fn small(seed: u64) -> (Plan, CrashPlan) {
    let mut plan = Plan::new(seed_of(seed, 0));
    plan.retain(|id| id.0 % 5 == 0);
    (plan.ends, plan.power_loss) = (Vec::new(), Vec::new());
    let whole = schedule::run(&plan, None);
    let at = Crash::ALL[(seed % Crash::ALL.len() as u64) as usize];
    let count = whole.moments[at as usize].max(1);
    (plan, CrashPlan { at, number: 1 + mix(seed) % count })
}

/// Loses the power of one schedule at one moment, with every prefix in turn of what was not durable then, up to `most` of them. Gives how
/// many runs that were, and what failed first.
pub fn every_prefix(
    plan: &Plan,
    kill: CrashPlan,
    most: u64,
    planted: Option<Planted>,
) -> (u64, Option<(Loss, String)>) {
    let run = |loss| {
        let mut plan = plan.clone();
        (plan.ends, plan.power_loss) = (vec![End::Kill(kill)], vec![Some(loss)]);
        schedule::run(&plan, planted)
    };
    let whole = run(Loss::Last(0));
    let mut runs = 1;
    for lost in 0..=whole.logged.min(most) {
        let loss = Loss::Last(lost);
        if let Some(failure) = if lost == 0 { whole.failure.clone() } else { run(loss).failure } {
            return (runs, Some((loss, failure)));
        }
        runs += 1;
    }
    (runs, None)
}

/// Runs `count` schedules of the run `seed` on `threads` threads; stops after `most_failures`. `progress` is called now and then with how many are done.
pub fn run_many(
    seed: u64,
    count: u64,
    threads: usize,
    most_failures: usize,
    kind: Kind,
    progress: &(dyn Fn(u64) + Sync),
) -> Total {
    let (next, enough, total) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Total::default()));
    let work = || {
        while !enough.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let schedule = seed_of(seed, number);
            let mut verdict = kind.run(schedule);
            if kind.twice || verdict.failure.is_some() {
                // Whatever a schedule does follows from its seed, or the simulator is at fault.
                let again = kind.run(schedule);
                if (again.trace, &again.failure) != (verdict.trace, &verdict.failure) {
                    let (once, then) = (verdict.trace, again.trace);
                    verdict.failure = Some(format!(
                        "NOT REPEATABLE: trace {once:016x}, {:?}, then {then:016x}, {:?}",
                        verdict.failure, again.failure
                    ));
                }
            }
            let mut total = total.lock().expect("no schedule panics while it is counted");
            total.schedules += 1;
            total.ops += verdict.ops;
            total.steps += verdict.steps;
            add(&mut total.races, &verdict.races);
            total.failures.extend(verdict.failure.map(|failure| (schedule, failure)));
            if total.failures.len() >= most_failures {
                enough.store(true, Ordering::Relaxed);
            }
            progress(total.schedules);
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    total.into_inner().expect("no schedule panics while it is counted")
}
