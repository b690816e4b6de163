//! Opening a volume's engine over its base, its cache and its state.

use std::path::Path;
use std::sync::Arc;

use tzero_api::control::Durability;
use tzero_api::{Name, Place, sentence};
use tzero_block::{Concat, FileDevice};
use tzero_engine::{NoMemory, OpenError, VolumeOptions, memory_of_bits};
use tzero_io::{Directory, Gauge, system};
use tzero_nbd::AnyDevice;
use tzero_originals::{Components, MapError, MapShape, SnapshotId, TableError};

use crate::base::{self, Medium, OpenBase, Patience};
use crate::cache_device::CacheDevice;
use crate::cache_file::CacheFault;
use crate::claim;
use crate::held::Held;
use crate::identity::{BaseIdentity, CleanStop, Difference};
use crate::inspection::is_passing;
use crate::memory;
use crate::platform::{CrashPlan, Engine, Moment, Production, Without};
use crate::readiness::{self, Known, NotReady, Ready};
use crate::record::{BaseRecord, VolumeDirectory, VolumeRecord};
use crate::refusal::Refusal;
use crate::store::Store;
use crate::threads::{DataThreads, off_thread};
use crate::words;

/// Room for originals where no limit was given, in bytes: more than any file system gives a file, so that the file system decides.
const UNLIMITED: u64 = 8 << 40;

/// What opening a volume needs besides its record.
#[derive(Clone)]
pub(crate) struct Opening {
    pub(crate) boot_id: [u8; 16],
    pub(crate) crash: Option<Arc<CrashPlan>>,
    /// Rungs that a test takes out of the ladder.
    pub(crate) without: Without,
}

impl Opening {
    /// A test may want the process to die now.
    pub(crate) fn pass(&self, moment: Moment) {
        if let Some(crash) = &self.crash {
            crash.pass_moment(moment);
        }
    }
}

/// What an open base is, compared with the one that was left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// No snapshot can be right any more.
    pub(crate) changed: bool,
    /// It is another file or device.
    pub(crate) is_other: bool,
}

/// Compares an open base with the one that was left. Blocking.
///
/// Another file of the same size has been put there by somebody who means the host to have it, so it is served, and costs the snapshots.
/// What is certainly another disk, or has another size, nobody can have meant, and a host that writes to it is harmed.
pub(crate) fn compare(record: &VolumeRecord, clean: Option<&CleanStop>, base: &OpenBase) -> Result<Compared, Refusal> {
    if record.is_new() {
        return Ok(Compared::default());
    }
    let both = |(component, left): (&base::Component, &BaseRecord)| {
        Some((component.place.clone(), component.identity(), left.left(component.size())?))
    };
    let pairs: Vec<_> = base.components.iter().zip(&record.bases).filter_map(both).collect();
    for (place, identity, left) in &pairs {
        let (volume, place, size) = (record.name.clone(), place.clone(), identity.size());
        match identity.difference(left, None) {
            Some(Difference::Stranger) => return Err(Refusal::BaseIsAnother { volume, place }),
            Some(Difference::Size) => return Err(Refusal::BaseResized { volume, place, size, left: left.size() }),
            _ => {}
        }
    }
    let looks_the_same = clean.map(|clean| Ok::<_, base::BaseError>(base.look()? == *clean)).transpose()?;
    let differences: Vec<Difference> =
        pairs.iter().filter_map(|(_, identity, left)| identity.difference(left, looks_the_same)).collect();
    if differences.is_empty() {
        return Ok(Compared::default());
    }
    tracing::warn!(
        volume = %record.name,
        "the base was changed while the daemon was down ({differences:?}): snapshots are broken"
    );
    Ok(Compared { changed: true, is_other: differences.contains(&Difference::Identity) })
}

