//! Opening a volume: what a killed, stopped or upgraded daemon left is found again.
//!
//! Everything that a host change relied on was written before it, so what is found after a death of the process is right. After a death of the
//! machine without a clean stop it is not, and the snapshots say so; with `durability = power` those stand that are confirmed, and the map is
//! made anew from what is durable ([`crate::rebuild`]).
//!
//! The steps can be repeated: a death in any of them leaves a state that the same steps take to the same end.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tzero_block::BlockDevice;
use tzero_io::{Mapping, Notify, Storage};
use tzero_originals::{
    BrokenReason, CacheLayout, Epoch, Grains, MapError, OriginalCache, Originals, RangeLog, RangeSet, Record,
    RecordState, Recording, Sequence, SnapshotTable,
};

use crate::admission::Admission;
use crate::commit::Commits;
use crate::confirm::Confirming;
use crate::control::LEAP;
use crate::ladder::Movers;
use crate::lost;
use crate::pending::Pending;
use crate::platform::Platform;
use crate::points::{Planted, Point};
use crate::rebuild::{self, Found};
use crate::reuse::Delivered;
use crate::save::SavedAhead;
use crate::scope;
use crate::snapshots::{Snapshot, Snapshots};
use crate::volume::{
    Durability, OpenError, Recovered, StateOf, Volume, VolumeOptions, WITNESS, WITNESS_LEN, released_name,
};

/// Name of the modified map in a volume's storage.
pub const MAP_NAME: &str = "map";
/// The boot of a table that was never opened.
const NEVER: [u8; 16] = [0; 16];
/// Name of the snapshot table in a volume's storage.
pub const TABLE_NAME: &str = "snapshots";

