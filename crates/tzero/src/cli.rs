//! The command line, defined once: parser, help and errors follow from it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tzero_api::control::{Durability, MOST_COMPONENTS};
use tzero_api::{Name, OnFull, Rate, Size, SnapshotPath};
use tzero_block::ByteRange;
use tzero_daemon::Address;

use crate::arguments::{self, Deleted, VolumePart};
use crate::destination::{Destination, Target};

/// Backups of live block volumes, as of one instant.
#[derive(Debug, Parser)]
#[command(name = "tzero", version, disable_help_subcommand = true, infer_subcommands = false)]
pub(crate) struct Cli {
    // Of an option given twice the last counts, as for those that stand before and after the command.
    /// State directory [env: TZERO_STATE] [default: /var/lib/tzero for root, else $XDG_STATE_HOME/tzero or ~/.local/state/tzero]
    #[arg(long, global = true, overrides_with = "state", value_name = "DIR", value_parser = path())]
    pub(crate) state: Option<PathBuf>,

    /// Print one JSON object a line; the last line is the result
    #[arg(long, global = true, overrides_with = "json")]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(arguments::path)
}

fn copy() -> impl TypedValueParser<Value = OsString> {
    OsStringValueParser::new().try_map(arguments::copy)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole story in one command: a volume under live writes, a backup, a restore, the proof
    Demo(Demo),
    /// Run the daemon: serve volumes to NBD clients
    Serve(Serve),
    /// Volumes: what is served and protected
    #[command(subcommand)]
    Volume(Volume),
    /// Snapshots: a volume as it was at one instant
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Copy a volume, a snapshot, or a plain file or device, as of one instant
    Backup(Backup),
    /// Copies that were made
    #[command(subcommand)]
    Copy(Copy),
    /// Write a copy back, to a file, a device, a volume or an NBD export
    Restore(Restore),
    /// How the daemon, its volumes and snapshots are
    Status(Status),
    /// Measure the data path on this machine, side by side with the NBD servers that it has
    Bench(Bench),
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where to work; removed afterwards is what was made in it [default: the temporary directory]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) dir: Option<PathBuf>,

    /// Size of the volume
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(crate) size: Size,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// The rows that matter most, one round each: under two minutes
    #[arg(long)]
    pub(crate) quick: bool,

    /// Where to work, on the file system that is to be measured; removed afterwards is what was made in it [default: the current directory]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) dir: Option<PathBuf>,

    /// Size of the volume that is measured
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    pub(crate) size: Size,

    /// How many times every row is measured; shown is the median [default: 3, with --quick 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) rounds: Option<u32>,

    /// Seconds that a row of plain reads or writes takes [default: 3, with --quick 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(crate) seconds: Option<u32>,

    /// Only the rows that have this in their names; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) row: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Configuration (TOML) that declares volumes and where to listen
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub(crate) config: Option<PathBuf>,

    /// Where NBD clients connect: unix:PATH or tcp:HOST:PORT (loopback) [default: unix:STATE/nbd.sock]
    #[arg(long, value_name = "ADDR", value_parser = arguments::address)]
    pub(crate) nbd: Vec<Address>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Serve files or block devices, one after the other, as a volume
    Add(VolumeAdd),
    /// All volumes
    List,
    /// One volume
    Show {
        /// Its name
        name: Name,
    },
    /// Make a volume longer, while it is used, or shorter
    Resize {
        /// Its name
        name: Name,
        /// Its new size: a file below it is extended or cut, a device or export must have the room
        #[arg(value_parser = arguments::size)]
        size: Size,
    },
    /// Have a volume stand on another base, such as a restored copy; the old one stays as it is
    Rebase {
        /// Its name
        name: Name,
        /// File, block device or export that has its bytes from now on; exactly as long as the volume
        #[arg(value_parser = path())]
        path: PathBuf,
    },
    /// Forget a volume; its base stays as it is
    Remove {
        /// Its name
        name: Name,
    },
}

#[derive(Debug, Args)]
pub(crate) struct VolumeAdd {
    /// Its name, and that of its NBD export
    pub(crate) name: Name,

    /// File, block device or export (nbd+unix:///EXPORT?socket=PATH, nbd://HOST/EXPORT) that holds its bytes; several are the volume in this order, each but the last whole grains long
    #[arg(required = true, num_args = 1..=MOST_COMPONENTS, value_parser = path())]
    pub(crate) base: Vec<PathBuf>,

    /// Its size: a base that is not there is made, sparse, as a file of this size; one that is there must have it
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Size>,

    /// Unit in which originals are saved: a power of two from 512 to 1M [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = arguments::grain)]
    pub(crate) grain: Option<Size>,

    /// Directory for originals, not on the base itself, or an export that holds them [default: the state directory]
    #[arg(long, value_name = "DIR|nbd+unix:…|nbd:…", value_parser = path())]
    pub(crate) cache_dir: Option<PathBuf>,

