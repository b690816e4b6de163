//! Reading another process's map and cache: what a mover does.
//!
//! The mover reads the base first, then takes in everything that was published meanwhile, then lays originals over, and at
//! last checks that the snapshot still stands (R21). An entry is published before its write touches the base, so a
//! grain without an entry after the read was read untouched.

use std::collections::HashMap;

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::{Buffer, Mapping};

use crate::entry::{Entry, Payload};
use crate::index::{Index, Located};
use crate::map::{MapError, ModifiedMap};
use crate::overlay::{Overlay, OverlayError, overlay};
use crate::table::{BrokenReason, RecordState, SnapshotTable, TableError};
use crate::units::{Epoch, GrainIndex, Grains, Sequence, SnapshotId};

/// A snapshot, as the daemon named it to the mover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRef {
    /// Slot of its record.
    pub slot: u32,
    /// Its id.
    pub id: SnapshotId,
    /// Its epoch.
    pub epoch: Epoch,
}

/// What a reconciled buffer is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Bytes that were read from the cache.
    pub cache_bytes: u64,
    /// Grains that have an original.
    pub originals: u64,
}

/// Why bytes of T0 cannot be had.
#[derive(Debug)]
pub enum ReconcileError {
    /// The snapshot is broken.
    Broken(BrokenReason),
    /// The snapshot is gone, or its copy-on-write has ended.
    Gone,
    /// An original is bad, damaged or unreadable.
    Original(OverlayError),
    /// The map or the snapshot table is not what it was.
    Map(MapError),
}

impl std::fmt::Display for ReconcileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(reason) => write!(f, "the snapshot is broken: {reason}"),
            Self::Gone => f.write_str("the snapshot is gone"),
            Self::Original(source) => source.fmt(f),
            Self::Map(source) => source.fmt(f),
        }
    }
}

impl std::error::Error for ReconcileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Original(source) => Some(source),
            Self::Map(source) => Some(source),
            Self::Broken(_) | Self::Gone => None,
        }
    }
}

/// Why the daemon's files were refused.
#[derive(Debug)]
pub enum OpenError {
    /// The map.
    Map(MapError),
    /// The snapshot table.
    Table(TableError),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Map(source) => source.fmt(f),
            Self::Table(source) => source.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}

/// A read-only view of another process's original cache. It follows the map by its ring of recent publications.
pub struct OriginalsReader<M, D> {
    map: ModifiedMap<M>,
    table: SnapshotTable<M>,
    cache: D,
    grains: Grains,
    index: Index,
    /// What each position of the map held when it was last looked at.
    held: HashMap<u32, (GrainIndex, Located)>,
    seen: Option<Sequence>,
}

impl<M: Mapping, D: BlockDevice> OriginalsReader<M, D> {
    /// Takes over read-only mappings of the map and the snapshot table, and the cache. `size` is that of the volume at T0.
    ///
    /// # Errors
    /// When they are not what they should be.
    pub fn open(map: M, snapshots: M, cache: D, size: u64) -> Result<Self, OpenError> {
        let map = ModifiedMap::open(map).map_err(OpenError::Map)?;
        let table = SnapshotTable::open(snapshots).map_err(OpenError::Table)?;
        let grains = Grains::new(map.grain(), size).ok_or(OpenError::Map(MapError::Format))?;
        Ok(Self { map, table, cache, grains, index: Index::default(), held: HashMap::new(), seen: None })
    }

    /// Grain in bytes.
    pub fn grain(&self) -> u64 {
        self.grains.grain()
    }

    /// Replaces in `buffer`, which holds bytes read from the base at `offset`, every part that has an original for the snapshot.
    /// Call it after the read has completed, never before.
    ///
    /// # Errors
    /// When a byte of T0 cannot be had; the buffer's contents are then arbitrary.
    pub async fn reconcile(
        &mut self,
        snapshot: &SnapshotRef,
        offset: u64,
        buffer: &mut Buffer,
    ) -> Result<Reconciled, ReconcileError> {
        self.refresh().map_err(ReconcileError::Map)?;
        let overlays = self.overlays(snapshot, ByteRange::new(offset, buffer.len() as u64))?;
        let laid = overlay(&self.cache, &overlays, buffer).await;
        // The state counts more than the fault: a slot may have been reused because the snapshot is gone.
        self.check(snapshot)?;
        let cache_bytes = laid.map_err(ReconcileError::Original)?;
        Ok(Reconciled { cache_bytes, originals: overlays.len() as u64 })
    }