impl<P: Platform> Volume<P> {
    /// Opens the volume over its base, its cache and its state, which are made if they are all new.
    ///
    /// The caller holds the locks: no request of an earlier process can still reach base or cache.
    ///
    /// # Errors
    /// When the state is damaged, another volume's, or cannot be written.
    pub async fn open(
        platform: P,
        base: P::Base,
        cache: P::Cache,
        storage: P::Storage,
        options: VolumeOptions,
    ) -> Result<(Arc<Self>, Recovered), OpenError> {
        let grains = Grains::new(options.grain, base.geometry().size).ok_or(OpenError::Grain)?;
        let table = storage.open(TABLE_NAME, SnapshotTable::<StateOf<P>>::LEN).map_err(OpenError::State)?;
        let table = SnapshotTable::create_or_open(table, options.id).map_err(OpenError::Table)?;
        table.upgrade().map_err(OpenError::State)?;
        let power = options.durability == Durability::Power;
        let (boot, clean) = table.boot();
        let lost = boot != options.boot_id && !clean;
        let found = if power {
            rebuild::find(&platform, (&base, &cache), &table, &options, lost).await
        } else {
            Found::default()
        };
        platform.point(Point::RecoveryOpened).await;

        let marks_complete = storage.exists(WITNESS).map_err(OpenError::State)?;
        mark_lost(&table, &options, lost, marks_complete, &found).map_err(OpenError::State)?;
        storage.open(WITNESS, WITNESS_LEN).map_err(OpenError::State)?;
        let all = load_snapshots::<P>(&table, &storage, grains, lost).map_err(OpenError::State)?;
        remove_orphans::<P>(&storage, &all).map_err(OpenError::State)?;
        if power && !platform.planted(Planted::FoundNotDurable) {
            make_durable::<P>(&table, &storage, &all).map_err(OpenError::State)?;
        }
        platform.point(Point::RecoveryMarked).await;

        let leaps = lost && !power && boot != NEVER;
        let epoch = raise_epoch(&platform, &table, &all, leaps, &found).map_err(OpenError::State)?;
        let rebuilt = if power && lost { Some(found.saved.as_ref().map_or(&[][..], |(saved, _)| saved)) } else { None };
        let map = rebuild::open_map(&platform, &storage, &options, rebuilt)?;
        let (mut entries, damaged) = match rebuilt {
            Some(records) => (rebuild::entries_of(records), Vec::new()),
            None => map.scan(),
        };
        // What is saved from now on comes after what an ended snapshot retains.
        let ended = all.iter().filter_map(|snapshot| snapshot.end.get()).max().copied().unwrap_or(Sequence(0));
        map.raise_head(ended).map_err(|error| OpenError::Map(MapError::Io(error)))?;
        platform.point(Point::RecoveryRebuilt).await;

        if platform.planted(Planted::UnitIgnored) {
            entries.iter_mut().for_each(|(_, entry)| entry.offset = options.components.place(entry.offset).1);
        }
        let snapshots = Snapshots::new(all);
        // On record before the entries go, which nobody who stands needs then.
        if !damaged.is_empty() {
            mark_standing(&table, &snapshots).map_err(OpenError::State)?;
        }
        if !platform.planted(Planted::LostForgotten) {
            let losers = lost::losers(&entries, &options.cache.lost, grains, &snapshots);
            let losers = losers.iter().map(|(snapshot, grain)| (snapshot, grains.range(*grain).start()));
            mark(&table, losers, BrokenReason::MemoryLost).map_err(OpenError::State)?;
        }
        platform.point(Point::RecoveryLost).await;
        if platform.planted(Planted::ShortOriginalFreed) {
            entries.retain(|(_, entry)| u64::from(entry.len) == grains.range(grains.at(entry.offset)).len());
        }
        let damaged_count = damaged.len();
        let area = rebuild::prepare(&cache, &table, &found).await?;
        let life = table.begin_life().map_err(OpenError::State)?;
        let recording = area.map(|area| Recording { area, life });
        let layout = CacheLayout { first: options.cache.first_tier, recording };
        let wanted = |grain, before, tag, sequence| snapshots.any_resolving(grains, grain, before, tag, sequence);
        let originals =
            OriginalCache::open(map, entries, damaged, cache, layout, grains, wanted).map_err(OpenError::Map)?;
        platform.point(Point::RecoveryIndexed).await;

        // On record before the host's first change: from here on a stop that is not clean is one that loses.
        let in_doubt = table.base_in_doubt() && boot == options.boot_id;
        table.set_base_in_doubt(in_doubt).map_err(OpenError::State)?;
        table.set_boot(options.boot_id, false).map_err(OpenError::State)?;
        table.sync().and_then(|()| storage.sync()).map_err(OpenError::State)?;
        if found.void
            && let Some(Recording { area, .. }) = originals.recording()
        {
            // Every mark is in the table by now. Where this fails, snapshots are lost with the power; nothing else.
            let _ = area.store(originals.device(), false).await;
        }
        let pending = Pending::new(grains.count()).map_err(OpenError::Memory)?;
        if snapshots.any_live() {
            pending.arm();
        }
        let volume = Arc::new(Self {
            platform,
            base,
            storage,
            name: options.name,
            boot_id: options.boot_id,
            cut: grains,
            size: AtomicU64::new(grains.size()),
            table,
            originals,
            snapshots,
            admission: Admission::new(epoch),
            pending,
            claims: Mutex::new(BTreeSet::new()),
            released_logs: Mutex::default(),
            durability: options.durability,
            commits: Commits::default(),
            confirming: Confirming::new(in_doubt),
            most_used: AtomicU64::new(u64::MAX),
            bad: Mutex::default(),
            uncleared: Mutex::default(),
            ahead: SavedAhead::default(),
            broke: Notify::default(),
            delivered: Delivered::default(),
            cache_hangs_until: AtomicU64::new(0),
            movers: Movers::default(),
            freed: Notify::default(),
        });
        let recovered = Recovered {
            snapshots: volume.snapshots(),
            originals: volume.originals.usage().entries,
            damaged: damaged_count,
        };
        Ok((volume, recovered))
    }
}

/// The epoch to go on from, on record: after that of every snapshot, and of what may be left of one.
fn raise_epoch<P: Platform>(
    platform: &P,
    table: &SnapshotTable<StateOf<P>>,
    all: &[Snapshot],
    leaps: bool,
    found: &Found,
) -> std::io::Result<Epoch> {
    let mut epoch = all.iter().map(|snapshot| snapshot.epoch).max().unwrap_or(Epoch(0)).max(table.epoch());
    if leaps {
        epoch.0 += LEAP;
        table.set_epoch(epoch)?;
    }
    if let Some((_, newest)) = found.saved
        && !platform.planted(Planted::EpochReused)
    {
        // What is left of snapshots that nobody knows any more must not serve a new one.
        epoch = epoch.max(newest);
        table.set_epoch(epoch)?;
    }
    Ok(epoch)
}

/// Marks every snapshot that stands damaged: which of them the lost entries served cannot be known, and none is trusted.
fn mark_standing<M: Mapping>(table: &SnapshotTable<M>, snapshots: &Snapshots) -> std::io::Result<()> {
    let all = snapshots.all();
    let standing = all.iter().filter(|snapshot| snapshot.broken.get().is_none());
    mark(table, standing.map(|snapshot| (snapshot, 0)), BrokenReason::Damaged)
}

