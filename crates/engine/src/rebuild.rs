//! The original cache of a volume whose originals outlive a loss of power: found again, and the map made anew from its records.
//!
//! Nothing is changed before it is known what is there. The steps can be repeated: a death in any of them leaves a state that the same steps
//! take to the same end.

use tzero_block::BlockDevice;
use tzero_io::{Mapping, Storage};
use tzero_originals::{
    AreaFound, Entry, Epoch, FoundRecord, MapError, ModifiedMap, RecordArea, SnapshotTable, certain,
};

use crate::platform::Platform;
use crate::points::{Event, Planted};
use crate::recovery::MAP_NAME;
use crate::volume::{OpenError, StateOf, VolumeOptions};

/// What was found of a cache and its records.
#[derive(Default)]
pub(crate) struct Found {
    /// Where the records are; none where the cache cannot be used.
    pub(crate) area: Option<RecordArea>,
    /// The records are to be cleared and the header written: no snapshot of before has anything here.
    pub(crate) new: bool,
    /// After a loss of power: there are records that are damaged.
    pub(crate) damaged: bool,
    /// The header says that no snapshot of before is to be believed after a loss of power.
    pub(crate) void: bool,
    /// After a loss of power: what is certain to have been saved, and the newest tag that any record has.
    pub(crate) saved: Option<(Vec<FoundRecord>, Epoch)>,
}

impl Found {
    /// Whether the snapshots of the table have their originals here.
    pub(crate) fn is_theirs(&self) -> bool {
        self.area.is_some() && !self.new
    }
}

/// Looks at a cache. After a loss of power, at its records, too.
pub(crate) async fn find<P: Platform>(
    platform: &P,
    (base, cache): (&P::Base, &P::Cache),
    table: &SnapshotTable<StateOf<P>>,
    options: &VolumeOptions,
    lost: bool,
) -> Found {
    let grain = u64::from(options.grain);
    // A cache that cannot be read is as good as none.
    let Ok(found) = RecordArea::find(cache, options.id, grain).await else { return Found::default() };
    let mut damaged = false;
    match found {
        AreaFound::Area { area, void } if area.incarnation() == table.incarnation() => {
            if !lost {
                return Found { area: Some(area), void, ..Found::default() };
            }
            let scan = if void { None } else { area.scan(cache, &options.components).await.ok() };
            let whole = scan.filter(|scan| {
                damaged = scan.damaged > 0 && !platform.planted(Planted::DamagedRecordsIgnored);
                !damaged
            });
            if let Some(scan) = whole {
                let newest = scan.records.iter().map(|record| record.entry.tag).max().unwrap_or(Epoch(0));
                let believe = platform.planted(Planted::TornPayloadBelieved);
                if let Ok(saved) = certain(cache, base, scan.records, believe).await {
                    return Found { area: Some(area), saved: Some((saved, newest)), ..Found::default() };
                }
            }
        }
        _ => {}
    }
    let random = platform.random_id();
    // Never 0: that is a table's that knows of none.
    let incarnation = u64::from_le_bytes(std::array::from_fn(|byte| random[byte])) | 1;
    let area = RecordArea::new(options.id, incarnation, grain, cache.geometry().size);
    Found { area: Some(area), new: true, damaged, ..Found::default() }
}

/// Makes sure that the cache has a header of its own and records of nobody else's; gives where its records are, or `None` where it cannot be written.
///
/// That no snapshot has anything here is durable in the table before the table knows of this incarnation.
///
/// # Errors
/// When the table cannot be written.
pub(crate) async fn prepare<M: Mapping, D: BlockDevice>(
    cache: &D,
    table: &SnapshotTable<M>,
    found: &Found,
) -> Result<Option<RecordArea>, OpenError> {
    let Some(area) = found.area.clone() else { return Ok(None) };
    if found.new {
        table.sync().map_err(OpenError::State)?;
        let made = async {
            area.clear(cache).await?;
            area.store(cache, false).await
        };
        if made.await.is_err() {
            return Ok(None);
        }
        table.set_incarnation(area.incarnation()).map_err(OpenError::State)?;
    }
    Ok(Some(area))
}

/// Opens the map. After a loss of power it is made anew, with what was saved.
///
/// # Errors
/// When it cannot be used, or made.
pub(crate) fn open_map<P: Platform>(
    platform: &P,
    storage: &P::Storage,
    options: &VolumeOptions,
    rebuilt: Option<&[FoundRecord]>,
) -> Result<ModifiedMap<StateOf<P>>, OpenError> {
    if rebuilt.is_some() {
        storage.remove(MAP_NAME).map_err(OpenError::State)?;
    }
    let map = storage.open(MAP_NAME, options.map_shape.len()).map_err(OpenError::State)?;
    let map =
        ModifiedMap::create_or_open_shaped(map, options.grain, options.id, &options.components, options.map_shape)
            .map_err(OpenError::Map)?;
    if let Some(records) = rebuilt {
        fill(&map, records).map_err(|error| OpenError::Map(MapError::Io(error)))?;
        platform.observe(Event::Rebuilt { records: records.len() as u64 });
    }
    Ok(map)
}

fn fill<M: Mapping>(map: &ModifiedMap<M>, records: &[FoundRecord]) -> std::io::Result<()> {
    let needed = records.iter().map(|record| u64::from(record.position) + 1).max().unwrap_or(0);
    map.grow(needed)?;
    records.iter().try_for_each(|record| map.publish(record.position, &record.entry))
}

/// What the map holds that was made from these records.
pub(crate) fn entries_of(records: &[FoundRecord]) -> Vec<(u32, Entry)> {
    records.iter().map(|record| (record.position, record.entry)).collect()
}
