use std::path::Path;

use tzero_block::{Export, Exports};
use tzero_engine::{SnapshotKind, SnapshotState};

use super::*;
use crate::exports::Offered;
use crate::platform::Without;

/// A daemon's volumes without its sockets.
struct Bench {
    scratch: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

fn lies_nowhere(_: &Path, _: &File) -> io::Result<bool> {
    Ok(false)
}

impl Bench {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("state/volumes")).unwrap();
        std::fs::write(scratch.path().join("base"), vec![1; 1 << 20]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bench = Self { scratch, runtime };
        let (volumes, volume) = bench.start(1);
        let engine = Arc::clone(&volume.serving().unwrap().engine);
        let created = volumes.threads.run(move || async move { engine.create_snapshot("s", SnapshotKind::KEPT).await });
        bench.runtime.block_on(created).unwrap().unwrap();
        bench.end(&volumes);
        bench
    }

    /// What a daemon serves after the machine's boot of this number.
    fn start(&self, boot: u8) -> (Arc<Volumes>, Arc<Volume>) {
        let threads = Arc::new(DataThreads::start().unwrap());
        let paths = StatePaths::new(self.scratch.path().join("state"));
        let opening = Opening { boot_id: [boot; 16], crash: None, without: Without::default() };
        let volumes = Arc::new(Volumes::new(paths, threads, opening, lies_nowhere));
        self.runtime.block_on(async {
            volumes.start(&Default::default()).await.unwrap();
            let name: Name = "v".parse().unwrap();
            if volumes.get(&name).is_err() {
                let base = self.scratch.path().join("base");
                volumes.add(&AddVolume::new(name.clone(), base.into())).await.unwrap();
            }
            let volume = volumes.get(&name).unwrap();
            (volumes, volume)
        })
    }

    /// Stops; says how many volumes had no clean stop.
    fn end(&self, volumes: &Arc<Volumes>) -> usize {
        volumes.stopping.store(true, Ordering::Release);
        let failed = self.runtime.block_on(volumes.close());
        volumes.threads.stop();
        failed
    }
}

fn state(volume: &Volume) -> SnapshotState {
    volume.snapshot(&"s".parse().unwrap()).unwrap().state
}

#[test]
fn requests_that_still_run_are_no_clean_stop() {
    let bench = Bench::new();
    let (volumes, volume) = bench.start(2);
    assert_eq!(state(&volume), SnapshotState::Live, "the last stop was clean");
    let session = Offered(Arc::clone(&volumes)).open("v").unwrap();
    assert_eq!(bench.end(&volumes), 1);
    drop((session, volume, volumes));

    let (volumes, volume) = bench.start(3);
    assert!(matches!(state(&volume), SnapshotState::Broken { .. }), "what ran on may have changed anything");
    assert_eq!(bench.end(&volumes), 0);
}

#[test]
fn a_view_that_is_read_does_not_matter() {
    let bench = Bench::new();
    let (volumes, volume) = bench.start(1);
    let session = Offered(Arc::clone(&volumes)).open("v@s").unwrap();
    assert_eq!(bench.end(&volumes), 0);
    drop((session, volume, volumes));
    let (volumes, volume) = bench.start(2);
    assert_eq!(state(&volume), SnapshotState::Live);
    assert_eq!(bench.end(&volumes), 0);
}

#[test]
fn who_waits_while_a_volume_is_closed_is_refused_afterwards() {
    let bench = Bench::new();
    let (volumes, volume) = bench.start(1);
    let waiting = {
        let gate = bench.runtime.block_on(volume.gate.write());
        let volume = Arc::clone(&volume);
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            tell.send(()).unwrap();
            volume.enter_blocking().map(drop).map_err(|refusal| refusal.to_string())
        });
        told.recv().unwrap();
        bench.runtime.block_on(volume_close(&volumes)).unwrap();
        drop(gate);
        waiting
    };
    assert!(waiting.join().unwrap().unwrap_err().contains("closed meanwhile"));
    assert!(matches!(volume.enter(), Err(Refusal::Closed(_))));
    drop(volume);
    bench.end(&volumes);
}

async fn volume_close(volumes: &Volumes) -> Result<(), Refusal> {
    volumes.all()[0].close(&volumes.threads).await
}

#[test]
fn a_record_that_cannot_be_written_stops_no_host() {
    let bench = Bench::new();
    // Another file in the base's place would be put on record, but there is no place for the new record.
    let base = bench.scratch.path().join("base");
    std::fs::remove_file(&base).unwrap();
    std::fs::write(&base, vec![2; 1 << 20]).unwrap();
    std::fs::create_dir(bench.scratch.path().join("state/volumes/v/volume.json~new")).unwrap();
    let (volumes, volume) = bench.start(2);
    assert!(volume.serving().is_ok());
    assert_eq!(volume.describe().notices.len(), 1);
    assert!(matches!(state(&volume), SnapshotState::Broken { .. }));
    bench.end(&volumes);
}

