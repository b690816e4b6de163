//! What the control interface says about volumes and snapshots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Name, Size};

/// Smallest grain in bytes (R7).
pub const SMALLEST_GRAIN: u64 = 512;
/// Largest grain in bytes.
pub const LARGEST_GRAIN: u64 = 1 << 20;
/// The grain of a volume that asked for none, in bytes.
pub const DEFAULT_GRAIN: u32 = 4096;

/// Asks for a new volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddVolume {
    /// Its name.
    pub name: Name,
    /// File or block device; an absolute path.
    pub base: PathBuf,
    /// Grain in bytes; [`DEFAULT_GRAIN`] where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grain: Option<Size>,
    /// Directory for originals; the volume's state directory where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of originals on disk; what the file system has where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_limit: Option<Size>,
    /// Read and write the base past the page cache.
    #[serde(default)]
    pub direct: bool,
}

/// Asks for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name within the volume.
    pub name: Name,
}

/// How a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Clients are served.
    Serving,
    /// It could not be opened; clients are refused.
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
    /// File or block device below.
    pub base: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Grain in bytes.
    pub grain: u32,
    /// The base is read and written past the page cache.
    pub direct: bool,
    /// Changes whenever the base is replaced.
    pub generation: u64,
    /// Where originals are kept.
    pub cache: PathBuf,
    /// Bytes of originals that some snapshot still needs.
    pub cache_used: u64,
    /// Bytes that the cache's file takes on disk.
    pub cache_file: u64,
    /// Most bytes of originals.
    pub cache_limit: Option<u64>,
    /// Declared in the configuration file, not by command.
    pub declared: bool,
    /// Clients connected to the volume now, readers of its snapshots included.
    pub connections: u64,
    /// How many snapshots stand.
    pub snapshots: u64,
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
    /// Reads fail.
    Broken,
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
    /// Live or broken.
    pub state: SnapshotState,
    /// Why it is broken, a sentence.
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
    /// Bytes that its consumer has captured.
    pub captured_bytes: u64,
    /// Bytes of originals that only this snapshot needs.
    pub unique_bytes: u64,
    /// It belongs to one backup and goes with it.
    pub private: bool,
    /// A mover is copying it now.
    pub mover: bool,
    /// Clients that read it now.
    pub readers: u64,
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
}
