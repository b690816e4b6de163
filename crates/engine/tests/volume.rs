//! The engine over memory and real state files, step by step. Races are the simulator's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tzero_block::{Action, ByteRange, Export, ExportError, Faulty, Injected, MemoryDevice, Zeroes};
use tzero_engine::{CacheOptions, OnFull, Platform, SnapshotKind, SnapshotState, Volume, VolumeOptions};
use tzero_io::{Backend, Buffer, Directory, Runtime};
use tzero_originals::{BrokenReason, Components, MapShape};

const GRAIN: u32 = 4096;
const SIZE: u64 = 20 * 4096 + 1536;

struct Test {
    ids: AtomicU64,
}

impl Platform for Test {
    type Base = Arc2<Faulty<MemoryDevice>>;
    type Cache = Arc2<Faulty<MemoryDevice>>;
    type Storage = Directory;

    fn monotonic_ns(&self) -> u64 {
        tzero_io::system::monotonic_ns()
    }

    fn wall_ns(&self) -> u64 {
        tzero_io::system::wall_ns()
    }

    /// Two grains.
    fn increment(&self) -> u64 {
        2 * u64::from(GRAIN)
    }

    fn random_id(&self) -> [u8; 16] {
        u128::from(self.ids.fetch_add(1, Ordering::Relaxed) ^ tzero_io::system::monotonic_ns() << 20).to_be_bytes()
    }
}

/// A device that test and volume share.
struct Arc2<D>(Arc<D>);

impl<D: tzero_block::BlockDevice> tzero_block::BlockDevice for Arc2<D> {
    fn geometry(&self) -> tzero_block::Geometry {
        self.0.geometry()
    }
    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), tzero_block::Error>) {
        self.0.read(offset, buffer).await
    }
    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), tzero_block::Error>) {
        self.0.write(offset, buffer, fua).await
    }
    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), tzero_block::Error> {
        self.0.write_zeroes(range, zeroes).await
    }
    fn can_zero_fast(&self, range: ByteRange, zeroes: Zeroes) -> bool {
        self.0.can_zero_fast(range, zeroes)
    }
    async fn discard(&self, range: ByteRange) -> Result<(), tzero_block::Error> {
        self.0.discard(range).await
    }
    async fn flush(&self) -> Result<(), tzero_block::Error> {
        self.0.flush().await
    }
    async fn extents(&self, range: ByteRange) -> Result<Vec<tzero_block::Extent>, tzero_block::Error> {
        self.0.extents(range).await
    }
}

struct Fixture {
    base: Arc<Faulty<MemoryDevice>>,
    cache: Arc<Faulty<MemoryDevice>>,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new(cache_slots: u64) -> Self {
        let bytes = (0..SIZE).map(|n| (n / 512 + 1) as u8).collect();
        Self {
            base: Arc::new(Faulty::new(MemoryDevice::from_bytes(bytes))),
            cache: Arc::new(Faulty::new(MemoryDevice::new(cache_slots * u64::from(GRAIN)))),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    async fn open(&self) -> Arc<Volume<Test>> {
        self.open_at(self.directory.path(), [1; 16], false).await.0
    }

    async fn open_at(
        &self,
        state: &Path,
        boot_id: [u8; 16],
        base_changed: bool,
    ) -> (Arc<Volume<Test>>, tzero_engine::Recovered) {
        let options = VolumeOptions {
            name: "v".into(),
            id: [9; 16],
            grain: GRAIN,
            components: Components::one(),
            boot_id,
            base_changed,
            durability: tzero_engine::Durability::Process,
            map_shape: MapShape::DEFAULT,
            cache: CacheOptions::default(),
        };
        let platform = Test { ids: AtomicU64::new(1) };
        let (base, cache) = (Arc2(self.base.clone()), Arc2(self.cache.clone()));
        Volume::open(platform, base, cache, Directory::new(state), options).await.unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        self.base.inner().to_vec()
    }
}

fn run(test: impl AsyncFnOnce()) {
    Runtime::new(Backend::Auto).unwrap().block_on(test());
}

async fn write(volume: &Arc<Volume<Test>>, offset: u64, bytes: &[u8]) {
    volume.session().write(offset, Buffer::copy_of(bytes), false).await.1.unwrap();
}

async fn view(volume: &Arc<Volume<Test>>, name: &str) -> Result<Vec<u8>, ExportError> {
    let view = volume.view(name).map_err(|_| ExportError::Unknown)?;
    let (buffer, result) = view.read(0, Buffer::uncleared(SIZE as usize)).await;
    result.map(|()| buffer.to_vec())
}

#[test]
fn a_view_keeps_t0_over_every_kind_of_change() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        write(&volume, 100, &[0xEE; 9000]).await;
        write(&volume, SIZE - 3, &[0xEE; 3]).await;
        let session = volume.session();
        session.write_zeroes(ByteRange::new(30_000, 5_000), Zeroes::default()).await.unwrap();
        session.trim(ByteRange::new(40_000, 20_000), false).await.unwrap();
        let t1 = fixture.bytes();
        assert_ne!(t0, t1);
        volume.create_snapshot("b", SnapshotKind::KEPT).await.unwrap();
        write(&volume, 0, &[0xDD; 5000]).await;
        assert!(view(&volume, "a").await.unwrap() == t0);
        assert!(view(&volume, "b").await.unwrap() == t1);
        // Grains 0-2, 7, 8 and the short last for a, grains 0 and 1 for b.
        assert_eq!(volume.statistics().originals.entries, 8);
        assert_eq!(volume.map_lines("a").unwrap().len(), 6);
        assert_eq!(volume.map_lines("b").unwrap().len(), 2);
    });
}

