//! What an operation says while it runs, and how it is told to stop.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Serialize, Serializer};

use crate::{CopyId, Timestamp};

/// Asks an operation to stop at the next chunk. Clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches a flag that someone else sets, a signal handler for one.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Asks.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Part of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// What an interrupted run has written is read again and compared with its digests.
    Recheck,
    /// What a target holds is read and compared with the copy.
    Compare,
    /// A target that was not to be overwritten is searched for what is not the copy's.
    Survey,
    /// Bytes go from the source to the destination.
    Copy,
    /// Originals are laid over them there, counted in chunks.
    Originals,
    /// The destination makes them durable.
    Flush,
    /// They are read again and compared with their digests.
    Verify,
    /// The record of the copy is written.
    Declare,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recheck => "recheck",
            Self::Compare => "compare",
            Self::Survey => "survey",
            Self::Copy => "copy",
            Self::Originals => "originals",
            Self::Flush => "flush",
            Self::Verify => "verify",
            Self::Declare => "declare",
        })
    }
}

/// News of a running operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A backup has its T0.
    Begun {
        /// Name of the copy that will be.
        copy: CopyId,
        /// Volume, or the plain source's file name.
        volume: String,
        /// The volume's stable id, or the plain source's.
        volume_id: String,
        /// Name of the snapshot without the volume's; none for a plain source.
        snapshot: Option<String>,
        /// The snapshot's stable id.
        snapshot_id: Option<String>,
        /// The instant that the copy will show.
        t0: Timestamp,
        /// Bytes to copy.
        size: u64,
        /// How long the host was held, in microseconds.
        pause_us: u64,
        /// It goes on from an interrupted run.
        resumed: bool,
        /// Bytes that the interrupted run had done.
        already: u64,
    },
    /// How far it is. Within a phase `done` never goes back.
    Progress {
        /// What it is at.
        phase: Phase,
        /// Bytes of the volume, holes included.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// Something that an operator should know and that stops nothing.
    Notice(Notice),
}

/// A sentence that stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An interrupted copy stood at the destination and was thrown away for the new one.
    Discarded {
        /// The destination.
        path: PathBuf,
        /// Its T0.
        t0: Timestamp,
    },
    /// The copy is good, but the catalogue does not know it.
    NotCatalogued {
        /// The catalogue's file.
        path: PathBuf,
        /// Why.
        reason: std::io::ErrorKind,
    },
    /// The copy is good, but its private snapshot still stands.
    SnapshotStands {
        /// Volume.
        volume: String,
        /// Snapshot's name without the volume's.
        snapshot: String,
    },
    /// What an interrupted run left was read again, and this many chunks of it were not what it had written.
    Recopied {
        /// How many chunks.
        chunks: u64,
    },
    /// The original cache was short of space, and the outboard copy of the base was complete.
    EndedEarly,
    /// How long the host's requests take cannot be seen, so what was asked for of them is not kept.
    Unheard,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discarded { path, t0 } => {
                write!(f, "the interrupted copy of {t0} at {} was thrown away for a new one", path.display())
            }
            Self::NotCatalogued { path, reason } => write!(
                f,
                "the copy is good but could not be entered in the catalogue at {}: {reason}; `tzero copy show` finds it by its path",
                path.display()
            ),
            Self::SnapshotStands { volume, snapshot } => write!(
                f,
                "the copy is good but its snapshot could not be deleted; `tzero snapshot delete {volume}@{snapshot}` does"
            ),
            Self::Unheard => f.write_str(
                "how long the host's requests take cannot be seen, so `--host-p99` has no effect: the daemon's log says why",
            ),
            Self::EndedEarly => f.write_str(
                "the original cache is short of space: copy-on-write has ended before the originals are copied, which costs the copy nothing",
            ),
            Self::Recopied { chunks } => {
                write!(
                    f,
                    "part of the interrupted copy did not outlive the interruption and is copied again (chunks: {chunks})"
                )
            }
        }
    }
}

impl Serialize for Notice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Sentence {
            message: String,
        }
        Sentence { message: self.to_string() }.serialize(serializer)
    }
}

/// Who hears the news.
pub type Observer<'a> = &'a mut dyn FnMut(&Event);
