//! `tzero status`.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tzero_api::control::{self, Snapshot};
use tzero_api::{Client, Exit, StatePaths};
use tzero_copy::Timestamp;

use crate::cli::Status;
use crate::commands::{snapshot, volume};
use crate::ending::Ending;
use crate::output::Output;

/// Time between two looks of `--watch`.
const WATCH_STEP: Duration = Duration::from_secs(1);
/// Moves to the upper left corner and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(crate) fn run(command: &Status, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let client = Client::new(state)?;
    loop {
        let status = client.status()?;
        if command.watch && !output.json && io::stdout().is_terminal() {
            output.raw(CLEAR.as_bytes());
        }
        show(&status, output);
        if !command.watch {
            return Ok(Exit::AsAsked);
        }
        thread::sleep(WATCH_STEP);
    }
}

fn show(status: &control::Status, output: Output) {
    output.line(format!("daemon {}, process {}, state {}", status.version, status.pid, status.state.display()));
    for address in &status.nbd {
        output.line(format!("NBD on {address}"));
    }
    if !status.volumes.is_empty() {
        output.line("");
        output.table(&volume::table(&status.volumes));
    }
    for (failed, reason) in status.volumes.iter().filter_map(|volume| Some((volume, volume.reason.as_ref()?))) {
        output.line(format!("volume {} is not served: {reason}", failed.name));
    }
    if !status.snapshots.is_empty() {
        output.line("");
        output.table(&snapshot::table(&status.snapshots));
    }
    for (broken, reason) in status.snapshots.iter().filter_map(|snapshot| Some((snapshot, snapshot.reason.as_ref()?))) {
        output.line(format!("snapshot {}@{} is broken: {reason}", broken.volume, broken.name));
    }
    let interrupted: Vec<&Snapshot> =
        status.snapshots.iter().filter(|snapshot| snapshot.private && !snapshot.mover).collect();
    if !interrupted.is_empty() {
        output.line("");
    }
    for snapshot in &interrupted {
        let (resume, discard) = ways(snapshot);
        let t0 = Timestamp(snapshot.t0_ns);
        output.line(format!(
            "the backup of {} as of {t0} was interrupted: go on with `{resume}` and the same DEST, or discard it with `{discard}`",
            snapshot.volume
        ));
    }
    output.result("status", &object(status, &interrupted));
}

/// How to go on with an interrupted backup, and how to discard it.
fn ways(snapshot: &Snapshot) -> (String, String) {
    let resume = format!("tzero backup {} --to DEST --resume", snapshot.volume);
    let discard = format!("tzero snapshot delete {}@{}", snapshot.volume, snapshot.name);
    (resume, discard)
}

fn object(status: &control::Status, interrupted: &[&Snapshot]) -> Value {
    let snapshots: Vec<Value> = status.snapshots.iter().map(snapshot::object).collect();
    let interrupted: Vec<Value> = interrupted
        .iter()
        .map(|snapshot| {
            let (resume, discard) = ways(snapshot);
            json!({ "id": snapshot.id, "volume": snapshot.volume, "name": snapshot.name, "resume": resume, "discard": discard })
        })
        .collect();
    json!({
        "version": status.version, "pid": status.pid, "state": status.state, "nbd": status.nbd,
        "volumes": status.volumes, "snapshots": snapshots, "interrupted": interrupted,
    })
}
