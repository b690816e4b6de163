//! Movers and copies: making, finding, checking and giving back copies of volumes.
//!
//! Everything that moves bulk data is here and runs outside the host's I/O path, in the process that calls it (R27,
//! R31):
//!
//! - [`backup`](backup()) copies a served volume as of one instant, or a plain file or device. `session` talks to the
//!   daemon, `source` turns base and originals into bytes of T0, `flow` is the pipeline, `medium` what it writes to, `journal`
//!   remembers what is done.
//! - [`struct@Copy`] is a finished copy: an image with its [`Manifest`]. [`Catalogue`] finds it by name.
//! - [`verify`](verify()) reads a copy again; [`restore`](restore()) gives the volume back.
//! - [`placement`] tells where bytes end up, so that nothing is copied onto itself; `forbidden` where nothing goes at all, and
//!   `ours` which of the files beside a copy may be replaced.
//!
//! Operations block the calling thread, on which they run their own event loop. They tell [`Event`]s, stop on
//! [`Cancel`], and end in an [`Error`] or outcome that knows its exit status.
//!
//! Architecture invariant: deliberately absent are terminal, arguments and environment, and the engine: a mover knows
//! a snapshot only by what the daemon hands over.

pub mod placement;

mod abandoned;
mod backup;
mod blank;
mod catalogue;
mod copy;
mod copy_id;
mod device_key;
mod digests;
mod durable;
mod error;
mod export;
mod flow;
mod forbidden;
mod governor;
mod hex;
mod hurry;
mod journal;
mod location;
mod manifest;
mod medium;
mod opening;
mod ours;
mod pace;
mod patience;
mod progress;
mod registry;
mod released;
mod removal;
mod restore;
mod scope;
mod served;
mod session;
mod site;
mod source;
mod standing;
mod timestamp;
mod unaligned;
mod verify;

pub use backup::{BackupOutcome, BackupRequest, BackupSource, Shortfall, backup};
pub use catalogue::{Catalogue, CatalogueEntry, Listing, Rebuilt};
pub use copy::{Copy, CopySummary};
pub use copy_id::{CopyId, InvalidCopyId};
pub use digests::{CHUNK, ChunkDigest, Digest, Digests, InvalidDigests};
pub use error::{
    DaemonFault, Error, FileAction, Halted, Holding, Incomplete, RangeFault, Refusal, ResumeFault, SourceFault,
    StopCause,
};
pub use governor::Restraint;
pub use location::Location;
pub use manifest::{
    Boundary, CopyKind, DeviceRecord, Durability, Engine, ImageRecord, Layout, MANIFEST_VERSION, Manifest,
    ManifestFault, ModeAsked, ModeUsed, Outboard, OutboardRecord, Protection, Transport, VolumeRecord,
};
pub use progress::{Cancel, Event, Notice, Observer, Phase};
pub use removal::Removed;
pub use restore::{MOST_RANGES, RestoreRequest, RestoreTarget, Restored, restore};
pub use scope::{InvalidScope, Scope};
pub use timestamp::{InvalidTimestamp, Timestamp};
pub use tzero_api::Exit;
pub use verify::{Damage, DamageKind, Verification, verify};
