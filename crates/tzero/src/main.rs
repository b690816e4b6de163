//! The command line: parses, asks the daemon or the mover, prints, and ends with the status that `docs/cli.md` fixes.
//!
//! Deliberately absent: any decision about data. The daemon and the crates below decide; this one translates between them and
//! people or programs.

mod advice;
mod arguments;
mod bench;
mod cli;
mod commands;
mod demo;
mod destination;
mod ending;
mod events;
mod interrupt;
mod nbd;
mod output;
mod paths;
mod printable;
mod progress;
mod scope;
mod sockets;
mod stage;
mod stdout;

use std::env;
use std::process::ExitCode;

use clap::Parser;
use tzero_api::Exit;

use crate::cli::{Cli, Command};
use crate::ending::Ending;
use crate::output::Output;

fn main() -> ExitCode {
    let exit = match Cli::try_parse() {
        Ok(cli) => {
            let output = Output { json: cli.json };
            run(cli, output).unwrap_or_else(|ending| failed(&ending, output))
        }
        Err(error) => usage(&error),
    };
    ExitCode::from(stdout::settle(exit).code())
}

fn failed(ending: &Ending, output: Output) -> Exit {
    output.ending(ending);
    ending.exit
}

/// Answers a command line that asks for help, or is wrong.
fn usage(error: &clap::Error) -> Exit {
    // It was not parsed, so whether JSON was asked for has to be looked up by hand.
    let mut options = env::args_os().take_while(|argument| argument != "--");
    let output = Output { json: options.any(|option| option == "--json") };
    match Ending::of_usage(error, env::args_os()) {
        Some(ending) => failed(&ending, output),
        None => {
            output.raw(error.to_string().as_bytes());
            Exit::AsAsked
        }
    }
}

fn run(cli: Cli, output: Output) -> Result<Exit, Ending> {
    let state = || paths::state(cli.state);
    match cli.command {
        Command::Demo(demo) => demo::run(&demo, output),
        Command::Bench(bench) => bench::run(&bench, output),
        Command::Serve(serve) => commands::serve::run(serve, &state()?),
        Command::Volume(volume) => commands::volume::run(volume, &state()?, output),
        Command::Snapshot(snapshot) => commands::snapshot::run(snapshot, &state()?, output),
        Command::Backup(backup) => commands::backup::run(&backup, &state()?, output),
        Command::Copy(copy) => commands::copy::run(&copy, &state()?, output),
        Command::Restore(restore) => commands::restore::run(&restore, &state()?, output),
        Command::Status(status) => commands::status::run(&status, &state()?, output),
    }
}