#[test]
fn deleting_frees_only_what_nobody_else_needs() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        let mut ids = Vec::new();
        for name in ["a", "b", "c"] {
            ids.push(volume.create_snapshot(name, SnapshotKind::KEPT).await.unwrap().id);
        }
        write(&volume, 0, &[1; 4096]).await;
        assert_eq!(volume.statistics().originals.entries, 1, "one original serves all three");
        volume.delete_snapshot(ids[1]).await.unwrap();
        volume.delete_snapshot(ids[2]).await.unwrap();
        assert!(view(&volume, "a").await.unwrap() == t0);
        assert_eq!(view(&volume, "c").await.map(drop), Err(ExportError::Unknown));
        volume.delete_snapshot(ids[0]).await.unwrap();
        let usage = volume.statistics().originals;
        assert_eq!((usage.entries, usage.bytes), (0, 0));
    });
}

#[test]
fn released_ranges_cost_nothing_and_answer_errors() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        let snapshot = volume.create_snapshot("p", SnapshotKind::PRIVATE).await.unwrap();
        write(&volume, 0, &[1; 4096]).await;
        // The second grain is only touched, not covered: it stays needed.
        volume.release(snapshot.id, &[ByteRange::new(0, 6000)]).await.unwrap();
        assert_eq!(volume.statistics().originals.entries, 0);
        write(&volume, 0, &[2; 4096]).await;
        assert_eq!(volume.statistics().originals.entries, 0);
        write(&volume, 4096, &[2; 4096]).await;
        assert_eq!(volume.statistics().originals.entries, 1);
        assert_eq!(view(&volume, "p").await.map(drop), Err(ExportError::Io));
        drop(volume);
        let volume = fixture.open().await;
        assert_eq!(volume.snapshot("p").unwrap().captured_bytes, 4096);
        assert_eq!(view(&volume, "p").await.map(drop), Err(ExportError::Io));
    });
}

#[test]
fn a_killed_process_finds_its_snapshots() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        let id = volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap().id;
        write(&volume, 5000, &[7; 20_000]).await;
        let before = volume.statistics().originals;
        drop(volume);
        let volume = fixture.open().await;
        assert_eq!(volume.snapshot("a").unwrap().id, id);
        assert_eq!(volume.statistics().originals, before);
        assert!(view(&volume, "a").await.unwrap() == t0);
        write(&volume, 5000, &[8; 50_000]).await;
        assert!(view(&volume, "a").await.unwrap() == t0);
    });
}

