//! Records of originals beside their payloads: what a cache has that must outlive a loss of power (`docs/formats/power-records.md`).
//!
//! ```text
//!  0        4096                    slots_at
//!  ├─header──┼─records, 64 bytes each──┼─slots, a grain each ─ ─ ─▶
//! ```
//!
//! The record at position *p* says what the entry at position *p* of the modified map says. It is durable, with the payload, before the host's
//! change reaches the base; the map is not. After a loss of power the map is made anew from the records.
//!
//! # Invariants
//! 1. Records are written in blocks, never less than a sector. A sector is there old or new, so a record that is durable stays, whatever
//!    becomes of a write of its neighbours: it is the same in both.
//! 2. A record says up to which sequence everything of its life (its opening of the volume) was durable before it was written. Later ones are
//!    believed only if their payload fits.
//! 3. A record is of one incarnation of the cache, at whose beginning there were none. What is neither a record of it nor zero is damage: of what, is
//!    not known, so no snapshot is believed then.
//!
//! Deliberately absent: whether somebody needs an original. A record may be left over from one that nobody needs any more; the snapshots tell.

use std::collections::BTreeMap;

use tzero_block::{BlockDevice, ByteRange, Error, Fault, Zeroes};
use tzero_io::{Buffer, is_zero};

use crate::components::Components;
use crate::entry::{Entry, EntryState, Payload};
use crate::units::{Epoch, Sequence};

const MAGIC: u64 = u64::from_le_bytes(*b"TZEROPWR");
const VERSION: u64 = 1;
/// Bytes of a record.
const RECORD: u64 = 64;
/// Where the records begin.
const RECORDS_AT: u64 = 4096;
/// Bytes of the header that mean something: one sector, so that it is there old or new.
const HEADER: usize = 512;
/// Words of the header before its checksum.
const HEADER_WORDS: usize = 9;
/// One part in so many of a cache is for records.
const SHARE: u64 = 16;
/// Most bytes of records: of a TiB of originals with grains of 4 KiB.
const MOST_BYTES: u64 = 16 << 30;
/// Offsets of reads are multiples of this.
const SECTOR: u64 = 512;
/// Word 1 of a record: bits of the length, from where on the epochs since the tag before it are, as many as can be said, and the unit.
const LENGTH: u64 = 0xFF_FFFF;
const SINCE: u32 = 24;
const LONG_SINCE: u64 = 0xFFFF_FFFF;
const UNIT: u32 = 56;
/// Bytes of records that are read at once.
const AT_ONCE: u64 = 1 << 20;

/// Where the records of a cache are, and whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordArea {
    volume: [u8; 16],
    grain: u64,
    incarnation: u64,
    positions: u64,
    slots_at: u64,
}

/// What the beginning of a cache says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AreaFound {
    /// There are records.
    Area {
        /// Where.
        area: RecordArea,
        /// No snapshot of before is to be believed after a loss of power.
        void: bool,
    },
    /// There are none of this volume.
    None,
}

/// What the records of a cache are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Those that are whole, in no order.
    pub records: Vec<Record>,
    /// How many there are that are not: what they were of is not known.
    pub damaged: u64,
}

/// A record that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position.
    pub position: u32,
    /// What it says.
    pub entry: Entry,
    /// The tag of the grain's original before it, where there was one that anybody needed.
    pub after: Option<Epoch>,
    /// In which opening of the volume it was written.
    pub life: u32,
    /// Everything of that life up to this sequence was durable then.
    pub durable: Sequence,
}

impl RecordArea {
    /// The records of a new cache of `limit` bytes.
    pub fn new(volume: [u8; 16], incarnation: u64, grain: u64, limit: u64) -> Self {
        let bytes = (limit / SHARE).clamp(RECORDS_AT, MOST_BYTES) / RECORDS_AT * RECORDS_AT;
        let slots_at = (RECORDS_AT + bytes).next_multiple_of(grain);
        Self { volume, grain, incarnation, positions: bytes / RECORD, slots_at }
    }

    /// How many records there can be.
    pub fn positions(&self) -> u64 {
        self.positions
    }

    /// Where the first slot begins, in bytes.
    pub fn slots_at(&self) -> u64 {
        self.slots_at
    }

