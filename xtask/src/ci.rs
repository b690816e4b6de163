//! `cargo xtask ci`: what must pass before a change is good.
//!
//! Every step runs, even after another has failed, unless it needs what failed. The last line counts the tests; a step
//! that is not made of tests counts as one when it fails.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::lanes;
use crate::nextest::{self, Tally};
use crate::shell::{cargo, succeeds};
use crate::tidy;

struct Step {
    name: &'static str,
    took: Duration,
    tally: Tally,
    note: String,
}

/// The task.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("`cargo xtask ci` takes no argument");
    }
    let mut steps = Vec::new();
    check(&mut steps, "format", || succeeds(&mut cargo(&["fmt", "--all", "--check"])));
    check(&mut steps, "lints", || {
        succeeds(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    });
    check(&mut steps, "docs", || {
        let mut command = cargo(&["doc", "--workspace", "--no-deps", "--locked", "--quiet"]);
        succeeds(command.env("RUSTDOCFLAGS", "-D warnings"))
    });
    check(&mut steps, "tidiness", || Ok(tidy::run(&[]).is_ok()));
    let built = check(&mut steps, "build", || {
        succeeds(&mut cargo(&["build", "--release", "--locked", "--package", "tzero", "--package", "tzero-sim"]))
    });
    let of_units = ["--workspace", "--locked", "--exclude", "e2e", "--exclude", "tzero-sim"];
    tests(&mut steps, "unit tests", || nextest::run("ci", &of_units));
    if built {
        // Schedules by the thousand: optimised as the simulator is.
        let of_simulator = ["--package", "tzero-sim", "--release", "--locked"];
        tests(&mut steps, "planted", || nextest::run("ci", &of_simulator));
        tests(&mut steps, "simulator", || Ok(Tally::one(succeeds(&mut lanes::simulation(&lanes::SIMULATION))?)));
        tests(&mut steps, "end to end", || lanes::short(&[]));
    } else {
        for name in ["planted", "simulator", "end to end"] {
            let note = "not run: nothing was built".to_owned();
            steps.push(Step { name, took: Duration::ZERO, tally: Tally::one(false), note });
        }
    }
    summary(&steps)
}

/// A step that is no test: silent in the count unless it fails.
fn check(steps: &mut Vec<Step>, name: &'static str, body: impl FnOnce() -> Result<bool>) -> bool {
    tests(steps, name, || {
        let good = body()?;
        Ok(if good { Tally::default() } else { Tally::one(false) })
    })
}

fn tests(steps: &mut Vec<Step>, name: &'static str, body: impl FnOnce() -> Result<Tally>) -> bool {
    println!("== {name}");
    let began = Instant::now();
    let (tally, note) = match body() {
        Ok(tally) => (tally, String::new()),
        Err(error) => (Tally::one(false), format!("{error:#}")),
    };
    steps.push(Step { name, took: began.elapsed(), tally, note });
    tally.failed == 0
}

fn summary(steps: &[Step]) -> ! {
    let mut sum = Tally::default();
    println!("== summary");
    for step in steps {
        sum.add(step.tally);
        let verdict = if step.tally.failed == 0 { "ok" } else { "FAILED" };
        let count = if step.tally == Tally::default() { String::new() } else { step.tally.to_string() };
        println!("{:12} {:>7.1} s  {verdict:6} {count} {}", step.name, step.took.as_secs_f64(), step.note);
    }
    let whole: Duration = steps.iter().map(|step| step.took).sum();
    println!("{:12} {:>7.1} s", "all", whole.as_secs_f64());
    println!("{sum}");
    // Nothing may follow the count on either stream.
    std::process::exit(if sum.failed == 0 { 0 } else { 1 })
}
