//! What gives when the original cache is nearly full, or full (R53, INV-10).
//!
//! From the first rung to the last:
//!
//! 1. The cache's tiers fill up one after the other; that is the cache's device, not this.
//! 2. Slots of originals that their consumer has had are used again ([`crate::reuse`]), before the cache grows at all.
//! 3. *Hurry*: a mover that is at work sees how full the cache is ([`Pressure`]) and hurries.
//! 4. *Slow down*: while a mover is at work, first writes wait a little, the longer the fuller, up to [`MOST_SLOWED`]; when the cache is full,
//!    up to the longest wait that a snapshot which needs the original asks for, else that same bound.
//! 5. *Break*: the snapshot with the most originals of its own goes, those that may be broken at once before those that would wait; then the
//!    next. One that has none of its own gives no space. One whose copy-on-write has ended is pinned until it is copied (INV-6).
//! 6. Nothing can be had: the snapshots that need this very original break. Only where one of them was asked to fail writes instead, the
//!    host's write fails.
//!
//! Without a mover at work nobody makes space, so nobody waits for one. One that copies what is kept makes none.
//!
//! # Invariants
//! 1. A host change waits here for a bounded time, however long it is: [`MOST_SLOWED`] in all, or what a snapshot that needs its originals asks
//!    for. It holds claims of its own grains only.
//! 2. A host's write fails only for a snapshot made with [`OnFull::FailWrites`].

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tzero_io::yield_now;
use tzero_originals::{BrokenReason, Epoch, GrainIndex, OnFull, OriginalCache, Payload, SnapshotId};

use crate::first::within;
use crate::platform::Platform;
use crate::points::{Event, Planted, Point};
use crate::snapshots::Snapshot;
use crate::volume::{StateOf, Volume};

/// Longest time in nanoseconds that one host change waits while a mover is at work, where no snapshot asks for more.
pub const MOST_SLOWED: u64 = 20_000_000;
/// Slots whose space is being given back are looked for again after so many nanoseconds,
const LOOK_AGAIN: u64 = 1_000_000;
/// so many times.
const MOST_LOOKS: u32 = 500;
/// The cache is nearly full from this share of its slots on, in percent.
const NEARLY_FULL: u64 = 80;

/// Most that is saved ahead of any change, in percent of the cache's slots.
const AHEAD: u64 = 50;

/// A rung, by the name under which a test takes it out to see what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// Slots of originals that their consumer has had are used again.
    Reuse,
    /// First writes are slowed down while the cache is nearly full.
    SlowDown,
    /// First writes wait while it is full.
    Wait,
    /// The snapshot with the most originals of its own breaks first.
    BreakLargest,
}

impl Rung {
    /// All of them, with their names in tests.
    pub const ALL: [(&str, Self); 4] = [
        ("reuse", Self::Reuse),
        ("slow-down", Self::SlowDown),
        ("wait", Self::Wait),
        ("break-largest", Self::BreakLargest),
    ];
}

/// How full the original cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes in use.
    pub used: u64,
    /// Most bytes that may be.
    pub limit: u64,
    /// First writes are being slowed down, or wait.
    pub nearly_full: bool,
}

/// What a snapshot has of the originals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes of the cache that it alone holds: what deleting it gives back.
    pub unique: u64,
    /// Bytes of T0 that it cannot have: the base could not be read when they were to be saved.
    pub unreadable: u64,
}

/// What becomes of a save that found no room.
pub(crate) enum Room {
    /// There may be some now.
    Try,
    /// There is none: whoever needs the original breaks.
    None,
    /// There is none, and somebody who needs the original would rather see the host's write fail.
    FailWrite,
}

/// A mover is at work on a snapshot of the volume as long as this lives.
pub struct MoverAtWork<P: Platform>(Arc<Volume<P>>);

impl<P: Platform> Drop for MoverAtWork<P> {
    fn drop(&mut self) {
        self.0.movers.fetch_sub(1, Ordering::AcqRel);
        // Those who wait for space that it would have made wait for nothing now.
        self.0.freed.notify_all();
    }
}

/// When a host change first waited because of the cache: all its saves wait together for as long as one may.
#[derive(Default)]
pub(crate) struct Patience {
    begun: Cell<Option<u64>>,
    looks: Cell<u32>,
}

impl Patience {
    /// Whether the change has waited, or might have.
    pub(crate) fn was_used(&self) -> bool {
        self.begun.get().is_some() || self.looks.get() > 0
    }

