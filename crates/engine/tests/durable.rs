//! What waits for a sync, and what does not: the engine over state whose syncs do not come back.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};

use tzero_block::{Action, ByteRange, Export, ExportError, Faulty, Injected, MemoryDevice};
use tzero_engine::{CacheOptions, Durability, Platform, SnapshotError, SnapshotKind, Volume, VolumeOptions};
use tzero_io::{Backend, Buffer, Directory, MappedFile, Mapping, Runtime, Storage};
use tzero_originals::{Components, MapShape};

const SIZE: u64 = 16 * 4096;

/// State whose syncs hang as long as it says so.
struct Stuck {
    directory: Directory,
    hangs: Arc<AtomicBool>,
}

struct StuckFile {
    file: MappedFile,
    hangs: Arc<AtomicBool>,
}

async fn sync(hangs: &AtomicBool) -> io::Result<()> {
    if hangs.load(Ordering::Relaxed) { std::future::pending().await } else { Ok(()) }
}

impl Mapping for StuckFile {
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn load(&self, offset: u64) -> u64 {
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
        Ok(())
    }
    async fn durable(&self) -> io::Result<()> {
        sync(&self.hangs).await
    }
}

impl Storage for Stuck {
    type Mapping = StuckFile;

    fn open(&self, name: &str, len: u64) -> io::Result<StuckFile> {
        Ok(StuckFile { file: self.directory.open(name, len)?, hangs: self.hangs.clone() })
    }
    fn exists(&self, name: &str) -> io::Result<bool> {
        self.directory.exists(name)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.directory.names()
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    async fn names_durable(&self) -> io::Result<()> {
        sync(&self.hangs).await
    }
}

struct Test(AtomicU64);

impl Platform for Test {
    type Base = Faulty<MemoryDevice>;
    type Cache = MemoryDevice;
    type Storage = Stuck;

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

async fn open(
    directory: &tempfile::TempDir,
    hangs: &Arc<AtomicBool>,
    boot: u8,
    durability: Durability,
) -> Arc<Volume<Test>> {
    let options = VolumeOptions {
        name: "v".into(),
        id: [9; 16],
        grain: 4096,
        components: Components::one(),
        boot_id: [boot; 16],
        base_changed: false,
        durability,
        map_shape: MapShape::DEFAULT,
        cache: CacheOptions::default(),
    };
    let storage = Stuck { directory: Directory::new(directory.path()), hangs: hangs.clone() };
    let base = Faulty::new(MemoryDevice::from_bytes(vec![7; SIZE as usize]));
    Volume::open(Test(AtomicU64::new(1)), base, MemoryDevice::new(1 << 20), storage, options).await.unwrap().0
}

/// Takes a snapshot of a part; `None`: it waits for a sync.
async fn take(volume: &Volume<Test>, name: &str, kind: SnapshotKind) -> Option<Result<u64, SnapshotError>> {
    let scope = [ByteRange::new(0, SIZE / 2)];
    let mut creation = pin!(volume.create_snapshot_of(name, kind, Some(&scope)));
    match creation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(created) => Some(created.map(|info| info.epoch.0)),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn a_private_snapshot_waits_for_no_sync_and_is_as_good_as_any() {
    Runtime::new(Backend::Auto).unwrap().block_on(async {
        let (directory, hangs) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let volume = open(&directory, &hangs, 1, Durability::Process).await;
        hangs.store(true, Ordering::Relaxed);
        assert!(take(&volume, "mine", SnapshotKind::KEPT).await.is_none(), "somebody relies on it");
        let epoch = take(&volume, "private", SnapshotKind::PRIVATE).await.unwrap().unwrap();
        volume.session().write(0, Buffer::copy_of(&[1; 8192]), false).await.1.unwrap();
        let view = volume.view("private").unwrap();
        let (bytes, read) = view.read(0, Buffer::zeroed(SIZE as usize / 2)).await;
        read.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        // A death of the process: everything is there. A loss of power: broken, and its epoch does not come again.
        drop(view);
        drop(volume);
        hangs.store(false, Ordering::Relaxed);
        let volume = open(&directory, &hangs, 1, Durability::Process).await;
        assert_eq!(volume.snapshot("private").unwrap().epoch.0, epoch);
        drop(volume);
        let volume = open(&directory, &hangs, 2, Durability::Process).await;
        let next = take(&volume, "next", SnapshotKind::PRIVATE).await.unwrap().unwrap();
        assert!(next > epoch + 1000, "{next}");
    });
}

#[test]
fn where_it_is_to_outlive_a_loss_of_power_it_waits() {
    Runtime::new(Backend::Auto).unwrap().block_on(async {
        let (directory, hangs) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let volume = open(&directory, &hangs, 1, Durability::Power).await;
        hangs.store(true, Ordering::Relaxed);
        assert!(take(&volume, "private", SnapshotKind::PRIVATE).await.is_none());
    });
}

#[test]
fn a_flush_of_our_own_that_fails_is_told_to_every_session_once() {
    Runtime::new(Backend::Auto).unwrap().block_on(async {
        let (directory, hangs) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let volume = open(&directory, &hangs, 1, Durability::Power).await;
        let (one, other) = (volume.session(), volume.session());
        assert_eq!(one.flush().await, Ok(()));
        volume.base().inject(Action::Flush, ByteRange::new(0, u64::MAX), Injected::Fail(5), 0, 1);
        volume.create_snapshot("s", SnapshotKind::KEPT).await.unwrap();
        // The next flush is the one that is to make the snapshot safe: it takes the failure, of which the kernel says no second time.
        {
            let mut confirming = pin!(volume.confirm());
            assert!(confirming.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let late = volume.session();
        for session in [&one, &other, &late] {
            assert_eq!(session.flush().await, Err(ExportError::Io), "the host hears of it all the same");
            assert_eq!(session.flush().await, Ok(()), "once");
        }
        assert_eq!(volume.session().flush().await, Ok(()), "somebody was told");
        assert!(!volume.snapshot("s").unwrap().confirmed);
    });
}
