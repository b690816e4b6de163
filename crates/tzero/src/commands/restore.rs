//! `tzero restore`.

use tzero_api::{Exit, StatePaths};
use tzero_copy::{Cancel, Catalogue, RestoreRequest};

use crate::cli::Restore;
use crate::commands::copy::find;
use crate::destination::restore_target;
use crate::ending::Ending;
use crate::output::{Output, bytes};
use crate::progress::Progress;
use crate::{absolute, interrupt};

pub(crate) fn run(command: &Restore, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let target = absolute(&restore_target(&command.target)?)?;
    let catalogue = Catalogue::new(&absolute(state.root())?);
    let request = RestoreRequest { copy: find(&catalogue, &command.copy)?, target, force: command.force };
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
    output.result("restored", &restored);
    Ok(Exit::AsAsked)
}
