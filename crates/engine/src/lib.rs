//! Volumes and their snapshots: admission, pending bits, saving, views, release, recovery.
//!
//! This is what stands in the host's I/O path. It knows no protocol and no destination: front-ends call it through `block`'s export
//! traits, movers read what it wrote.

mod admission;
mod commit;
mod confirm;
mod control;
mod first;
mod host;
mod increments;
mod ladder;
mod lost;
mod pending;
mod platform;
mod points;
mod rebuild;
mod recovery;
mod resize;
mod reuse;
mod save;
mod scope;
mod snapshots;
mod space;
mod view;
mod volume;

pub use control::{SnapshotKind, is_valid_name};
pub use host::HostSession;
pub use ladder::{MOST_SLOWED, MoverAtWork, Pressure, Rung, Share};
pub use pending::{NoMemory, memory_of_bits};
pub use platform::Platform;
pub use points::{Event, Planted, Point};
pub use recovery::{MAP_NAME, TABLE_NAME};
pub use save::{BadOriginals, SavedAhead};
pub use snapshots::{SnapshotInfo, SnapshotState};
pub use tzero_originals::{FirstTier, OnFull};
pub use view::View;
pub use volume::{
    CacheOptions, Durability, MapLine, OpenError, Recovered, SnapshotError, Statistics, Volume, VolumeOptions,
};
