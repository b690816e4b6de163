//! `tzero restore`.

use std::env;

use serde_json::{Value, json};
use tzero_api::{Exit, StatePaths};
use tzero_copy::{Cancel, RestoreRequest, RestoreTarget, Restored};
use tzero_io::system;

use crate::cli::Restore;
use crate::commands::copy::find;
use crate::ending::Ending;
use crate::interrupt;
use crate::output::{Output, bytes};
use crate::paths::named;
use crate::progress::Progress;

/// Names the daemon's job that this process belongs to. The daemon sets it, and ends the standard input to end the job.
const JOB: &str = "TZERO_JOB";
/// How far a job stands back for others.
const JOB_NICENESS: i32 = 10;

pub(crate) fn run(command: &Restore, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let target = match command.target.target() {
        RestoreTarget::Path(path) => RestoreTarget::Path(named(path, output)?),
        other => other.clone(),
    };
    let request = RestoreRequest {
        copy: find(&command.copy, state)?,
        state: state.root().to_owned(),
        target,
        ranges: command.range.clone(),
        differing: command.differing,
        force: command.force,
        job: env::var(JOB).ok().filter(|job| !job.is_empty()),
    };
    let flag = interrupt::flag()?;
    if request.job.is_some() {
        system::be_nice(JOB_NICENESS);
        interrupt::when_input_ends(&flag)?;
    }
    let cancel = Cancel::from_flag(flag);
    let mut progress = Progress::new(output);
    let restored = tzero_copy::restore(&request, &mut |event| progress.show(event), &cancel);
    drop(progress);
    let restored = restored?;
    output.line(line(&restored));
    output.result("restored", &object(&restored));
    Ok(Exit::AsAsked)
}

fn line(restored: &Restored) -> String {
    let Restored { copy, target, bytes_restored, bytes_written, .. } = restored;
    let what = match &restored.ranges {
        None => format!("is copy {copy} again"),
        Some(ranges) => format!("has {} of copy {copy}", if ranges.len() == 1 { "a range" } else { "ranges" }),
    };
    let equal = restored.bytes_equal.map(|equal| format!("{} were equal, ", bytes(equal))).unwrap_or_default();
    format!(
        "{} {what}: {} restored, {equal}{} written, read back and compared",
        target.display(),
        bytes(*bytes_restored),
        bytes(*bytes_written)
    )
}

/// The object that programs get. What it names is the copy.
fn object(restored: &Restored) -> Value {
    let mut object = serde_json::to_value(restored).unwrap_or_default();
    object["id"] = json!(restored.copy);
    object
}
