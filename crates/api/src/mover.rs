//! What a mover and the daemon say to each other.
//!
//! A mover connects to the daemon's mover socket and sends one [`Request`] a line (JSON); the daemon answers each
//! with one [`Reply`] a line. The reply [`Reply::Begun`] carries, as `SCM_RIGHTS` on its first byte, read-only descriptors in the order
//! of [`Descriptors`]. They are separate opens in the daemon's own I/O modes: never paths, never the locked base
//! descriptor itself.
//!
//! The connection is a lease: when it ends, whatever the mover had pinned is given up. The private snapshot of
//! a backup stands on, so that the backup can be resumed with the same T0.
//!
//! Deliberately absent: data. No byte of a volume passes through this socket.

use serde::{Deserialize, Serialize};

/// Longest line that either side accepts, in bytes.
pub const LONGEST_LINE: usize = 1 << 20;

/// What a mover asks. The first request of a connection is `Begin` or `Resume`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Take a private snapshot of `volume` (or use the standing `snapshot`) and hand over what a copy of it needs.
    Begin {
        /// Name of the volume.
        volume: String,
        /// Name of a standing snapshot of it; a private one is taken where this is absent.
        snapshot: Option<String>,
    },
    /// Go on with the snapshot of an interrupted copy.
    Resume {
        /// Name of the volume.
        volume: String,
        /// Id of the snapshot, as in [`Begun::snapshot_id`].
        snapshot_id: String,
    },
    /// These ranges are safe in the destination beyond the mover's death, digest and extent in its journal.
    /// Answered by [`Reply::Released`] once the daemon has recorded it (for a `keep` snapshot nothing is released).
    Captured {
        /// Offset and length in bytes.
        ranges: Vec<(u64, u64)>,
    },
    /// Is the snapshot still live and unbroken? Answered by [`Reply::Good`] or an error.
    Check,
    /// The copy is declared: a private snapshot is no longer needed. Answered by [`Reply::Finished`].
    Finish,
    /// The copy is given up: a private snapshot is deleted. Answered by [`Reply::Finished`].
    Abandon,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The snapshot stands, and requests in flight at its T0 have landed: reading may start.
    Begun(Box<Begun>),
    /// The ranges were recorded as captured.
    Released,
    /// The snapshot is live and unbroken.
    Good,
    /// The session is over.
    Finished,
    /// It cannot be done. The sentence is meant for the operator.
    Failed {
        /// Stable word for programs.
        code: FailureCode,
        /// One sentence: what, on what, why, what to do.
        message: String,
    },
}

/// Why a mover's request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// No such volume or snapshot.
    Unknown,
    /// The snapshot is broken.
    Broken,
    /// Another mover holds the snapshot.
    Busy,
    /// The request does not fit the protocol.
    Invalid,
    /// Anything else.
    Failed,
}

/// What a mover needs to know to copy a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Volume's name.
    pub volume: String,
    /// Volume's stable id (32 hex digits).
    pub volume_id: String,
    /// Changes whenever the volume's base is replaced.
    pub generation: u64,
    /// Size of the volume at T0 in bytes.
    pub size: u64,
    /// Grain in bytes.
    pub grain: u32,
    /// Snapshot's name (without the volume's).
    pub snapshot: String,
    /// Snapshot's stable id (32 hex digits).
    pub snapshot_id: String,
    /// Slot of the snapshot's record in the snapshot table.
    pub slot: u32,
    /// Epoch that the snapshot began.
    pub epoch: u64,
    /// T0, nanoseconds since the Unix epoch.
    pub t0_ns: u64,
    /// How long the host's requests were held at T0, in microseconds.
    pub pause_us: u64,
    /// The snapshot keeps originals (`true`) or releases what was captured.
    pub keep: bool,
    /// The snapshot is private to this copy and goes with it.
    pub private: bool,
    /// The base is read with direct I/O. The cache never is.
    pub direct: bool,
    /// Where the base is, to recognise a destination that is the source. Not to be opened.
    pub base_path: String,
}

/// Order of the descriptors that come with [`Reply::Begun`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// The base.
    Base = 0,
    /// The original cache (payloads).
    Cache = 1,
    /// The modified map.
    Map = 2,
    /// The snapshot table.
    Snapshots = 3,
}

impl Descriptors {
    /// How many come.
    pub const COUNT: usize = 4;
}
