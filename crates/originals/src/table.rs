//! The snapshot table: which snapshots of a volume stand, and what became of them.
//!
//! | offset | content |
//! |---|---|
//! | 0 | magic `TZEROSNP` |
//! | 8 | version (low 32), bytes of a record (high 32) |
//! | 16, 24 | volume id |
//! | 32 | epoch: that of the newest snapshot ever taken |
//! | 40, 48 | boot id of the machine when the table was last opened |
//! | 56 | 1 after a clean stop, else 0 |
//! | 64 | incarnation of the cache, where its originals are durable; else 0 |
//! | 72 | life: how often the volume was opened |
//! | 80 | 1 when a flush of the base has failed in this boot, else 0 |
//! | 4096 | records |
//!
//! A record is 256 bytes, words:
//! 0 state · 1 epoch · 2-3 id · 4 T0 (ns, Unix) · 5 pause (ns) · 6 size (bytes) · 7 flags (1 release, 2 private, 4 has a scope, 8 waits when the cache is
//! full, 16 fails writes then; milliseconds to wait in the high 32 bits) · 8 end sequence ·
//! 9 where it broke (byte offset) · 10 bytes of the name · 11-18 name · 19 CRC-32C of words 1-4, 6, 7, 10-18 · 20 first half of the id once
//! the base is known to have been flushed since T0's straddlers landed.
//!
//! State: 0 free, 1 live, 2 ended, 3 broken (reason in bits 8-15). Fields first, state last; every change of state is one store
//! into space that is there already, so a snapshot can always be marked broken.
//!
//! # Versions
//! 2 is what is written. 1 had nothing at 64 to 80 and in word 20, which says the same as zeroes: such a table is read as it is, and its
//! writer makes it one of version 2 by a single store.

use std::io;

use tzero_io::Mapping;

use crate::entry::checksum_of;
use crate::units::{Epoch, Sequence, SnapshotId};

const MAGIC: u64 = u64::from_le_bytes(*b"TZEROSNP");
const VERSION: u64 = 2;
/// The version before originals could be durable.
const VERSION_ONE: u64 = 1;
const HEADER: u64 = 4096;
const RECORD: u64 = 256;

/// Most snapshots of a volume at one time.
pub const MOST_SNAPSHOTS: u32 = 1024;
/// Longest name in bytes.
pub const NAME_BYTES: usize = 64;

const WORD_VOLUME: u64 = 16;
const WORD_EPOCH: u64 = 32;
const WORD_BOOT: u64 = 40;
const WORD_CLEAN: u64 = 56;
const WORD_INCARNATION: u64 = 64;
const WORD_LIFE: u64 = 72;
const WORD_DOUBT: u64 = 80;
/// Word of a record.
const CONFIRMED: u64 = 20;

const FLAG_RELEASE: u64 = 1;
const FLAG_PRIVATE: u64 = 2;
const FLAG_SCOPED: u64 = 4;
const FLAG_WAIT: u64 = 8;
const FLAG_FAIL_WRITES: u64 = 16;

/// Whether a snapshot keeps its originals until it is deleted, or releases what its consumer has captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Originals {
    /// Until deleted.
    Keep,
    /// Until captured.
    Release,
}

/// What is to give when the original cache is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// The snapshot: the host goes on.
    #[default]
    Break,
    /// The host waits for space up to so many milliseconds while a mover is at work, then the snapshot breaks.
    Wait(u32),
    /// The host's writes fail, with no space left. Only where it was asked for.
    FailWrites,
}

impl OnFull {
    fn flags(self) -> u64 {
        match self {
            Self::Break => 0,
            Self::Wait(ms) => FLAG_WAIT | u64::from(ms) << 32,
            Self::FailWrites => FLAG_FAIL_WRITES,
        }
    }

    fn from_flags(flags: u64) -> Self {
        match flags & (FLAG_WAIT | FLAG_FAIL_WRITES) {
            FLAG_WAIT => Self::Wait((flags >> 32) as u32),
            FLAG_FAIL_WRITES => Self::FailWrites,
            _ => Self::Break,
        }
    }
}

