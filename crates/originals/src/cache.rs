//! The original cache of a volume: payloads in slots, entries in the map, an index of both.
//!
//! # Invariants
//! 1. A payload is written before its entry is published, an entry before its index line (INV-2).
//! 2. A slot is given out again only after its entry was withdrawn (INV-4).
//! 3. One entry for a grain and a tag; the first wins (INV-3).
//!
//! | | save | resolve | free |
//! |---|---|---|---|
//! | **save** | different grains: slots and positions come from one lock, sequences in publication order; the same grain: the engine's claim keeps them apart | entry before index: found whole or not at all | a position is taken back after its withdrawal |
//! | **resolve** | | shared | the reader checks afterwards that its snapshot still needed the range |
//! | **free** | | | whoever removes the index line frees: once |

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::{Buffer, Mapping};

use crate::components::Components;
use crate::entry::{Entry, EntryState, Payload};
use crate::index::{Index, Located};
use crate::map::{MapError, ModifiedMap};
use crate::records::{RecordArea, Stamp};
use crate::slots::{First, Slots};
use crate::units::{Epoch, GrainIndex, Grains, Sequence};

const SHARDS: usize = 64;
/// Grains that lie together share a shard, so that a request rarely takes two locks.
const GRAINS_PER_SHARD_STEP: u64 = 4096;
/// Most bytes of slots whose space is given back at a time.
const GIVEN_BACK: u64 = 64 << 20;

/// Why an original cannot be kept.
#[derive(Debug)]
pub enum CacheError {
    /// The cache has reached its limit.
    Full,
    /// The map cannot grow.
    MapFull(io::Error),
}

impl std::fmt::Display for CacheError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str("the original cache has reached its limit"),
            Self::MapFull(source) => write!(f, "the modified map cannot grow: {source}"),
        }
    }
}

impl std::error::Error for CacheError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Full => None,
            Self::MapFull(source) => Some(source),
        }
    }
}

/// Places for originals that are about to be saved.
#[derive(Debug)]
pub struct Reservation {
    /// Slots of the cache, in runs.
    pub slots: Vec<Range<u64>>,
    positions: Vec<u32>,
}

/// The original of a grain that is about to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The grain.
    pub grain: GrainIndex,
    /// Bytes of it that the volume had when it was read: of the last grain maybe not all.
    pub len: u32,
    /// What they are.
    pub payload: Payload,
}

/// Originals of one tag that are to go on record, in their places.
#[derive(Clone, Copy, Debug)]
pub struct Reserved<'a> {
    /// Their places.
    pub reservation: &'a Reservation,
    /// Their tag.
    pub tag: Epoch,
    /// What they are.
    pub originals: &'a [Original],
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginalsUse {
    /// Published entries and those being saved.
    pub entries: u64,
    /// Bytes of slots that are in use or being filled.
    pub bytes: u64,
    /// Of those, the bytes in the first tier.
    pub first_tier_bytes: u64,
    /// Most bytes of slots.
    pub limit_bytes: u64,
    /// Originals ever saved.
    pub sequence: u64,
}

/// The first tier of a cache that has several: it fills up before the others (R53).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstTier {
    /// Its length in bytes; 0 where nothing is told apart.
    pub bytes: u64,
    /// It is not there: nothing new is kept in it. What was in it is lost, and no snapshot that stands needs it.
    pub withheld: bool,
}

struct Space {
    slots: Slots,
    positions: Slots,
    head: Sequence,
    /// The newest sequence that was ever given to an original, published or not.
    assigned: Sequence,
    /// Everything of this life up to here is durable, with its record. Only where there are records.
    durable: Sequence,
    /// Something of this life after [`Space::durable`] was written and is not certain to be durable.
    uncertain: bool,
    /// Blocks of records to which a write was given up on: nothing else may ever be put there before the next start.
    lost_blocks: BTreeSet<u64>,
    /// Slots are set aside while their space is given back.
    giving_back: bool,
}

/// The records that a cache has beside its payloads, and the life that writes them.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Where they are.
    pub area: RecordArea,
    /// Number of this opening of the volume.
    pub life: u32,
}