/// Makes a volume's state ready for its engine.
pub(crate) async fn make_ready(
    threads: &Arc<DataThreads>,
    opening: &Opening,
    directory: &VolumeDirectory,
    record: &VolumeRecord,
    components: &Components,
    patience: Patience,
) -> Result<Ready, Refusal> {
    let (directory, record, boot, components) =
        (directory.clone(), record.clone(), opening.boot_id, components.clone());
    let threads = Arc::clone(threads);
    let (volume, place) = (record.name.clone(), directory.cache(&record));
    let made = off_thread(move || {
        let id = id_bytes(&record.id);
        let (components, threads) = (&components, &threads);
        readiness::Volume { directory: &directory, record: &record, id, components, boot, threads, patience }
            .make_ready()
    });
    made.await.map_err(|error| match error {
        NotReady::Cache(CacheFault::Locked) => Refusal::CacheLocked { volume, place },
        NotReady::Cache(CacheFault::Io(source)) => Refusal::Cache { volume, place, source },
        NotReady::Cache(CacheFault::Export(source)) => Refusal::CacheExport { volume, source },
        NotReady::Memory(source) => Refusal::Memory { volume, source },
        NotReady::State(source) => Refusal::Open { volume, source: OpenError::State(source) },
    })
}

/// What a volume was opened with.
pub(crate) struct Found {
    pub(crate) bases: Vec<BaseIdentity>,
    /// What the tiers of the cache are known by.
    pub(crate) cache: Known,
    /// The base is another than the one that was left.
    pub(crate) is_other: bool,
}

/// Brings the record up to date once the engine is open, and gives notices. Blocking.
///
/// The engine has on record what the comparison of the base found, and the host has changed nothing yet.
pub(crate) fn put_on_record(
    directory: &VolumeDirectory,
    mut record: VolumeRecord,
    found: Found,
    has_room: bool,
) -> Result<(VolumeRecord, Vec<String>), Refusal> {
    let mut notices = Vec::new();
    let is_new = record.is_new();
    let Known { file, claim, memory } = found.cache;
    let cache = file.or_else(|| record.cache.clone());
    let claim = claim.or_else(|| record.claim.clone());
    let known = record.bases.iter().map(|base| base.identity.as_ref());
    let memory = memory.or_else(|| record.memory.clone());
    let is_known = known.eq(found.bases.iter().map(Some))
        && record.bases.iter().all(|base| base.becoming.is_none())
        && (&record.cache, &record.claim, &record.memory) == (&cache, &claim, &memory);
    let mut is_written = true;
    if record.is_old() || !is_known {
        record = record.of_today();
        (record.cache, record.claim, record.memory) = (cache, claim, memory);
        for (base, identity) in record.bases.iter_mut().zip(found.bases) {
            (base.identity, base.becoming) = (Some(identity), None);
        }
        record.generation += u64::from(found.is_other);
        match directory.write(&record) {
            // The next start finds the same differences again, which costs snapshots at most.
            Err(error) if !is_new => {
                tracing::warn!(volume = %record.name, "{error}");
                notices.push(sentence(error));
                is_written = false;
            }
            other => other?,
        }
    }
    // From here on the file in memory is the one that counts. Left over, what was put by is only in the way.
    if is_written && let Err(error) = memory::remove(&directory.put_by()) {
        tracing::info!(volume = %record.name, "originals that were put by stay behind: {error}");
    }
    if is_new {
        directory.sync_snapshots().map_err(|source| Refusal::Cache {
            volume: record.name.clone(),
            place: Place::Path(directory.engine()),
            source,
        })?;
    }
    // Left over, it could only break snapshots that are right.
    if let Err(error) = directory.record_clean_stop(None) {
        tracing::warn!(volume = %record.name, "the last clean stop stays on record: {error}");
    }
    if let Some(place) = record.cache_dir.as_ref().and_then(Place::path).filter(|_| has_room) {
        notices.extend(place_notice("cache directory", place).inspect(|notice| tracing::info!("{notice}")));
    }
    if let Err(error) = directory.copy_snapshots() {
        tracing::warn!(volume = %record.name, "the names of the snapshots cannot be copied: {error}");
    }
    Ok((record, notices))
}

