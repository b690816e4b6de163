//! Writer and reader over the same files, and files that are not what they should be.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tzero_block::{BlockDevice, ByteRange, Error, Extent, Geometry, MemoryDevice, Zeroes};
use tzero_io::{Backend, Buffer, Directory, MappedFile, Runtime, Storage};
use tzero_originals::{
    BrokenReason, CacheLayout, Epoch, GrainIndex, Grains, ModifiedMap, OnFull, Original, OriginalCache, Originals,
    OriginalsReader, Payload, ReconcileError, Record, RecordState, SnapshotId, SnapshotRef, SnapshotTable,
};

const GRAIN: u32 = 512;
const COUNT: u64 = 6000;
const SIZE: u64 = COUNT * GRAIN as u64;

struct Shared(Arc<MemoryDevice>);

impl BlockDevice for Shared {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        self.0.read(offset, buffer).await
    }
    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        self.0.write(offset, buffer, fua).await
    }
    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.0.write_zeroes(range, zeroes).await
    }
    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.0.discard(range).await
    }
    async fn flush(&self) -> Result<(), Error> {
        self.0.flush().await
    }
    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.0.extents(range).await
    }
}

struct Fixture {
    directory: tempfile::TempDir,
    device: Arc<MemoryDevice>,
    cache: OriginalCache<MappedFile, Shared>,
    table: SnapshotTable<MappedFile>,
}

const SNAPSHOT: SnapshotRef = SnapshotRef { slot: 3, id: SnapshotId([5; 16]), epoch: Epoch(7) };

fn record() -> Record {
    Record {
        id: SNAPSHOT.id,
        name: "a".into(),
        epoch: SNAPSHOT.epoch,
        created_ns: 1,
        pause_ns: 0,
        size: SIZE,
        originals: Originals::Keep,
        private: false,
        scoped: false,
        on_full: OnFull::Break,
        broken_at: 0,
        confirmed: false,
        state: RecordState::Live,
    }
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let storage = Directory::new(directory.path());
        let table = storage.open("snapshots", SnapshotTable::<MappedFile>::LEN).unwrap();
        let table = SnapshotTable::create_or_open(table, [1; 16]).unwrap();
        table.prepare(SNAPSHOT.slot, &record()).unwrap();
        table.set_state(SNAPSHOT.slot, RecordState::Live, 0).unwrap();
        let device = Arc::new(MemoryDevice::new(SIZE));
        let cache = open_cache(directory.path(), &device);
        Self { directory, device, cache, table }
    }

    fn reader(&self) -> OriginalsReader<MappedFile, Shared> {
        let open = |name| MappedFile::from_file(File::open(self.directory.path().join(name)).unwrap(), false).unwrap();
        OriginalsReader::open(open("map"), open("snapshots"), Shared(self.device.clone()), SIZE).unwrap()
    }

    async fn save(&self, grain: u64, tag: u64, byte: u8) {
        let reservation = self.cache.reserve(1, u64::from(byte != 0)).unwrap();
        let bytes = [byte; GRAIN as usize];
        let payload = if byte == 0 {
            Payload::Zero
        } else {
            let slot = reservation.slots[0].start;
            self.cache.store(slot, Buffer::copy_of(&bytes)).await.1.unwrap();
            Payload::Stored { offset: slot * u64::from(GRAIN), checksum: crc32c::crc32c(&bytes) }
        };
        let original = Original { grain: GrainIndex(grain), len: GRAIN, payload };
        let published = self.cache.publish(reservation, Epoch(tag), &[original], None).unwrap();
        self.cache.index(&published, false);
    }
}

fn open_cache(path: &Path, device: &Arc<MemoryDevice>) -> OriginalCache<MappedFile, Shared> {
    let map = Directory::new(path).open("map", ModifiedMap::<MappedFile>::NEW_LEN).unwrap();
    let map = ModifiedMap::create_or_open(map, GRAIN, [1; 16]).unwrap();
    let (entries, damaged) = map.scan();
    let grains = Grains::new(GRAIN, SIZE).unwrap();
    let (device, layout) = (Shared(device.clone()), CacheLayout::default());
    OriginalCache::open(map, entries, damaged, device, layout, grains, |_, _, _, _| true).unwrap()
}

async fn read(reader: &mut OriginalsReader<MappedFile, Shared>, grain: u64) -> u8 {
    let mut buffer = Buffer::copy_of(&[0xBB; GRAIN as usize]);
    reader.reconcile(&SNAPSHOT, grain * u64::from(GRAIN), &mut buffer).await.unwrap();
    assert!(buffer.iter().all(|byte| *byte == buffer[0]));
    buffer[0]
}

fn run(test: impl AsyncFnOnce()) {
    Runtime::new(Backend::Auto).unwrap().block_on(test());
}