/// Marks snapshots broken, each at a byte of the volume.
fn mark<'a, M: Mapping>(
    table: &SnapshotTable<M>,
    snapshots: impl Iterator<Item = (&'a Arc<Snapshot>, u64)>,
    reason: BrokenReason,
) -> std::io::Result<()> {
    for (snapshot, at) in snapshots {
        table.set_state(snapshot.slot, RecordState::Broken(reason), at)?;
        snapshot.set_broken(reason, at);
    }
    Ok(())
}

/// Marks the snapshots that cannot be right any more.
fn mark_lost<M: Mapping>(
    table: &SnapshotTable<M>,
    options: &VolumeOptions,
    lost: bool,
    marks_complete: bool,
    found: &Found,
) -> std::io::Result<()> {
    let power = options.durability == Durability::Power;
    for (slot, record) in table.records() {
        let reason = if options.base_changed {
            BrokenReason::BaseChanged
        } else if found.damaged {
            BrokenReason::Damaged
        } else if lost && !(power && record.confirmed && found.saved.is_some()) {
            BrokenReason::PowerLost
        } else if !marks_complete || power && !found.is_theirs() {
            // One broke and could not be marked, which is not known; or the originals are not there.
            BrokenReason::Damaged
        } else {
            continue;
        };
        if !matches!(record.state, RecordState::Broken(_)) {
            table.set_state(slot, RecordState::Broken(reason), 0)?;
        }
    }
    Ok(())
}

fn load_snapshots<P: Platform>(
    table: &SnapshotTable<StateOf<P>>,
    storage: &P::Storage,
    grains: Grains,
    lost: bool,
) -> std::io::Result<Vec<Snapshot>> {
    let mut all = Vec::new();
    for (slot, mut record) in table.records() {
        let ranges = load_ranges(storage, &record, grains, lost);
        let (outside, scope, released) = match ranges {
            Ok(ranges) => ranges,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                // What it has released, or was of, is not known, so what it still needs is not.
                record.state = RecordState::Broken(BrokenReason::Damaged);
                table.set_state(slot, record.state, 0)?;
                Default::default()
            }
            Err(error) => return Err(error),
        };
        let snapshot = Snapshot::from_record(slot, &record, outside, scope);
        snapshot.add_released(&released);
        all.push(snapshot);
    }
    Ok(all)
}

/// What a scope leaves out, the scope, and what has been released, as recorded.
fn load_ranges<S: Storage>(
    storage: &S,
    record: &Record,
    grains: Grains,
    lost: bool,
) -> std::io::Result<(RangeSet, Option<RangeSet>, RangeSet)> {
    let scope = if record.scoped { Some(scope::load(storage, record.id)?) } else { None };
    let outside = scope.as_ref().map(|scope| scope::outside(scope, grains.over(record.size))).unwrap_or_default();
    let name = released_name(record.id);
    let released = if record.originals == Originals::Release && storage.exists(&name)? {
        let log = RangeLog::open_or_create(storage, &name)?;
        if lost {
            log.mend()?;
        }
        log.load()?
    } else {
        RangeSet::default()
    };
    Ok((outside, scope, released))
}

/// What was found may be in the page cache alone: a daemon that died had not made it durable. It is, before any slot that it frees is used again.
fn make_durable<P: Platform>(
    table: &SnapshotTable<StateOf<P>>,
    storage: &P::Storage,
    all: &[Snapshot],
) -> std::io::Result<()> {
    for snapshot in all.iter().filter(|snapshot| snapshot.originals == Originals::Release) {
        let name = released_name(snapshot.id);
        if storage.exists(&name)? {
            storage.open(&name, 0)?.sync()?;
        }
    }
    table.sync()?;
    storage.sync()
}

/// Removes released sets and scopes whose snapshot is gone.
fn remove_orphans<P: Platform>(storage: &P::Storage, all: &[Snapshot]) -> std::io::Result<()> {
    let kept: Vec<_> = all.iter().flat_map(|snapshot| [released_name(snapshot.id), scope::name(snapshot.id)]).collect();
    for name in storage.names()? {
        let is_of_one = name.starts_with("released-") || name.starts_with(scope::PREFIX);
        if is_of_one && !kept.contains(&name) {
            storage.remove(&name)?;
        }
    }
    Ok(())
}
