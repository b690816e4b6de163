//! The end-to-end tests, their slow lanes, and the simulator.
//!
//! A slow test lives in a module named `lane` of its area (`kill::lane::…`); `.config/nextest.toml` leaves those out of
//! a plain run, and a lane runs exactly those of its areas. Nothing is ever marked as ignored.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Result, bail};

use crate::nextest::{self, Tally};
use crate::shell::{self, cargo, is_root, succeeds};

/// A named slow lane: which tests, and what they show.
struct Lane {
    name: &'static str,
    filter: &'static str,
    shows: &'static str,
}

const LANES: &[Lane] = &[
    Lane {
        name: "clients",
        filter: "test(/^clients::lane::/)",
        shows: "fio flat out on several connections while a view is copied, at length",
    },
    Lane {
        name: "snapshots",
        filter: "test(/^snapshots::lane::/)",
        shows: "many rounds of eight snapshots under load, random ones deleted, others drained",
    },
    Lane {
        name: "modes",
        filter: "test(/^modes::lane::/)",
        shows: "every mode and boundary under fio flat out, and that an outboard base alone is no time zero",
    },
    Lane {
        name: "kill",
        filter: "test(/^kill::lane::/)",
        shows: "200 kills of the daemon at its crash points and at random, snapshots standing and writers on",
    },
    Lane {
        name: "reconnect",
        filter: "test(/^reconnect::lane::/)",
        shows: "QEMU with reconnect-delay sees a pause and no error, whatever the volume, when the daemon is killed or exchanged",
    },
    Lane {
        name: "silence",
        filter: "test(/^exports::lane::/)",
        shows: "an NBD server that stops answering ends a backup and an adding, each in its time",
    },
    Lane {
        name: "mover-kill",
        filter: "test(/^mover::lane::/)",
        shows: "a mover killed again and again, resumed until it ends with the same time zero",
    },
    Lane {
        name: "postgres",
        filter: "test(/^postgres::lane::/)",
        shows: "PostgreSQL under pgbench, backed up and brought up again, several rounds",
    },
    Lane {
        name: "stall",
        filter: "test(/^stall::lane::/)",
        shows: "a reader that stalls for ever leaves the host's first-touch p99 as it was",
    },
    Lane {
        name: "ladder",
        filter: "test(/^ladder::lane::/)",
        shows: "8 MiB of memory, 64 MiB of disk, then full, under load: order, forecast, latency, and what each rung is worth",
    },
    Lane {
        name: "soak",
        filter: "test(/^soak::lane::/)",
        shows: "snapshots, deletions and backups for TZERO_SOAK_MINUTES (default 10), memory and disk bounded",
    },
];

/// `cargo xtask lane`.
pub(crate) fn lane(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => {
            for lane in LANES {
                println!("  {:11} {}", lane.name, lane.shows);
            }
            Ok(())
        }
        [name] => match LANES.iter().find(|lane| lane.name == name) {
            Some(lane) => {
                build()?;
                ended(nextest::run("lane", &["--package", "e2e", "--ignore-default-filter", "-E", lane.filter])?)
            }
            None => bail!("there is no lane `{name}`; `cargo xtask lane` lists them"),
        },
        _ => bail!("`cargo xtask lane` takes one name"),
    }
}

/// `cargo xtask e2e`.
pub(crate) fn end_to_end(arguments: &[String]) -> Result<()> {
    let (flags, filters): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|word| word.starts_with("--"));
    if let Some(flag) = flags.iter().find(|flag| **flag != "--full") {
        bail!("`cargo xtask e2e` does not know {flag}");
    }
    build()?;
    let filters: Vec<&str> = filters.into_iter().map(String::as_str).collect();
    ended(if flags.is_empty() { short(&filters)? } else { full(&filters)? })
}

/// The end-to-end tests that run everywhere; the release binary must have been built.
pub(crate) fn short(filters: &[&str]) -> Result<Tally> {
    if !is_root() {
        bail!("the end-to-end tests mount file systems and start PostgreSQL as another user: run them as root");
    }
    let mut arguments = vec!["--package", "e2e"];
    arguments.extend(filters);
    nextest::run("ci", &arguments)
}

fn full(filters: &[&str]) -> Result<Tally> {
    if !is_root() {
        bail!("the end-to-end tests mount file systems and start PostgreSQL as another user: run them as root");
    }
    let mut arguments = vec!["--package", "e2e", "--ignore-default-filter"];
    arguments.extend(filters);
    nextest::run("lane", &arguments)
}

/// Builds the binary under test.
pub(crate) fn build() -> Result<()> {
    shell::run(&mut cargo(&["build", "--release", "--locked", "--package", "tzero"]))
}

/// `cargo xtask sim`.
pub(crate) fn simulator(arguments: &[String]) -> Result<()> {
    let mut command = if arguments.is_empty() { simulation(&SIMULATION) } else { simulation(arguments) };
    if succeeds(&mut command)? { Ok(()) } else { bail!("the simulator found a failure") }
}

/// What every change must stand: so many schedules, and each race met so often.
pub(crate) const SIMULATION: [&str; 4] = ["--schedules", "10000", "--each-race", "100"];

/// The simulator's command line.
pub(crate) fn simulation<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = cargo(&["run", "--release", "--locked", "--quiet", "--package", "tzero-sim", "--"]);
    command.args(arguments);
    command
}

fn ended(tally: Tally) -> Result<()> {
    println!("{tally}");
    if tally.failed == 0 { Ok(()) } else { bail!("tests failed") }
}