#[test]
fn a_lost_machine_breaks_snapshots_and_a_clean_stop_does_not() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        volume.close().await.unwrap();
        drop(volume);
        let (volume, recovered) = fixture.open_at(fixture.directory.path(), [2; 16], false).await;
        assert_eq!(recovered.snapshots[0].state, SnapshotState::Live);
        drop(volume);
        let (volume, recovered) = fixture.open_at(fixture.directory.path(), [3; 16], false).await;
        assert_eq!(recovered.snapshots[0].state, SnapshotState::Broken { reason: BrokenReason::PowerLost, at: 0 });
        assert_eq!(view(&volume, "a").await.map(drop), Err(ExportError::Unknown));
    });
}

#[test]
fn a_full_cache_breaks_the_snapshot_and_not_the_host() {
    run(async || {
        let fixture = Fixture::new(2);
        let volume = fixture.open().await;
        let snapshot = volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        for grain in 0..5 {
            write(&volume, grain * 4096, &[0xAB; 4096]).await;
        }
        assert_eq!(&fixture.bytes()[..5 * 4096], &[0xAB; 5 * 4096][..]);
        let state = volume.snapshot("a").unwrap().state;
        assert_eq!(state, SnapshotState::Broken { reason: BrokenReason::CacheFull, at: 2 * 4096 });
        volume.delete_snapshot(snapshot.id).await.unwrap();
        assert_eq!(volume.statistics().originals.entries, 0);
    });
}

#[test]
fn a_failing_cache_breaks_and_an_unreadable_base_costs_its_grain_only() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        fixture.base.inject(Action::Read, ByteRange::new(8192, 4096), Injected::Fail(5), 0, u64::MAX);
        write(&volume, 0, &[0xAB; 20_000]).await;
        fixture.base.heal();
        let view = volume.view("a").unwrap();
        let (buffer, result) = view.read(0, Buffer::uncleared(8192)).await;
        result.unwrap();
        assert_eq!(&buffer[..], &t0[..8192]);
        assert_eq!(view.read(8192, Buffer::uncleared(512)).await.1, Err(ExportError::Io));
        let (buffer, result) = view.read(12288, Buffer::uncleared(20_000)).await;
        result.unwrap();
        assert_eq!(&buffer[..], &t0[12288..32288]);
        fixture.cache.inject(Action::Write, ByteRange::new(0, u64::MAX), Injected::Fail(5), 0, 1);
        write(&volume, 15 * 4096, &[0xAB; 512]).await;
        let state = volume.snapshot("a").unwrap().state;
        assert_eq!(state, SnapshotState::Broken { reason: BrokenReason::SaveFailed, at: 15 * 4096 });
        assert_eq!(view.read(0, Buffer::uncleared(512)).await.1, Err(ExportError::Io));
    });
}

#[test]
fn a_damaged_payload_is_an_error_never_bytes() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        write(&volume, 0, &[0xAB; 4096]).await;
        let cache = Arc2(fixture.cache.clone());
        tzero_block::BlockDevice::write(&cache, 17, Buffer::copy_of(&[0xFF]), false).await.1.unwrap();
        assert_eq!(volume.snapshot("a").unwrap().damaged_bytes, 0);
        for _ in 0..2 {
            assert_eq!(view(&volume, "a").await.map(drop), Err(ExportError::Io));
            assert_eq!(volume.snapshot("a").unwrap().damaged_bytes, u64::from(GRAIN));
        }
    });
}

#[test]
fn an_ended_snapshot_keeps_what_it_had() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        let snapshot = volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        volume.create_snapshot("b", SnapshotKind::KEPT).await.unwrap();
        write(&volume, 0, &[1; 4096]).await;
        volume.end_snapshot(snapshot.id).await.unwrap();
        write(&volume, 4096, &[1; 4096]).await;
        assert_eq!(volume.map_lines("a").unwrap().len(), 1);
        assert!(volume.view("a").is_err());
        assert!(volume.view("b").is_ok());
        let other = volume.snapshot("b").unwrap().id;
        volume.delete_snapshot(other).await.unwrap();
        assert_eq!(volume.statistics().originals.entries, 1, "of what came after its end it has no use");
    });
}

