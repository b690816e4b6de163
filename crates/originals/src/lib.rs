//! Original cache and modified map: format, writer, concurrent reader, resolution.
//!
//! The *original cache* holds the bytes that grains had before their first change in an epoch. The *modified map* has one
//! entry per saved original: where it belongs, which snapshots it serves, where it lies, its checksum. The *snapshot table* says which
//! snapshots stand. All three are files that survive the process; `docs/formats/` has the byte tables.
//!
//! Deliberately absent: when to save (that is `engine`), and any knowledge of hosts or movers.

mod cache;
mod components;
mod entry;
mod index;
mod map;
mod overlay;
mod ranges;
mod reader;
mod records;
mod slots;
mod table;
mod units;

pub use cache::{
    CacheError, CacheLayout, FirstTier, Original, OriginalCache, OriginalsUse, Recording, Reservation, Reserved,
};
pub use components::{Components, ComponentsError};
pub use entry::{Entry, EntryState, Payload};
pub use index::{Index, Located};
pub use map::{MapError, MapShape, ModifiedMap};
pub use overlay::{Overlay, OverlayError, overlay};
pub use ranges::{RangeLog, RangeSet};
pub use reader::{CaughtUp, OpenError, OriginalsReader, ReconcileError, Reconciled, Scan, SnapshotRef};
pub use records::{AreaFound, Record as FoundRecord, RecordArea, Scan as RecordScan, certain};
pub use table::{
    BrokenReason, MOST_SNAPSHOTS, NAME_BYTES, OnFull, Originals, Record, RecordState, SnapshotTable, TableError,
};
pub use units::{Epoch, GrainIndex, Grains, Sequence, SnapshotId};
