//! What the control interface says about volumes and snapshots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::mover::Destination;
use crate::restores::RestoreRecord;
use crate::{Name, OnFull, Place, Rate, Size};

/// Smallest grain in bytes (R7).
pub const SMALLEST_GRAIN: u64 = 512;
/// Largest grain in bytes.
pub const LARGEST_GRAIN: u64 = 1 << 20;
/// The grain of a volume that asked for none, in bytes.
pub const DEFAULT_GRAIN: u32 = 4096;
/// Most bases that one volume may have.
pub const MOST_COMPONENTS: usize = 64;
/// Most parts of a volume that a scope may name.
pub const MOST_PARTS: usize = 65_536;

/// Asks for a new volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddVolume {
    /// Its name.
    pub name: Name,
    /// Files or block devices (absolute paths), or exports: from 1 to [`MOST_COMPONENTS`], which are the volume in this order (R28).
    pub bases: Vec<Place>,
    /// Its size in bytes: a single base that is not there is made so long, and one that is there must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Grain in bytes; [`DEFAULT_GRAIN`] where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grain: Option<Size>,
    /// Directory for originals, or an export that holds them; the volume's state directory where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<Place>,
    /// Most bytes of originals on disk; what the file system has where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_limit: Option<Size>,
    /// Most bytes of originals in memory; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Size>,
    /// Read and write the base past the page cache.
    #[serde(default)]
    pub direct: bool,
    /// What snapshots survive.
    #[serde(default)]
    pub durability: Durability,
    /// Originals are saved ahead of the host's changes, so many bytes a second at most (R14); not where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_ahead: Option<Rate>,
}

impl AddVolume {
    /// Of one base, as everybody wants it who says nothing.
    pub fn new(name: Name, base: Place) -> Self {
        Self {
            name,
            bases: vec![base],
            size: None,
            grain: None,
            cache_dir: None,
            cache_limit: None,
            memory_limit: None,
            direct: false,
            durability: Durability::Process,
            save_ahead: None,
        }
    }
}

/// How far originals are saved ahead of the host's changes (R14).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveAhead {
    /// Most bytes a second.
    pub rate: u64,
    /// Bytes that were saved so since the volume was opened.
    pub saved: u64,
    /// Bytes of the volume that were gone through for the newest snapshot.
    pub reached: u64,
    /// What it is doing.
    pub state: AheadState,
}

/// What saving ahead is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AheadState {
    /// No snapshot needs anything that is not saved, as far as it could be read.
    #[default]
    Idle,
    /// It saves.
    Saving,
    /// The original cache is half full: the rest is left for the host's changes.
    WaitsForSpace,
}

/// What the snapshots of a volume survive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The death of the daemon.
    #[default]
    Process,
    /// The loss of the machine's power.
    Power,
}

/// Asks for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name within the volume.
    pub name: Name,
    /// What becomes of captured originals; they are kept where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub originals: Option<Originals>,
    /// What gives when the cache is full; the snapshot where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// What it is of, from 1 to [`MOST_PARTS`] parts in any order; the whole volume where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Vec<Part>>,
}

impl CreateSnapshot {
    /// Of a whole volume, as everybody wants it who says nothing.
    pub fn new(name: Name) -> Self {
        Self { name, originals: None, on_full: None, scope: None }
    }
}

/// A part of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// How a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Clients are served.
    Serving,
    /// It could not be opened, or its base has lost a part; new clients are refused.
    Failed,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Stable id, 32 hexadecimal digits.
    pub id: String,
    /// Its name, and that of its NBD export.
    pub name: Name,
    /// Whether it is served.
    pub state: VolumeState,
    /// Why not.
    pub reason: Option<String>,
    /// File, block device or export below: the first where there are several.
    pub base: Place,
    /// All of them, in order.
    #[serde(default)]
    pub bases: Vec<Component>,
    /// Size in bytes.
    pub size: u64,
    /// Grain in bytes.
    pub grain: u32,
    /// The base is read and written past the page cache.
    pub direct: bool,
    /// Changes whenever the base is replaced.
    pub generation: u64,
    /// Where originals are kept that are not in memory.
    pub cache: Place,
    /// Bytes of originals that some snapshot still needs.
    pub cache_used: u64,
    /// Bytes that the cache's file takes on disk.
    pub cache_file: u64,
    /// Most bytes of originals that are not in memory.
    pub cache_limit: Option<u64>,
    /// Most bytes of originals in memory.
    #[serde(default)]
    pub memory_limit: Option<u64>,
    /// Where originals are kept, in the order in which they fill up; empty where the volume is not served.
    #[serde(default)]
    pub tiers: Vec<Tier>,
    /// What snapshots survive.
    #[serde(default)]
    pub durability: Durability,
    /// How far originals are saved ahead of the host's changes; absent where they are not.
    #[serde(default)]
    pub save_ahead: Option<SaveAhead>,
    /// When the cache is full if originals go on being saved as in the last minute; absent where none are.
    #[serde(default)]
    pub full_in_seconds: Option<u64>,
    /// The same with what it goes by, and, while no snapshot stands, for one that would; absent where the volume is not served.
    #[serde(default)]
    pub forecast: Option<Foretold>,
    /// Declared in the configuration file, not by command.
    pub declared: bool,
    /// Clients connected to the volume now, readers of its snapshots included.
    pub connections: u64,
    /// How many snapshots stand.
    pub snapshots: u64,
    /// Restores that overwrite it and are not declared: until then it is neither what it was nor a copy.
    #[serde(default)]
    pub restores: Vec<UnfinishedRestore>,
    /// What its operator should know although it is served, a sentence each.
    #[serde(default)]
    pub notices: Vec<String>,
}

