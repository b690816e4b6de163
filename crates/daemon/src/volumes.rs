//! All volumes of the daemon: found again at start, added, removed, closed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use tokio::sync::Mutex;
use tzero_api::control::{AddVolume, LARGEST_GRAIN, SMALLEST_GRAIN};
use tzero_api::{Name, StatePaths};
use tzero_io::system;

use crate::base::{self, OpenBase, Patience};
use crate::config::Config;
use crate::opening::Opening;
use crate::record::{self, RecordError, VolumeDirectory, VolumeRecord};
use crate::refusal::Refusal;
use crate::threads::DataThreads;
use crate::volume::{Condition, Volume};

/// Whether bytes written at a path would land on an open file or device.
pub type LiesOn = fn(&Path, &File) -> io::Result<bool>;

/// The volumes.
pub(crate) struct Volumes {
    paths: StatePaths,
    threads: Arc<DataThreads>,
    opening: Opening,
    lies_on: LiesOn,
    members: RwLock<BTreeMap<Name, Arc<Volume>>>,
    /// Held by whatever adds or removes a volume.
    changing: Mutex<()>,
    /// No client is let in any more.
    pub(crate) stopping: AtomicBool,
}

impl Volumes {
    /// No volumes yet.
    pub(crate) fn new(paths: StatePaths, threads: Arc<DataThreads>, opening: Opening, lies_on: LiesOn) -> Self {
        Self {
            paths,
            threads,
            opening,
            lies_on,
            members: RwLock::default(),
            changing: Mutex::default(),
            stopping: AtomicBool::new(false),
        }
    }

    /// All by name.
    pub(crate) fn all(&self) -> Vec<Arc<Volume>> {
        self.members.read().expect("nothing panics under this lock").values().cloned().collect()
    }

    /// Does something with a volume that cannot be removed meanwhile. Must not block.
    pub(crate) fn with<T>(&self, name: &str, act: impl FnOnce(&Arc<Volume>) -> T) -> Option<T> {
        self.members.read().expect("nothing panics under this lock").get(name).map(act)
    }

    /// One of them.
    pub(crate) fn get(&self, name: &Name) -> Result<Arc<Volume>, Refusal> {
        self.with(name.as_str(), Arc::clone).ok_or_else(|| Refusal::NoVolume(name.clone()))
    }

    fn put(&self, volume: Volume) -> Arc<Volume> {
        let volume = Arc::new(volume);
        self.members.write().expect("nothing panics under this lock").insert(volume.name.clone(), Arc::clone(&volume));
        volume
    }

    /// Opens every volume that is remembered or declared. One that cannot be opened is there as failed; the others are unharmed.
    pub(crate) async fn start(&self, config: &Config) -> Result<(), RecordError> {
        for name in record::remembered(&self.paths)? {
            let directory = VolumeDirectory::new(&self.paths, &name);
            let volume = match directory.read() {
                Ok(record) => self.reopen(directory, declared(record, config)).await,
                Err(error) => Volume::failed(name, None, directory, &error.into()),
            };
            self.put(volume);
        }
        for (name, settings) in &config.volume {
            if self.get(name).is_ok() {
                continue;
            }
            let request = settings.request(name);
            if let Err(why) = self.make(&request, true).await {
                let record = record::new_record(String::new(), &request, true);
                self.put(Volume::failed(name.clone(), Some(record), VolumeDirectory::new(&self.paths, name), &why));
            }
        }
        Ok(())
    }

    async fn reopen(&self, directory: VolumeDirectory, record: VolumeRecord) -> Volume {
        let opened = match open_base(&record.base, record.direct, Patience::Linger).await {
            Ok(base) => self.open(directory.clone(), record.clone(), base).await,
            Err(error) => Err(error),
        };
        opened.unwrap_or_else(|why| Volume::failed(record.name.clone(), Some(record), directory, &why))
    }

