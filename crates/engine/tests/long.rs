//! Long work goes in pieces: the thread's other tasks, and whoever wants the volume's lock, get their turn in between.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use tzero_block::{ByteRange, Export, FileDevice, Zeroes};
use tzero_engine::{CacheOptions, Platform, SnapshotKind, Volume, VolumeOptions};
use tzero_io::{Backend, Buffer, Directory, Runtime};
use tzero_originals::{Components, MapShape};

const GRAIN: u32 = 4096;
const SIZE: u64 = 64 << 30;

struct Test;

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
        tzero_io::system::random_id()
    }
}

async fn open(directory: &Path) -> Arc<Volume<Test>> {
    let file = |name| File::create_new(directory.join(name)).unwrap();
    let (base, cache) = (file("base"), file("cache"));
    let read_write = |name| File::options().read(true).write(true).open(directory.join(name)).unwrap();
    base.set_len(SIZE).unwrap();
    drop((base, cache));
    let base = FileDevice::from_file(read_write("base"), false).unwrap();
    let cache = FileDevice::from_file(read_write("cache"), false).unwrap().growing_to(1 << 40);
    std::fs::create_dir(directory.join("state")).unwrap();
    let state = Directory::new(directory.join("state"));
    let options = VolumeOptions {
        name: "v".into(),
        id: [9; 16],
        grain: GRAIN,
        components: Components::one(),
        boot_id: [1; 16],
        base_changed: false,
        durability: tzero_engine::Durability::Process,
        map_shape: MapShape::DEFAULT,
        cache: CacheOptions::default(),
    };
    Volume::open(Test, base, cache, state, options).await.unwrap().0
}

/// The output, and how often the future gave way.
async fn counted<F: Future>(future: F) -> (F::Output, usize) {
    let mut future = pin!(future);
    let mut polls = 0;
    let output = poll_fn(|cx| {
        polls += 1;
        future.as_mut().poll(cx)
    });
    (output.await, polls)
}

#[test]
fn a_release_of_everything_and_a_trim_over_it_give_way() {
    let directory = tempfile::tempdir().unwrap();
    Runtime::new(Backend::Auto).unwrap().block_on(async {
        let volume = open(directory.path()).await;
        let session = volume.session();
        volume.create_snapshot("kept", SnapshotKind::KEPT).await.unwrap();
        let private = volume.create_snapshot("private", SnapshotKind::PRIVATE).await.unwrap();
        let gib = ByteRange::new(0, 1 << 30);
        let grains = gib.len() / u64::from(GRAIN);

        let (result, polls) = counted(session.trim(gib, false)).await;
        result.unwrap();
        assert!(polls as u64 > grains / 4096, "{polls} polls of a trim over pending grains");
        let hole = Zeroes { may_unmap: true, ..Zeroes::default() };
        session.write_zeroes(gib, hole).await.unwrap();
        assert_eq!(volume.statistics().originals.entries, 0, "a hole that stays one costs nothing");

        let (result, polls) = counted(volume.release(private.id, &[ByteRange::new(0, SIZE)])).await;
        result.unwrap();
        assert!(polls as u64 > SIZE / u64::from(GRAIN) / 4096, "{polls} polls of a release");
        let (result, polls) = counted(volume.release(private.id, &[ByteRange::new(0, SIZE)])).await;
        result.unwrap();
        assert_eq!(polls, 1, "what was released is not released again");
    });
}

#[test]
fn a_deletion_gives_way() {
    let directory = tempfile::tempdir().unwrap();
    Runtime::new(Backend::Auto).unwrap().block_on(async {
        let volume = open(directory.path()).await;
        let session = volume.session();
        let snapshot = volume.create_snapshot("kept", SnapshotKind::KEPT).await.unwrap();
        for number in 0..64 {
            let (_, result) = session.write(number << 24, Buffer::zeroed(16 << 20), false).await;
            result.unwrap();
        }
        let entries = volume.statistics().originals.entries;
        assert_eq!(entries, (1 << 30) / u64::from(GRAIN));
        let (result, polls) = counted(volume.delete_snapshot(snapshot.id)).await;
        result.unwrap();
        assert!(polls as u64 >= entries / 4096, "{polls} polls of a deletion of {entries} originals");
        assert_eq!(volume.statistics().originals.entries, 0);
    });
}