#[test]
fn views_refuse_changes() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        let view = volume.view("a").unwrap();
        assert_eq!(view.write(0, Buffer::zeroed(512), false).await.1, Err(ExportError::ReadOnly));
        assert_eq!(view.trim(ByteRange::new(0, 512), false).await, Err(ExportError::ReadOnly));
        let zeroed = view.write_zeroes(ByteRange::new(0, 512), Zeroes::default()).await;
        assert_eq!(zeroed, Err(ExportError::ReadOnly));
    });
}

#[test]
fn a_scope_is_all_that_is_saved_and_shown() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        let scope = [ByteRange::new(5000, 8000), ByteRange::new(SIZE - 10, 10)];
        volume.create_snapshot_of("a", SnapshotKind::KEPT, Some(&scope)).await.unwrap();
        write(&volume, 0, &[0xEE; SIZE as usize]).await;
        // Grains 1 to 3, and the short last.
        assert_eq!(volume.statistics().originals.entries, 4);
        let read = async |volume: &Arc<Volume<Test>>, range: ByteRange| {
            let (buffer, result) =
                volume.view("a").unwrap().read(range.start(), Buffer::uncleared(range.len() as usize)).await;
            result.map(|()| buffer.to_vec())
        };
        drop(volume);
        let volume = fixture.open().await;
        assert_eq!(volume.snapshot("a").unwrap().scope.as_deref(), Some(&scope[..]), "it survives");
        assert_eq!(read(&volume, scope[0]).await.unwrap(), &t0[5000..13_000]);
        assert_eq!(read(&volume, scope[1]).await.unwrap(), &t0[SIZE as usize - 10..]);
        for outside in [ByteRange::new(4999, 2), ByteRange::new(12_999, 2), ByteRange::new(60_000, 1)] {
            assert_eq!(read(&volume, outside).await, Err(ExportError::Io), "{outside}");
        }
        let bad = [ByteRange::new(SIZE - 1, 2)];
        let error = volume.create_snapshot_of("b", SnapshotKind::KEPT, Some(&bad)).await.unwrap_err();
        assert!(matches!(error, tzero_engine::SnapshotError::Scope), "{error}");
    });
}

#[test]
fn the_snapshot_that_frees_the_most_breaks_first() {
    run(async || {
        let fixture = Fixture::new(6);
        let volume = fixture.open().await;
        volume.create_snapshot("small", SnapshotKind::KEPT).await.unwrap();
        write(&volume, 0, &[1; 2 * 4096]).await;
        let t0 = fixture.bytes();
        volume
            .create_snapshot("large", SnapshotKind { on_full: OnFull::Wait(60_000), ..SnapshotKind::KEPT })
            .await
            .unwrap();
        write(&volume, 0, &[2; 4 * 4096]).await;
        let broken = |name: &str| matches!(volume.snapshot(name).unwrap().state, SnapshotState::Broken { .. });
        // Two grains of the first epoch are the small one's own, two of the second the large one's, two are shared.
        write(&volume, 5 * 4096, &[3; 4096]).await;
        assert!(broken("small") && !broken("large"), "the one that breaks at once goes before the one that waits");
        assert!(view(&volume, "large").await.unwrap() == t0);
        write(&volume, 6 * 4096, &[3; 4 * 4096]).await;
        assert!(broken("large"), "without a mover nobody waits");
    });
}

#[test]
fn where_writes_are_to_fail_they_do_and_the_snapshot_stands() {
    run(async || {
        let fixture = Fixture::new(2);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        let kind = SnapshotKind { on_full: OnFull::FailWrites, ..SnapshotKind::KEPT };
        let snapshot = volume.create_snapshot("a", kind).await.unwrap();
        write(&volume, 0, &[1; 2 * 4096]).await;
        let before = fixture.bytes();
        let session = volume.session();
        let (_, result) = session.write(2 * 4096, Buffer::copy_of(&[2; 4096]), false).await;
        assert_eq!(result, Err(ExportError::NoSpace));
        let result = session.write_zeroes(ByteRange::new(3 * 4096, 4096), Zeroes::default()).await;
        assert_eq!(result, Err(ExportError::NoSpace));
        assert!(fixture.bytes() == before, "nothing of a write that failed is there");
        write(&volume, 0, &[3; 4096]).await;
        assert!(view(&volume, "a").await.unwrap() == t0);
        volume.delete_snapshot(snapshot.id).await.unwrap();
        write(&volume, 2 * 4096, &[2; 4096]).await;
    });
}