/// Why a snapshot no longer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenReason {
    /// The cache had no room for an original: its limit, or the file system's.
    CacheFull,
    /// An original could not be written to the cache.
    SaveFailed,
    /// The map had no room for an entry.
    MapFull,
    /// The machine stopped without a clean stop of the daemon.
    PowerLost,
    /// The base was changed while the daemon was down.
    BaseChanged,
    /// State that it needs was damaged.
    Damaged,
    /// Originals that were kept in memory went with the machine's last stop.
    MemoryLost,
}

impl BrokenReason {
    const ALL: [Self; 7] = [
        Self::CacheFull,
        Self::SaveFailed,
        Self::MapFull,
        Self::PowerLost,
        Self::BaseChanged,
        Self::Damaged,
        Self::MemoryLost,
    ];

    fn code(self) -> u64 {
        Self::ALL.iter().position(|reason| *reason == self).expect("all reasons are listed") as u64 + 1
    }

    fn from_code(code: u64) -> Self {
        usize::try_from(code)
            .ok()
            .and_then(|code| Self::ALL.get(code.checked_sub(1)?))
            .copied()
            .unwrap_or(Self::Damaged)
    }
}

impl std::fmt::Display for BrokenReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CacheFull => "the original cache is full",
            Self::SaveFailed => "an original could not be written to the cache",
            Self::MapFull => "the modified map could not grow",
            Self::PowerLost => "the machine stopped without a clean stop of the daemon",
            Self::BaseChanged => "the base was changed while the daemon was down",
            Self::Damaged => "its state is damaged",
            Self::MemoryLost => "originals that were kept in memory are gone",
        })
    }
}

/// What a record says of its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// It stands.
    Live,
    /// Its copy-on-write has ended; originals up to the sequence are retained (R36).
    Ended(Sequence),
    /// It is lost.
    Broken(BrokenReason),
}

/// A snapshot's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Stable id.
    pub id: SnapshotId,
    /// Name within its volume; up to [`NAME_BYTES`] bytes.
    pub name: String,
    /// Epoch that it began.
    pub epoch: Epoch,
    /// T0, nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// How long requests were held at T0, in nanoseconds.
    pub pause_ns: u64,
    /// Size of the volume at T0 in bytes.
    pub size: u64,
    /// Keeps or releases.
    pub originals: Originals,
    /// Belongs to one copy and goes with it.
    pub private: bool,
    /// It is of a part of the volume only; a file of its own says of which.
    pub scoped: bool,
    /// What gives when the cache is full.
    pub on_full: OnFull,
    /// Where it broke, as a byte offset on the volume; 0 if it did not.
    pub broken_at: u64,
    /// The base was flushed since the straddlers of its T0 had landed.
    pub confirmed: bool,
    /// What it is now.
    pub state: RecordState,
}

/// Why a table was refused.
#[derive(Debug)]
pub enum TableError {
    /// It is no snapshot table of this version.
    Format,
    /// It belongs to another volume.
    Foreign,
    /// It cannot be written.
    Io(io::Error),
}

impl std::fmt::Display for TableError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Format => f.write_str("the snapshot table is damaged or of another version"),
            Self::Foreign => f.write_str("the snapshot table belongs to another volume"),
            Self::Io(source) => write!(f, "the snapshot table cannot be written: {source}"),
        }
    }
}

impl std::error::Error for TableError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(source) => Some(source),
            _ => None,
        }
    }
}

/// The table's file.
pub struct SnapshotTable<M> {
    mapping: M,
}

impl<M: Mapping> SnapshotTable<M> {
    /// Length of the table in bytes.
    pub const LEN: u64 = HEADER + MOST_SNAPSHOTS as u64 * RECORD;