    /// The time left of so many nanoseconds.
    fn left(&self, now: u64, of: u64) -> u64 {
        let begun = self.begun.get().unwrap_or(now);
        self.begun.set(Some(begun));
        (begun + of).saturating_sub(now)
    }
}

impl<P: Platform> Volume<P> {
    /// Says that a mover is at work that releases what it has copied: space will be made.
    pub fn mover_at_work(self: &Arc<Self>) -> MoverAtWork<P> {
        self.movers.fetch_add(1, Ordering::AcqRel);
        MoverAtWork(Arc::clone(self))
    }

    /// How full the cache is.
    pub fn pressure(&self) -> Pressure {
        let usage = self.originals.usage();
        let limit = usage.limit_bytes.min(self.most_used.load(Ordering::Relaxed));
        Pressure { used: usage.bytes, limit, nearly_full: usage.bytes >= share(limit, NEARLY_FULL) }
    }

    /// Says that there is room for so many more bytes of originals where they lie, now: a file system may have less than the cache's limit.
    pub fn has_room_for(&self, bytes: u64) {
        self.most_used.store(self.originals.usage().bytes.saturating_add(bytes), Ordering::Relaxed);
    }

    /// Whether the cache has room for originals that no change asks for yet: they leave the changes more than a half, and never make it nearly
    /// full.
    pub(crate) fn has_room_ahead(&self) -> bool {
        let Pressure { used, limit, .. } = self.pressure();
        used < share(limit, AHEAD)
    }

    /// Rung 4's slowing down: before anything is claimed.
    pub(crate) async fn slow_down(&self, patience: &Patience) {
        if self.movers.load(Ordering::Acquire) == 0 || !self.platform.has_rung(Rung::SlowDown) {
            return;
        }
        let Pressure { used, limit, nearly_full } = self.pressure();
        if !nearly_full {
            return;
        }
        let start = share(limit, NEARLY_FULL);
        let above = used.saturating_sub(start).min(limit - start);
        let delay = u128::from(MOST_SLOWED) * u128::from(above) / u128::from((limit - start).max(1));
        let delay = patience.left(self.platform.monotonic_ns(), delay as u64);
        if delay > 0 {
            self.platform.observe(Event::SlowedDown);
            self.platform.sleep(delay).await;
        }
    }

    /// A save of these grains found no room: the cache is full, or the map cannot grow.
    pub(crate) async fn make_room(
        &self,
        reason: BrokenReason,
        grains: &[GrainIndex],
        tag: Epoch,
        patience: &Patience,
    ) -> Room {
        if self.reuse_delivered().await
            || self.wait_for_space(grains, tag, patience).await
            || self.wait_for_given_back(patience).await
        {
            return Room::Try;
        }
        if let Some(victim) = self.most_unique().await {
            self.platform.point(Point::SaveFailed).await;
            {
                let _claims = self.lock();
                if !self.may_make_room(&victim) && !self.platform.planted(Planted::DeletedBreaks) {
                    // Somebody was faster: its record's slot may be another's by now.
                    return Room::Try;
                }
                self.mark(&victim, reason, self.grains().range(grains[0]).start());
            }
            self.break_marked(std::slice::from_ref(&victim)).await;
            self.platform.point(Point::Broken).await;
            if !victim.swept.swap(true, Ordering::AcqRel) {
                self.sweep(&victim).await;
            }
            return Room::Try;
        }
        let fails = self.needing_any(grains, tag).iter().any(|snapshot| snapshot.on_full == OnFull::FailWrites);
        if fails { Room::FailWrite } else { Room::None }
    }

    /// Waits for space while a mover is at work; `true` says that there may be some.
    async fn wait_for_space(&self, grains: &[GrainIndex], tag: Epoch, patience: &Patience) -> bool {
        let freed = self.freed.listen();
        if self.movers.load(Ordering::Acquire) == 0 || !self.platform.has_rung(Rung::Wait) {
            return false;
        }
        let wait = |snapshot: &Arc<Snapshot>| match snapshot.on_full {
            OnFull::Wait(ms) => u64::from(ms) * 1_000_000,
            OnFull::Break | OnFull::FailWrites => MOST_SLOWED,
        };
        let most = self.needing_any(grains, tag).iter().map(wait).max().unwrap_or(0);
        let left = patience.left(self.platform.monotonic_ns(), most);
        if left == 0 {
            return false;
        }
        self.platform.observe(Event::WaitedForSpace);
        let _ = within(freed, self.platform.sleep(left)).await;
        true
    }

