//! What waits for a sync, and what does not: the engine over state whose syncs do not come back.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use tzero_block::{Action, ByteRange, Export, ExportError, Faulty, Injected, MemoryDevice};
use tzero_engine::{
    CacheOptions, Durability, Platform, SnapshotError, SnapshotKind, SnapshotState, Volume, VolumeOptions,
};
use tzero_io::{Backend, Buffer, Directory, MappedFile, Mapping, Runtime, Storage, timeout};
use tzero_originals::{Components, MapShape};

const SIZE: u64 = 16 * 4096;
const LONGEST_SAVE: Duration = Duration::from_millis(300);

/// State whose syncs hang, and whose stores fail, as long as it says so.
struct Stuck {
    directory: Directory,
    hangs: Arc<AtomicBool>,
    refuses: Arc<AtomicBool>,
}

struct StuckFile {
    file: MappedFile,
    hangs: Arc<AtomicBool>,
    refuses: Arc<AtomicBool>,
}

impl StuckFile {
    fn refuse(&self) -> io::Result<()> {
        if self.refuses.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
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
        self.refuse()?;
        self.file.store(offset, word)
    }
    fn publish(&self, offset: u64, word: u64) -> io::Result<()> {
        self.refuse()?;
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
        let file = self.directory.open(name, len)?;
        Ok(StuckFile { file, hangs: self.hangs.clone(), refuses: self.refuses.clone() })
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
    fn longest_save(&self) -> u64 {
        LONGEST_SAVE.as_nanos() as u64
    }
}

async fn open(
    directory: &tempfile::TempDir,
    hangs: &Arc<AtomicBool>,
    boot: u8,
    durability: Durability,
) -> Arc<Volume<Test>> {
    open_over(directory, (hangs, &Arc::default()), boot, durability).await
}

async fn open_over(
    directory: &tempfile::TempDir,
    (hangs, refuses): (&Arc<AtomicBool>, &Arc<AtomicBool>),
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
    let directory = Directory::new(directory.path());
    let storage = Stuck { directory, hangs: hangs.clone(), refuses: refuses.clone() };
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

#[test]
fn a_change_does_not_go_on_before_it_is_durable_that_a_mark_is_missing() {
    Runtime::new(Backend::Auto).unwrap().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let (hangs, refuses) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let volume = open_over(&directory, (&hangs, &refuses), 1, Durability::Power).await;
        volume.create_snapshot("s", SnapshotKind::KEPT).await.unwrap();
        // Neither can its original be published, nor can be stored that the snapshot is broken.
        refuses.store(true, Ordering::Relaxed);
        hangs.store(true, Ordering::Relaxed);
        let session = volume.session();
        let mut change = pin!(session.write(0, Buffer::copy_of(&[1; 4096]), false));
        let early = timeout(LONGEST_SAVE / 3, change.as_mut()).await;
        assert!(early.is_none(), "a loss of power now would bring the snapshot back");
        assert!(volume.base().inner().to_vec() == [7; SIZE as usize], "nothing has reached the base");
        // The cache says it instead, after as long as a save may take.
        change.await.1.unwrap();
        assert!(matches!(volume.snapshot("s").unwrap().state, SnapshotState::Broken { .. }));
    });
}