#[test]
fn with_a_mover_at_work_a_write_waits_for_its_space() {
    run(async || {
        let fixture = Fixture::new(2);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        let kind = SnapshotKind { on_full: OnFull::Wait(60_000), ..SnapshotKind::PRIVATE };
        let snapshot = volume.create_snapshot("a", kind).await.unwrap();
        let at_work = volume.mover_at_work();
        write(&volume, 0, &[1; 2 * 4096]).await;
        assert!(volume.pressure().nearly_full);
        let writer = tzero_io::spawn({
            let volume = Arc::clone(&volume);
            async move { write(&volume, 2 * 4096, &[2; 4096]).await }
        });
        tzero_io::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(fixture.bytes()[2 * 4096..3 * 4096], t0[2 * 4096..3 * 4096], "it waits");
        volume.release(snapshot.id, &[ByteRange::new(0, 4096)]).await.unwrap();
        writer.await;
        assert_eq!(volume.snapshot("a").unwrap().state, SnapshotState::Live);
        drop(at_work);
        write(&volume, 3 * 4096, &[2; 4096]).await;
        assert!(matches!(volume.snapshot("a").unwrap().state, SnapshotState::Broken { .. }), "nobody makes space now");
    });
}

#[test]
fn increments_of_a_large_change_land_each_for_itself_and_t0_does_not_split_it() {
    run(async || {
        let fixture = Fixture::new(4);
        let volume = fixture.open().await;
        let (t0, grain) = (fixture.bytes(), GRAIN as usize);
        let kind = SnapshotKind { on_full: OnFull::Wait(60_000), ..SnapshotKind::PRIVATE };
        let snapshot = volume.create_snapshot("a", kind).await.unwrap();
        let at_work = volume.mover_at_work();
        let writer = tzero_io::spawn({
            let volume = Arc::clone(&volume);
            async move { write(&volume, 0, &[1; 6 * GRAIN as usize]).await }
        });
        tzero_io::sleep(std::time::Duration::from_millis(100)).await;
        let now = fixture.bytes();
        assert!(now[..4 * grain] == [1; 4 * GRAIN as usize], "what has its originals has landed");
        assert!(now[4 * grain..] == t0[4 * grain..], "the rest waits for space");
        volume.create_snapshot("b", SnapshotKind::KEPT).await.unwrap();
        // What has landed is waited for by nobody.
        let (landed, result) = volume.view("b").unwrap().read(0, Buffer::uncleared(4 * grain)).await;
        assert!(result.is_ok() && landed[..] == [1; 4 * GRAIN as usize]);
        volume.release(snapshot.id, &[ByteRange::new(0, 4 * u64::from(GRAIN))]).await.unwrap();
        writer.await;
        let after = fixture.bytes();
        assert!(after[..6 * grain] == [1; 6 * GRAIN as usize] && after[6 * grain..] == t0[6 * grain..]);
        assert!(view(&volume, "b").await.unwrap() == after, "all of it came before the second T0");
        assert_eq!(volume.snapshot("a").unwrap().state, SnapshotState::Live);
        drop(at_work);
    });
}