    /// Takes over the mapping, and makes a table of it if it is all new.
    ///
    /// # Errors
    /// When it holds something else, or cannot be written.
    pub fn create_or_open(mapping: M, volume: [u8; 16]) -> Result<Self, TableError> {
        if mapping.len() < Self::LEN {
            return Err(TableError::Format);
        }
        if mapping.load(0) == 0 {
            let write = || {
                mapping.store(8, VERSION | RECORD << 32)?;
                store_id(&mapping, WORD_VOLUME, volume)?;
                mapping.publish(0, MAGIC)
            };
            write().map_err(TableError::Io)?;
        }
        let table = Self::open(mapping)?;
        if load_id(&table.mapping, WORD_VOLUME) != volume {
            return Err(TableError::Foreign);
        }
        Ok(table)
    }

    /// Makes a table of an earlier version one of this. For its writer.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn upgrade(&self) -> io::Result<()> {
        if self.mapping.load(8) == VERSION | RECORD << 32 {
            return Ok(());
        }
        self.mapping.publish(8, VERSION | RECORD << 32)
    }

    /// Takes over a mapping that holds a table.
    ///
    /// # Errors
    /// When it does not.
    pub fn open(mapping: M) -> Result<Self, TableError> {
        let known = [VERSION, VERSION_ONE].map(|version| version | RECORD << 32);
        let fits = mapping.len() >= Self::LEN && mapping.load(0) == MAGIC && known.contains(&mapping.load(8));
        if fits { Ok(Self { mapping }) } else { Err(TableError::Format) }
    }

    /// Epoch of the newest snapshot ever taken; 0 before the first.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.mapping.load(WORD_EPOCH))
    }

    /// Records that an epoch has begun.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn set_epoch(&self, epoch: Epoch) -> io::Result<()> {
        self.mapping.publish(WORD_EPOCH, epoch.0)
    }

    /// Boot id that was last recorded, and whether the daemon has stopped cleanly since.
    pub fn boot(&self) -> ([u8; 16], bool) {
        (load_id(&self.mapping, WORD_BOOT), self.mapping.load(WORD_CLEAN) == 1)
    }

    /// Records the boot id and takes back the clean stop, or records one.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn set_boot(&self, boot: [u8; 16], clean: bool) -> io::Result<()> {
        // The id first: a death in the middle of it leaves a foreign id beside the old clean stop, which still holds, for nothing was changed
        // since. The other way round it would look like a lost machine.
        store_id(&self.mapping, WORD_BOOT, boot)?;
        self.mapping.publish(WORD_CLEAN, u64::from(clean))
    }

    /// Which incarnation of the cache the snapshots' originals are in; 0 where they are not durable.
    pub fn incarnation(&self) -> u64 {
        self.mapping.load(WORD_INCARNATION)
    }

    /// Records which incarnation of the cache it is.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn set_incarnation(&self, incarnation: u64) -> io::Result<()> {
        self.mapping.publish(WORD_INCARNATION, incarnation)
    }

    /// Begins another life; says its number.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn begin_life(&self) -> io::Result<u32> {
        let life = self.mapping.load(WORD_LIFE) + 1;
        self.mapping.publish(WORD_LIFE, life)?;
        Ok(life as u32)
    }

    /// Whether a flush of the base has failed in the boot that is recorded.
    pub fn base_in_doubt(&self) -> bool {
        self.mapping.load(WORD_DOUBT) != 0
    }

    /// Records whether a flush of the base has failed.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn set_base_in_doubt(&self, doubt: bool) -> io::Result<()> {
        self.mapping.publish(WORD_DOUBT, u64::from(doubt))
    }

    /// Records that the base was flushed since the straddlers of a snapshot's T0 had landed.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn confirm(&self, slot: u32, id: SnapshotId) -> io::Result<()> {
        self.mapping.publish(record_at(slot) + 8 * CONFIRMED, first_half(id))
    }

    /// The record in a slot; `None` if it is free. A damaged record is a broken snapshot.
    pub fn record(&self, slot: u32) -> Option<Record> {
        let at = record_at(slot);
        let word = |index: u64| self.mapping.load(at + 8 * index);
        let state = word(0);
        if state == 0 {
            return None;
        }
        let damaged = word(19) != self.record_checksum(at);
        let name_len = (word(10) as usize).min(NAME_BYTES);
        let mut name = Vec::with_capacity(NAME_BYTES);
        (11..19).for_each(|index| name.extend_from_slice(&word(index).to_le_bytes()));
        name.truncate(name_len);
        let state = match state & 0xFF {
            _ if damaged => RecordState::Broken(BrokenReason::Damaged),
            1 => RecordState::Live,
            2 => RecordState::Ended(Sequence(word(8))),
            3 => RecordState::Broken(BrokenReason::from_code(state >> 8 & 0xFF)),
            _ => RecordState::Broken(BrokenReason::Damaged),
        };
        Some(Record {
            id: SnapshotId(load_id(&self.mapping, at + 16)),
            name: String::from_utf8(name).unwrap_or_else(|_| format!("damaged-{slot}")),
            epoch: Epoch(word(1)),
            created_ns: word(4),
            pause_ns: word(5),
            size: word(6),
            originals: if word(7) & FLAG_RELEASE != 0 { Originals::Release } else { Originals::Keep },
            private: word(7) & FLAG_PRIVATE != 0,
            scoped: word(7) & FLAG_SCOPED != 0,
            on_full: OnFull::from_flags(word(7)),
            broken_at: word(9),
            confirmed: word(CONFIRMED) == first_half(SnapshotId(load_id(&self.mapping, at + 16))),
            state,
        })
    }

    /// All records with their slots.
    pub fn records(&self) -> Vec<(u32, Record)> {
        (0..MOST_SNAPSHOTS).filter_map(|slot| self.record(slot).map(|record| (slot, record))).collect()
    }

    /// Writes all of a record but its state: the slot stays free until [`SnapshotTable::set_state`].
    ///
    /// # Errors
    /// Where stores can fail.
    ///
    /// # Panics
    /// If the name is too long.
    pub fn prepare(&self, slot: u32, record: &Record) -> io::Result<()> {
        assert!(record.name.len() <= NAME_BYTES, "names are checked before they come here");
        let at = record_at(slot);
        let put = |index: u64, word: u64| self.mapping.store(at + 8 * index, word);
        put(1, record.epoch.0)?;
        store_id(&self.mapping, at + 16, record.id.0)?;
        put(4, record.created_ns)?;
        put(5, record.pause_ns)?;
        put(6, record.size)?;
        let release = if record.originals == Originals::Release { FLAG_RELEASE } else { 0 };
        let private = if record.private { FLAG_PRIVATE } else { 0 };
        let scoped = if record.scoped { FLAG_SCOPED } else { 0 };
        put(7, release | private | scoped | record.on_full.flags())?;
        put(8, 0)?;
        put(9, 0)?;
        put(CONFIRMED, if record.confirmed { first_half(record.id) } else { 0 })?;
        put(10, record.name.len() as u64)?;
        let mut name = [0; NAME_BYTES];
        name[..record.name.len()].copy_from_slice(record.name.as_bytes());
        for (index, word) in name.as_chunks::<8>().0.iter().enumerate() {
            put(11 + index as u64, u64::from_le_bytes(*word))?;
        }
        put(19, self.record_checksum(at))
    }

    /// Publishes what a snapshot is now. For an ended or broken one, `at` (a sequence, a byte offset) is written before.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn set_state(&self, slot: u32, state: RecordState, broken_at: u64) -> io::Result<()> {
        let at = record_at(slot);
        let word = match state {
            RecordState::Live => 1,
            RecordState::Ended(sequence) => {
                self.mapping.store(at + 64, sequence.0)?;
                2
            }
            RecordState::Broken(reason) => {
                self.mapping.store(at + 72, broken_at)?;
                3 | reason.code() << 8
            }
        };
        self.mapping.publish(at, word)
    }

    /// Records the measured pause of a snapshot.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn set_pause(&self, slot: u32, pause_ns: u64) -> io::Result<()> {
        self.mapping.store(record_at(slot) + 40, pause_ns)
    }

    /// Frees a slot.
    ///
    /// # Errors
    /// Where stores can fail.
    pub fn clear(&self, slot: u32) -> io::Result<()> {
        self.mapping.publish(record_at(slot), 0)
    }

    /// Whether the slot still holds the live snapshot `id`; else what it is instead.
    ///
    /// # Errors
    /// `None` when it was deleted, otherwise its state.
    pub fn check_live(&self, slot: u32, id: SnapshotId) -> Result<(), Option<RecordState>> {
        if slot >= MOST_SNAPSHOTS {
            return Err(None);
        }
        let at = record_at(slot);
        let state = self.mapping.load(at);
        if load_id(&self.mapping, at + 16) != id.0 {
            return Err(None);
        }
        match state {
            1 => Ok(()),
            _ => Err(self.record(slot).map(|record| record.state)),
        }
    }

    /// Makes the table durable against power loss. Blocking.
    ///
    /// # Errors
    /// When the device says so.
    pub fn sync(&self) -> io::Result<()> {
        self.mapping.sync()
    }

    /// As [`Self::sync`], without blocking.
    ///
    /// # Errors
    /// When the device says so.
    pub async fn durable(&self) -> io::Result<()> {
        self.mapping.durable().await
    }

    fn record_checksum(&self, at: u64) -> u64 {
        let words: Vec<u64> =
            [1, 2, 3, 4, 6, 7].into_iter().chain(10..19).map(|index| self.mapping.load(at + 8 * index)).collect();
        u64::from(checksum_of(&words))
    }
}