    /// Most bytes of originals on disk [default: what the file system has]
    #[arg(long, value_name = "SIZE", value_parser = arguments::limit)]
    pub(crate) cache_limit: Option<Size>,

    /// Most bytes of originals in memory, before any go to disk [default: none]
    #[arg(long, value_name = "SIZE", value_parser = arguments::limit)]
    pub(crate) memory_limit: Option<Size>,

    /// Read and write the base past the page cache
    #[arg(long)]
    pub(crate) direct: bool,

    /// What snapshots survive: `process`, the daemon's death; `power`, a loss of the machine's power, at the price of a flush a first write
    #[arg(long, value_name = "WHAT", default_value = "process", value_parser = arguments::durability)]
    pub(crate) durability: Durability,

    /// Save originals ahead of the host's changes while snapshots stand: so much a second at most, at most half of the time, and until the original cache is half full [default: only on demand]
    #[arg(long, value_name = "SIZE/s")]
    pub(crate) save_ahead: Option<Rate>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Take a snapshot of a volume
    Create {
        /// Its name within the volume
        #[arg(value_parser = arguments::new_snapshot)]
        snapshot: Name,
        /// The volume
        #[arg(required = true)]
        volume: Vec<Name>,

        /// Take it of a part of the volume only; may be given several times
        #[arg(long, value_name = "VOLUME:OFFSET+LENGTH", value_parser = arguments::part)]
        scope: Vec<VolumePart>,

        /// What becomes of originals: kept until it is deleted, or released as its one reader has them [default: keep]
        #[arg(long, value_enum)]
        originals: Option<Originals>,

        /// What gives when the original cache is full: break, wait:DURATION or fail-writes [default: break]
        #[arg(long, value_name = "WHAT")]
        on_full: Option<OnFull>,
    },
    /// All snapshots
    List,
    /// One snapshot
    Show {
        /// VOLUME@SNAPSHOT
        snapshot: SnapshotPath,
    },
    /// What was saved for a snapshot, a line per grain
    Map {
        /// VOLUME@SNAPSHOT
        snapshot: SnapshotPath,
    },
    /// Delete a snapshot; whoever reads it gets errors
    Delete {
        /// VOLUME@SNAPSHOT, or SNAPSHOT where only one volume has one of that name
        snapshot: Deleted,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Originals {
    /// Kept until the snapshot is deleted
    Keep,
    /// Given up as they are read
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// Originals go to their places
    Overwrite,
    /// Originals stay a part of their own
    Append,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Boundary {
    /// All that are saved when their copy begins
    All,
    /// All up to the end of copy-on-write, which comes between the two copies
    Terminate,
    /// All up to the end of the outboard copy
    Marker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// What suits best: timezero
    Auto,
    /// Base and originals reconciled while copying; captured ranges cost the host nothing more
    Timezero,
    /// Base and originals reconciled while copying; originals that were copied make room for others
    Reconciled,
    /// The whole base with no regard to updates, then the originals over it
    Outboard,
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// VOLUME, VOLUME@SNAPSHOT, or the PATH of a file or device
    #[arg(required = true, value_name = "SOURCE", value_parser = OsStringValueParser::new().try_map(arguments::something))]
    pub(crate) source: Vec<OsString>,

    /// Where the copy goes: image:PATH, PATH, or the URI of an NBD export
    #[arg(long = "to", value_name = "DEST", value_parser = OsStringValueParser::new().try_map(Destination::parse))]
    pub(crate) destination: Destination,

    /// How to copy
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub(crate) mode: Mode,

    /// Where the originals of an outboard copy go [default: overwrite]
    #[arg(long, value_enum)]
    pub(crate) layout: Option<Layout>,

    /// Which originals an outboard copy takes [default: all]
    #[arg(long, value_enum)]
    pub(crate) boundary: Option<Boundary>,

    /// Copy a part of the volume only; may be given several times
    #[arg(long, value_name = "VOLUME:OFFSET+LENGTH", value_parser = arguments::part)]
    pub(crate) scope: Vec<VolumePart>,

    /// What gives when the original cache is full: break, wait:DURATION or fail-writes [default: break]
    #[arg(long, value_name = "WHAT")]
    pub(crate) on_full: Option<OnFull>,

    /// Most bytes of data to read a second [default: what the host leaves]
    #[arg(long, value_name = "SIZE/s")]
    pub(crate) rate: Option<Rate>,

    /// What 99 of 100 of the host's requests may take meanwhile, as in 500us or 2ms: the copy gets slower where they take longer [default: about three times what they take by themselves]
    #[arg(long, value_name = "DURATION", value_parser = arguments::latency)]
    pub(crate) host_p99: Option<Duration>,

    /// Read the finished copy back and compare it with the digests of time zero
    #[arg(long)]
    pub(crate) verify: bool,

    /// Replace what is at the destination, once the new copy is complete
    #[arg(long)]
    pub(crate) replace: bool,

    /// Go on with an interrupted copy, as of the same instant
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Copy {
    /// All copies in the catalogue
    List,
    /// One copy
    Show {
        /// Id, unique prefix, or path of the copy or its manifest
        #[arg(value_parser = copy())]
        copy: OsString,
    },
    /// Compare a copy with the digests of its time zero
    Verify {
        /// Id, unique prefix, or path of the copy or its manifest
        #[arg(value_parser = copy())]
        copy: OsString,
    },
    /// Delete a copy
    Remove {
        /// Id, unique prefix, or path of the copy or its manifest
        #[arg(value_parser = copy())]
        copy: OsString,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Id, unique prefix, or path of the copy or its manifest
    #[arg(value_parser = copy())]
    pub(crate) copy: OsString,

    /// Where to: a file or block device, volume:NAME, or the URI of an NBD export
    #[arg(long = "to", value_name = "TARGET", value_parser = OsStringValueParser::new().try_map(Target::parse))]
    pub(crate) target: Target,

    /// Restore these bytes only, in place
    #[arg(long, value_name = "OFFSET+LENGTH", value_parser = arguments::range, allow_hyphen_values = true)]
    pub(crate) range: Vec<ByteRange>,

    /// Read the target first, and write only what differs
    #[arg(long)]
    pub(crate) differing: bool,

    /// Overwrite a target that holds something
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Show it again every second
    #[arg(long)]
    pub(crate) watch: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in [
            "tzero --state /s --json volume list",
            "tzero volume list --json --state /s",
            "tzero volume --json list --state /s",
        ] {
            let cli = parse(line).unwrap();
            assert!(cli.json, "{line}");
            assert_eq!(cli.state, Some("/s".into()), "{line}");
        }
    }

    #[test]
    fn of_a_global_option_given_twice_the_last_counts() {
        for line in [
            "tzero --state /r --state /s --json --json volume list",
            "tzero --state /r --json volume --state /q list --json --state /s",
            "tzero volume list --json --state /r --json --state /s",
        ] {
            let cli = parse(line).unwrap();
            assert!(cli.json, "{line}");
            assert_eq!(cli.state, Some("/s".into()), "{line}");
        }
        for line in
            ["tzero backup v --to x --to y", "tzero backup v --to x --verify --verify", "tzero --state= volume list"]
        {
            assert_eq!(parse(line).map(drop).map_err(|error| error.exit_code()), Err(2), "{line}");
        }
    }

    #[test]
    fn what_later_versions_have_does_not_exist() {
        for line in [
            "tzero volume changes v",
            "tzero snapshot create s v --freeze fs:/x",
            "tzero backup v --to x --incremental",
            "tzero backup v --to x --toc",
            "tzero backup v --to archive:x",
            "tzero backup v --to tape:x",
            "tzero backup v --to repo:x",
            "tzero backup v --to image:nbd+unix:///x",
            "tzero restore x --to volume:v@s",
            "tzero restore - --to y",
            "tzero copy prune --keep-last 1",
            "tzero copy verify x --source",
            "tzero restore x --to y --range 0-1",
            "tzero restore x --to y --path /etc",
            "tzero restore x --to y --in-place",
            "tzero clone create v x",
            "tzero doctor",
        ] {
            assert_eq!(parse(line).map(drop).map_err(|error| error.exit_code()), Err(2), "{line}");
        }
    }

    #[test]
    fn names_and_sizes_are_checked_by_the_parser() {
        for line in [
            "tzero volume add a/b /base",
            "tzero volume add a /base --grain 4KiB",
            "tzero snapshot create s@x v",
            "tzero snapshot show v",
            "tzero serve --nbd tcp:0.0.0.0:10809",
            "tzero backup --to x",
            "tzero backup v",
            "tzero volume add v /b --grain 3K",
            "tzero volume add v /b --cache-limit 0",
            "tzero volume rebase v",
            "tzero volume resize v",
            "tzero volume resize v 0",
            "tzero volume resize v 1000",
            "tzero volume resize v +1G",
            "tzero volume rebase v /a /b",
            "tzero snapshot create backup-0badcafe v",
            "tzero snapshot create s v --scope v",
            "tzero snapshot create s v --scope v:0",
            "tzero snapshot create s v --scope v:0+0",
            "tzero snapshot create s v --scope v:-1+4K",
            "tzero snapshot create s v --scope :0+4K",
            "tzero snapshot create s v --on-full wait",
            "tzero snapshot create s v --originals some",
            "tzero backup v --to x --mode other",
            "tzero backup v --to x --mode outboard --boundary some",
            "tzero snapshot delete a@b@c",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("tzero snapshot create s v w").is_ok(), "groups are refused later, with a sentence");
    }
}