#[test]
fn what_is_saved_ahead_is_good_and_costs_the_changes_nothing() {
    run(async || {
        let (fixture, grain) = (Fixture::new(80), u64::from(GRAIN));
        let volume = fixture.open().await;
        // Zeroes take no space.
        write(&volume, 0, &[0; GRAIN as usize]).await;
        let t0 = fixture.bytes();
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        // A grain that cannot be read at the moment is left to the change that needs it; its neighbours are saved.
        fixture.base.inject(Action::Read, ByteRange::new(grain, grain), Injected::Fail(5), 0, u64::MAX);
        assert_eq!(volume.save_ahead(ByteRange::new(0, 3 * grain)).await, 3 * grain);
        let saved = volume.saved_ahead();
        assert_eq!((saved.bytes(), saved.stored()), (2 * grain, grain));
        fixture.base.heal();
        assert_eq!(volume.save_ahead(ByteRange::new(0, SIZE)).await, SIZE);
        assert_eq!((saved.bytes(), saved.stored()), (SIZE, 20 * grain));
        let entries = volume.statistics().originals.entries;
        write(&volume, 0, &vec![7; SIZE as usize]).await;
        assert_eq!(volume.statistics().originals.entries, entries, "nothing was left to save");
        assert!(view(&volume, "a").await.unwrap() == t0);
        // Past the half of the cache nothing is saved ahead.
        volume.create_snapshot("b", SnapshotKind::KEPT).await.unwrap();
        assert_eq!(volume.save_ahead(ByteRange::new(0, SIZE)).await, SIZE, "it was not half full");
        volume.create_snapshot("c", SnapshotKind::KEPT).await.unwrap();
        assert_eq!(volume.save_ahead(ByteRange::new(0, SIZE)).await, 0, "it is");
        assert_eq!(volume.statistics().originals.entries, 2 * entries);
    });
}

#[test]
fn what_was_delivered_gives_its_slots_when_they_are_wanted_and_not_before() {
    run(async || {
        let fixture = Fixture::new(3);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        let kind = SnapshotKind { private: false, ..SnapshotKind::PRIVATE };
        let snapshot = volume.create_snapshot("a", kind).await.unwrap();
        write(&volume, 0, &[1; 3 * 4096]).await;
        // All of the first two grains, half of the third.
        volume.mark_read(snapshot.id, &[ByteRange::new(0, 2 * 4096 + 2048)]).unwrap();
        let states: Vec<_> = volume.map_lines("a").unwrap().iter().map(|line| line.read).collect();
        assert_eq!(states, [true, true, false]);
        assert!(view(&volume, "a").await.unwrap() == t0, "it can be read again as long as no slot is wanted");
        write(&volume, 4 * 4096, &[1; 2 * 4096]).await;
        let view = volume.view("a").unwrap();
        for grain in 0..6_u64 {
            let (bytes, result) = view.read(grain * 4096, Buffer::uncleared(4096)).await;
            match grain {
                0 | 1 => assert_eq!(result, Err(ExportError::Io), "its slot was wanted"),
                _ => assert!(result.is_ok() && bytes[..] == t0[grain as usize * 4096..][..4096]),
            }
        }
        assert_eq!(volume.snapshot("a").unwrap().state, SnapshotState::Live);
    });
}

#[test]
fn what_was_delivered_is_used_again_before_the_cache_grows() {
    run(async || {
        let fixture = Fixture::new(20);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        let kind = SnapshotKind { private: false, ..SnapshotKind::PRIVATE };
        let snapshot = volume.create_snapshot("a", kind).await.unwrap();
        write(&volume, 0, &[1; 4 * 4096]).await;
        for _ in 0..100 {
            volume.mark_read(snapshot.id, &[ByteRange::new(0, 4 * 4096)]).unwrap();
        }
        for grain in 8..12 {
            write(&volume, grain * 4096, &[1; 4096]).await;
            assert_eq!(volume.statistics().originals.bytes, 4 * 4096, "each takes a slot that was had");
        }
        let view = volume.view("a").unwrap();
        for grain in 0..16_u64 {
            let (bytes, result) = view.read(grain * 4096, Buffer::uncleared(4096)).await;
            match grain {
                0..4 => assert_eq!(result, Err(ExportError::Io), "its slot is another's"),
                _ => assert!(result.is_ok() && bytes[..] == t0[grain as usize * 4096..][..4096]),
            }
        }
    });
}

