//! The command line: parses, asks the daemon or the mover, prints, and ends with the status that `docs/cli.md` fixes.
//!
//! Deliberately absent: any decision about data. The daemon and the crates below decide; this one translates between them and
//! people or programs.

mod cli;
mod commands;
mod demo;
mod destination;
mod ending;
mod interrupt;
mod output;
mod progress;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use tzero_api::{Exit, StatePaths};

use crate::cli::{Cli, Command};
use crate::ending::Ending;
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = Output { json: cli.json };
    let exit = run(cli, output).unwrap_or_else(|ending| {
        output.ending(&ending);
        ending.exit
    });
    ExitCode::from(exit.code())
}

/// Answers a command line that asks for help, or is wrong.
fn usage(error: &clap::Error) -> ExitCode {
    // It was not parsed, so whether JSON was asked for has to be looked up by hand.
    let output = Output { json: env::args_os().any(|argument| argument == "--json") };
    match Ending::of_usage(error) {
        Some(ending) => {
            output.ending(&ending);
            ExitCode::from(ending.exit.code())
        }
        None => {
            output.raw(error.to_string().as_bytes());
            ExitCode::SUCCESS
        }
    }
}

fn run(cli: Cli, output: Output) -> Result<Exit, Ending> {
    let state = StatePaths::new(state_directory(cli.state)?);
    match cli.command {
        Command::Demo(demo) => demo::run(&demo, output),
        Command::Serve(serve) => commands::serve::run(serve, &state),
        Command::Volume(volume) => commands::volume::run(volume, &state, output),
        Command::Snapshot(snapshot) => commands::snapshot::run(snapshot, &state, output),
        Command::Backup(backup) => commands::backup::run(&backup, &state, output),
        Command::Copy(copy) => commands::copy::run(&copy, &state, output),
        Command::Restore(restore) => commands::restore::run(&restore, &state, output),
        Command::Status(status) => commands::status::run(&status, &state, output),
    }
}

fn state_directory(asked: Option<PathBuf>) -> Result<PathBuf, Ending> {
    if let Some(path) = asked.filter(|path| !path.as_os_str().is_empty()) {
        return Ok(path);
    }
    let variable = |name| env::var_os(name).map(PathBuf::from);
    StatePaths::default_root(is_root(), variable("XDG_STATE_HOME"), variable("HOME"))
        .ok_or_else(|| Ending::usage("there is no home for the state directory: name one with --state or TZERO_STATE"))
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The path from the root, as the daemon and the catalogue need it, without following links.
fn absolute(path: &Path) -> Result<PathBuf, Ending> {
    std::path::absolute(path)
        .map_err(|error| Ending::failed(format!("{} cannot be made absolute: {error}", path.display())))
}
