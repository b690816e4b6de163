//! Reading another process's map and cache: what a mover does.
//!
//! The mover reads the base first, then takes in everything that was published meanwhile, then lays originals over, and at
//! last checks that the snapshot still stands (R21). An entry is published before its write touches the base, so a
//! grain without an entry after the read was read untouched.
//!
//! # Taking in
//! A reader knows everything up to the sequence that it has *seen*. To catch up it loads the head, and takes in every
//! entry of a sequence in `seen < sequence <= head`, no other:
//!
//! - The head is stored with release ordering after the entry that it counts, and loaded with acquire: all entries up to
//!   it are visible, in full. Of one that stands, its position therefore shows just that sequence. A position that shows
//!   another one was free or known before, or is being rewritten for something beyond the head; either way nothing of
//!   this batch stands there.
//! - What is published meanwhile is left to the next time: an earlier original of its grain may lie at a position that
//!   has been passed already.
//!
//! Where the entries are the ring says, one word each. A reader that fell behind the ring looks at the sequence of every
//! position instead, and at no more than that where it is not of this batch. That costs as much as the map is long, so
//! bytes are read in batches, and a batch catches up once.

use std::collections::HashMap;
use std::pin::Pin;

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::{Buffer, Mapping, yield_now};

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
    held: HashMap<u32, (GrainIndex, Located, Sequence)>,
    seen: Option<Sequence>,
    scan: Scan,
}