    /// Which incarnation of the cache it is.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Looks at the beginning of a volume's cache.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn find<D: BlockDevice>(device: &D, volume: [u8; 16], grain: u64) -> Result<AreaFound, Error> {
        let beginning = ByteRange::new(0, RECORDS_AT);
        if device.geometry().size < RECORDS_AT || device.extents(beginning).await?.iter().all(|extent| extent.hole) {
            return Ok(AreaFound::None);
        }
        let (buffer, result) = device.read(0, Buffer::zeroed(RECORDS_AT as usize)).await;
        result?;
        let words: Vec<u64> =
            buffer[..HEADER].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let sums = u64::from(crate::entry::checksum_of(&words[..HEADER_WORDS])) == words[HEADER_WORDS];
        let mut id = [0; 16];
        id[..8].copy_from_slice(&words[3].to_le_bytes());
        id[8..].copy_from_slice(&words[4].to_le_bytes());
        let area = Self { volume, grain, incarnation: words[5], positions: words[6], slots_at: words[7] };
        let fits = words[0] == MAGIC
            && sums
            && words[1] == VERSION | RECORD << 32
            && words[2] == grain
            && id == volume
            && area.positions <= MOST_BYTES / RECORD
            && area.slots_at == (RECORDS_AT + area.positions * RECORD).next_multiple_of(grain);
        Ok(if fits { AreaFound::Area { area, void: words[8] != 0 } } else { AreaFound::None })
    }

    /// Puts the header there, durably. `void` says that no snapshot of before is to be believed after a loss of power.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn store<D: BlockDevice>(&self, device: &D, void: bool) -> Result<(), Error> {
        let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| self.volume[at + byte]));
        let mut words = vec![
            MAGIC,
            VERSION | RECORD << 32,
            self.grain,
            half(0),
            half(8),
            self.incarnation,
            self.positions,
            self.slots_at,
            u64::from(void),
        ];
        words.push(u64::from(crate::entry::checksum_of(&words)));
        let mut buffer = Buffer::zeroed(RECORDS_AT as usize);
        put(&mut buffer, &words);
        device.write(0, buffer, false).await.1?;
        device.flush().await
    }

    /// Makes room for records: whatever else was there, of an earlier incarnation or of somebody else, is none. Durably.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn clear<D: BlockDevice>(&self, device: &D) -> Result<(), Error> {
        let zeroes = Zeroes { may_unmap: true, ..Zeroes::default() };
        let place = ByteRange::new(RECORDS_AT, self.positions * RECORD);
        for data in device.extents(place).await?.iter().filter(|extent| !extent.hole) {
            device.write_zeroes(data.range, zeroes).await?;
        }
        device.flush().await
    }

    /// Every record.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub async fn scan<D: BlockDevice>(&self, device: &D, components: &Components) -> Result<Scan, Error> {
        let mut found = Scan::default();
        for piece in ByteRange::new(RECORDS_AT, self.positions * RECORD).pieces(AT_ONCE) {
            // What was never written is not read: most of an area, as a rule.
            for data in device.extents(piece).await?.iter().filter(|extent| !extent.hole) {
                let (start, end) = (data.range.start() / SECTOR * SECTOR, data.range.end() / RECORD * RECORD);
                let (buffer, result) = device.read(start, Buffer::zeroed(end.saturating_sub(start) as usize)).await;
                result?;
                let first = (start - RECORDS_AT) / RECORD;
                let places = (first..).zip(buffer.chunks_exact(RECORD as usize));
                for (position, bytes) in places.filter(|(_, bytes)| !is_zero(bytes)) {
                    match self.decode(position as u32, bytes, components) {
                        Some(record) => found.records.push(record),
                        None => found.damaged += 1,
                    }
                }
            }
        }
        Ok(found)
    }

    /// The writes that make records of these entries; `known` tells what else is at a position that is written with them, `after` the tag
    /// of the original before one.
    pub(crate) fn writes(
        &self,
        block: u64,
        fresh: &BTreeMap<u32, Entry>,
        known: impl Fn(u32) -> Option<Entry>,
        after: impl Fn(&Entry) -> Option<Epoch>,
        stamp: Stamp<'_>,
    ) -> Vec<(u64, Buffer)> {
        let per_block = block / RECORD;
        let mut blocks: Vec<u64> = fresh.keys().map(|position| u64::from(*position) / per_block).collect();
        blocks.dedup();
        blocks
            .chunk_by(|before, after| before + 1 == *after)
            .map(|run| {
                let mut buffer = Buffer::zeroed((run.len() as u64 * block) as usize);
                let first = run[0] * per_block;
                for (position, place) in (first..).zip(buffer.chunks_exact_mut(RECORD as usize)) {
                    let position = position as u32;
                    if let Some(entry) = fresh.get(&position).copied().or_else(|| known(position)) {
                        put(place, &self.words(position, &entry, after(&entry), stamp));
                    }
                }
                (RECORDS_AT + first * RECORD, buffer)
            })
            .collect()
    }

    fn words(&self, position: u32, entry: &Entry, after: Option<Epoch>, stamp: Stamp<'_>) -> [u64; 8] {
        let [block, extent, place, tag, sequence, sum, _] = entry.words(stamp.components);
        let since = after.map_or(0, |after| (tag - after.0).min(LONG_SINCE));
        let extent = extent >> 32 << UNIT | since << SINCE | extent & LENGTH;
        let mut all = [block, extent, place, tag, sequence, sum, u64::from(stamp.life) << 32, stamp.durable.0];
        all[6] |= u64::from(self.checksum(position, &all));
        all
    }

    /// Of all words of a record but the checksum itself, and of where and whose it is.
    fn checksum(&self, position: u32, words: &[u64; 8]) -> u32 {
        let mut all = vec![self.incarnation, u64::from(position), words[6] >> 32, words[7]];
        all.extend(&words[..6]);
        crc32c::crc32c_append(crate::entry::checksum_of(&all), &self.volume)
    }

    fn decode(&self, position: u32, bytes: &[u8], components: &Components) -> Option<Record> {
        let mut words: [u64; 8] =
            std::array::from_fn(|index| u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * index + byte])));
        if words[6] as u32 != self.checksum(position, &words) {
            return None;
        }
        let since = words[1] >> SINCE & LONG_SINCE;
        words[1] = words[1] >> UNIT << 32 | words[1] & LENGTH;
        let entry = Entry::from_words(&words, EntryState::Unread, components)?;
        let after = match since {
            0 => None,
            // Nobody knows how long: the longest that it may be is the shortest.
            LONG_SINCE => entry.tag.0.checked_sub(1),
            since => Some(entry.tag.0.checked_sub(since)?),
        };
        let (life, durable) = ((words[6] >> 32) as u32, Sequence(words[7]));
        Some(Record { position, entry, after: after.map(Epoch), life, durable })
    }
}

