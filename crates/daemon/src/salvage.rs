//! What can still be known of snapshots whose table is lost: at least their names.
//!
//! Beside the table there is a copy of it, written after each snapshot that comes or goes. It may be older than the table and is never
//! believed about anything but what snapshots there were: what is found here is listed as broken.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tzero_api::Name;
use tzero_io::Mapping;
use tzero_originals::{BrokenReason, Epoch, MOST_SNAPSHOTS, Record, RecordState, SnapshotTable};

/// Where a table's records begin, and where the epoch stands before them, in words.
const RECORDS: usize = 4096 / 8;
const EPOCH: usize = 32 / 8;

/// Snapshots that there were.
#[derive(Debug, Default)]
pub(crate) struct Salvage {
    /// The newest epoch that was begun, as far as it is known.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) records: Vec<Record>,
}

impl Salvage {
    /// Adds what the bytes of a table say, however damaged it is.
    pub(crate) fn add(&mut self, bytes: &[u8], volume: [u8; 16]) {
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let found = Words::default();
        // The beginning as it should be, the rest as it is.
        let Ok(_) = SnapshotTable::create_or_open(found.clone(), volume) else { return };
        // Whatever its version.
        let is_whole = words.get(..EPOCH).is_some_and(|beginning| {
            let right = found.words();
            beginning[0] == right[0] && beginning[2..] == right[2..EPOCH]
        });
        found.fill(RECORDS, words.get(RECORDS..).unwrap_or_default());
        let Ok(found) = SnapshotTable::open(found) else { return };
        let records: Vec<Record> = found.records().into_iter().map(|(_, record)| record).collect();
        // A record that is damaged may claim any epoch.
        let sound = records.iter().filter(|record| record.state != RecordState::Broken(BrokenReason::Damaged));
        let epoch = sound
            .map(|record| record.epoch)
            .max()
            .max(words.get(EPOCH).filter(|_| is_whole).map(|epoch| Epoch(*epoch)));
        self.epoch = self.epoch.max(epoch);
        for record in records {
            let is_known = self.records.iter().any(|known| known.id == record.id || known.name == record.name);
            if !is_known && record.name.parse::<Name>().is_ok() && self.records.len() < MOST_SNAPSHOTS as usize {
                self.records.push(record);
            }
        }
    }

    /// Puts everything into a new table, broken.
    pub(crate) fn write<M: Mapping>(&self, table: &SnapshotTable<M>) -> io::Result<()> {
        let newest = self.epoch.unwrap_or(Epoch(self.records.len() as u64));
        table.set_epoch(newest)?;
        for (slot, record) in (0..).zip(&self.records) {
            table.prepare(slot, &Record { epoch: record.epoch.min(newest), ..record.clone() })?;
            table.set_state(slot, RecordState::Broken(BrokenReason::Damaged), 0)?;
        }
        table.sync()
    }
}

impl Salvage {
    /// A table of it all, in bytes.
    pub(crate) fn copy(&self, volume: [u8; 16]) -> Vec<u8> {
        let words = Words::default();
        let written = SnapshotTable::create_or_open(words.clone(), volume).map(|table| self.write(&table));
        debug_assert!(matches!(written, Ok(Ok(()))), "memory takes everything");
        let bytes: Vec<u8> = words.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        copy_of(&bytes).to_vec()
    }
}

/// As much of a table as has something in it.
pub(crate) fn copy_of(table: &[u8]) -> &[u8] {
    let end = table.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &table[..end.next_multiple_of(8).min(table.len())]
}

/// A table in memory.
#[derive(Clone)]
struct Words(Arc<Mutex<Vec<u64>>>);

impl Default for Words {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(vec![0; (SnapshotTable::<Self>::LEN / 8) as usize])))
    }
}

impl Words {
    fn words(&self) -> MutexGuard<'_, Vec<u64>> {
        self.0.lock().expect("nothing panics under this lock")
    }

    fn fill(&self, from: usize, words: &[u64]) {
        self.words()[from..].iter_mut().zip(words).for_each(|(place, word)| *place = *word);
    }
}