    /// Which stretches of `range` are known to be zero at T0 by originals, `true`, or to have original bytes, `false`. Everything else is
    /// the base's. To be asked after the base was asked for its holes.
    ///
    /// # Errors
    /// As [`Self::reconcile`].
    pub fn changed(
        &mut self,
        snapshot: &SnapshotRef,
        range: ByteRange,
    ) -> Result<Vec<(ByteRange, bool)>, ReconcileError> {
        self.refresh().map_err(ReconcileError::Map)?;
        let overlays = self.overlays(snapshot, range)?;
        self.check(snapshot)?;
        Ok(overlays
            .iter()
            .map(|overlay| {
                let place = ByteRange::new(range.start() + overlay.at as u64, overlay.part.len() as u64);
                (place, overlay.entry.payload == Payload::Zero)
            })
            .collect())
    }

    /// Checks that the snapshot still stands, unbroken.
    ///
    /// # Errors
    /// What it is instead.
    pub fn check(&self, snapshot: &SnapshotRef) -> Result<(), ReconcileError> {
        self.table.check_live(snapshot.slot, snapshot.id).map_err(|state| match state {
            Some(RecordState::Broken(reason)) => ReconcileError::Broken(reason),
            _ => ReconcileError::Gone,
        })
    }

    fn overlays(&self, snapshot: &SnapshotRef, range: ByteRange) -> Result<Vec<Overlay>, ReconcileError> {
        let mut overlays = Vec::new();
        for grain in self.grains.touched(range).map(GrainIndex) {
            let Some(located) = self.index.resolve(grain, snapshot.epoch) else { continue };
            let entry = self
                .map
                .entry(located.position)
                .filter(|entry| entry.tag == located.tag && self.grains.at(entry.offset) == grain);
            let Some(entry) = entry else {
                // It was freed: the snapshot does not need it any more, or does not stand.
                self.check(snapshot)?;
                return Err(ReconcileError::Gone);
            };
            overlays.extend(Overlay::of(entry, range.start(), range.len() as usize));
        }
        Ok(overlays)
    }

    /// Takes in everything published so far.
    fn refresh(&mut self) -> Result<(), MapError> {
        let head = self.map.head();
        self.map.follow_growth().map_err(MapError::Io)?;
        let Some(seen) = self.seen.filter(|seen| *seen <= head && self.map.ring_reaches(*seen, head)) else {
            return self.rescan(head);
        };
        for sequence in (seen.0 + 1..=head.0).map(Sequence) {
            let Some(position) = self.map.position_of(sequence) else { return self.rescan(head) };
            self.take_in(position, head);
        }
        self.seen = Some(head);
        Ok(())
    }

    fn rescan(&mut self, head: Sequence) -> Result<(), MapError> {
        self.index = Index::default();
        self.held.clear();
        // What is published during the scan is left to the ring: an earlier original of its grain may have been passed already.
        for (position, entry) in self.map.scan().0.into_iter().filter(|(_, entry)| entry.sequence <= head) {
            self.remember(position, &entry);
        }
        self.seen = Some(head);
        Ok(())
    }

    fn take_in(&mut self, position: u32, head: Sequence) {
        // A place that is free, being rewritten, or holds something newer by now is announced again.
        if let Some(entry) = self.map.entry(position).filter(|entry| entry.sequence <= head) {
            self.remember(position, &entry);
        }
    }

    fn remember(&mut self, position: u32, entry: &Entry) {
        if entry.offset >= self.grains.size() {
            return;
        }
        let grain = self.grains.at(entry.offset);
        let located = Located { tag: entry.tag, position };
        if let Some((old_grain, old)) = self.held.insert(position, (grain, located)) {
            self.index.remove(old_grain, old);
        }
        self.index.insert(grain, located);
    }
}