#[test]
fn a_slot_that_two_hold_is_used_again_when_both_have_had_it() {
    run(async || {
        let fixture = Fixture::new(20);
        let volume = fixture.open().await;
        let kind = SnapshotKind { private: false, ..SnapshotKind::PRIVATE };
        let kept = volume.create_snapshot("kept", SnapshotKind::KEPT).await.unwrap();
        let one = volume.create_snapshot("one", kind).await.unwrap();
        let two = volume.create_snapshot("two", kind).await.unwrap();
        let whole = [ByteRange::new(0, 2 * 4096)];
        write(&volume, 0, &[1; 2 * 4096]).await;
        let (t0, used) = (view(&volume, "kept").await.unwrap(), || volume.statistics().originals.bytes / 4096);
        volume.mark_read(one.id, &whole).unwrap();
        volume.mark_read(two.id, &whole).unwrap();
        write(&volume, 8 * 4096, &[1; 4096]).await;
        for name in ["one", "two", "kept"] {
            assert!(view(&volume, name).await.unwrap() == t0, "an error there would give no slot");
        }
        assert_eq!(used(), 3);
        volume.delete_snapshot(kept.id).await.unwrap();
        write(&volume, 9 * 4096, &[1; 4096]).await;
        assert_eq!(used(), 3, "two slots were had by both who are left, and one of them serves again");
        for name in ["one", "two"] {
            assert_eq!(view(&volume, name).await.map(drop), Err(ExportError::Io));
        }
    });
}

#[test]
fn the_room_of_the_file_system_counts_like_a_limit() {
    run(async || {
        let fixture = Fixture::new(1 << 20);
        let volume = fixture.open().await;
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        write(&volume, 0, &[1; 4 * 4096]).await;
        assert!(!volume.pressure().nearly_full);
        volume.has_room_for(4096);
        assert!(volume.pressure().nearly_full);
        assert_eq!(volume.save_ahead(ByteRange::new(0, SIZE)).await, 0, "more than half of what there is room for");
        volume.has_room_for(8 * 4096);
        assert_eq!(volume.save_ahead(ByteRange::new(0, SIZE)).await, SIZE);
    });
}

#[test]
fn a_change_waits_as_long_as_one_may_however_many_saves_it_needs() {
    run(async || {
        let fixture = Fixture::new(10);
        let volume = fixture.open().await;
        let snapshot = volume.create_snapshot("a", SnapshotKind::PRIVATE).await.unwrap();
        let at_work = volume.mover_at_work();
        write(&volume, 0, &[1; 10 * 4096]).await;
        let writer = tzero_io::spawn({
            let volume = Arc::clone(&volume);
            async move { write(&volume, 10 * 4096, &[2; 10 * 4096]).await }
        });
        // No save by itself would wait for more than a bit, all together do.
        for grain in (0..10).step_by(2) {
            tzero_io::sleep(std::time::Duration::from_millis(12)).await;
            let _ = volume.release(snapshot.id, &[ByteRange::new(grain * 4096, 2 * 4096)]).await;
        }
        writer.await;
        let state = volume.snapshot("a").unwrap().state;
        assert!(matches!(state, SnapshotState::Broken { reason: BrokenReason::CacheFull, .. }), "{state:?}");
        drop(at_work);
    });
}

#[test]
fn a_base_that_cannot_be_reached_costs_the_change_and_no_original() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        let t0 = fixture.bytes();
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        fixture.base.inject(Action::Read, ByteRange::new(0, SIZE), Injected::Unreachable, 0, u64::MAX);
        let (_, result) = volume.session().write(0, Buffer::copy_of(&[1; 8 * 4096]), false).await;
        assert_eq!(result, Err(ExportError::Io));
        assert_eq!((volume.statistics().originals.entries, volume.bad_originals().grains), (0, 0));
        assert_eq!(volume.save_ahead(ByteRange::new(0, SIZE)).await, 0);
        fixture.base.heal();
        assert!(fixture.bytes() == t0, "nothing was changed");
        write(&volume, 0, &[1; 8 * 4096]).await;
        assert!(view(&volume, "a").await.unwrap() == t0);
    });
}

#[test]
fn zeroes_that_cannot_be_fast_save_nothing() {
    run(async || {
        let fixture = Fixture::new(64);
        let volume = fixture.open().await;
        volume.create_snapshot("a", SnapshotKind::KEPT).await.unwrap();
        let zeroes = Zeroes { fast: true, ..Zeroes::default() };
        fixture.base.zero_slowly();
        let result = volume.session().write_zeroes(ByteRange::new(0, 8 * 4096), zeroes).await;
        assert_eq!(result, Err(ExportError::Unsupported));
        assert_eq!(volume.statistics().originals.entries, 0);
    });
}