/// How a reader goes through the whole map.
#[derive(Clone, Copy, Debug)]
pub struct Scan {
    /// Positions between two moments at which it gives way; not 0.
    pub at_once: u32,
    /// How it gives way.
    pub give_way: fn() -> Pin<Box<dyn Future<Output = ()>>>,
    /// It takes what was published after it began: a fault, to show that schedules notice it.
    pub beyond_head: bool,
    /// It takes what was published after the snapshot's end, or the marker: another.
    pub beyond_end: bool,
    /// It takes every place for one of the first component: another.
    pub blind_to_units: bool,
    /// It takes in nothing after the first time: another.
    pub once: bool,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            at_once: 1 << 14,
            give_way: || Box::pin(yield_now()),
            beyond_head: false,
            beyond_end: false,
            blind_to_units: false,
            once: false,
        }
    }
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
        Ok(Self {
            map,
            table,
            cache,
            grains,
            index: Index::default(),
            held: HashMap::new(),
            seen: None,
            scan: Scan::default(),
        })
    }

    /// Changes how it goes through the whole map.
    pub fn set_scan(&mut self, scan: Scan) {
        self.scan = scan;
    }

    /// Grain in bytes.
    pub fn grain(&self) -> u64 {
        self.grains.grain()
    }

    /// Takes in everything published so far. Whatever the base gave *before* this can then be made T0's. Dropped half-way it has taken in
    /// nothing: the next call begins again.
    ///
    /// # Errors
    /// When the map is not what it was.
    pub async fn catch_up(&mut self) -> Result<CaughtUp<'_, M, D>, ReconcileError> {
        self.refresh().await.map_err(ReconcileError::Map)?;
        Ok(CaughtUp { reader: self })
    }

    /// [`Self::catch_up`] and [`CaughtUp::reconcile`], for bytes that come alone.
    ///
    /// # Errors
    /// As both.
    pub async fn reconcile(
        &mut self,
        snapshot: &SnapshotRef,
        offset: u64,
        buffer: &mut Buffer,
    ) -> Result<Reconciled, ReconcileError> {
        self.catch_up().await?.reconcile(snapshot, offset, buffer).await
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

    /// The last sequence that a snapshot retains: its end, once it was ended; while it is live there is none.
    ///
    /// # Errors
    /// When it is broken or gone.
    pub fn retained_up_to(&self, snapshot: &SnapshotRef) -> Result<Sequence, ReconcileError> {
        match self.table.check_live(snapshot.slot, snapshot.id) {
            Ok(()) => Ok(Sequence(u64::MAX)),
            Err(Some(RecordState::Ended(end))) => Ok(end),
            Err(Some(RecordState::Broken(reason))) => Err(ReconcileError::Broken(reason)),
            Err(_) => Err(ReconcileError::Gone),
        }
    }

    /// The sequence that the entry at a position had when it was last looked at.
    fn sequence_known(&self, position: u32) -> Sequence {
        self.held.get(&position).map_or(Sequence(0), |(_, _, sequence)| *sequence)
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
    async fn refresh(&mut self) -> Result<(), MapError> {
        let head = self.map.head();
        self.map.follow_growth().map_err(MapError::Io)?;
        if self.scan.once && self.seen.is_some() {
            return Ok(());
        }
        let seen = match self.seen {
            Some(seen) if seen <= head => seen,
            _ => {
                self.index = Index::default();
                self.held.clear();
                Sequence(0)
            }
        };
        if !self.follow_ring(seen, head) {
            self.look_everywhere(seen, head).await;
        }
        self.seen = Some(head);
        Ok(())
    }

    /// Takes in what the ring announces; `false` when it has moved on.
    fn follow_ring(&mut self, seen: Sequence, head: Sequence) -> bool {
        if !self.map.ring_reaches(seen, head) {
            return false;
        }
        (seen.0 + 1..=head.0).map(Sequence).all(|sequence| {
            let position = self.map.position_of(sequence);
            position.into_iter().for_each(|position| self.take_in(position, head));
            position.is_some()
        })
    }

    /// Takes in what the positions hold, whatever became of the ring.
    async fn look_everywhere(&mut self, seen: Sequence, head: Sequence) {
        // There are fewer than 2³² positions: see `ModifiedMap::open`.
        for position in 0..self.map.capacity() as u32 {
            if position % self.scan.at_once == self.scan.at_once - 1 {
                (self.scan.give_way)().await;
            }
            let sequence = self.map.sequence_at(position);
            if seen < sequence && (sequence <= head || self.scan.beyond_head) {
                self.take_in(position, head);
            }
        }
    }

    fn take_in(&mut self, position: u32, head: Sequence) {
        // A place that is free, being rewritten, or holds something newer by now is announced again.
        if let Some(entry) = self.map.entry(position).filter(|entry| entry.sequence <= head || self.scan.beyond_head) {
            let offset =
                if self.scan.blind_to_units { self.map.components().place(entry.offset).1 } else { entry.offset };
            self.remember(position, &Entry { offset, ..entry });
        }
    }

    fn remember(&mut self, position: u32, entry: &Entry) {
        if entry.offset >= self.grains.size() {
            return;
        }
        let grain = self.grains.at(entry.offset);
        let located = Located { tag: entry.tag, position };
        if let Some((old_grain, old, _)) = self.held.insert(position, (grain, located, entry.sequence)) {
            self.index.remove(old_grain, old);
        }
        self.index.insert(grain, located);
    }
}

/// A reader that has taken in everything up to one moment. Good for bytes that were read from the base before it.
pub struct CaughtUp<'a, M, D> {
    reader: &'a OriginalsReader<M, D>,
}

