//! Opening a volume's engine.

use std::fs::{File, OpenOptions};
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use tzero_block::FileDevice;
use tzero_engine::VolumeOptions;
use tzero_io::{Directory, LockError, Sender};
use tzero_originals::SnapshotId;

use crate::base::{self, OpenBase, Patience};
use crate::identity::CleanStop;
use crate::platform::{CrashPlan, Production};
use crate::record::{VolumeDirectory, VolumeRecord};
use crate::refusal::Refusal;
use crate::threads::DataThreads;
use crate::volume::Engine;

/// Room for originals where no limit was given, in bytes: more than any file system gives a file, so that the file system decides.
const UNLIMITED: u64 = 8 << 40;

/// What opening a volume needs besides its record.
#[derive(Clone)]
pub(crate) struct Opening {
    pub(crate) boot_id: [u8; 16],
    pub(crate) crash: Option<Arc<CrashPlan>>,
}

/// Whether the base is not what it was when it was left.
pub(crate) fn changed(record: &VolumeRecord, clean: Option<&CleanStop>, base: &OpenBase) -> Result<bool, Refusal> {
    let Some(left) = &record.identity else { return Ok(false) };
    let unreadable = |source| base::BaseError::Unopenable { path: record.base.clone(), source };
    let difference = base.identity.difference(&base.file, left, clean).map_err(unreadable)?;
    if let Some(difference) = difference {
        tracing::warn!(volume = %record.name, "the base was changed while the daemon was down ({difference:?}): snapshots are broken");
    }
    Ok(difference.is_some())
}

/// Opens a volume's engine over its open base, its cache and its state.
pub(crate) async fn open_engine(
    threads: &DataThreads,
    opening: &Opening,
    directory: &VolumeDirectory,
    record: &VolumeRecord,
    base: &OpenBase,
    cache_path: &Path,
    base_changed: bool,
) -> Result<Arc<Engine>, Refusal> {
    let volume = || record.name.clone();
    let unopenable = |source| base::BaseError::Unopenable { path: record.base.clone(), source };
    let device =
        base.file.try_clone().and_then(|file| FileDevice::from_file(file, record.direct)).map_err(unopenable)?;
    let no_cache = |source| Refusal::Cache { volume: volume(), path: cache_path.into(), source };
    let cache_file = lock_cache(cache_path.into()).await.map_err(|error| match error {
        CacheFault::Locked => Refusal::CacheLocked { volume: volume(), path: cache_path.into() },
        CacheFault::Io(source) => no_cache(source),
    })?;
    let limit = record.cache_limit.unwrap_or(UNLIMITED);
    let cache = FileDevice::from_file(cache_file, false).map_err(no_cache)?.growing_to(limit);
    let options = VolumeOptions {
        name: record.name.to_string(),
        id: id_bytes(&record.id),
        grain: record.grain,
        boot_id: opening.boot_id,
        base_changed,
    };
    let platform = Production { crash: opening.crash.clone() };
    let storage = Directory::new(directory.engine());
    let opened =
        threads.run(move || async move { Engine::open(platform, device, cache, storage, options).await }).await;
    let (engine, recovered) = opened
        .map_err(|_| no_cache(io::ErrorKind::Interrupted.into()))?
        .map_err(|source| Refusal::Open { volume: volume(), source })?;
    tracing::info!(
        volume = %record.name,
        snapshots = recovered.snapshots.len(),
        originals = recovered.originals,
        damaged = recovered.damaged,
        "opened"
    );
    Ok(engine)
}

/// Runs the engine's maintenance on a data thread until the sender is dropped.
pub(crate) fn maintain(threads: &DataThreads, engine: &Arc<Engine>) -> Sender<()> {
    let (sender, mut receiver) = tzero_io::channel();
    let engine = Arc::clone(engine);
    threads.next().spawn(move || async move {
        let mut work = pin!(engine.maintain());
        let mut end = pin!(receiver.recv());
        poll_fn(|cx| {
            // It never ends by itself.
            let _ = work.as_mut().poll(cx);
            end.as_mut().poll(cx).map(drop)
        })
        .await;
    });
    sender
}

enum CacheFault {
    Locked,
    Io(io::Error),
}

/// Opens the original cache and locks it: requests of a killed daemon must not land in slots that this one uses again.
async fn lock_cache(path: PathBuf) -> Result<File, CacheFault> {
    let locked = tokio::task::spawn_blocking(move || {
        let file = open_cache(&path).map_err(CacheFault::Io)?;
        match base::lock(&file, Patience::Linger) {
            Ok(()) => Ok(file),
            Err(LockError::Held) => Err(CacheFault::Locked),
            Err(LockError::Failed(source)) => Err(CacheFault::Io(source)),
        }
    });
    locked.await.expect("opening a cache does not panic")
}

/// The original cache's file: private, made where it is not there. Always through the page cache: originals are small appends that are
/// mostly read back soon, or never.
fn open_cache(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn id_bytes(id: &str) -> [u8; 16] {
    SnapshotId::parse(id).map_or([0; 16], |id| id.0)
}