    async fn open(&self, directory: VolumeDirectory, record: VolumeRecord, base: OpenBase) -> Result<Volume, Refusal> {
        Volume::open(&self.threads, &self.opening, directory, record, base).await
    }

    /// Adds a volume.
    pub(crate) async fn add(&self, request: &AddVolume) -> Result<Arc<Volume>, Refusal> {
        let _changing = self.changing.lock().await;
        self.refuse_when_stopping()?;
        self.make(request, false).await
    }

    async fn make(&self, request: &AddVolume, declared: bool) -> Result<Arc<Volume>, Refusal> {
        self.check(request)?;
        self.refuse_registered(&request.base)?;
        let base = open_base(&request.base, request.direct, Patience::None).await?;
        self.check_placement(request, &base)?;
        self.check_overlap(&request.base, &base)?;
        let record = record::new_record(hex(system::random_id()), request, declared);
        let directory = VolumeDirectory::new(&self.paths, &record.name);
        let made = match directory.create(&record) {
            Ok(()) => self.open(directory.clone(), record.clone(), base).await,
            Err(error) => Err(error.into()),
        };
        match made {
            Ok(volume) => Ok(self.put(volume)),
            Err(why) => {
                if let Err(error) = directory.remove(Some(&record)) {
                    tracing::warn!(volume = %record.name, "what was begun stays behind: {error}");
                }
                Err(why)
            }
        }
    }

    fn check(&self, request: &AddVolume) -> Result<(), Refusal> {
        if self.get(&request.name).is_ok() {
            return Err(Refusal::VolumeTaken(request.name.clone()));
        }
        if let Some(grain) = request.grain.map(|grain| grain.0)
            && (!grain.is_power_of_two() || !(SMALLEST_GRAIN..=LARGEST_GRAIN).contains(&grain))
        {
            return Err(Refusal::Grain(grain));
        }
        if request.cache_limit.is_some_and(|limit| limit.0 == 0) {
            return Err(Refusal::NoRoom);
        }
        match std::iter::once(&request.base).chain(&request.cache_dir).find(|path| path.is_relative()) {
            Some(relative) => Err(Refusal::Relative(relative.clone())),
            None => Ok(()),
        }
    }

    fn refuse_registered(&self, base: &Path) -> Result<(), Refusal> {
        let Ok(identity) = File::open(base).and_then(|file| crate::identity::BaseIdentity::of(&file)) else {
            return Ok(());
        };
        let holds = |volume: &Arc<Volume>| {
            let known = volume.record.as_ref().and_then(|record| record.identity.as_ref());
            known.is_some_and(|known| known.same_base(&identity))
        };
        match self.all().into_iter().find(holds) {
            Some(volume) => Err(Refusal::BaseTaken { base: base.into(), volume: volume.name.clone() }),
            None => Ok(()),
        }
    }

    /// Originals of a base on the base itself would make every save another change.
    fn check_placement(&self, request: &AddVolume, base: &OpenBase) -> Result<(), Refusal> {
        let lies_on = |path: &Path| {
            (self.lies_on)(path, &base.file).map_err(|source| Refusal::CacheDirectory { path: path.into(), source })
        };
        if let Some(directory) = &request.cache_dir {
            let unusable = |source| Refusal::CacheDirectory { path: directory.clone(), source };
            if !fs::metadata(directory).map_err(unusable)?.is_dir() {
                return Err(unusable(io::ErrorKind::NotADirectory.into()));
            }
            if lies_on(directory)? {
                return Err(Refusal::CacheOnBase { path: directory.clone(), base: request.base.clone() });
            }
        }
        if lies_on(self.paths.root())? {
            return Err(Refusal::StateOnBase { path: self.paths.root().into(), base: request.base.clone() });
        }
        Ok(())
    }

