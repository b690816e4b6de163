//! `tzero backup`: the mover runs in this process, outside the host's I/O path (R31).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tzero_api::control::{self, Part};
use tzero_api::{ClientError, Code, Exit, Name, SnapshotPath, StatePaths};
use tzero_copy::{
    BackupOutcome, BackupRequest, BackupSource, Boundary, Cancel, Layout, Location, ModeAsked, Outboard, Restraint,
};

use crate::cli::{self, Backup, Mode};
use crate::commands::client;
use crate::ending::Ending;
use crate::interrupt;
use crate::output::{Output, bytes, clock, notice};
use crate::paths::{absolute, recorded};
use crate::progress::Progress;
use crate::scope;

/// A copy that reads fewer bytes a second than this is a slow one.
const SLOW_COPY: u64 = 64 << 20;
/// Environment variable of tests of the ladder for a full cache, and the rung in it that is the mover's; see `tzero serve` for the others.
const WITHOUT: &str = "TZERO_TEST_WITHOUT";
const HURRY: &str = "hurry";

pub(crate) fn run(command: &Backup, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let [asked] = command.source.as_slice() else {
        return Err(Ending::usage(format!(
            "one backup of {} sources at once is not in this version: name one",
            command.source.len()
        )));
    };
    let outboard = outboard(command)?;
    if command.resume && command.on_full.is_some() {
        let sentence = "the unfinished copy has a snapshot, made with what gives when the cache is full: leave out --on-full to resume it";
        return Err(Ending::usage(sentence));
    }
    let source = Source::find(asked, state)?;
    if let (Source::Path(path), true) = (&source, command.host_p99.is_some()) {
        let sentence = "--host-p99 is about the host of a volume, and it is none: leave it out";
        return Err(Ending::usage(format!("{}: {sentence}", path.display())));
    }
    let scope = source.scope(command)?;
    let request = BackupRequest {
        destination: match command.destination.place(&source.stem()) {
            Location::Path(path) => recorded(&path, "the record of a copy names its image")?,
            export => export.written(),
        },
        source: source.for_mover(state),
        state: state.root().to_owned(),
        mode: match command.mode {
            Mode::Auto => ModeAsked::Auto,
            Mode::Timezero => ModeAsked::TimeZero,
            Mode::Reconciled => ModeAsked::Reconciled,
            Mode::Outboard => ModeAsked::Outboard,
        },
        outboard,
        scope,
        on_full: command.on_full,
        hurries: !std::env::var(WITHOUT).is_ok_and(|without| without.split(',').any(|rung| rung == HURRY)),
        restraint: Restraint { host_p99: command.host_p99, rate: command.rate.map(|rate| rate.0) },
        replace: command.replace,
        resume: command.resume,
        verify: command.verify,
    };
    if let Source::Volume(name) = &source
        && !command.resume
    {
        foretell(&client(state)?.volume(name)?);
    }
    let cancel = Cancel::from_flag(interrupt::flag()?);
    let mut progress = Progress::new(output);
    let outcome = tzero_copy::backup(&request, &mut |event| progress.show(event), &cancel);
    drop(progress);
    let outcome = outcome?;
    report(&outcome, output);
    Ok(outcome.exit())
}

/// Says when the originals would need more room than there is, if that may be before the copy is done.
fn foretell(volume: &control::Volume) {
    let Some(forecast) = &volume.forecast else { return };
    let Some(seconds) = forecast.full_in_seconds else { return };
    let needed = volume.size / seconds.max(1);
    if needed >= SLOW_COPY {
        notice(format!(
            "at the rate at which {} is changed now its originals would need more room than the {} that there is in {}, or later: a copy that is done by then reads {}/s",
            volume.name,
            bytes(forecast.room),
            clock(seconds),
            bytes(needed),
        ));
    }
}

