//! `tzero copy`.

use std::ffi::OsStr;
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use tzero_api::{Exit, Size, StatePaths};
use tzero_copy::{Cancel, Catalogue, CopySummary, Listing, Removed};

use crate::cli::Copy;
use crate::ending::Ending;
use crate::interrupt;
use crate::output::{Output, bytes, notice};
use crate::paths::named;
use crate::progress::Progress;

pub(crate) fn run(command: &Copy, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    match command {
        Copy::List => {
            list(&Catalogue::new(state.root()).list()?, output);
            Ok(Exit::AsAsked)
        }
        Copy::Show { copy } => {
            let copy = find(copy, state)?;
            named(copy.image(), output)?;
            show(&copy.summary(), output);
            Ok(Exit::AsAsked)
        }
        Copy::Verify { copy } => verify(&find(copy, state)?, output),
        Copy::Remove { copy } => {
            match remove(copy, state)? {
                Removed::Copy(id) => {
                    output.line(format!("copy {id} removed"));
                    output.result("copy", &json!({ "id": id, "removed": true }));
                }
                Removed::Restore(id) => {
                    output.line(format!("the interrupted restore {id} is forgotten; what it wrote to stays as it is"));
                    output.result("restore", &json!({ "id": id, "removed": true }));
                }
            }
            Ok(Exit::AsAsked)
        }
    }
}

/// Finds a copy by id, prefix or path.
pub(crate) fn find(copy: &OsStr, state: &StatePaths) -> Result<tzero_copy::Copy, Ending> {
    Ok(match copy.to_str() {
        Some(name) => Catalogue::new(state.root()).find(name)?,
        None => tzero_copy::Copy::open(Path::new(copy), state.root())?,
    })
}

fn remove(copy: &OsStr, state: &StatePaths) -> Result<Removed, Ending> {
    let catalogue = Catalogue::new(state.root());
    if let Some(name) = copy.to_str() {
        return Ok(catalogue.remove_named(name)?);
    }
    let copy = find(copy, state)?;
    catalogue.remove(&copy)?;
    Ok(Removed::Copy(copy.id()))
}

fn list(listing: &Listing, output: Output) {
    let head = ["COPY", "VOLUME", "TIME ZERO", "SIZE", "MODE", "IMAGE"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(listing.copies.iter().map(|copy| {
        let missing = if copy.present { "" } else { " (missing)" };
        vec![
            copy.id.to_string(),
            names(copy.volumes.iter().map(|volume| volume.name.as_str())),
            copy.t0.to_string(),
            Size(copy.size).to_string(),
            word(&copy.mode_used),
            format!("{}{missing}", copy.image.display()),
        ]
    }));
    output.table(&rows);
    for path in &listing.unreadable {
        notice(format!("{} cannot be read and is left out", path.display()));
    }
    output.result("copies", &listing.copies);
}

fn names<'a>(volumes: impl Iterator<Item = &'a str>) -> String {
    volumes.collect::<Vec<_>>().join(",")
}

/// A mode by the word that the command line and the manifest have for it.
fn word(mode: &impl Serialize) -> String {
    serde_json::to_value(mode).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn show(copy: &CopySummary, output: Output) {
    output.line(format!("copy        {}", copy.id));
    output.line(format!("image       {}", copy.image.display()));
    output.line(format!("manifest    {}", copy.manifest.display()));
    for volume in &copy.volumes {
        let (size, id) = (Size(volume.size), &volume.id);
        output.line(format!("volume      {}, {size}, id {id}, generation {}", volume.name, volume.generation));
    }
    output.line(format!("time zero   {}", copy.t0));
    output.line(format!("completed   {}", copy.completed));
    output.line(format!("mode        {} (asked for {})", word(&copy.mode_used), word(&copy.mode_asked)));
    if let Some(reason) = &copy.reason {
        output.line(format!("reason      {reason}"));
    }
    output.line(format!("read        {}", bytes(copy.bytes_read)));
    output.line(format!("written     {}", bytes(copy.bytes_written)));
    output.line(format!("pause       {} µs", copy.pause_us));
    output.line(format!("digests     {} of {} each", copy.chunks, Size(copy.chunk)));
    output.line(format!("made by     {}", copy.tool));
    output.result("copy", copy);
}

fn verify(copy: &tzero_copy::Copy, output: Output) -> Result<Exit, Ending> {
    named(copy.image(), output)?;
    let cancel = Cancel::from_flag(interrupt::flag()?);
    let mut progress = Progress::new(output);
    let verification = tzero_copy::verify(copy, &mut |event| progress.show(event), &cancel);
    drop(progress);
    let verification = verification?;
    if verification.is_good() {
        output.line(&verification);
    } else {
        notice(&verification);
    }
    output.result("verification", &verification);
    Ok(verification.exit())
}