/// Opens the engine.
pub(crate) async fn open_engine(
    threads: &DataThreads,
    opening: &Opening,
    directory: &VolumeDirectory,
    record: &VolumeRecord,
    base: &OpenBase,
    ready: &Ready,
    base_changed: bool,
) -> Result<Arc<Engine>, Refusal> {
    let volume = || record.name.clone();
    refuse_without_flush(record, base, &ready.store)?;
    let device = device_of(base, record.direct)?;
    let components = components_of(base, &record.name, record.grain)?;
    let no_cache = |source| Refusal::Cache { volume: volume(), place: directory.cache(record), source };
    let limit = store_limit(record, ready);
    let memory = ready.memory.as_ref().map(|memory| (&memory.file, record.memory_bytes()));
    // One that is withheld has its place all the same: the offsets of what follows count from its beginning.
    let withheld = ready.options.first_tier.bytes * u64::from(ready.options.first_tier.withheld);
    let store = ready.store.try_clone().map_err(no_cache)?;
    let cache = CacheDevice::new(memory, withheld, store, limit).map_err(no_cache)?;
    let options = VolumeOptions {
        name: record.name.to_string(),
        id: id_bytes(&record.id),
        grain: record.grain,
        components,
        boot_id: opening.boot_id,
        base_changed,
        durability: words::durability(record.durability),
        map_shape: MapShape::DEFAULT,
        cache: ready.options.clone(),
    };
    let gauge = Gauge::new().inspect_err(|error| {
        tracing::warn!(volume = %record.name, "movers will not see how long hosts' requests take: {error}");
    });
    let platform =
        Production { crash: opening.crash.clone(), without: opening.without.clone(), gauge: gauge.ok().map(Arc::new) };
    let storage = Directory::new(directory.engine());
    let opened =
        threads.run(move || async move { Engine::open(platform, device, cache, storage, options).await }).await;
    let (engine, recovered) =
        opened.map_err(|_| Refusal::Stopping)?.map_err(|source| Refusal::Open { volume: volume(), source })?;
    tracing::info!(
        volume = %record.name,
        snapshots = recovered.snapshots.len(),
        originals = recovered.originals,
        damaged = recovered.damaged,
        "opened"
    );
    Ok(engine)
}

/// What is to outlive a loss of power must be told when it does: an export that cannot flush says nothing of that.
fn refuse_without_flush(record: &VolumeRecord, base: &OpenBase, store: &Store) -> Result<(), Refusal> {
    if record.durability != Durability::Power {
        return Ok(());
    }
    let bases = base.components.iter().filter_map(|component| match &component.medium {
        Medium::Export(remote) => Some(remote),
        Medium::File(_) => None,
    });
    let caches = match store {
        Store::Export(remote) => Some(remote),
        Store::File(_) => None,
    };
    match bases.chain(caches).find(|remote| !remote.device().can_flush()) {
        Some(remote) => Err(Refusal::NoFlush { volume: record.name.clone(), uri: remote.device().uri().to_string() }),
        None => Ok(()),
    }
}

/// Most bytes of originals that are not in memory.
pub(crate) fn store_limit(record: &VolumeRecord, ready: &Ready) -> u64 {
    let asked = record.cache_limit.unwrap_or(UNLIMITED);
    match &ready.store {
        _ if ready.no_room.is_some() => 0,
        Store::File(_) => asked,
        Store::Export(remote) => asked.min(claim::usable(remote.size(), record.grain)),
    }
}

/// Where the components of a base begin.
pub(crate) fn components_of(base: &OpenBase, volume: &Name, grain: u32) -> Result<Components, Refusal> {
    let refused = |source| Refusal::Components { volume: volume.clone(), grain, source };
    Components::new(&base.lengths(), grain).map_err(refused)
}

/// Refuses a size whose bits would take the memory of others: memory that is promised is only missed when it is used.
pub(crate) fn afford(volume: &Name, size: u64, grain: u32) -> Result<(), Refusal> {
    let needed = memory_of_bits(size, grain);
    match system::available_memory() {
        Some(available) if needed > available / 2 => {
            Err(Refusal::NoBits { volume: volume.clone(), source: NoMemory { needed } })
        }
        _ => Ok(()),
    }
}

