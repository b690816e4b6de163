//! Maps of earlier versions, word by word as they were written, and of volumes of several components.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tzero_io::{Directory, MappedFile, Storage};
use tzero_originals::{
    Components, Entry, EntryState, Epoch, MapError, MapShape, ModifiedMap, Payload, RecordState, Sequence, SnapshotId,
    SnapshotTable,
};

const VOLUME: [u8; 16] = *b"volume's own id.";
const SHAPE: MapShape = MapShape { ring_words: 16, first_entries: 4 };
const ENTRIES: u64 = 4096 + 16 * 8;

fn put(file: &File, at: u64, words: &[u64]) {
    for (at, word) in (at..).step_by(8).zip(words) {
        file.write_all_at(&word.to_le_bytes(), at).unwrap();
    }
}

/// A map of version 1: grain 4096, and one original of the grain at 40,960, tag 3, payload at 8192 of the cache.
fn version_one(path: &Path) {
    let file = OpenOptions::new().write(true).create_new(true).open(path).unwrap();
    file.set_len(SHAPE.len()).unwrap();
    put(&file, 0, &[u64::from_le_bytes(*b"TZEROMAP"), 1 | 64 << 32, 4096]);
    file.write_all_at(&VOLUME, 24).unwrap();
    put(&file, 40, &[4, 7, 16]);
    put(&file, 4096 + 7 * 8, &[7 << 32 | 2]);
    put(&file, ENTRIES + 2 * 64, &[80, 4096, 8192, 3, 7, 0x1234_5678, 0x8e8b_114e, 0x545A_4F52_4947_0001]);
}

fn original() -> Entry {
    Entry {
        offset: 40_960,
        len: 4096,
        tag: Epoch(3),
        sequence: Sequence(7),
        payload: Payload::Stored { offset: 8192, checksum: 0x1234_5678 },
        state: EntryState::Unread,
    }
}

fn mapped(path: &Path, writable: bool) -> MappedFile {
    MappedFile::from_file(OpenOptions::new().read(true).write(writable).open(path).unwrap(), writable).unwrap()
}

#[test]
fn a_map_from_before_components_is_read_and_becomes_one_of_today() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("map");
    version_one(&path);
    let before = fs::read(&path).unwrap();
    let read = ModifiedMap::open(mapped(&path, false)).unwrap();
    assert_eq!(read.components(), &Components::one());
    assert_eq!(read.scan(), (vec![(2, original())], vec![]));
    assert_eq!(fs::read(&path).unwrap(), before, "reading changes nothing");

    let two = Components::new(&[8192, 8192], 4096).unwrap();
    let refused = ModifiedMap::create_or_open_shaped(mapped(&path, true), 4096, VOLUME, &two, SHAPE);
    assert!(matches!(refused.map(drop), Err(MapError::Foreign)));
    let written = ModifiedMap::create_or_open(mapped(&path, true), 4096, VOLUME).unwrap();
    assert_eq!(written.scan(), (vec![(2, original())], vec![]));
    drop(written);
    let mut expected = before;
    expected[8] = 2;
    assert_eq!(fs::read(&path).unwrap(), expected, "nothing but the version");
}

