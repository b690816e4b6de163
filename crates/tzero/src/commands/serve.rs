//! `tzero serve`.

use std::env;
use std::io::{self, IsTerminal, Write};

use tracing::Level;
use tzero_api::{Exit, StatePaths};
use tzero_copy::placement;
use tzero_daemon::{Address, Config, ServeOptions};

use crate::cli::Serve;
use crate::ending::Ending;
use crate::sockets;

/// Most that is logged, by name.
const LOG_LEVEL: &str = "TZERO_LOG";

pub(crate) fn run(serve: Serve, state: &StatePaths) -> Result<Exit, Ending> {
    log_to_stderr()?;
    let config = match &serve.config {
        Some(path) => Config::read(path).map_err(Ending::usage)?,
        None => Config::default(),
    };
    for address in &config.nbd {
        if let Address::Unix(path) = address {
            sockets::check(path)?;
        }
    }
    let options = ServeOptions {
        state: state.root().to_owned(),
        config,
        nbd: serve.nbd,
        program: "/proc/self/exe".into(),
        lies_on: |path, base| placement::lies_on(path, &placement::Identity::of_file(base)?),
    };
    tzero_daemon::serve(options, || {
        // A daemon whose starter does not listen any more serves all the same.
        let _ = writeln!(io::stdout(), "ready");
    })?;
    Ok(Exit::AsAsked)
}

fn log_to_stderr() -> Result<(), Ending> {
    let level = match env::var(LOG_LEVEL) {
        Ok(name) => name
            .parse()
            .map_err(|_| Ending::usage(format!("{LOG_LEVEL}={name} is no level: error, warn, info, debug or trace")))?,
        Err(_) => Level::INFO,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        // A log that takes no more must not take the daemon with it.
        .log_internal_errors(false)
        .init();
    Ok(())
}
