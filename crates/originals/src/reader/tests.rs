use std::fs::File;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use tzero_block::MemoryDevice;
use tzero_io::{Directory, MappedFile, Storage};

use super::*;
use crate::cache::{CacheLayout, Original, OriginalCache};
use crate::components::Components;
use crate::map::MapShape;
use crate::table::{OnFull, Originals, Record};

const GRAIN: u32 = 512;
const COUNT: u64 = 30_000;
const SIZE: u64 = COUNT * GRAIN as u64;
const SHAPE: MapShape = MapShape { ring_words: 4096, first_entries: 1024 };
/// More than the ring has.
const BEHIND: u64 = SHAPE.ring_words + 900;
const SNAPSHOT: SnapshotRef = SnapshotRef { slot: 0, id: SnapshotId([5; 16]), epoch: Epoch(7) };

/// Counts the words that are loaded.
struct Counting {
    file: MappedFile,
    loads: Arc<AtomicU64>,
}

impl Mapping for Counting {
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn load(&self, offset: u64) -> u64 {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.file.load(offset)
    }
    fn store(&self, offset: u64, word: u64) -> io::Result<()> {
        self.file.store(offset, word)
    }
    fn publish(&self, offset: u64, word: u64) -> io::Result<()> {
        self.file.publish(offset, word)
    }
    fn grow(&self, len: u64) -> io::Result<()> {
        self.file.grow(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    async fn durable(&self) -> io::Result<()> {
        self.file.durable().await
    }
}

struct Written {
    directory: tempfile::TempDir,
    cache: OriginalCache<MappedFile, MemoryDevice>,
}

impl Written {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let storage = Directory::new(directory.path());
        let table = storage.open("snapshots", SnapshotTable::<MappedFile>::LEN).unwrap();
        let table = SnapshotTable::create_or_open(table, [1; 16]).unwrap();
        let record = Record {
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
        };
        table.prepare(SNAPSHOT.slot, &record).unwrap();
        table.set_state(SNAPSHOT.slot, RecordState::Live, 0).unwrap();
        let map = storage.open("map", SHAPE.len()).unwrap();
        let map = ModifiedMap::create_or_open_shaped(map, GRAIN, [1; 16], &Components::one(), SHAPE).unwrap();
        let grains = Grains::new(GRAIN, SIZE).unwrap();
        let cache = OriginalCache::open(
            map,
            vec![],
            vec![],
            MemoryDevice::new(512),
            CacheLayout::default(),
            grains,
            |_, _, _, _| true,
        )
        .unwrap();
        Self { directory, cache }
    }

    fn save(&self, grain: u64, tag: u64) {
        let reservation = self.cache.reserve(1, 0).unwrap();
        let published = self
            .cache
            .publish(
                reservation,
                Epoch(tag),
                &[Original { grain: GrainIndex(grain), len: 512, payload: Payload::Zero }],
                None,
            )
            .unwrap();
        self.cache.index(&published, false);
    }

    fn free(&self, grain: u64) {
        self.cache.free_unwanted(GrainIndex(grain), |_, _, _| false).unwrap();
    }

    fn reader(&self, loads: &Arc<AtomicU64>) -> OriginalsReader<Counting, MemoryDevice> {
        let open = |name: &str| {
            let file = File::open(Path::new(self.directory.path()).join(name)).unwrap();
            Counting { file: MappedFile::from_file(file, false).unwrap(), loads: Arc::clone(loads) }
        };
        OriginalsReader::open(open("map"), open("snapshots"), MemoryDevice::new(512), SIZE).unwrap()
    }
}

/// The output of a future that waits for nobody.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

#[test]
fn a_reader_that_fell_behind_looks_only_at_what_is_new() {
    let (written, loads) = (Written::new(), Arc::new(AtomicU64::new(0)));
    let mut reader = written.reader(&loads);
    (0..20_000).for_each(|grain| written.save(grain, 7));
    now(reader.catch_up()).unwrap();
    for round in 0..2 {
        let new = 20_000 + round * BEHIND..20_000 + (round + 1) * BEHIND;
        new.clone().for_each(|grain| written.save(grain, 7));
        loads.store(0, Ordering::Relaxed);
        let caught_up = now(reader.catch_up()).unwrap();
        let (looked, most) = (loads.load(Ordering::Relaxed), caught_up.reader.map.capacity() + 16 * BEHIND);
        assert!(looked < most, "{looked} words loaded for {BEHIND} new originals");
        let all = ByteRange::new(0, new.end * u64::from(GRAIN));
        assert_eq!(caught_up.changed(&SNAPSHOT, all).unwrap().len() as u64, new.end, "none is missed");
    }
}

#[test]
fn a_batch_catches_up_once() {
    let (written, loads) = (Written::new(), Arc::new(AtomicU64::new(0)));
    let mut reader = written.reader(&loads);
    (0..BEHIND).for_each(|grain| written.save(grain, 7));
    let caught_up = now(reader.catch_up()).unwrap();
    loads.store(0, Ordering::Relaxed);
    for grain in BEHIND..BEHIND + 100 {
        let range = ByteRange::new(grain * u64::from(GRAIN), u64::from(GRAIN));
        assert_eq!(caught_up.changed(&SNAPSHOT, range).unwrap(), []);
    }
    assert!(loads.load(Ordering::Relaxed) < 100 * 32, "pieces without originals cost next to nothing");
}

#[test]
fn one_that_followed_knows_what_one_that_comes_new_finds() {
    let (written, loads) = (Written::new(), Arc::new(AtomicU64::new(0)));
    let (mut random, mut reader) = (7_u64, written.reader(&loads));
    let mut draw = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % bound
    };
    // Grains that the snapshot needs are saved once; others come and go, and their positions are taken again.
    let (mut kept, mut passing) = (0, COUNT / 2);
    for round in 0..40 {
        let batch = if round % 3 == 0 { BEHIND + draw(2000) } else { draw(500) };
        for _ in 0..batch {
            if draw(8) == 0 && kept < COUNT / 2 {
                written.save(kept, 7 + draw(3));
                kept += 1;
            } else {
                written.save(passing, 3);
                written.free(passing);
                passing = COUNT / 2 + (passing + 1) % (COUNT / 2);
            }
        }
        let mut fresh = written.reader(&loads);
        let half = ByteRange::new(0, SIZE / 2);
        let followed = now(reader.catch_up()).unwrap().changed(&SNAPSHOT, half).unwrap();
        assert_eq!(followed.len() as u64, kept, "round {round}");
        assert_eq!(followed, now(fresh.catch_up()).unwrap().changed(&SNAPSHOT, half).unwrap(), "round {round}");
    }
}

#[test]
fn a_word_that_is_being_rewritten_is_no_entry_of_the_batch() {
    let (written, loads) = (Written::new(), Arc::new(AtomicU64::new(0)));
    let mut reader = written.reader(&loads);
    (0..10).for_each(|grain| written.save(grain, 7));
    now(reader.catch_up()).unwrap();
    // As if the eleventh had been written and its head not yet: it is beyond the head, and left to the next time.
    let words = Directory::new(written.directory.path()).open("map", 0).unwrap();
    let last = reader.map.entry(9).unwrap();
    let entry = Entry { sequence: Sequence(11), offset: 10 * u64::from(GRAIN), ..last };
    entry.publish(&words, &Components::one(), SHAPE.len() - (SHAPE.first_entries - 10) * 64).unwrap();
    now(reader.look_everywhere(Sequence(0), Sequence(10)));
    assert_eq!(reader.index.len(), 10);
    now(reader.look_everywhere(Sequence(10), Sequence(11)));
    assert_eq!(reader.index.len(), 11);
}