/// How an outboard copy is to be made, where that is said.
fn outboard(command: &Backup) -> Result<Option<Outboard>, Ending> {
    if command.mode != Mode::Outboard
        && let Some(flag) = [("--layout", command.layout.is_some()), ("--boundary", command.boundary.is_some())]
            .into_iter()
            .find_map(|(flag, given)| given.then_some(flag))
    {
        return Err(Ending::usage(format!("{flag} is about outboard copies: add --mode outboard, or leave it out")));
    }
    let layout = match command.layout {
        None | Some(cli::Layout::Overwrite) => Layout::Overwrite,
        Some(cli::Layout::Append) => {
            return Err(Ending::usage(
                "originals cannot be appended to an image: leave out --layout append, and they go to their places",
            ));
        }
    };
    let boundary = command.boundary.map(|boundary| match boundary {
        cli::Boundary::All => Boundary::All,
        cli::Boundary::Terminate => Boundary::Terminate,
        cli::Boundary::Marker => Boundary::Marker,
    });
    Ok(boundary.map(|boundary| Outboard { layout, boundary }))
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
    /// that volume, and any other word is a path if a file of that name is here.
    fn find(text: &OsStr, state: &StatePaths) -> Result<Self, Ending> {
        let path = Path::new(text);
        let word = match text.to_str() {
            Some(word) if !word.contains('/') => word,
            // No name has such bytes.
            None if !text.as_bytes().contains(&b'/') && !path.exists() => {
                return Err(Ending::usage(format!("{text:?} is no volume's name, and no file of that name is here")));
            }
            _ => return Self::path(path, state),
        };
        if let Ok(snapshot) = word.parse() {
            return Ok(Self::Snapshot(snapshot));
        }
        let name = match word.parse::<Name>() {
            Ok(name) => name,
            Err(_) if path.exists() => return Self::path(path, state),
            Err(error) if word.contains('@') => {
                let error = word.parse::<SnapshotPath>().err().unwrap_or(error);
                return Err(Ending::usage(format!("{word} is neither a file here nor a snapshot: {error}")));
            }
            Err(error) => return Err(Ending::usage(format!("{word} is neither a file here nor a volume: {error}"))),
        };
        match client(state)?.volume(&name) {
            Ok(_) => Ok(Self::Volume(name)),
            Err(ClientError::Refused(refusal)) if refusal.code == Code::Unknown && path.exists() => {
                Self::path(path, state)
            }
            // Without the daemon its directory still tells whether this is a volume.
            Err(ClientError::NotRunning(_)) if !state.volume(&name).exists() && path.exists() => {
                Self::path(path, state)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A path that is no volume's base.
    fn path(path: &Path, state: &StatePaths) -> Result<Self, Ending> {
        // What it leads to is what the copy's record names. Where there is nothing, the mover says so.
        recorded(&fs::canonicalize(path).unwrap_or_else(|_| path.into()), "the record of a copy names its source")?;
        let volumes = match client(state)?.volumes() {
            Ok(volumes) => volumes,
            Err(ClientError::NotRunning(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let holds = |volume: &&control::Volume| {
            volume.bases.iter().filter_map(|base| base.place.path()).any(|base| same_file(path, base))
        };
        match volumes.iter().find(holds) {
            Some(volume) => Err(Ending::failed(format!(
                "{} is the base of volume {name} and changes while it is read: back up {name} instead",
                path.display(),
                name = volume.name
            ))),
            None => Ok(Self::Path(absolute(path)?)),
        }
    }

    /// The parts that are to be copied; none: all of it. Only a snapshot that is taken for this copy can have a scope or a way with a full cache.
    fn scope(&self, command: &Backup) -> Result<Vec<Part>, Ending> {
        let volume = match self {
            Self::Volume(name) => name,
            _ if command.scope.is_empty() && command.on_full.is_none() => return Ok(Vec::new()),
            Self::Snapshot(path) => {
                let sentence = format!(
                    "{path} has its scope and what gives when the cache is full: leave out --scope and --on-full"
                );
                return Err(Ending::usage(sentence));
            }
            Self::Path(path) => {
                let sentence = "--scope and --on-full are about volumes, and it is none: leave them out";
                return Err(Ending::usage(format!("{}: {sentence}", path.display())));
            }
        };
        Ok(scope::of(&command.scope, volume)?.unwrap_or_default())
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

    fn for_mover(&self, state: &StatePaths) -> BackupSource {
        let volume = |volume: &Name, snapshot: Option<&Name>| BackupSource::Volume {
            mover_socket: state.mover_socket(),
            volume: volume.to_string(),
            snapshot: snapshot.map(Name::to_string),
        };
        match self {
            Self::Volume(name) => volume(name, None),
            Self::Snapshot(path) => volume(&path.volume, Some(&path.snapshot)),
            Self::Path(path) => BackupSource::Path(path.clone()),
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
        let find = |text: &str| Source::find(OsStr::new(text), &state);
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
    fn what_can_be_nothing_is_bad_usage() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StatePaths::new(scratch.path().join("state"));
        for bad in [&b"a@s@t"[..], b"a@", b"\xc3\xa9", b"n\xff", b"a b"] {
            let ending = Source::find(OsStr::from_bytes(bad), &state).unwrap_err();
            assert_eq!(ending.exit, Exit::Usage, "{}", ending.sentence);
        }
        let odd = scratch.path().join(OsStr::from_bytes(b"n\xff"));
        fs::write(&odd, "x").unwrap();
        let ending = Source::find(odd.as_os_str(), &state).unwrap_err();
        assert_eq!(ending.exit, Exit::Usage, "{}", ending.sentence);
    }

    #[test]
    fn images_in_directories_have_the_source_s_name() {
        assert_eq!(Source::Path("/a/disk.img".into()).stem(), "disk");
        assert_eq!(Source::Path("/dev/vg/data".into()).stem(), "data");
        assert_eq!(Source::Snapshot("v@s".parse().unwrap()).stem(), "v");
    }
}