/// The components of a base in a row.
fn device_of(base: &OpenBase, direct: bool) -> Result<Concat<AnyDevice>, Refusal> {
    let device = |component: &base::Component| {
        let file = match &component.medium {
            Medium::Export(remote) => return Ok(AnyDevice::from(Arc::clone(remote.device()))),
            Medium::File(file) => file,
        };
        let opened = file.try_clone().and_then(|file| FileDevice::from_file(file, direct));
        let unlooked = |source| base::BaseError::Unlooked { place: component.place.clone(), source };
        opened.map(AnyDevice::from).map_err(unlooked)
    };
    let devices = base.components.iter().map(device).collect::<Result<_, _>>()?;
    Concat::new(devices)
        .map_err(|_| Refusal::Uneven(base.components.iter().map(|part| part.place.to_string()).collect()))
}

/// Sets aside all state that the engine has refused, where another attempt would find the same; gives a notice. Else gives the refusal
/// back.
pub(crate) async fn begin_anew(
    threads: &Arc<DataThreads>,
    opening: &Opening,
    directory: &VolumeDirectory,
    record: &VolumeRecord,
    components: &Components,
    refusal: Refusal,
) -> Result<String, Refusal> {
    let Refusal::Open { volume, source } = refusal else { return Err(refusal) };
    if !is_damage(&source) {
        return Err(Refusal::Open { volume, source });
    }
    let (directory, record, boot, components) =
        (directory.clone(), record.clone(), opening.boot_id, components.clone());
    let threads = Arc::clone(threads);
    let begun = off_thread(move || {
        let (id, components, threads, patience) = (id_bytes(&record.id), &components, &threads, Patience::None);
        readiness::Volume { directory: &directory, record: &record, id, components, boot, threads, patience }
            .begin_anew(&source)
    });
    begun.await.map_err(|source| Refusal::Open { volume, source: OpenError::State(source) })
}

/// Whether it is the state that is wrong, and not the machine that has no room or no time.
fn is_damage(error: &OpenError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error {
        OpenError::State(source) | OpenError::Map(MapError::Io(source)) | OpenError::Table(TableError::Io(source)) => {
            !is_passing(source) && !matches!(source.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        }
        OpenError::Map(_) | OpenError::Table(_) => true,
        OpenError::Grain | OpenError::Memory(_) => false,
    }
}

/// What the operator should know of the places of a volume's state.
pub(crate) fn place_notice(what: &str, place: &Path) -> Option<String> {
    let kept = Held::take(place)
        .and_then(|held| match held.metadata().is_dir() {
            true => held.open(std::fs::OpenOptions::new().read(true)),
            false => Err(std::io::ErrorKind::NotADirectory.into()),
        })
        .and_then(|directory| tzero_io::allocation_is_kept(&directory));
    (!kept.unwrap_or(false)).then(|| {
        format!(
            "the {what} {} is on a file system that may need new space to overwrite old: when it is full, more snapshots may break than on ext4",
            place.display()
        )
    })
}

/// A volume's id as the engine takes it.
pub(crate) fn id_bytes(id: &str) -> [u8; 16] {
    SnapshotId::parse(id).map_or([0; 16], |id| id.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_may_need_space_are_named() {
        let notice = place_notice("state directory", Path::new("/proc")).unwrap();
        assert!(notice.contains("/proc"), "{notice}");
    }

    #[test]
    fn a_full_disk_is_no_damage() {
        let state = |kind: std::io::ErrorKind| OpenError::State(kind.into());
        assert!(is_damage(&state(std::io::ErrorKind::InvalidData)));
        assert!(is_damage(&OpenError::Map(MapError::Format)));
        assert!(!is_damage(&state(std::io::ErrorKind::StorageFull)));
        assert!(!is_damage(&state(std::io::ErrorKind::OutOfMemory)));
    }
}
