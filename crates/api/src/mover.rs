//! What a mover and the daemon say to each other.
//!
//! A mover connects to the daemon's mover socket and sends one [`Request`] a line (JSON); the daemon answers each
//! with one [`Reply`] a line. The reply [`Reply::Begun`] carries, as `SCM_RIGHTS` on its first byte, read-only descriptors in this order:
//!
//! 1. the modified map;
//! 2. the snapshot table;
//! 3. of every component ([`Begun::components`]) that is [`Access::Descriptor`], in order, the file or device;
//! 4. of every tier of the cache ([`Begun::tiers`]) that is [`Access::Descriptor`], in order, the file;
//! 5. if [`Begun::gauge`], the counters of how long hosts' requests take.
//!
//! They are separate opens in the daemon's own I/O modes: never paths, never the locked descriptors themselves.
//!
//! Both sides say which version of this protocol they speak ([`PROTOCOL`]), and a side that hears of another ends the session with
//! a sentence: what would be read could be misunderstood.
//!
//! The connection is a lease: when it ends, whatever the mover had pinned is given up. The private snapshot of
//! a backup stands on, so that the backup can be resumed with the same T0, if the mover had said [`Request::Recorded`]
//! (or had something captured, which comes after it). Before that nobody could resume it, and it is deleted.
//!
//! What was released can never be read again: its originals are gone, and the base may be newer. So a mover that takes
//! up a snapshot is told what that is ([`Begun::released`]) before it reads anything.
//!
//! Deliberately absent: data. No byte of a volume passes through this socket.

use serde::{Deserialize, Serialize};

use crate::control::{Durability, Originals};
use crate::{OnFull, Place};

/// Version of the protocol. 1, which said no number, had one base and one file of originals; 2 had no gauge.
pub const PROTOCOL: u32 = 3;

/// Longest line that either side accepts, in bytes: one with a scope of [`MOST_PARTS`](crate::control::MOST_PARTS) fits.
pub const LONGEST_LINE: usize = 4 << 20;
/// Most ranges in one line.
pub const RANGES_PER_LINE: usize = 4096;

/// Where a copy goes, for telling an operator how to go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// What `tzero backup --to` was given, from the root.
    pub path: String,
    /// What `tzero copy remove` gives the unfinished copy up by.
    pub unfinished: String,
    /// Stable name of the copy that will be (32 hex digits), where the mover says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
}

/// What a mover asks. The first request of a connection is `Begin` or `Resume`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Take a private snapshot of `volume` (or use the standing `snapshot`) and hand over what a copy of it needs.
    Begin {
        /// [`PROTOCOL`] of the mover; one that says nothing speaks version 1.
        #[serde(default = "unsaid")]
        protocol: u32,
        /// Name of the volume.
        volume: String,
        /// Name of a standing snapshot of it; a private one is taken where this is absent.
        snapshot: Option<String>,
        /// What a private snapshot is of, offset and length in bytes; the whole volume where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<Vec<(u64, u64)>>,
        /// What gives when the cache is full with a private snapshot; the snapshot where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on_full: Option<OnFull>,
        /// What becomes of a private snapshot's captured originals: given up as they are captured, where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        originals: Option<Originals>,
        /// Where the copy goes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination: Option<Destination>,
    },
    /// Go on with the snapshot of an interrupted copy.
    Resume {
        /// [`PROTOCOL`] of the mover; one that says nothing speaks version 1.
        #[serde(default = "unsaid")]
        protocol: u32,
        /// Name of the volume.
        volume: String,
        /// Id of the snapshot, as in [`Begun::snapshot_id`].
        snapshot_id: String,
        /// Where the copy goes, if it goes on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination: Option<Destination>,
    },
    /// The copy's journal is durable: from here on the snapshot outlives this session, because the copy can be
    /// resumed. Answered by [`Reply::Recorded`].
    Recorded,
    /// More of what the snapshot has released. Answered by [`Reply::ReleasedRanges`].
    ReleasedFrom {
        /// [`ReleasedPage::next`] of the page before.
        start: u64,
    },
    /// These ranges are safe in the destination beyond the mover's death, digest and extent in its journal.
    /// Answered by [`Reply::Released`] once the daemon has recorded it (for a `keep` snapshot nothing is released).
    Captured {
        /// Offset and length in bytes.
        ranges: Vec<(u64, u64)>,
    },
    /// As [`Request::Captured`], where the copy gives up nothing but originals: those of these ranges are marked *read*, and their
    /// slots may be used again. Answered by [`Reply::Released`].
    Delivered {
        /// Offset and length in bytes.
        ranges: Vec<(u64, u64)>,
    },
    /// Which original is the newest now? Asked when the last outboard read has completed. Answered by [`Reply::Boundary`].
    Marker,
    /// End the snapshot's copy-on-write: what was saved up to now is retained until the snapshot is deleted, and it can no longer be
    /// read as a view (R35, R36). Ended already, it says where. Only for a snapshot that keeps. Answered by [`Reply::Boundary`].
    Terminate,
    /// Does the snapshot still stand unbroken, ended or not? Answered by [`Reply::Good`] or an error.
    Check,
    /// The copy is declared: a private snapshot is no longer needed. Answered by [`Reply::Finished`].
    Finish,
    /// The copy is given up: a private snapshot is deleted. Answered by [`Reply::Finished`].
    Abandon,
}

