//! Runs schedules of the simulator: `cargo run --release -p tzero-sim -- --schedules 10000`.

use std::fmt::Debug;
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use tzero_engine::Planted;
use tzero_sim::executor::Crash;
use tzero_sim::plan::{Plan, Theme};
use tzero_sim::races::Race;
use tzero_sim::runner::{Kind, Total, run_many, sweep};
use tzero_sim::{schedule, shrink, story};

#[derive(Parser)]
#[command(
    about = "Deterministic simulation of the engine: prints the seed of what fails, and which races were reached"
)]
struct Arguments {
    /// How many schedules to run
    #[arg(long, default_value_t = 1000)]
    schedules: u64,
    /// What the schedules' seeds are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads to run them on
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Runs only the schedule of this seed, and prints its plan
    #[arg(long)]
    replay: Option<u64>,
    /// Kills the daemon of this seed's schedule at every moment in turn
    #[arg(long, conflicts_with = "replay")]
    sweep: Option<u64>,
    /// With --sweep: only at every so many-th moment
    #[arg(long, default_value_t = 1)]
    stride: u64,
    /// With --replay: prints what the engine does
    #[arg(long)]
    trace: bool,
    /// Looks for fewer operations that fail, too
    #[arg(long)]
    shrink: bool,
    /// Plants this fault in the engine: the run must then fail (a name, or "list")
    #[arg(long)]
    planted: Option<String>,
    /// Only schedules in which originals outlive a loss of power
    #[arg(long)]
    power: bool,
    /// Only schedules that have much of something (a name, or "list")
    #[arg(long)]
    theme: Option<String>,
    /// Runs each schedule twice: both must go the same way
    #[arg(long)]
    twice: bool,
    /// Goes on after a failure, up to so many
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Fails when a race was reached less often
    #[arg(long, default_value_t = 0)]
    each_race: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if arguments.planted.as_deref() == Some("list") {
        return Ok(print_all(&mut out, Planted::ALL)?);
    }
    if arguments.theme.as_deref() == Some("list") {
        return Ok(print_all(&mut out, Theme::ALL)?);
    }
    let planted = arguments.planted.as_deref().map(|name| named(Planted::ALL, name, "fault to plant")).transpose()?;
    let theme = arguments.theme.as_deref().map(|name| named(Theme::ALL, name, "theme")).transpose()?;
    let kind = Kind::of(planted);
    let kind =
        Kind { power: arguments.power || kind.power, theme: theme.or(kind.theme), twice: arguments.twice, ..kind };
    if let Some(seed) = arguments.replay {
        return replay(&mut out, &kind.plan(seed), planted, arguments);
    }
    let begun = Instant::now();
    if let Some(seed) = arguments.sweep {
        let (runs, failed) = sweep(seed, arguments.stride.max(1), arguments.threads, planted);
        writeln!(out, "{runs} kills in {:.1} s", begun.elapsed().as_secs_f64())?;
        return match failed {
            None => Ok(()),
            Some((kill, failure)) => bail!("killed at {kill:?}: {failure}"),
        };
    }
    let progress = |done: u64| {
        if done.is_multiple_of(500) {
            let _ = writeln!(std::io::stderr(), "{done} schedules");
        }
    };
    let total = run_many(arguments.seed, arguments.schedules, arguments.threads, arguments.failures, kind, &progress);
    print_races(&mut out, &total)?;
    let seconds = begun.elapsed().as_secs_f64();
    writeln!(
        out,
        "{} schedules, {} operations, {} steps in {seconds:.1} s: {:.1} schedules/s",
        total.schedules,
        total.ops,
        total.steps,
        total.schedules as f64 / seconds
    )?;
    for (seed, failure) in &total.failures {
        writeln!(out, "FAILED --replay {seed}\n  {failure}")?;
    }
    if let Some((seed, _)) = total.failures.first() {
        if arguments.shrink {
            replay(&mut out, &kind.plan(*seed), planted, arguments)?;
        }
        bail!("{} of {} schedules failed", total.failures.len(), total.schedules);
    }
    let rare: Vec<_> =
        Race::ALL.iter().filter(|race| total.races.get(race).copied().unwrap_or(0) < arguments.each_race).collect();
    if !rare.is_empty() {
        bail!("reached less than {} times: {rare:?}", arguments.each_race);
    }
    Ok(())
}

/// The one of that name.
fn named<T: Copy + Debug>(all: &[T], name: &str, what: &str) -> anyhow::Result<T> {
    all.iter()
        .copied()
        .find(|one| format!("{one:?}") == name)
        .with_context(|| format!("there is no {what} {name}; \"list\" prints them"))
}

fn print_all<T: Debug>(out: &mut impl Write, all: &[T]) -> std::io::Result<()> {
    all.iter().try_for_each(|one| writeln!(out, "{one:?}"))
}

fn print_races(out: &mut impl Write, total: &Total) -> std::io::Result<()> {
    for race in Race::ALL {
        writeln!(out, "{:>9}  {}", total.races.get(race).copied().unwrap_or(0), race.text())?;
    }
    Ok(())
}

fn print_plan(out: &mut impl Write, plan: &Plan) -> std::io::Result<()> {
    writeln!(out, "seed {}, run seed {}\n{:?}\n{:?}", plan.seed, plan.run_seed, plan.shape, plan.chaos)?;
    writeln!(
        out,
        "ends {:?}, power lost {:?}, restart at the end {}",
        plan.ends, plan.power_loss, plan.restart_at_end
    )?;
    for actor in &plan.actors {
        writeln!(out, "{} (depth {})", actor.name, actor.depth)?;
        for (id, op) in &actor.ops {
            writeln!(out, "    {} {op:?}", id.0)?;
        }
    }
    Ok(())
}

fn replay(out: &mut impl Write, plan: &Plan, planted: Option<Planted>, arguments: &Arguments) -> anyhow::Result<()> {
    let (plan, verdict) = if arguments.shrink {
        shrink::shrink(plan, planted, &|plan| {
            let _ = writeln!(std::io::stderr(), "{} operations", plan.ops());
        })
    } else {
        (plan.clone(), schedule::run(plan, planted))
    };
    print_plan(out, &plan)?;
    if arguments.trace {
        story::tell(true);
        schedule::run(&plan, planted);
        for line in story::told() {
            writeln!(out, "{line}")?;
        }
    }
    writeln!(out, "{} operations, {} steps, trace {:016x}", verdict.ops, verdict.steps, verdict.trace)?;
    writeln!(out, "moments of the last incarnation: {:?} of {:?}", verdict.moments, Crash::ALL)?;
    match verdict.failure {
        Some(failure) => bail!("{failure}"),
        None => Ok(()),
    }
}
