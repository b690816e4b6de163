//! The project's own tasks: `cargo xtask` lists them.
//!
//! A task is a plain function; what it runs it prints first, so that it can be repeated by hand.
//!
//! Deliberately absent: anything that the product needs at run time, and any dependency that would make a first
//! `cargo xtask` slow.

#![expect(clippy::print_stdout, reason = "a task speaks to the person who started it")]

mod ci;
mod lanes;
mod nextest;
mod setup;
mod shell;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// A task by name.
struct Task {
    name: &'static str,
    arguments: &'static str,
    does: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const TASKS: &[Task] = &[
    Task {
        name: "setup",
        arguments: "",
        does: "install what the tests need from Debian, as root, and say what it did; quick when all is there",
        run: setup::run,
    },
    Task {
        name: "ci",
        arguments: "",
        does: "everything that must pass: format, lints, docs, tidiness, unit tests, simulator, end-to-end tests",
        run: ci::run,
    },
    Task {
        name: "e2e",
        arguments: "[--full] [FILTER]",
        does: "the end-to-end tests with real clients, as root; --full adds every lane",
        run: lanes::end_to_end,
    },
    Task {
        name: "lane",
        arguments: "[NAME]",
        does: "one slow lane of the end-to-end tests; without a name, list the lanes",
        run: lanes::lane,
    },
    Task {
        name: "sim",
        arguments: "[ARGUMENT]…",
        does: "the simulator, optimised; without arguments 10000 schedules",
        run: lanes::simulator,
    },
    Task {
        name: "tidy",
        arguments: "",
        does: "the largest files and functions, and rules that no compiler checks: file sizes, links, indexes, dead files, forbidden words",
        run: tidy::run,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        list();
        return Ok(());
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        list();
        return Ok(());
    }
    match TASKS.iter().find(|task| task.name == name) {
        Some(task) => (task.run)(rest),
        None => bail!("there is no task `{name}`; `cargo xtask` lists them"),
    }
}

fn list() {
    println!("cargo xtask TASK");
    println!();
    let width = TASKS.iter().map(|task| task.name.len() + 1 + task.arguments.len()).max().unwrap_or(0);
    for task in TASKS {
        let call = format!("{} {}", task.name, task.arguments);
        println!("  {call:width$}  {}", task.does);
    }
}