fn record_at(slot: u32) -> u64 {
    assert!(slot < MOST_SNAPSHOTS, "slot {slot} of the snapshot table");
    HEADER + u64::from(slot) * RECORD
}

/// Not zero, as an id is not: a record that was never confirmed has zero there, or what is left of another snapshot.
fn first_half(id: SnapshotId) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|byte| id.0[byte])) | 1
}

fn load_id<M: Mapping>(mapping: &M, at: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mapping.load(at).to_le_bytes());
    id[8..].copy_from_slice(&mapping.load(at + 8).to_le_bytes());
    id
}

fn store_id<M: Mapping>(mapping: &M, at: u64, id: [u8; 16]) -> io::Result<()> {
    let (low, high) = id.split_at(8);
    mapping.store(at, u64::from_le_bytes(low.try_into().expect("half of an id")))?;
    mapping.store(at + 8, u64::from_le_bytes(high.try_into().expect("half of an id")))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Words in memory, of which only the first `left` stores are kept: a process killed at the next.
    struct Dying {
        words: Mutex<(Vec<u64>, usize)>,
    }

    impl Dying {
        fn new(words: Vec<u64>, left: usize) -> Self {
            Self { words: Mutex::new((words, left)) }
        }
    }

    impl Mapping for Dying {
        fn len(&self) -> u64 {
            self.words.lock().unwrap().0.len() as u64 * 8
        }

        fn load(&self, offset: u64) -> u64 {
            self.words.lock().unwrap().0[offset as usize / 8]
        }

        fn store(&self, offset: u64, word: u64) -> io::Result<()> {
            let (words, left) = &mut *self.words.lock().unwrap();
            if let Some(fewer) = left.checked_sub(1) {
                *left = fewer;
                words[offset as usize / 8] = word;
            }
            Ok(())
        }

        fn publish(&self, offset: u64, word: u64) -> io::Result<()> {
            self.store(offset, word)
        }

        fn grow(&self, _len: u64) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        async fn durable(&self) -> io::Result<()> {
            self.sync()
        }
    }

    /// After a clean stop and a restart of the machine, a death at any store of the next start is no lost machine.
    #[test]
    fn a_death_while_the_boot_is_recorded_is_not_taken_for_a_lost_machine() {
        for left in 0..4 {
            let words = vec![0; SnapshotTable::<Dying>::LEN as usize / 8];
            let before = SnapshotTable::create_or_open(Dying::new(words, usize::MAX), [1; 16]).unwrap();
            before.set_boot([7; 16], true).unwrap();
            let words = before.mapping.words.lock().unwrap().0.clone();
            let dying = SnapshotTable::open(Dying::new(words, left)).unwrap();
            dying.set_boot([9; 16], false).unwrap();
            let (boot, clean) = dying.boot();
            assert!(clean || boot == [9; 16], "killed before store {left}: {boot:?}");
        }
    }
}