#[test]
fn growth_that_a_reader_has_not_followed_is_not_looked_at() {
    run(async || {
        let fixture = Fixture::new();
        let map = || {
            let file = File::open(fixture.directory.path().join("map")).unwrap();
            ModifiedMap::open(MappedFile::from_file(file, false).unwrap()).unwrap()
        };
        let (reader, before) = (map(), map().capacity());
        for grain in 0..=before {
            fixture.save(grain, 7, 1).await;
        }
        let grown = map().capacity();
        assert!(grown > before);
        // The header says more than this reader has mapped: every look at the map goes as far as the mapping does.
        assert_eq!((reader.capacity(), reader.scan().0.len() as u64), (before, before));
        assert_eq!(reader.entry(before as u32), None);
        reader.follow_growth().unwrap();
        assert_eq!((reader.capacity(), reader.scan().0.len() as u64), (grown, before + 1));
        assert!(reader.entry(before as u32).is_some());
    });
}

#[test]
fn a_reader_follows_the_ring_growth_and_reuse() {
    run(async || {
        let fixture = Fixture::new();
        let mut reader = fixture.reader();
        assert_eq!(read(&mut reader, 0).await, 0xBB);
        fixture.save(0, 6, 1).await;
        assert_eq!(read(&mut reader, 0).await, 0xBB, "an older snapshot's original does not serve");
        fixture.save(0, 9, 2).await;
        assert_eq!(read(&mut reader, 0).await, 2);
        fixture.save(1, 7, 0).await;
        assert_eq!(read(&mut reader, 1).await, 0);
        // More than a ring, and more than the map's first positions.
        for grain in 2..COUNT {
            fixture.save(grain, 8, (grain % 250 + 1) as u8).await;
        }
        for grain in [2, 999, COUNT - 1] {
            assert_eq!(read(&mut reader, grain).await, (grain % 250 + 1) as u8);
        }
        // A freed position is used for another grain's newer original.
        fixture.cache.free_unwanted(GrainIndex(0), |_, tag, _| tag == Epoch(9)).unwrap();
        fixture.save(5, 7, 77).await;
        assert_eq!(read(&mut reader, 5).await, 77);
        assert_eq!(read(&mut reader, 0).await, 2);
    });
}

#[test]
fn what_was_published_is_found_again() {
    run(async || {
        let fixture = Fixture::new();
        for grain in 0..2000 {
            fixture.save(grain * 3, 7, (grain % 9) as u8).await;
        }
        let usage = fixture.cache.usage();
        let again = open_cache(fixture.directory.path(), &fixture.device);
        assert_eq!(again.usage(), usage);
        assert_eq!(again.all(), fixture.cache.all());
    });
}

#[test]
fn a_broken_or_deleted_snapshot_reads_nothing() {
    run(async || {
        let fixture = Fixture::new();
        let mut reader = fixture.reader();
        let mut buffer = Buffer::zeroed(512);
        let broken = RecordState::Broken(BrokenReason::CacheFull);
        fixture.table.set_state(SNAPSHOT.slot, broken, 4096).unwrap();
        let error = reader.reconcile(&SNAPSHOT, 0, &mut buffer).await.unwrap_err();
        assert!(matches!(error, ReconcileError::Broken(BrokenReason::CacheFull)));
        assert_eq!(fixture.table.record(SNAPSHOT.slot).unwrap().broken_at, 4096);
        fixture.table.clear(SNAPSHOT.slot).unwrap();
        assert!(matches!(reader.check(&SNAPSHOT), Err(ReconcileError::Gone)));
        fixture.table.prepare(SNAPSHOT.slot, &Record { id: SnapshotId([6; 16]), ..record() }).unwrap();
        fixture.table.set_state(SNAPSHOT.slot, RecordState::Live, 0).unwrap();
        assert!(matches!(reader.check(&SNAPSHOT), Err(ReconcileError::Gone)), "another snapshot in the same slot");
    });
}

#[test]
fn a_damaged_file_is_refused_or_noticed_at_every_word() {
    run(async || {
        let fixture = Fixture::new();
        for grain in 0..4 {
            fixture.save(grain, 7, grain as u8 + 1).await;
        }
        let before = fixture.cache.all();
        let path = fixture.directory.path().join("map");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let entries = 4096 + 4096 * 8;
        for at in (0..64).chain(entries..entries + 4 * 64).step_by(8) {
            let mut original = [0; 8];
            file.read_exact_at(&mut original, at).unwrap();
            for bad in [[0xFF; 8], 3u64.to_le_bytes(), (u64::MAX / 65).to_le_bytes()] {
                file.write_all_at(&bad, at).unwrap();
                let mapping = MappedFile::from_file(File::open(&path).unwrap(), false).unwrap();
                if let Ok(map) = ModifiedMap::open(mapping) {
                    let (entries, damaged) = map.scan();
                    let same = entries.len() == before.len()
                        && entries.iter().zip(&before).all(|((_, entry), (_, expected))| entry == expected);
                    // The head, the grain and the volume are compared by whoever opens; entries are not to change unnoticed.
                    assert!(
                        same || !damaged.is_empty() || entries.len() < before.len(),
                        "word {at} changed to {bad:?}"
                    );
                }
            }
            file.write_all_at(&original, at).unwrap();
        }
    });
}