/// What is where in a cache.
#[derive(Clone, Debug, Default)]
pub struct CacheLayout {
    /// Its first tier.
    pub first: FirstTier,
    /// With records beside the payloads what is saved outlives a loss of power.
    pub recording: Option<Recording>,
}

/// Payloads, entries and their index.
pub struct OriginalCache<M, D> {
    /// Over the bytes that the volume had when it was opened: it may have grown.
    grains: Grains,
    map: ModifiedMap<M>,
    device: D,
    recording: Option<Recording>,
    shards: [Mutex<Index>; SHARDS],
    space: Mutex<Space>,
}

fn shard_of(grain: GrainIndex) -> usize {
    (grain.0 / GRAINS_PER_SHARD_STEP % SHARDS as u64) as usize
}

impl<M: Mapping, D: BlockDevice> OriginalCache<M, D> {
    /// Takes over the map and the cache's device, and finds what is in them. The device's size is the limit for new originals; those that
    /// are there already may lie past it, and must be readable all the same. `wanted` says of every original (grain, the tag before it, its
    /// tag, its sequence) whether some snapshot could resolve to it; the others are freed.
    ///
    /// `entries` and `damaged` are what [`ModifiedMap::scan`] found; the damaged ones are freed.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn open(
        map: ModifiedMap<M>,
        entries: Vec<(u32, Entry)>,
        damaged: Vec<u32>,
        device: D,
        layout: CacheLayout,
        grains: Grains,
        wanted: impl Fn(GrainIndex, Option<Epoch>, Epoch, Sequence) -> bool,
    ) -> Result<Self, MapError> {
        let CacheLayout { first, recording } = layout;
        let slots_at = recording.as_ref().map_or(0, |recording| recording.area.slots_at());
        let limit = device.geometry().size.saturating_sub(slots_at) / grains.grain();
        let mut head = map.head();
        let mut all = Index::default();
        for (position, entry) in &entries {
            head = head.max(entry.sequence);
            all.insert(grains.at(entry.offset), Located { tag: entry.tag, position: *position });
        }
        map.raise_head(head).map_err(MapError::Io)?;
        let (mut slots, mut positions) = (BTreeSet::new(), BTreeSet::new());
        let shards: [Mutex<Index>; SHARDS] = std::array::from_fn(|_| Mutex::default());
        for (position, entry) in entries {
            let grain = grains.at(entry.offset);
            let located = Located { tag: entry.tag, position };
            let before = all.of(grain).iter().map(|other| other.tag).rfind(|tag| *tag < entry.tag);
            // Where the volume has grown since, the last grain of then is longer now: what was saved of it is all that it was.
            let fits = entry.offset < grains.size() && u64::from(entry.len) <= grains.range(grain).len();
            let place = match entry.payload {
                Payload::Stored { offset, .. } => offset.checked_sub(slots_at),
                Payload::Zero | Payload::Bad => Some(0),
            };
            let fits = fits && place.is_some();
            if !fits || !all.of(grain).contains(&located) || !wanted(grain, before, entry.tag, entry.sequence) {
                map.withdraw(position).map_err(MapError::Io)?;
                continue;
            }
            if let Payload::Stored { offset, .. } = entry.payload {
                slots.insert((offset - slots_at) / grains.grain());
            }
            positions.insert(u64::from(position));
            shards[shard_of(grain)].lock().expect("nothing panics under this lock").insert(grain, located);
        }
        for position in damaged {
            map.withdraw(position).map_err(MapError::Io)?;
        }
        let first = First { places: first.bytes / grains.grain(), withheld: first.withheld };
        let most = recording.as_ref().map_or(u64::MAX, |recording| recording.area.positions());
        let space = Space {
            slots: Slots::with_taken(limit, &slots, first),
            positions: Slots::with_taken(map.capacity().min(most), &positions, First::default()),
            head,
            assigned: head,
            durable: Sequence(0),
            uncertain: false,
            lost_blocks: BTreeSet::new(),
            giving_back: false,
        };
        Ok(Self { grains, map, device, recording, shards, space: Mutex::new(space) })
    }

    /// How the volume was cut when it was opened.
    pub fn grains(&self) -> Grains {
        self.grains
    }

    /// Where the volume's components begin.
    pub fn components(&self) -> &Components {
        self.map.components()
    }

    /// Where payloads are.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The newest sequence.
    pub fn head(&self) -> Sequence {
        self.space().head
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().expect("nothing panics under this lock")
    }

    fn shard(&self, grain: GrainIndex) -> MutexGuard<'_, Index> {
        self.shards[shard_of(grain)].lock().expect("nothing panics under this lock")
    }

    /// Places for `entries` originals, of which `stored` have bytes. All or nothing.
    ///
    /// # Errors
    /// When the cache is full or the map cannot grow.
    pub fn reserve(&self, entries: u64, stored: u64) -> Result<Reservation, CacheError> {
        let mut space = self.space();
        let positions = self.take_positions(&mut space, entries)?;
        let Some(slots) = space.slots.take(stored) else {
            positions.into_iter().for_each(|run| space.positions.put_back(run));
            return Err(CacheError::Full);
        };
        Ok(Reservation { slots, positions: positions.into_iter().flatten().map(|position| position as u32).collect() })
    }

    fn take_positions(&self, space: &mut Space, count: u64) -> Result<Vec<Range<u64>>, CacheError> {
        loop {
            let runs = match space.positions.take(count) {
                Some(runs) => runs,
                None => self.more_positions(space, count)?,
            };
            let lost = |position: &u64| space.lost_blocks.contains(&(position / self.records_per_block()));
            if space.lost_blocks.is_empty() || !runs.iter().cloned().flatten().any(|position| lost(&position)) {
                return Ok(runs);
            }
            let (lost, good): (Vec<u64>, Vec<u64>) = runs.into_iter().flatten().partition(lost);
            lost.into_iter().for_each(|position| space.positions.lose(position..position + 1));
            good.into_iter().for_each(|position| space.positions.put_back(position..position + 1));
        }
    }

    /// Grows the map, as far as there may be records.
    fn more_positions(&self, space: &mut Space, count: u64) -> Result<Vec<Range<u64>>, CacheError> {
        let most = self.recording.as_ref().map_or(u64::MAX, |recording| recording.area.positions());
        let full = || CacheError::MapFull(io::ErrorKind::StorageFull.into());
        let needed = (space.positions.taken() + count).max(space.positions.limit() + 1);
        if needed > most {
            return Err(full());
        }
        let grown = self.map.grow(needed).map_err(CacheError::MapFull)?;
        space.positions.set_limit(grown.end.min(most));
        space.positions.take(count).ok_or_else(full)
    }

    /// Bytes of a block of records: what is written at once at least.
    fn block(&self) -> u64 {
        u64::from(self.device.geometry().alignment).max(512)
    }

    fn records_per_block(&self) -> u64 {
        self.block() / 64
    }

    /// The cache's offset of a slot, in bytes.
    pub fn offset_of(&self, slot: u64) -> u64 {
        self.slots_at() + slot * self.grains.grain()
    }

    fn slots_at(&self) -> u64 {
        self.recording.as_ref().map_or(0, |recording| recording.area.slots_at())
    }

    /// The records of the cache, where it has some.
    pub fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// Gives a reservation back.
    pub fn cancel(&self, reservation: Reservation) {
        let mut space = self.space();
        reservation.slots.into_iter().for_each(|run| space.slots.put_back(run));
        for position in reservation.positions {
            space.positions.put_back(u64::from(position)..u64::from(position) + 1);
        }
    }

    /// As [`Self::cancel`], where a write to some of the slots is still under way and may land at any time: nobody gets the slots before the
    /// next start.
    pub fn abandon(&self, reservation: Reservation) {
        let mut space = self.space();
        reservation.slots.into_iter().for_each(|run| space.slots.lose(run));
        for position in reservation.positions {
            let position = u64::from(position);
            if self.recording.is_some() {
                space.lost_blocks.insert(position / self.records_per_block());
                space.positions.lose(position..position + 1);
            } else {
                space.positions.put_back(position..position + 1);
            }
        }
    }

    /// Gives so many originals their sequences, the first of which it says. What they are given to is published in this order, or never.
    pub fn assign(&self, count: u64) -> Sequence {
        let mut space = self.space();
        let first = Sequence(space.assigned.0 + 1);
        space.assigned.0 += count;
        first
    }

    /// The writes that put originals on record beside their payloads, each with its place in bytes. `first` is the sequence of the first of
    /// them, the others follow.
    ///
    /// # Panics
    /// Where there are no records.
    pub fn records(&self, batch: &[Reserved<'_>], first: Sequence) -> Vec<(u64, Buffer)> {
        let Recording { area, life } = self.recording.as_ref().expect("only a cache with records is asked for them");
        let mut fresh = BTreeMap::new();
        let mut next = first.0;
        for Reserved { reservation, tag, originals } in batch {
            for (position, entry) in self.entries(reservation, *tag, originals, Sequence(next)) {
                fresh.insert(position, entry);
                next += 1;
            }
        }
        let durable = self.space().durable;
        let stamp = Stamp { components: self.map.components(), life: *life, durable };
        let after = |entry: &Entry| {
            let grain = self.grains.at(entry.offset);
            self.shard(grain).of(grain).iter().map(|located| located.tag).rfind(|tag| *tag < entry.tag)
        };
        area.writes(self.block(), &fresh, |position| self.map.entry(position), after, stamp)
    }

    /// Everything that was assigned a sequence up to this one, and not said to be uncertain, is durable with its record.
    pub fn is_durable(&self, up_to: Sequence) {
        let mut space = self.space();
        if !space.uncertain {
            space.durable = up_to;
        }
    }

    /// What was written last may be durable or not, and may never be.
    pub fn is_uncertain(&self) {
        self.space().uncertain = true;
    }

    /// The entries of originals, at their positions.
    fn entries<'a>(
        &self,
        reservation: &'a Reservation,
        tag: Epoch,
        originals: &'a [Original],
        first: Sequence,
    ) -> impl Iterator<Item = (u32, Entry)> + use<'a, M, D> {
        let bytes = self.grains.grain();
        (first.0..).zip(originals.iter().zip(&reservation.positions)).map(move |(sequence, (original, position))| {
            let &Original { grain, len, payload } = original;
            let (offset, sequence) = (grain.0 * bytes, Sequence(sequence));
            (*position, Entry { offset, len, tag, sequence, payload, state: EntryState::Unread })
        })
    }

    /// Writes payload bytes from the slot on.
    pub async fn store(&self, slot: u64, bytes: Buffer) -> (Buffer, Result<(), tzero_block::Error>) {
        self.device.write(self.offset_of(slot), bytes, false).await
    }

    /// Publishes originals of one tag in the map: visible to movers, and found after a death. The payloads are stored already.
    /// Slots are used in the order of the reservation. Without `first`, a sequence from [`Self::assign`], they get the next ones.
    ///
    /// # Errors
    /// Where stores can fail: then none of them counts, and the reservation is given back.
    pub fn publish(
        &self,
        reservation: Reservation,
        tag: Epoch,
        originals: &[Original],
        first: Option<Sequence>,
    ) -> io::Result<Vec<(GrainIndex, Located, Sequence)>> {
        let mut published = Vec::with_capacity(originals.len());
        let mut space = self.space();
        let first = first.unwrap_or(Sequence(space.head.0 + 1));
        let mut failed = None;
        for (position, entry) in self.entries(&reservation, tag, originals, first) {
            if let Err(error) = self.map.publish(position, &entry) {
                failed = Some(error);
                break;
            }
            space.head = entry.sequence;
            space.assigned = space.assigned.max(space.head);
            published.push((self.grains.at(entry.offset), Located { tag, position }, entry.sequence));
        }
        if let Some(error) = failed {
            for position in &reservation.positions {
                // One that cannot be withdrawn may stand in the file for ever, so its places must never be used again: they are
                // lost until the next start, and only where stores go by `pwrite` and the disk fails.
                self.map.withdraw(*position)?;
            }
            drop(space);
            self.cancel(reservation);
            return Err(error);
        }
        Ok(published)
    }

    /// Makes published originals visible to this process's resolution. `last_wins` breaks INV-3, for tests of the tests.
    pub fn index(&self, published: &[(GrainIndex, Located, Sequence)], last_wins: bool) {
        for (grain, located, _) in published {
            let mut shard = self.shard(*grain);
            let older = shard.of(*grain).iter().copied().find(|other| last_wins && other.tag == located.tag);
            if let Some(older) = older {
                shard.remove(*grain, older);
            }
            let fresh = shard.insert(*grain, *located);
            debug_assert!(fresh, "INV-3: a second original of {grain:?} for {:?}", located.tag);
        }
    }

    /// The newest tag of a grain.
    pub fn newest(&self, grain: GrainIndex) -> Option<Epoch> {
        self.shard(grain).newest(grain)
    }

    /// The original that a snapshot of `epoch` reads for `grain`, if there is one. `None` inside says that it was freed meanwhile:
    /// the snapshot does not need the grain any more.
    pub fn resolve(&self, grain: GrainIndex, epoch: Epoch) -> Option<Option<Entry>> {
        let located = self.shard(grain).resolve(grain, epoch)?;
        let entry = self.map.entry(located.position);
        Some(entry.filter(|entry| entry.tag == located.tag && self.grains.at(entry.offset) == grain))
    }

    /// Says that the consumer of a snapshot of `epoch` has had the original of `grain`; `false` where there is none that has a slot, so that
    /// nothing is to be reused.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn mark_read(&self, grain: GrainIndex, epoch: Epoch) -> io::Result<bool> {
        // Under the shard's lock: an entry is withdrawn under it, too.
        let shard = self.shard(grain);
        let Some(located) = shard.resolve(grain, epoch) else { return Ok(false) };
        let Some(entry) = self.map.entry(located.position) else { return Ok(false) };
        if entry.state == EntryState::Unread {
            self.map.mark_read(located.position)?;
        }
        Ok(matches!(entry.payload, Payload::Stored { .. }))
    }

    /// As [`Self::resolve`], of what can be read, with the tag of the original before.
    pub fn resolve_with_before(&self, grain: GrainIndex, epoch: Epoch) -> Option<(Option<Epoch>, Entry)> {
        let shard = self.shard(grain);
        let located = shard.resolve(grain, epoch)?;
        let before = shard.of(grain).iter().map(|other| other.tag).rfind(|tag| *tag < located.tag);
        Some((before, self.map.entry(located.position)?))
    }

    /// How many slots that nothing was ever in so many more stored originals would take.
    pub fn growth(&self, stored: u64) -> u64 {
        self.space().slots.growth(stored)
    }

    /// Frees the originals of a grain that `wanted` (the tag before it, its tag, its sequence) does not want; gives the freed cache offsets.
    ///
    /// # Errors
    /// Where stores can fail: the original then stays.
    pub fn free_unwanted(
        &self,
        grain: GrainIndex,
        wanted: impl Fn(Option<Epoch>, Epoch, Sequence) -> bool,
    ) -> io::Result<Vec<Option<u64>>> {
        let mut shard = self.shard(grain);
        let mut freed = Vec::new();
        let mut before = None;
        let chain: Vec<Located> = shard.of(grain).to_vec();
        for located in chain {
            let entry = self.map.entry(located.position);
            // One that cannot be read is kept for whoever resolves to it: an error, never another's bytes.
            let sequence = entry.as_ref().map_or(Sequence(0), |entry| entry.sequence);
            if wanted(before, located.tag, sequence) {
                before = Some(located.tag);
                continue;
            }
            // The tag before stays the last one kept: with this entry gone, its snapshots would resolve past it, and there are none.
            self.map.withdraw(located.position)?;
            shard.remove(grain, located);
            let mut space = self.space();
            let position = u64::from(located.position);
            space.positions.put_back(position..position + 1);
            freed.push(match entry.map(|entry| entry.payload) {
                Some(Payload::Stored { offset, .. }) => {
                    let slot = (offset - self.slots_at()) / self.grains.grain();
                    space.slots.put_back(slot..slot + 1);
                    Some(offset)
                }
                _ => None,
            });
        }
        Ok(freed)
    }

    /// Whether there may be an original of some of these neighbouring grains.
    pub fn may_have_any(&self, grains: &Range<u64>) -> bool {
        let steps = grains.start / GRAINS_PER_SHARD_STEP..grains.end.div_ceil(GRAINS_PER_SHARD_STEP);
        steps.take(SHARDS).any(|step| !self.shard(GrainIndex(step * GRAINS_PER_SHARD_STEP)).is_empty())
    }

    /// Grains that have originals, a part of them: ask for parts `0 ..` [`Self::parts`].
    pub fn part(&self, part: usize) -> Vec<GrainIndex> {
        let mut grains: Vec<_> = self.shards[part].lock().expect("nothing panics under this lock").grains().collect();
        grains.sort_unstable();
        grains
    }

    /// See [`Self::part`].
    pub const fn parts() -> usize {
        SHARDS
    }

    /// Originals of a part of the grains (see [`Self::part`]), by grain and tag.
    pub fn entries_of(&self, part: usize) -> Vec<(GrainIndex, Entry)> {
        let located: Vec<_> = self.shards[part].lock().expect("nothing panics under this lock").iter().collect();
        // Those that are freed meanwhile are not there any more, or are another original.
        let entry = |(grain, located): (GrainIndex, Located)| {
            let entry = self.map.entry(located.position)?;
            (entry.tag == located.tag && self.grains.at(entry.offset) == grain).then_some((grain, entry))
        };
        let mut entries: Vec<_> = located.into_iter().filter_map(entry).collect();
        entries.sort_unstable_by_key(|(grain, entry)| (*grain, entry.tag));
        entries
    }

    /// Every original, by grain and tag.
    pub fn all(&self) -> Vec<(GrainIndex, Entry)> {
        let mut all: Vec<_> = (0..SHARDS).flat_map(|part| self.entries_of(part)).collect();
        all.sort_unstable_by_key(|(grain, entry)| (*grain, entry.tag));
        all
    }

    /// Gives the space of some freed slots back to the file system; says how many bytes of slots that were. 0: there is nothing to give.
    ///
    /// Nobody gets a slot while its space goes, so that no original goes with it; dropped meanwhile, the slots stay unused until the next
    /// start. Meant for quiet times: what saves will want again soon is better kept.
    pub async fn give_back(&self) -> u64 {
        let grain = self.grains.grain();
        let run = {
            let mut space = self.space();
            let Some(run) = space.slots.take_aside((GIVEN_BACK / grain).max(1)) else { return 0 };
            space.giving_back = true;
            run
        };
        // A device that refuses is not asked again for the same slots.
        let _ = self.device.discard(ByteRange::between(self.offset_of(run.start), self.offset_of(run.end))).await;
        let mut space = self.space();
        space.slots.put_bare(run.clone());
        space.giving_back = false;
        (run.end - run.start) * grain
    }

    /// Whether some free slots cannot be had for the moment, because their space is being given back.
    pub fn is_giving_back(&self) -> bool {
        self.space().giving_back
    }

    /// How much there is of everything.
    pub fn usage(&self) -> OriginalsUse {
        let space = self.space();
        OriginalsUse {
            entries: space.positions.taken(),
            bytes: space.slots.taken() * self.grains.grain(),
            first_tier_bytes: space.slots.first_taken() * self.grains.grain(),
            limit_bytes: space.slots.limit() * self.grains.grain(),
            sequence: space.head.0,
        }
    }

    /// Makes the map durable against power loss. Blocking.
    ///
    /// # Errors
    /// When the device says so.
    pub fn sync_map(&self) -> io::Result<()> {
        self.map.sync()
    }
}