#[test]
fn a_volume_that_is_served_by_now_is_not_removed_for_the_one_that_was_not() {
    let bench = Bench::new();
    let (volumes, volume) = bench.start(1);
    let before = Arc::new(Volume::failed(
        volume.name.clone(),
        volume.record().map(|record| VolumeRecord::clone(&record)),
        volume.directory.clone(),
        "no base",
    ));
    assert!(matches!(volumes.take_out(&before), Err(Refusal::BeingChanged(_))));
    assert!(volumes.get(&volume.name).unwrap().serving().is_ok());
    let deleted = bench.runtime.block_on(volumes.delete_dormant(&before, volume.snapshots()[0].id));
    assert!(matches!(deleted, Err(Refusal::BeingChanged(_))));
    assert_eq!(state(&volume), SnapshotState::Live);
    bench.end(&volumes);
}

/// A volume with a megabyte of memory for originals, of which a snapshot was overwritten, and the file in memory.
fn remembering(bench: &Bench, boot: u8) -> std::path::PathBuf {
    let (volumes, _) = bench.start(boot);
    std::fs::write(bench.scratch.path().join("other"), vec![3; 1 << 20]).unwrap();
    let base = bench.scratch.path().join("other");
    let request =
        AddVolume { memory_limit: Some(tzero_api::Size(1 << 20)), ..AddVolume::new("m".parse().unwrap(), base.into()) };
    let volume = bench.runtime.block_on(volumes.add(&request)).unwrap();
    let serving = volume.serving().unwrap();
    let (engine, path) = (Arc::clone(&serving.engine), serving.tiers.memory.as_ref().unwrap().path.clone());
    let written = volumes.threads.run(move || async move {
        engine.create_snapshot("old", SnapshotKind::KEPT).await.unwrap();
        let write = async |byte: u8, offset: u64| {
            let session = engine.session();
            session.write(offset, tzero_io::Buffer::copy_of(&[byte; 4096]), false).await.1.unwrap();
        };
        write(4, 0).await;
        write(4, 8192).await;
        engine.create_snapshot("new", SnapshotKind::KEPT).await.unwrap();
        write(5, 0).await;
    });
    bench.runtime.block_on(written).unwrap();
    drop(volume);
    assert_eq!(bench.end(&volumes), 0);
    path
}

/// The first byte of a grain of a view; `None` where it cannot be read.
fn seen(bench: &Bench, volumes: &Arc<Volumes>, view: &str, offset: u64) -> Option<u8> {
    let session = Offered(Arc::clone(volumes)).open(view).ok()?;
    let read = volumes.threads.run(move || async move { session.read(offset, tzero_io::Buffer::zeroed(4096)).await });
    let (bytes, result) = bench.runtime.block_on(read).unwrap();
    result.ok().map(|()| bytes[0])
}

#[test]
fn originals_in_memory_outlive_the_machine_after_a_clean_stop() {
    let bench = Bench::new();
    let memory = remembering(&bench, 2);
    std::fs::remove_file(&memory).unwrap();
    let (volumes, _) = bench.start(3);
    let seen = |view, offset| seen(&bench, &volumes, view, offset);
    assert_eq!([seen("m@old", 0), seen("m@old", 8192)], [Some(3); 2]);
    assert_eq!([seen("m@new", 0), seen("m@new", 8192), seen("m", 0)], [Some(4), Some(4), Some(5)]);
    assert!(!bench.scratch.path().join("state/volumes/m/originals-put-by").exists(), "memory has them again");
    bench.end(&volumes);
    std::fs::remove_file(memory).unwrap();
}

#[test]
fn originals_in_memory_that_were_not_put_by_cost_who_needs_them() {
    let bench = Bench::new();
    let memory = remembering(&bench, 2);
    std::fs::remove_file(&memory).unwrap();
    // As if there had been time for two of the three.
    let put_by = bench.scratch.path().join("state/volumes/m/originals-put-by");
    let file = std::fs::OpenOptions::new().write(true).open(&put_by).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4096 - 16).unwrap();
    let (volumes, _) = bench.start(3);
    let state =
        |name: &str| volumes.get(&"m".parse().unwrap()).unwrap().snapshot(&name.parse().unwrap()).unwrap().state;
    assert_eq!(state("old"), SnapshotState::Live, "what it needs was put by first");
    let lost = SnapshotState::Broken { reason: tzero_originals::BrokenReason::MemoryLost, at: 0 };
    assert_eq!(state("new"), lost);
    let seen = |view, offset| seen(&bench, &volumes, view, offset);
    assert_eq!([seen("m@old", 0), seen("m@old", 8192), seen("m@new", 0)], [Some(3), Some(3), None]);
    bench.end(&volumes);
    drop(volumes);
    // The next start knows the new memory.
    let (volumes, _) = bench.start(3);
    assert_eq!(self::seen(&bench, &volumes, "m@old", 0), Some(3));
    bench.end(&volumes);
    std::fs::remove_file(memory).unwrap();
}
