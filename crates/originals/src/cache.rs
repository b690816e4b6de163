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

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::{Buffer, Mapping};

use crate::components::Components;
use crate::entry::{Entry, EntryState, Payload};
use crate::index::{Index, Located};
use crate::map::{MapError, ModifiedMap};
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
    /// Slots are set aside while their space is given back.
    giving_back: bool,
}

/// Payloads, entries and their index.
pub struct OriginalCache<M, D> {
    grains: Grains,
    map: ModifiedMap<M>,
    device: D,
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
        grains: Grains,
        first: FirstTier,
        wanted: impl Fn(GrainIndex, Option<Epoch>, Epoch, Sequence) -> bool,
    ) -> Result<Self, MapError> {
        let limit = device.geometry().size / grains.grain();
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
            let fits = entry.offset < grains.size() && u64::from(entry.len) == grains.range(grain).len();
            if !fits || !all.of(grain).contains(&located) || !wanted(grain, before, entry.tag, entry.sequence) {
                map.withdraw(position).map_err(MapError::Io)?;
                continue;
            }
            if let Payload::Stored { offset, .. } = entry.payload {
                slots.insert(offset / grains.grain());
            }
            positions.insert(u64::from(position));
            shards[shard_of(grain)].lock().expect("nothing panics under this lock").insert(grain, located);
        }
        for position in damaged {
            map.withdraw(position).map_err(MapError::Io)?;
        }
        let first = First { places: first.bytes / grains.grain(), withheld: first.withheld };
        let space = Space {
            slots: Slots::with_taken(limit, &slots, first),
            positions: Slots::with_taken(map.capacity(), &positions, First::default()),
            head,
            giving_back: false,
        };
        Ok(Self { grains, map, device, shards, space: Mutex::new(space) })
    }

    /// How the volume is cut.
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
        let positions = match space.positions.take(entries) {
            Some(positions) => positions,
            None => {
                let needed = space.positions.taken() + entries;
                let grown = self.map.grow(needed.max(space.positions.limit() + 1)).map_err(CacheError::MapFull)?;
                space.positions.set_limit(grown.end);
                space.positions.take(entries).expect("the map was grown for as many")
            }
        };
        let Some(slots) = space.slots.take(stored) else {
            positions.into_iter().for_each(|run| space.positions.put_back(run));
            return Err(CacheError::Full);
        };
        Ok(Reservation { slots, positions: positions.into_iter().flatten().map(|position| position as u32).collect() })
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
            space.positions.put_back(u64::from(position)..u64::from(position) + 1);
        }
    }

    /// Writes payload bytes from the slot on.
    pub async fn store(&self, slot: u64, bytes: Buffer) -> (Buffer, Result<(), tzero_block::Error>) {
        self.device.write(slot * self.grains.grain(), bytes, false).await
    }

    /// Publishes originals of one tag in the map: visible to movers, and found after a death. The payloads are stored already.
    /// Slots are used in the order of the reservation.
    ///
    /// # Errors
    /// Where stores can fail: then none of them counts, and the reservation is given back.
    pub fn publish(
        &self,
        reservation: Reservation,
        tag: Epoch,
        originals: &[(GrainIndex, Payload)],
    ) -> io::Result<Vec<(GrainIndex, Located, Sequence)>> {
        let mut published = Vec::with_capacity(originals.len());
        let mut space = self.space();
        for (&(grain, payload), &position) in originals.iter().zip(&reservation.positions) {
            let range = self.grains.range(grain);
            let sequence = Sequence(space.head.0 + 1);
            let entry = Entry {
                offset: range.start(),
                len: range.len() as u32,
                tag,
                sequence,
                payload,
                state: EntryState::Unread,
            };
            if let Err(error) = self.map.publish(position, &entry) {
                for position in &reservation.positions {
                    // One that cannot be withdrawn may stand in the file for ever, so its places must never be used again: they are
                    // lost until the next start, and only where stores go by `pwrite` and the disk fails.
                    self.map.withdraw(*position)?;
                }
                drop(space);
                self.cancel(reservation);
                return Err(error);
            }
            space.head = sequence;
            published.push((grain, Located { tag, position }, sequence));
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

    /// Says that the consumer of a snapshot of `epoch` has had the original of `grain`; `false` where there is none, so that nothing is to be
    /// reused.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn mark_read(&self, grain: GrainIndex, epoch: Epoch) -> io::Result<bool> {
        // Under the shard's lock: an entry is withdrawn under it, too.
        let shard = self.shard(grain);
        let Some(located) = shard.resolve(grain, epoch) else { return Ok(false) };
        self.map.mark_read(located.position)?;
        Ok(true)
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
                    let slot = offset / self.grains.grain();
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
        let _ = self.device.discard(ByteRange::between(run.start * grain, run.end * grain)).await;
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