    /// Free slots that are set aside for the moment come back soon; `true` says that they may have.
    async fn wait_for_given_back(&self, patience: &Patience) -> bool {
        if patience.looks.get() == MOST_LOOKS || !self.originals.is_giving_back() {
            return false;
        }
        patience.looks.set(patience.looks.get() + 1);
        self.platform.sleep(LOOK_AGAIN).await;
        true
    }

    fn needing_any(&self, grains: &[GrainIndex], tag: Epoch) -> Vec<Arc<Snapshot>> {
        let mut all: BTreeMap<Epoch, Arc<Snapshot>> = BTreeMap::new();
        for grain in grains {
            let newest = self.originals.newest(*grain);
            let needing = self.snapshots.needing(self.grains(), *grain, newest, tag);
            all.extend(needing.into_iter().map(|snapshot| (snapshot.epoch, snapshot)));
        }
        all.into_values().collect()
    }

    /// Whether it may be broken for the space that it holds.
    fn may_make_room(&self, snapshot: &Snapshot) -> bool {
        if self.platform.planted(Planted::RetainedMakesRoom) { snapshot.holds() } else { snapshot.is_live() }
    }

    /// The snapshot whose end frees the most, those that break at once first; none where nobody's end would free anything.
    async fn most_unique(&self) -> Option<Arc<Snapshot>> {
        if !self.platform.has_rung(Rung::BreakLargest) {
            return None;
        }
        let candidates: Vec<_> =
            self.snapshots.all().into_iter().filter(|snapshot| self.may_make_room(snapshot)).collect();
        let shares = if candidates.is_empty() { BTreeMap::new() } else { self.shares_gently().await };
        let bytes = |snapshot: &Snapshot| shares.get(&snapshot.id).map_or(0, |share| share.unique);
        candidates
            .into_iter()
            .filter(|snapshot| {
                snapshot.on_full != OnFull::FailWrites && self.may_make_room(snapshot) && bytes(snapshot) > 0
            })
            .max_by_key(|snapshot| (snapshot.on_full == OnFull::Break, bytes(snapshot)))
    }

    /// What each snapshot has of the originals, while others have their turn.
    pub async fn shares_gently(&self) -> BTreeMap<SnapshotId, Share> {
        let mut shares = BTreeMap::new();
        for part in 0..OriginalCache::<StateOf<P>, P::Cache>::parts() {
            let entries = self.originals.entries_of(part);
            if !entries.is_empty() {
                self.add_shares(&entries, &mut shares);
                yield_now().await;
            }
        }
        shares
    }

    /// What each snapshot has of the originals. Goes through all of them; not for a thread that serves hosts.
    pub fn shares(&self) -> BTreeMap<SnapshotId, Share> {
        let mut shares = BTreeMap::new();
        for part in 0..OriginalCache::<StateOf<P>, P::Cache>::parts() {
            self.add_shares(&self.originals.entries_of(part), &mut shares);
        }
        shares
    }

    /// `entries` are all originals of their grains, by grain and tag.
    fn add_shares(&self, entries: &[(GrainIndex, tzero_originals::Entry)], shares: &mut BTreeMap<SnapshotId, Share>) {
        let snapshots: Vec<_> = self.snapshots.all().into_iter().filter(|snapshot| snapshot.holds()).collect();
        let mut before = None;
        for (grain, entry) in entries {
            let after = before.filter(|(other, _)| other == grain).map(|(_, tag)| tag);
            before = Some((*grain, entry.tag));
            if entry.payload == Payload::Zero {
                continue;
            }
            let first = snapshots.partition_point(|snapshot| after.is_some_and(|after| snapshot.epoch <= after));
            let mut resolving = snapshots[first..]
                .iter()
                .take_while(|snapshot| snapshot.epoch <= entry.tag)
                .filter(|snapshot| snapshot.needs(self.grains(), *grain));
            if entry.payload == Payload::Bad {
                resolving
                    .for_each(|snapshot| shares.entry(snapshot.id).or_default().unreadable += u64::from(entry.len));
            } else if let (Some(only), None) = (resolving.next(), resolving.next()) {
                shares.entry(only.id).or_default().unique += self.grains().grain();
            }
        }
    }
}

/// Counts the movers at work on a volume.
pub(crate) type Movers = AtomicUsize;

fn share(of: u64, percent: u64) -> u64 {
    (u128::from(of) * u128::from(percent) / 100) as u64
}