/// What all records of one write say besides their entries.
#[derive(Clone, Copy)]
pub(crate) struct Stamp<'a> {
    pub(crate) components: &'a Components,
    pub(crate) life: u32,
    pub(crate) durable: Sequence,
}

fn put(bytes: &mut [u8], words: &[u64]) {
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// Of what was found, what was saved, ascending by sequence. Of two in one slot that is the later.
///
/// Of the last write of each life only what has its payload is certain. What has it not was never durable, so that no change relied on it and
/// nothing is needed; or it was, and the medium has lost it, so that the grain is *bad*. The grain's next original says which: it knows whether
/// this one was there. Where there is none the base tells, for it holds what was to be saved or something else.
///
/// `believe` is a planted fault that looks at no payload.
///
/// # Errors
/// When the cache cannot be read.
pub async fn certain<D: BlockDevice, B: BlockDevice>(
    cache: &D,
    base: &B,
    mut found: Vec<Record>,
    believe: bool,
) -> Result<Vec<Record>, Error> {
    let mut durable: BTreeMap<u32, Sequence> = BTreeMap::new();
    for record in &found {
        let known = durable.entry(record.life).or_insert(record.durable);
        *known = (*known).max(record.durable);
    }
    found.sort_unstable_by_key(|record| (record.life, record.entry.sequence));
    let mut of_slot: BTreeMap<u64, usize> = BTreeMap::new();
    let mut kept: Vec<Option<Record>> = Vec::with_capacity(found.len());
    // With how many had been kept then.
    let mut doubtful: Vec<(usize, Record)> = Vec::new();
    for record in found {
        if let Payload::Stored { offset, .. } = record.entry.payload {
            let sure = believe || record.entry.sequence <= durable[&record.life];
            if !sure && !is_stored(cache, &record.entry, offset).await? {
                doubtful.push((kept.len(), record));
                continue;
            }
            if let Some(earlier) = of_slot.insert(offset, kept.len()) {
                kept[earlier] = None;
            }
        }
        kept.push(Some(record));
    }
    let mut others: BTreeMap<u64, Vec<(usize, Record)>> =
        doubtful.iter().map(|(_, record)| (record.entry.offset, Vec::new())).collect();
    for (at, record) in kept.iter().enumerate() {
        if let Some((record, others)) = record.and_then(|record| Some((record, others.get_mut(&record.entry.offset)?)))
        {
            others.push((at, record));
        }
    }
    let mut lost = Vec::new();
    for (before, record) in doubtful {
        let Entry { offset, tag, .. } = record.entry;
        let later = others[&offset].iter().filter(|(at, later)| *at >= before && later.entry.tag >= tag);
        let was_there = match later.min_by_key(|(_, later)| later.entry.tag) {
            Some((_, next)) => next.after.is_some_and(|after| after >= tag),
            // A base that cannot be read is no better than one that has changed.
            None => !is_stored(base, &record.entry, offset).await.unwrap_or(false),
        };
        if was_there {
            lost.push(Record { entry: Entry { payload: Payload::Bad, ..record.entry }, ..record });
        }
    }
    let mut kept: Vec<Record> = kept.into_iter().flatten().chain(lost).collect();
    kept.sort_by_key(|record| record.entry.sequence);
    Ok(kept)
}

/// What a flush has covered has a length that covers it, too.
fn is_past_end(error: &Error) -> bool {
    match &error.fault {
        Fault::OutOfRange => true,
        Fault::System(source) => source.kind() == std::io::ErrorKind::UnexpectedEof,
        Fault::Unaligned | Fault::Unsupported | Fault::Link(_) => false,
    }
}

async fn is_stored<D: BlockDevice>(device: &D, entry: &Entry, offset: u64) -> Result<bool, Error> {
    match device.read(offset, Buffer::zeroed(entry.len as usize)).await {
        (bytes, Ok(())) => Ok(entry.is_payload(&bytes)),
        (_, Err(error)) if is_past_end(&error) => Ok(false),
        (_, Err(error)) => Err(error),
    }
}
