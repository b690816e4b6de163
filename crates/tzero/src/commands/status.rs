//! `tzero status`.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tzero_api::control::{self, Snapshot, SnapshotState, UnfinishedRestore};
use tzero_api::{Exit, StatePaths, quoted};
use tzero_copy::Timestamp;

use crate::cli::Status;
use crate::commands::{client, snapshot, volume};
use crate::ending::Ending;
use crate::output::Output;
use crate::stdout;

/// Time between two looks of `--watch`.
const WATCH_STEP: Duration = Duration::from_secs(1);
/// Moves to the upper left corner and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(crate) fn run(command: &Status, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let client = client(state)?;
    loop {
        let status = client.status()?;
        if command.watch && !output.json && io::stdout().is_terminal() {
            output.raw(CLEAR.as_bytes());
        }
        show(&status, output);
        // Nobody looks any more.
        if !command.watch || stdout::is_lost() {
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
    for notice in status.notices.iter().chain(status.volumes.iter().flat_map(|volume| &volume.notices)) {
        output.line(format!("notice: {notice}"));
    }
    if !status.snapshots.is_empty() {
        output.line("");
        output.table(&snapshot::table(&status.snapshots));
    }
    let broken = status.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Broken);
    for (broken, reason) in broken.filter_map(|snapshot| Some((snapshot, snapshot.reason.as_ref()?))) {
        output.line(format!("snapshot {}@{} is broken: {reason}", broken.volume, broken.name));
    }
    let interrupted: Vec<&Snapshot> =
        status.snapshots.iter().filter(|snapshot| snapshot.private && !snapshot.mover).collect();
    if !interrupted.is_empty() {
        output.line("");
    }
    for snapshot in &interrupted {
        let Ways { resume, discard } = Ways::of(snapshot);
        let t0 = Timestamp(snapshot.t0_ns);
        let resume = resume.map_or("the command that began it and --resume".into(), |resume| format!("`{resume}`"));
        output.line(format!(
            "the backup of {} as of {t0} was interrupted: go on with {resume}, or discard it with `{discard}`",
            snapshot.volume
        ));
    }
    for restore in &status.restores {
        output.line(unfinished(restore));
    }
    output.result("status", &object(status, &interrupted));
}

/// A restore that is not declared, as a sentence.
pub(crate) fn unfinished(restore: &UnfinishedRestore) -> String {
    let UnfinishedRestore { record, running, resume, discard } = restore;
    let what = format!("the restore of copy {} to {} that began at {}", record.copy, record.target, record.begun);
    match running {
        true => format!("{what} is running (process {})", record.by.pid),
        false => format!(
            "{what} was interrupted, and what it wrote to is neither what it was nor the copy: go on with `{resume}`, or leave it at that with `{discard}`"
        ),
    }
}

/// What can be done about an interrupted backup.
struct Ways {
    /// Not known where it is not known where the copy goes.
    resume: Option<String>,
    discard: String,
}

impl Ways {
    fn of(snapshot: &Snapshot) -> Self {
        let to = snapshot.destination.as_ref();
        let resume = to.map(|to| format!("tzero backup {} --to {} --resume", snapshot.volume, quoted(&to.path)));
        let discard = match to.filter(|to| Path::new(&to.unfinished).exists()) {
            Some(to) => format!("tzero copy remove {}", quoted(&to.unfinished)),
            // Its files are not known, or gone: all that is left of it is the snapshot.
            None => format!("tzero snapshot delete {}@{}", snapshot.volume, snapshot.name),
        };
        Self { resume, discard }
    }
}

fn object(status: &control::Status, interrupted: &[&Snapshot]) -> Value {
    let snapshots: Vec<Value> = status.snapshots.iter().map(snapshot::object).collect();
    let interrupted: Vec<Value> = interrupted
        .iter()
        .map(|snapshot| {
            let Ways { resume, discard } = Ways::of(snapshot);
            json!({
                "id": snapshot.id, "volume": snapshot.volume, "volume_id": snapshot.volume_id, "name": snapshot.name,
                "resume": resume, "discard": discard,
            })
        })
        .collect();
    json!({
        "version": status.version, "pid": status.pid, "state": status.state, "nbd": status.nbd,
        "volumes": status.volumes, "snapshots": snapshots, "interrupted": interrupted,
        "restores": status.restores, "notices": status.notices,
    })
}