impl Mapping for Words {
    fn len(&self) -> u64 {
        SnapshotTable::<Self>::LEN
    }

    fn load(&self, offset: u64) -> u64 {
        self.words()[offset as usize / 8]
    }

    fn store(&self, offset: u64, word: u64) -> io::Result<()> {
        self.words()[offset as usize / 8] = word;
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

#[cfg(test)]
mod tests {
    use tzero_originals::{OnFull, Originals, SnapshotId};

    use super::*;

    const VOLUME: [u8; 16] = [3; 16];

    fn record(number: u8, epoch: u64) -> Record {
        Record {
            id: SnapshotId([number; 16]),
            name: format!("s{number}"),
            epoch: Epoch(epoch),
            created_ns: 1,
            pause_ns: 0,
            size: 4096,
            originals: Originals::Keep,
            private: false,
            scoped: false,
            on_full: OnFull::Break,
            broken_at: 0,
            confirmed: false,
            state: RecordState::Live,
        }
    }

    fn bytes_of(records: &[Record]) -> Vec<u8> {
        let words = Words::default();
        let table = SnapshotTable::create_or_open(words.clone(), VOLUME).unwrap();
        table.set_epoch(Epoch(9)).unwrap();
        for (slot, record) in (0..).zip(records) {
            table.prepare(slot, record).unwrap();
            table.set_state(slot, RecordState::Live, 0).unwrap();
        }
        words.words().iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn names(salvage: &Salvage) -> Vec<&str> {
        salvage.records.iter().map(|record| record.name.as_str()).collect()
    }

    #[test]
    fn names_survive_a_damaged_table_and_a_missing_one() {
        let whole = bytes_of(&[record(1, 3), record(2, 7)]);
        let mut headless = whole.clone();
        headless[..4096].fill(0xA5);
        let mut short = whole.clone();
        short.truncate(4096 + 300);
        let copy = copy_of(&whole);
        assert!(copy.len() < 8192);
        for (bytes, found, epoch) in [
            (&whole[..], &["s1", "s2"][..], 9),
            (&headless, &["s1", "s2"], 7),
            (&short, &["s1"], 9),
            (copy, &["s1", "s2"], 9),
        ] {
            let mut salvage = Salvage::default();
            salvage.add(bytes, VOLUME);
            assert_eq!((names(&salvage), salvage.epoch), (found.to_vec(), Some(Epoch(epoch))));
        }
        let mut both = Salvage::default();
        both.add(&[], VOLUME);
        assert!(both.records.is_empty() && both.epoch.is_none());
        both.add(&short, VOLUME);
        let own = both.copy(VOLUME);
        both.add(&own, VOLUME);
        both.add(copy, VOLUME);
        assert_eq!(names(&both), ["s1", "s2"]);
    }

    #[test]
    fn what_was_salvaged_is_listed_as_broken() {
        let mut salvage = Salvage::default();
        salvage.add(&bytes_of(&[record(1, 3), record(2, 7)]), VOLUME);
        let table = SnapshotTable::create_or_open(Words::default(), VOLUME).unwrap();
        salvage.write(&table).unwrap();
        assert_eq!(table.epoch(), Epoch(9), "no epoch is ever used twice");
        let broken = RecordState::Broken(BrokenReason::Damaged);
        assert_eq!(table.records().iter().map(|(_, record)| record.state).collect::<Vec<_>>(), [broken; 2]);
    }

    #[test]
    fn a_damaged_record_says_nothing_of_epochs() {
        let mut bytes = bytes_of(&[record(1, 3), record(2, 7)]);
        bytes[..8].fill(0);
        bytes[4096 + 256 + 8..][..8].fill(0xFF);
        let mut salvage = Salvage::default();
        salvage.add(&bytes, VOLUME);
        assert_eq!((names(&salvage), salvage.epoch), (vec!["s1", "s2"], Some(Epoch(3))));
        let table = SnapshotTable::create_or_open(Words::default(), VOLUME).unwrap();
        salvage.write(&table).unwrap();
        assert!(table.records().iter().all(|(_, record)| record.epoch <= Epoch(3)));
    }
}
