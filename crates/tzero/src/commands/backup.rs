//! `tzero backup`: the mover runs in this process, outside the host's I/O path (R31).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tzero_api::{Client, ClientError, Code, Exit, Name, SnapshotPath, StatePaths};
use tzero_copy::{BackupOutcome, BackupRequest, BackupSource, Cancel, ModeAsked};

use crate::cli::{Backup, Mode};
use crate::destination::backup_destination;
use crate::ending::Ending;
use crate::output::{Output, bytes, notice};
use crate::progress::Progress;
use crate::{absolute, interrupt};

pub(crate) fn run(command: &Backup, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let [asked] = command.source.as_slice() else {
        return Err(Ending::usage(format!(
            "one backup of {} sources at once is not in this version: name one",
            command.source.len()
        )));
    };
    let source = Source::find(asked, state)?;
    let request = BackupRequest {
        destination: absolute(&backup_destination(&command.destination, &source.stem())?)?,
        source: source.for_mover(state)?,
        state: absolute(state.root())?,
        mode: match command.mode {
            Mode::Auto => ModeAsked::Auto,
            Mode::Timezero => ModeAsked::TimeZero,
        },
        replace: command.replace,
        resume: command.resume,
        verify: command.verify,
    };
    let cancel = Cancel::from_flag(interrupt::flag()?);
    let mut progress = Progress::new(output);
    let outcome = tzero_copy::backup(&request, &mut |event| progress.show(event), &cancel);
    drop(progress);
    let outcome = outcome?;
    report(&outcome, output);
    Ok(outcome.exit())
}

fn report(outcome: &BackupOutcome, output: Output) {
    let copy = &outcome.copy;
    let verified = if outcome.verified { ", verified" } else { "" };
    output.line(format!(
        "copy {}: {} as of {}, {} read, {} written, pause {} µs{verified}",
        copy.id,
        copy.image.display(),
        copy.t0,
        bytes(copy.bytes_read),
        bytes(copy.bytes_written),
        copy.pause_us,
    ));
    if let Some(reason) = &copy.reason {
        notice(format!("the copy is good, but not what was asked for: {reason}"));
    }
    output.result("copy", copy);
}

/// What is to be backed up.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Volume(Name),
    Snapshot(SnapshotPath),
    Path(PathBuf),
}

impl Source {
    /// Tells names from paths: what has a `/` is a path, what has the form VOLUME@SNAPSHOT is a snapshot, what is a volume's name is
    /// that volume, and any other name is a path if a file of that name is here.
    fn find(text: &str, state: &StatePaths) -> Result<Self, Ending> {
        if text.contains('/') {
            return Self::path(text, state);
        }
        if let Ok(snapshot) = text.parse() {
            return Ok(Self::Snapshot(snapshot));
        }
        let Ok(name) = text.parse::<Name>() else { return Self::path(text, state) };
        match Client::new(state)?.volume(&name) {
            Ok(_) => Ok(Self::Volume(name)),
            Err(ClientError::Refused(refusal)) if refusal.code == Code::Unknown && Path::new(text).exists() => {
                Self::path(text, state)
            }
            // Without the daemon its directory still tells whether this is a volume.
            Err(ClientError::NotRunning(_)) if !state.volume(&name).exists() && Path::new(text).exists() => {
                Self::path(text, state)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A path that is no volume's base.
    fn path(text: &str, state: &StatePaths) -> Result<Self, Ending> {
        let path = Path::new(text);
        let volumes = match Client::new(state)?.volumes() {
            Ok(volumes) => volumes,
            Err(ClientError::NotRunning(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        match volumes.iter().find(|volume| same_file(path, &volume.base)) {
            Some(volume) => Err(Ending::failed(format!(
                "{text} is the base of volume {name} and changes while it is read: back up {name} instead",
                name = volume.name
            ))),
            None => Ok(Self::Path(absolute(path)?)),
        }
    }

    /// What an image in a directory is named after.
    fn stem(&self) -> String {
        match self {
            Self::Volume(name) => name.to_string(),
            Self::Snapshot(path) => path.volume.to_string(),
            Self::Path(path) => {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                name.strip_suffix(".img").map(str::to_owned).unwrap_or(name)
            }
        }
    }

    fn for_mover(&self, state: &StatePaths) -> Result<BackupSource, Ending> {
        let volume = |volume: &Name, snapshot: Option<&Name>| -> Result<BackupSource, Ending> {
            Ok(BackupSource::Volume {
                mover_socket: absolute(&state.mover_socket())?,
                volume: volume.to_string(),
                snapshot: snapshot.map(Name::to_string),
            })
        };
        match self {
            Self::Volume(name) => volume(name, None),
            Self::Snapshot(path) => volume(&path.volume, Some(&path.snapshot)),
            Self::Path(path) => Ok(BackupSource::Path(path.clone())),
        }
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) if one.rdev() != 0 => one.rdev() == other.rdev(),
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart_without_a_daemon() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StatePaths::new(scratch.path().join("state"));
        let find = |text: &str| Source::find(text, &state);
        let file = scratch.path().join("disk.img");
        fs::write(&file, "x").unwrap();
        assert_eq!(find(file.to_str().unwrap()).unwrap(), Source::Path(file.clone()));
        assert_eq!(find("v@s").unwrap(), Source::Snapshot("v@s".parse().unwrap()));
        // A file of this crate's directory, where its tests run.
        assert_eq!(find("Cargo.toml").unwrap(), Source::Path(absolute(Path::new("Cargo.toml")).unwrap()));
        assert!(find("no-such-volume").unwrap_err().sentence.contains("not running"));
        fs::create_dir_all(state.volume(&"Cargo.toml".parse().unwrap())).unwrap();
        assert!(find("Cargo.toml").unwrap_err().sentence.contains("not running"));
    }

    #[test]
    fn images_in_directories_have_the_source_s_name() {
        assert_eq!(Source::Path("/a/disk.img".into()).stem(), "disk");
        assert_eq!(Source::Path("/dev/vg/data".into()).stem(), "data");
        assert_eq!(Source::Snapshot("v@s".parse().unwrap()).stem(), "v");
    }
}
