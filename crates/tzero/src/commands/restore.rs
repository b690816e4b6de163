//! `tzero restore`.

use serde_json::{Value, json};
use tzero_api::{Exit, StatePaths};
use tzero_copy::{Cancel, RestoreRequest, Restored};

use crate::cli::Restore;
use crate::commands::copy::find;
use crate::ending::Ending;
use crate::interrupt;
use crate::output::{Output, bytes};
use crate::paths::named;
use crate::progress::Progress;

pub(crate) fn run(command: &Restore, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let target = named(command.target.path(), output)?;
    let copy = find(&command.copy, state)?;
    let request = RestoreRequest { copy, target, state: state.root().to_owned(), force: command.force };
    let cancel = Cancel::from_flag(interrupt::flag()?);
    let mut progress = Progress::new(output);
    let restored = tzero_copy::restore(&request, &mut |event| progress.show(event), &cancel);
    drop(progress);
    let restored = restored?;
    output.line(format!(
        "{} is copy {} again: {} restored, {} written, read back and compared",
        restored.target.display(),
        restored.copy,
        bytes(restored.bytes_restored),
        bytes(restored.bytes_written),
    ));
    output.result("restored", &object(&restored));
    Ok(Exit::AsAsked)
}

/// The object that programs get. What it names is the copy.
fn object(restored: &Restored) -> Value {
    let mut object = serde_json::to_value(restored).unwrap_or_default();
    object["id"] = json!(restored.copy);
    object
}