#[test]
fn an_entry_says_its_component_and_the_block_within_it() {
    let scratch = tempfile::tempdir().unwrap();
    let storage = Directory::new(scratch.path());
    let components = Components::new(&[40_960, 8192, 777], 4096).unwrap();
    let open = || storage.open("map", SHAPE.len()).unwrap();
    let map = ModifiedMap::create_or_open_shaped(open(), 4096, VOLUME, &components, SHAPE).unwrap();
    map.publish(1, &original()).unwrap();
    map.publish(2, &Entry { offset: 40_960 + 4096, sequence: Sequence(8), ..original() }).unwrap();
    map.publish(3, &Entry { offset: 49_152, len: 777, sequence: Sequence(9), ..original() }).unwrap();
    let (entries, damaged) = map.scan();
    assert_eq!(entries.iter().map(|(_, entry)| entry.offset).collect::<Vec<_>>(), [40_960, 45_056, 49_152]);
    assert!(damaged.is_empty());

    let bytes = fs::read(scratch.path().join("map")).unwrap();
    let word = |at: u64| u64::from_le_bytes(bytes[at as usize..][..8].try_into().unwrap());
    assert_eq!((word(8), word(64), word(72), word(80)), (2 | 64 << 32, 40_960, 49_152, 0));
    assert_eq!(
        [1, 2, 3].map(|position| (word(ENTRIES + position * 64), word(ENTRIES + position * 64 + 8))),
        [(0, 1 << 32 | 4096), (8, 1 << 32 | 4096), (0, 2 << 32 | 777),]
    );
    let read = ModifiedMap::open(mapped(&scratch.path().join("map"), false)).unwrap();
    assert_eq!((read.components(), read.scan().0), (&components, entries));

    // A unit that there is not is damage, and so is a block that its component does not have.
    for (block, unit) in [(0, 3), (80, 0)] {
        let mut words: [u64; 7] = [block, unit << 32 | 4096, 8192, 3, 7, 0x1234_5678, 0];
        words[6] = u64::from(words[..6].iter().fold(0, |sum, word| crc32c::crc32c_append(sum, &word.to_le_bytes())));
        let file = OpenOptions::new().write(true).open(scratch.path().join("map")).unwrap();
        put(&file, ENTRIES + 64, &words);
        assert_eq!(read.scan().1, [1], "block {block} of unit {unit}");
    }
    for starts in [[8192, 4096], [4096, 100], [u64::MAX, 0]] {
        put(&OpenOptions::new().write(true).open(scratch.path().join("map")).unwrap(), 64, &starts);
        let opened = ModifiedMap::open(mapped(&scratch.path().join("map"), false));
        assert!(matches!(opened.map(drop), Err(MapError::Format)), "{starts:?}");
    }
}

/// A snapshot table of version 1 had nothing where confirmations, incarnation and life are.
#[test]
fn a_table_from_before_power_is_read_and_becomes_one_of_today() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("snapshots");
    let file = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
    file.set_len(SnapshotTable::<MappedFile>::LEN).unwrap();
    put(&file, 0, &[u64::from_le_bytes(*b"TZEROSNP"), 1 | 256 << 32]);
    file.write_all_at(&VOLUME, 16).unwrap();
    put(&file, 32, &[5, 7, 8, 1]);
    // A live snapshot of epoch 5, `old`, with the id 03…03.
    let id = u64::from_le_bytes([3; 8]);
    put(&file, 4096, &[1, 5, id, id, 99, 7, 40_960, 0, 0, 0, 3, u64::from_le_bytes(*b"old\0\0\0\0\0")]);
    put(&file, 4096 + 19 * 8, &[0x4c0149f3]);
    drop(file);
    let before = fs::read(&path).unwrap();
    let table = SnapshotTable::open(mapped(&path, false)).unwrap();
    let records = table.records();
    assert_eq!((records.len(), &records[0].1.name[..], records[0].1.state), (1, "old", RecordState::Live));
    assert_eq!((table.epoch(), table.boot().1, records[0].1.confirmed), (Epoch(5), true, false));
    assert_eq!((table.incarnation(), table.base_in_doubt()), (0, false));
    assert_eq!(fs::read(&path).unwrap(), before, "reading changes nothing");

    let table = SnapshotTable::create_or_open(mapped(&path, true), VOLUME).unwrap();
    table.upgrade().unwrap();
    assert_eq!(table.begin_life().unwrap(), 1);
    table.confirm(0, SnapshotId([3; 16])).unwrap();
    assert!(table.records()[0].1.confirmed);
    table.confirm(0, SnapshotId([4; 16])).unwrap();
    assert!(!table.records()[0].1.confirmed, "that was another snapshot's");
    assert_eq!(fs::read(&path).unwrap()[8..16], (2 | 256_u64 << 32).to_le_bytes());
}