/// The version of whoever says none.
const fn unsaid() -> u32 {
    1
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The snapshot stands, and requests in flight at its T0 have landed: reading may start.
    Begun(Box<Begun>),
    /// The snapshot outlives the session.
    Recorded,
    /// Part of what the snapshot has released.
    ReleasedRanges(ReleasedPage),
    /// The ranges were recorded as captured.
    Released {
        /// The cache is nearly full: hosts are being slowed down until more is captured.
        #[serde(default)]
        hurry: bool,
    },
    /// The sequence of the last original that belongs to an outboard copy.
    Boundary {
        /// All up to it are published.
        up_to: u64,
    },
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
    /// [`PROTOCOL`] of the daemon; one that says nothing speaks version 1.
    #[serde(default = "unsaid")]
    pub protocol: u32,
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
    /// Its copy-on-write has ended: the sequence of the last original that it retains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// What the volume's originals outlive. With `power` only what was flushed in the destination is captured.
    #[serde(default)]
    pub durability: Durability,
    /// Components that are files or devices are read with direct I/O. The cache never is.
    pub direct: bool,
    /// What the base is made of, in order.
    pub components: Vec<Component>,
    /// What the original cache is made of, in order: an offset in the map counts from the first one's beginning.
    pub tiers: Vec<Tier>,
    /// How long hosts' requests take comes with it.
    #[serde(default)]
    pub gauge: bool,
    /// The snapshot's view, as an export of the daemon's own: where the mover cannot have the base or the cache, it reads this instead. The
    /// name is a secret, and means nothing once the session is over.
    #[serde(default)]
    pub view: Option<String>,
    /// What it has released so far. A daemon that does not say leaves that unknown, which is not the same as nothing.
    #[serde(default)]
    pub released: Option<ReleasedPage>,
    /// What it is of, offset and length in bytes, ascending; the whole volume where absent. What a scope does not touch counts as
    /// released, so a mover that knows nothing of scopes copies nothing wrong.
    #[serde(default)]
    pub scope: Option<Vec<(u64, u64)>>,
}

/// Part of a released set: at most [`RANGES_PER_LINE`] ranges, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedPage {
    /// Offset and length in bytes.
    pub ranges: Vec<(u64, u64)>,
    /// Where the next page starts, if there is one.
    #[serde(default)]
    pub next: Option<u64>,
}

impl ReleasedPage {
    /// The page of `ranges` (offset and length, ascending) that starts at byte `start`.
    pub fn of(ranges: impl Iterator<Item = (u64, u64)>, start: u64) -> Self {
        let mut ranges = ranges.skip_while(|(offset, _)| *offset < start);
        let page = ranges.by_ref().take(RANGES_PER_LINE).collect();
        Self { ranges: page, next: ranges.next().map(|(offset, _)| offset) }
    }
}

/// A component of the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its length in bytes.
    pub size: u64,
    /// How to read it.
    pub access: Access,
    /// Where it is, to recognise a destination that is the source. Not to be opened.
    pub place: Place,
}

/// A part of the original cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// How many bytes of the cache it holds; the last one may grow.
    pub size: u64,
    /// How to read it.
    pub access: Access,
}

/// How a mover reads something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Through a descriptor that came with [`Reply::Begun`].
    Descriptor,
    /// By a connection of its own to this export, read-only: its server says that connections see each other's changes.
    Export(String),
    /// Not at all: [`Begun::view`] is read instead.
    Nothing,
}

/// How many descriptors come before those of components and tiers: the modified map and the snapshot table.
pub const STATE_DESCRIPTORS: usize = 2;

impl Begun {
    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        let accesses =
            self.components.iter().map(|part| &part.access).chain(self.tiers.iter().map(|tier| &tier.access));
        STATE_DESCRIPTORS + accesses.filter(|access| **access == Access::Descriptor).count() + usize::from(self.gauge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_is_in_one_page_that_fits_a_line() {
        let all: Vec<(u64, u64)> = (0..10_000).map(|index| (u64::MAX / 2 + index * 8192, 4096)).collect();
        let (mut found, mut start) = (Vec::new(), Some(0));
        while let Some(at) = start {
            let page = ReleasedPage::of(all.iter().copied(), at);
            assert!(serde_json::to_vec(&page).unwrap().len() < 1 << 19);
            found.extend(page.ranges);
            start = page.next;
        }
        assert_eq!(found, all);
        assert_eq!(ReleasedPage::of(std::iter::empty(), 0), ReleasedPage::default());
    }

    #[test]
    fn the_longest_scope_fits_a_line() {
        let scope = vec![(u64::MAX, u64::MAX); crate::control::MOST_PARTS];
        let on_full = Some(OnFull::FailWrites);
        let begin = Request::Begin {
            protocol: PROTOCOL,
            volume: "v".into(),
            snapshot: None,
            scope: Some(scope),
            on_full,
            originals: None,
            destination: None,
        };
        assert!(serde_json::to_vec(&begin).unwrap().len() < LONGEST_LINE - (64 << 10));
    }

    #[test]
    fn what_an_earlier_program_says_is_understood() {
        let begin: Request = serde_json::from_str(r#"{"request":"begin","volume":"v","snapshot":null}"#).unwrap();
        let plain = Request::Begin {
            protocol: 1,
            volume: "v".into(),
            snapshot: None,
            scope: None,
            on_full: None,
            originals: None,
            destination: None,
        };
        assert_eq!(begin, plain);
        let released: Reply = serde_json::from_str(r#"{"reply":"released"}"#).unwrap();
        assert_eq!(released, Reply::Released { hurry: false });
    }
}