/// A stretch of a volume, and what holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its number, from 0: the `unit` of a snapshot's map.
    pub unit: u32,
    /// File, block device or export.
    pub place: Place,
    /// Where on the volume it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// One of the places where a volume's originals are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// What it is.
    pub kind: TierKind,
    /// File or export.
    pub place: Place,
    /// Bytes of originals in it that some snapshot still needs.
    pub used: u64,
    /// Most bytes of originals in it; absent where only the file system's room bounds it.
    pub limit: Option<u64>,
}

/// What a tier is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TierKind {
    /// A file in memory: it outlives the daemon, not the machine's boot.
    Memory,
    /// A file on disk.
    Disk,
    /// An export of an NBD server.
    Nbd,
}

/// When a volume's cache would be full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The volume's stable id.
    pub id: String,
    /// The volume's name.
    pub volume: Name,
    /// The rest.
    #[serde(flatten)]
    pub foretold: Foretold,
}

/// What is foretold of a volume's cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foretold {
    /// Bytes of originals that there is room for: the cache's limit or the file system's, whichever is less.
    pub room: u64,
    /// Bytes a second that go on being saved.
    pub rate: u64,
    /// What the rate was taken from.
    pub basis: Basis,
    /// When there is no room left at that rate, in seconds; absent where nothing is being changed.
    pub full_in_seconds: Option<u64>,
}

/// What a forecast goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Originals that were saved in the last minute.
    Saved,
    /// Whole grains that the host has changed in the last minute: no snapshot stands that anything is saved for. Not every such change
    /// is the first of its grain, so the cache lasts that long at least.
    Changed,
}

/// What becomes of originals that were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Originals {
    /// Kept until the snapshot is deleted.
    Keep,
    /// Given up as they are captured.
    Release,
}

/// How a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Reads give T0.
    Live,
    /// Its copy-on-write has ended: a backup has what it retains, and reads fail.
    Ended,
    /// Reads fail.
    Broken,
    /// It stands, but its volume is not served.
    Unavailable,
}

/// A snapshot of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Stable id, 32 hexadecimal digits.
    pub id: String,
    /// Its volume's name.
    pub volume: Name,
    /// Its volume's stable id.
    pub volume_id: String,
    /// Its name within the volume.
    pub name: Name,
    /// How it is.
    pub state: SnapshotState,
    /// Why it cannot be read, a sentence.
    pub reason: Option<String>,
    /// T0, nanoseconds since the Unix epoch.
    pub t0_ns: u64,
    /// How long the host's requests were held at T0, in microseconds.
    pub pause_us: u64,
    /// Size of the volume at T0 in bytes.
    pub size: u64,
    /// Grain in bytes.
    pub grain: u32,
    /// Epoch that it began.
    pub epoch: u64,
    /// What becomes of captured originals.
    pub originals: Originals,
    /// What gives when the cache is full.
    #[serde(default)]
    pub on_full: OnFull,
    /// What it is of, ascending; the whole volume where absent.
    #[serde(default)]
    pub scope: Option<Vec<Part>>,
    /// Bytes that its consumer has captured.
    pub captured_bytes: u64,
    /// Bytes of originals that only this snapshot needs.
    pub unique_bytes: u64,
    /// Bytes of T0 that it cannot have: the base could not be read when a change was about to destroy them, or what was saved of them
    /// turned out damaged when it was asked for.
    #[serde(default)]
    pub unreadable_bytes: u64,
    /// It outlives a loss of power.
    #[serde(default)]
    pub outlives_power: bool,
    /// It belongs to one backup and goes with it.
    pub private: bool,
    /// A mover is copying it now.
    pub mover: bool,
    /// Where the one backup's copy goes, as far as that is known.
    #[serde(default)]
    pub destination: Option<Destination>,
    /// Clients that read it now.
    pub readers: u64,
}

/// A restore that has begun to overwrite its target in place, and is not declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedRestore {
    /// What is on record of it.
    #[serde(flatten)]
    pub record: RestoreRecord,
    /// Somebody is at it. Else it was interrupted.
    pub running: bool,
    /// The command that goes on with it.
    pub resume: String,
    /// The command that forgets it, and leaves the target as it is.
    pub discard: String,
}

/// The daemon as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The state directory.
    pub state: PathBuf,
    /// Where NBD clients connect, as `unix:PATH` or `tcp:HOST:PORT`.
    pub nbd: Vec<String>,
    /// All volumes by name.
    pub volumes: Vec<Volume>,
    /// All snapshots by volume and T0.
    pub snapshots: Vec<Snapshot>,
    /// Restores that overwrite their target in place and are not declared, oldest first.
    #[serde(default)]
    pub restores: Vec<UnfinishedRestore>,
    /// What the operator should know of the daemon's own places, a sentence each.
    #[serde(default)]
    pub notices: Vec<String>,
}
