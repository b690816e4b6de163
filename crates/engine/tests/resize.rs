//! A volume that becomes longer while it is used, step by step. Races are the simulator's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tzero_block::{BlockDevice, ByteRange, Error, Export, Extent, Geometry, MemoryDevice, Zeroes};
use tzero_engine::{CacheOptions, Durability, Platform, SnapshotKind, Volume, VolumeOptions};
use tzero_io::{Backend, Buffer, Directory, Runtime};
use tzero_originals::{Components, MapShape};

const GRAIN: u64 = 4096;
/// Two and a half grains.
const OLD: u64 = 2 * GRAIN + 2048;
/// In the same grain.
const LONGER: u64 = 2 * GRAIN + 3072;
/// In chunks of grains that were not there.
const LONG: u64 = 9000 * GRAIN + 512;

struct Test(AtomicU64);

impl Platform for Test {
    type Base = Shared;
    type Cache = Shared;
    type Storage = Directory;

    fn monotonic_ns(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    fn wall_ns(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    fn random_id(&self) -> [u8; 16] {
        u128::from(self.0.fetch_add(1, Ordering::Relaxed)).to_be_bytes()
    }
}

/// A device that test and volume share.
#[derive(Clone)]
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

struct Bench {
    base: Shared,
    cache: Shared,
    state: tempfile::TempDir,
    opened: AtomicU64,
}

impl Bench {
    fn new() -> Self {
        let bytes = (0..OLD).map(|n| (n / 512 + 1) as u8).collect();
        Self {
            base: Shared(Arc::new(MemoryDevice::from_bytes(bytes))),
            cache: Shared(Arc::new(MemoryDevice::new(64 * GRAIN))),
            state: tempfile::tempdir().unwrap(),
            opened: AtomicU64::new(1),
        }
    }

    async fn open(&self) -> Arc<Volume<Test>> {
        let options = VolumeOptions {
            name: "v".into(),
            id: [9; 16],
            grain: GRAIN as u32,
            components: Components::one(),
            boot_id: [1; 16],
            base_changed: false,
            durability: Durability::Process,
            map_shape: MapShape::DEFAULT,
            cache: CacheOptions::default(),
        };
        let platform = Test(AtomicU64::new(self.opened.fetch_add(1, Ordering::Relaxed) << 32));
        let state = Directory::new(Path::new(self.state.path()));
        Volume::open(platform, self.base.clone(), self.cache.clone(), state, options).await.unwrap().0
    }

    fn grow(&self, volume: &Volume<Test>, size: u64) {
        self.base.0.grow_to(size);
        assert_eq!((volume.grow(), volume.size()), (Ok(size), size));
    }

    fn bytes(&self) -> Vec<u8> {
        self.base.0.to_vec()
    }
}

fn run(test: impl AsyncFnOnce()) {
    Runtime::new(Backend::Auto).unwrap().block_on(test());
}

async fn write(volume: &Arc<Volume<Test>>, offset: u64, bytes: &[u8]) {
    volume.session().write(offset, Buffer::copy_of(bytes), false).await.1.unwrap();
}

async fn view(volume: &Arc<Volume<Test>>, name: &str) -> Vec<u8> {
    let view = volume.view(name).unwrap();
    let (buffer, result) = view.read(0, Buffer::uncleared(view.info().size as usize)).await;
    result.unwrap();
    buffer.to_vec()
}

async fn snapshot(volume: &Arc<Volume<Test>>, name: &str) {
    volume.create_snapshot(name, SnapshotKind::KEPT).await.unwrap();
}

#[test]
fn every_snapshot_keeps_its_size_and_its_bytes() {
    run(async || {
        let bench = Bench::new();
        let volume = bench.open().await;
        let client = volume.session();
        let before = bench.bytes();
        snapshot(&volume, "old").await;
        bench.grow(&volume, LONGER);
        assert_eq!(
            (client.info().size, volume.session().info().size),
            (OLD, LONGER),
            "who is there keeps what it knows"
        );
        // Behind the old end, in a grain that the snapshot has a part of.
        write(&volume, OLD, &[0x77; 1024]).await;
        snapshot(&volume, "middle").await;
        let middle = bench.bytes();
        bench.grow(&volume, LONG);
        write(&volume, 2 * GRAIN, &[0x66; GRAIN as usize]).await;
        write(&volume, LONG - 512, &[0x55; 512]).await;
        snapshot(&volume, "new").await;
        let new = bench.bytes();
        write(&volume, LONG - 512, &[0x44; 512]).await;
        write(&volume, 0, &[0x33; 3 * GRAIN as usize]).await;
        client.write_zeroes(ByteRange::new(0, OLD), Zeroes::default()).await.unwrap();

        let volume = bench.open().await;
        for (name, contents) in [("old", &before), ("middle", &middle), ("new", &new)] {
            assert_eq!(volume.snapshot(name).unwrap().size, contents.len() as u64);
            assert!(view(&volume, name).await == *contents, "{name}");
        }
    });
}

#[test]
fn what_was_saved_short_stays_right_after_growth_and_a_start() {
    run(async || {
        let bench = Bench::new();
        let volume = bench.open().await;
        let before = bench.bytes();
        snapshot(&volume, "old").await;
        write(&volume, 2 * GRAIN, &[0x77; 2048]).await;
        let saved = volume.map_lines("old").unwrap();
        assert_eq!(saved.len(), 1);
        bench.grow(&volume, LONG);
        write(&volume, 2 * GRAIN, &[0x66; GRAIN as usize]).await;
        assert_eq!(volume.map_lines("old").unwrap(), saved, "once is enough");
        drop(volume);
        let volume = bench.open().await;
        assert_eq!(volume.map_lines("old").unwrap(), saved, "it is found again");
        assert!(view(&volume, "old").await == before);
    });
}

#[test]
fn nothing_is_saved_of_what_no_snapshot_had() {
    run(async || {
        let bench = Bench::new();
        let volume = bench.open().await;
        snapshot(&volume, "old").await;
        bench.grow(&volume, LONG);
        write(&volume, 3 * GRAIN, &[1; 64 * GRAIN as usize]).await;
        write(&volume, LONG - GRAIN, &[1; GRAIN as usize]).await;
        assert_eq!(volume.map_lines("old").unwrap(), []);
        assert_eq!(volume.statistics().originals.entries, 0);
        let volume = bench.open().await;
        write(&volume, 4 * GRAIN, &[2; GRAIN as usize]).await;
        assert_eq!(volume.statistics().originals.entries, 0, "after a start neither");
    });
}

#[test]
fn a_snapshot_that_releases_gives_its_short_end_up() {
    run(async || {
        let bench = Bench::new();
        let volume = bench.open().await;
        let info = volume.create_snapshot("own", SnapshotKind::PRIVATE).await.unwrap();
        write(&volume, 2 * GRAIN, &[0x77; 512]).await;
        bench.grow(&volume, LONG);
        volume.release(info.id, &[ByteRange::new(0, OLD)]).await.unwrap();
        assert_eq!(volume.released(info.id).unwrap().bytes(), OLD);
        assert_eq!(volume.snapshot("own").unwrap().captured_bytes, OLD);
        assert_eq!(volume.statistics().originals.entries, 0, "its original is free");
        write(&volume, 0, &[9; 3 * GRAIN as usize]).await;
        assert_eq!(volume.statistics().originals.entries, 0, "nothing more is saved for it");
    });
}

#[test]
fn a_scope_is_of_the_volume_as_it_was() {
    run(async || {
        let bench = Bench::new();
        let volume = bench.open().await;
        let before = bench.bytes();
        let scope = [ByteRange::between(GRAIN, OLD)];
        let info = volume.create_snapshot_of("part", SnapshotKind::KEPT, Some(&scope)).await.unwrap();
        bench.grow(&volume, LONG);
        write(&volume, 0, &[9; 64 * GRAIN as usize]).await;
        assert_eq!(volume.statistics().originals.entries, 2, "the grains in scope");
        drop(volume);
        let volume = bench.open().await;
        assert_eq!(volume.statistics().originals.entries, 2);
        assert_eq!(volume.snapshot_by_id(info.id).unwrap().captured_bytes, 0);
        let view = volume.view("part").unwrap();
        let (bytes, result) = view.read(GRAIN, Buffer::uncleared((OLD - GRAIN) as usize)).await;
        result.unwrap();
        assert!(bytes[..] == before[GRAIN as usize..]);
    });
}