impl<M: Mapping, D: BlockDevice> CaughtUp<'_, M, D> {
    /// Replaces in `buffer`, which holds bytes read from the base at `offset`, every part that has an original for the snapshot.
    ///
    /// # Errors
    /// When a byte of T0 cannot be had; the buffer's contents are then arbitrary.
    pub async fn reconcile(
        &self,
        snapshot: &SnapshotRef,
        offset: u64,
        buffer: &mut Buffer,
    ) -> Result<Reconciled, ReconcileError> {
        let overlays = self.reader.overlays(snapshot, ByteRange::new(offset, buffer.len() as u64))?;
        let laid = overlay(&self.reader.cache, &overlays, buffer).await;
        // The state counts more than the fault: a slot may have been reused because the snapshot is gone.
        self.reader.check(snapshot)?;
        let cache_bytes = laid.map_err(ReconcileError::Original)?;
        Ok(Reconciled { cache_bytes, originals: overlays.len() as u64 })
    }

    /// Replaces in `buffer`, which holds bytes of an outboard copy at `offset`, every part that has an original for the snapshot with a
    /// sequence up to `up_to` (R33). The snapshot may have ended meanwhile, then what it retains reaches to its end at most.
    ///
    /// # Errors
    /// When a byte of T0 cannot be had; the buffer's contents are then arbitrary.
    pub async fn lay_retained(
        &self,
        snapshot: &SnapshotRef,
        up_to: Sequence,
        offset: u64,
        buffer: &mut Buffer,
    ) -> Result<Reconciled, ReconcileError> {
        let overlays = self.retained(snapshot, up_to, ByteRange::new(offset, buffer.len() as u64))?;
        let laid = overlay(&self.reader.cache, &overlays, buffer).await;
        self.reader.retained_up_to(snapshot)?;
        let cache_bytes = laid.map_err(ReconcileError::Original)?;
        Ok(Reconciled { cache_bytes, originals: overlays.len() as u64 })
    }

    /// Which parts of `range` [`Self::lay_retained`] replaces, ascending, those that touch joined.
    ///
    /// # Errors
    /// As there.
    pub fn places_retained(
        &self,
        snapshot: &SnapshotRef,
        up_to: Sequence,
        range: ByteRange,
    ) -> Result<Vec<ByteRange>, ReconcileError> {
        let mut places: Vec<ByteRange> = Vec::new();
        for overlay in self.retained(snapshot, up_to, range)? {
            let place = ByteRange::new(range.start() + overlay.at as u64, overlay.part.len() as u64);
            match places.last_mut() {
                Some(last) if last.end() == place.start() => *last = ByteRange::between(last.start(), place.end()),
                _ => places.push(place),
            }
        }
        Ok(places)
    }

    /// Grain in bytes.
    pub fn grain(&self) -> u64 {
        self.reader.grain()
    }

    /// The newest sequence that was taken in.
    pub fn seen(&self) -> Sequence {
        self.reader.seen.unwrap_or(Sequence(0))
    }

    /// The grains that have an original of any snapshot, in no order.
    pub fn grains(&self) -> impl Iterator<Item = GrainIndex> {
        self.reader.index.grains()
    }

    fn retained(
        &self,
        snapshot: &SnapshotRef,
        up_to: Sequence,
        range: ByteRange,
    ) -> Result<Vec<Overlay>, ReconcileError> {
        let up_to = up_to.min(self.reader.retained_up_to(snapshot)?);
        let mut overlays = Vec::new();
        for grain in self.reader.grains.touched(range).map(GrainIndex) {
            let Some(located) = self.reader.index.resolve(grain, snapshot.epoch) else { continue };
            let entry = self.reader.map.entry(located.position);
            match entry.filter(|entry| entry.tag == located.tag && self.reader.grains.at(entry.offset) == grain) {
                Some(entry) if entry.sequence <= up_to || self.reader.scan.beyond_end => {
                    overlays.extend(Overlay::of(entry, range.start(), range.len() as usize));
                }
                Some(_) => {}
                // What an ended snapshot has no use for is freed: the outboard copy has the grain.
                None if up_to < self.reader.sequence_known(located.position) => {}
                None => {
                    self.reader.retained_up_to(snapshot)?;
                    return Err(ReconcileError::Gone);
                }
            }
        }
        Ok(overlays)
    }

    /// Which stretches of `range` are known to be zero at T0 by originals, `true`, or to have original bytes, `false`. Everything else is
    /// the base's, which must have been asked for its holes before.
    ///
    /// # Errors
    /// As [`Self::reconcile`].
    pub fn changed(&self, snapshot: &SnapshotRef, range: ByteRange) -> Result<Vec<(ByteRange, bool)>, ReconcileError> {
        let overlays = self.reader.overlays(snapshot, range)?;
        self.reader.check(snapshot)?;
        Ok(overlays
            .iter()
            .map(|overlay| {
                let place = ByteRange::new(range.start() + overlay.at as u64, overlay.part.len() as u64);
                (place, overlay.entry.payload == Payload::Zero)
            })
            .collect())
    }
}

#[cfg(test)]
mod tests;