    /// Two volumes on the same bytes, a file and a loop device over it, would know nothing of each other's changes.
    fn check_overlap(&self, path: &Path, base: &OpenBase) -> Result<(), Refusal> {
        for volume in self.all() {
            let (Ok(serving), Some(record)) = (volume.serving(), &volume.record) else { continue };
            let unreadable = |source| base::BaseError::Unopenable { path: path.into(), source };
            let above = (self.lies_on)(path, &serving.base).map_err(unreadable)?;
            if above || (self.lies_on)(&record.base, &base.file).map_err(unreadable)? {
                let (base, other) = (path.into(), record.base.clone());
                return Err(Refusal::BaseOverlaps { base, other, volume: volume.name.clone() });
            }
        }
        Ok(())
    }

    /// Removes a volume that nobody uses and that has no snapshots. Its base stays as it is.
    pub(crate) async fn remove(&self, name: &Name) -> Result<Arc<Volume>, Refusal> {
        let _changing = self.changing.lock().await;
        self.refuse_when_stopping()?;
        let volume = self.get(name)?;
        let _gate = volume.gate.try_write().map_err(|_| Refusal::BeingChanged(name.clone()))?;
        self.take_out(&volume)?;
        if let Err(error) = volume.close(&self.threads).await {
            // The snapshots are gone and the host's bytes are where the host's own flushes have put them.
            tracing::warn!(volume = %name, "{error}");
        }
        match volume.directory.remove(volume.record.as_ref()) {
            // Declared, but it could never be opened.
            Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        drop(_gate);
        Ok(volume)
    }

    fn take_out(&self, volume: &Arc<Volume>) -> Result<(), Refusal> {
        let mut members = self.members.write().expect("nothing panics under this lock");
        if let Condition::Serving(serving) = &volume.condition {
            let count = serving.engine.snapshots().len();
            if count > 0 {
                return Err(Refusal::HasSnapshots { volume: volume.name.clone(), count });
            }
        }
        let count = volume.connections();
        if count > 0 {
            return Err(Refusal::HasClients { volume: volume.name.clone(), count });
        }
        members.remove(&volume.name);
        Ok(())
    }

    fn refuse_when_stopping(&self) -> Result<(), Refusal> {
        if self.stopping.load(Ordering::Acquire) { Err(Refusal::Stopping) } else { Ok(()) }
    }

    /// Closes all volumes at once; gives how many could not be closed in good order.
    pub(crate) async fn close(&self) -> usize {
        let _changing = self.changing.lock().await;
        let closing: Vec<_> = self
            .all()
            .into_iter()
            .map(|volume| {
                let threads = Arc::clone(&self.threads);
                tokio::spawn(async move {
                    let _gate = volume.gate.write().await;
                    volume.close(&threads).await.inspect_err(|error| tracing::error!(volume = %volume.name, "{error}"))
                })
            })
            .collect();
        let mut failed = 0;
        for close in closing {
            failed += usize::from(!matches!(close.await, Ok(Ok(()))));
        }
        failed
    }
}

/// The record with what the configuration may change of it.
fn declared(mut record: VolumeRecord, config: &Config) -> VolumeRecord {
    record.declared = false;
    if let Some(settings) = config.volume.get(&record.name) {
        record.declared = true;
        record.direct = settings.direct;
        record.cache_limit = settings.cache_limit.map(|limit| limit.0);
        let fixed = [
            ("base", record.base != settings.base),
            ("grain", settings.grain.is_some_and(|grain| grain.0 != u64::from(record.grain))),
            ("cache_dir", record.cache_dir != settings.cache_dir),
        ];
        for (what, _) in fixed.into_iter().filter(|(_, differs)| *differs) {
            tracing::warn!(volume = %record.name, "{what} cannot be changed in the configuration and stays as it was");
        }
    }
    record
}

async fn open_base(path: &Path, direct: bool, patience: Patience) -> Result<OpenBase, Refusal> {
    let path: PathBuf = path.into();
    let opened = tokio::task::spawn_blocking(move || base::open(&path, direct, patience)).await;
    Ok(opened.expect("opening a base does not panic")?)
}

fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}
