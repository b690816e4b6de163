//! Real threads against each other: what the simulator cannot show, because it runs one step at a time.
//!
//! Each writer has grains of its own and writes one after the other, so its writes depend on each other. A snapshot must hold a prefix of
//! every writer's sequence: if it has a write, it has all before it, and each grain holds the last of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use tzero_block::{Export, FileDevice, Mode};
use tzero_engine::{CacheOptions, Platform, SnapshotKind, Volume, VolumeOptions};
use tzero_io::{Backend, Buffer, Directory, Runtime};
use tzero_originals::{Components, MapShape};

const GRAIN: usize = 512;
const WRITERS: usize = 3;
const GRAINS_EACH: usize = 40;
const COUNT: usize = WRITERS * GRAINS_EACH;
const SNAPSHOTS: usize = 60;

struct Test(AtomicU64);

impl Platform for Test {
    type Base = FileDevice;
    type Cache = FileDevice;
    type Storage = Directory;

    fn monotonic_ns(&self) -> u64 {
        tzero_io::system::monotonic_ns()
    }

    fn wall_ns(&self) -> u64 {
        tzero_io::system::wall_ns()
    }

    fn random_id(&self) -> [u8; 16] {
        u128::from(self.0.fetch_add(1, Ordering::Relaxed)).to_be_bytes()
    }
}

/// One writer's sequence: the grain of each write, write 1 first.
type Sequence = Vec<usize>;

fn open(directory: &std::path::Path, runtime: &Runtime) -> Arc<Volume<Test>> {
    let file = |name: &str, size: usize| {
        let path = directory.join(name);
        std::fs::File::create(&path).unwrap().set_len(size as u64).unwrap();
        FileDevice::open(&path, Mode { direct: false, writable: true }).unwrap()
    };
    let (base, cache) = (file("base", COUNT * GRAIN), file("originals", 64 << 20));
    let options = VolumeOptions {
        name: "v".into(),
        id: [1; 16],
        grain: GRAIN as u32,
        components: Components::one(),
        boot_id: [1; 16],
        base_changed: false,
        durability: tzero_engine::Durability::Process,
        map_shape: MapShape::DEFAULT,
        cache: CacheOptions::default(),
    };
    let storage = Directory::new(directory);
    runtime.block_on(Volume::open(Test(AtomicU64::new(1)), base, cache, storage, options)).unwrap().0
}

/// Each grain of writer `w` at index `n` lies at `n * WRITERS + w`: neighbours belong to different writers.
fn place(writer: usize, grain: usize) -> usize {
    grain * WRITERS + writer
}

fn check(view: &[u8], sequences: &[Sequence]) {
    for (writer, sequence) in sequences.iter().enumerate() {
        let stamp = |grain: usize| {
            let at = place(writer, grain) * GRAIN;
            let bytes = &view[at..at + GRAIN];
            let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(bytes.chunks(8).all(|word| word == &bytes[..8]), "a torn grain");
            first as usize
        };
        let newest = (0..GRAINS_EACH).map(stamp).max().unwrap();
        assert!(newest <= sequence.len(), "a write from after T0's end");
        let mut expected = [0; GRAINS_EACH];
        for (number, grain) in sequence[..newest].iter().enumerate() {
            expected[*grain] = number + 1;
        }
        for (grain, expected) in expected.iter().enumerate() {
            assert_eq!(stamp(grain), *expected, "writer {writer}, grain {grain}, newest {newest}");
        }
    }
}

#[test]
fn every_snapshot_holds_a_prefix_of_every_writer() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(Backend::Auto).unwrap();
    let volume = open(directory.path(), &runtime);
    let stop = Arc::new(AtomicBool::new(false));
    let ready = Arc::new(Barrier::new(WRITERS + 1));
    let sequences: Arc<Vec<Mutex<Sequence>>> = Arc::new((0..WRITERS).map(|_| Mutex::default()).collect());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (volume, stop, ready, sequences) = (volume.clone(), stop.clone(), ready.clone(), sequences.clone());
            thread::spawn(move || {
                let runtime = Runtime::new(Backend::Auto).unwrap();
                runtime.block_on(async {
                    let session = volume.session();
                    let mut random = writer as u64 + 77;
                    ready.wait();
                    while !stop.load(Ordering::Relaxed) {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let grain = (random >> 33) as usize % GRAINS_EACH;
                        let stamp = {
                            let mut sequence = sequences[writer].lock().unwrap();
                            sequence.push(grain);
                            sequence.len() as u64
                        };
                        let bytes = stamp.to_le_bytes().repeat(GRAIN / 8);
                        let offset = place(writer, grain) * GRAIN;
                        session.write(offset as u64, Buffer::copy_of(&bytes), false).await.1.unwrap();
                    }
                });
            })
        })
        .collect();
    ready.wait();
    let mut standing = BTreeMap::new();
    runtime.block_on(async {
        for number in 0..SNAPSHOTS {
            let name = format!("s{number}");
            // Every writer gets somewhere between two snapshots, however the machine schedules.
            while sequences.iter().any(|sequence| sequence.lock().unwrap().len() < number * 30) {
                thread::yield_now();
            }
            let info = volume.create_snapshot(&name, SnapshotKind::KEPT).await.unwrap();
            let view = read(&volume, &name).await;
            standing.insert(number, (info.id, view));
            if number % 3 == 2 {
                let (id, _) = standing.remove(&(number / 2 * 2 / 3)).or_else(|| standing.remove(&number)).unwrap();
                volume.delete_snapshot(id).await.unwrap();
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.lock().unwrap().clone()).collect();
    assert!(sequences.iter().all(|sequence| sequence.len() > 100), "the writers wrote");
    runtime.block_on(async {
        for (number, (id, first)) in standing {
            let again = read(&volume, &format!("s{number}")).await;
            assert!(first == again, "snapshot {number} changed");
            check(&again, &sequences);
            volume.delete_snapshot(id).await.unwrap();
        }
        let statistics = volume.statistics();
        assert_eq!((statistics.originals.entries, statistics.originals.bytes, statistics.saving), (0, 0, 0));
    });
}

async fn read(volume: &Arc<Volume<Test>>, name: &str) -> Vec<u8> {
    let (buffer, result) = volume.view(name).unwrap().read(0, Buffer::uncleared(COUNT * GRAIN)).await;
    result.unwrap();
    buffer.to_vec()
}
