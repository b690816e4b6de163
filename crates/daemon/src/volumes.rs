//! All volumes of the daemon: added, removed, closed. How they are found again is in `attempts`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tzero_api::control::AddVolume;
use tzero_api::{Name, StatePaths};
use tzero_io::system;
use tzero_originals::SnapshotId;

use crate::address::Address;
use crate::base::{OpenBase, Patience};
use crate::dormant;
use crate::opening::{Opening, id_bytes};
use crate::record::{self, RecordError, VolumeDirectory, VolumeRecord};
use crate::refusal::Refusal;
use crate::threads::{DataThreads, off_thread};
use crate::volume::{Condition, Volume};

/// Whether bytes written at a path would land on an open file or device.
pub type LiesOn = fn(&Path, &File) -> io::Result<bool>;

/// The volumes.
pub(crate) struct Volumes {
    pub(crate) paths: StatePaths,
    pub(crate) threads: Arc<DataThreads>,
    pub(crate) opening: Opening,
    pub(crate) lies_on: LiesOn,
    members: RwLock<BTreeMap<Name, Arc<Volume>>>,
    /// Held by whatever adds or removes a volume.
    pub(crate) changing: Mutex<()>,
    /// Where NBD clients connect, once it is known.
    pub(crate) listening: OnceLock<Vec<Address>>,
    /// Views that are exports for one mover, by the name that it was told.
    shown: std::sync::Mutex<BTreeMap<String, (Name, SnapshotId)>>,
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
            listening: OnceLock::new(),
            shown: std::sync::Mutex::default(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Views that are exports for one mover.
    pub(crate) fn shown(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Name, SnapshotId)>> {
        self.shown.lock().expect("nothing panics under this lock")
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

    pub(crate) fn put(&self, volume: Volume) -> Arc<Volume> {
        let volume = Arc::new(volume);
        self.members.write().expect("nothing panics under this lock").insert(volume.name.clone(), Arc::clone(&volume));
        volume
    }

    /// Puts a volume in the place of another one of its name; gives it back if that has been removed, or no volume is to come any more.
    pub(crate) fn swap(&self, old: &Arc<Volume>, new: Volume) -> Result<Arc<Volume>, Arc<Volume>> {
        let new = Arc::new(new);
        let mut members = self.members.write().expect("nothing panics under this lock");
        match members.get_mut(&new.name) {
            Some(place) if Arc::ptr_eq(place, old) && !self.stopping.load(Ordering::Acquire) => {
                *place = Arc::clone(&new);
                Ok(new)
            }
            _ => Err(new),
        }
    }

    /// Adds a volume.
    pub(crate) async fn add(self: &Arc<Self>, request: &AddVolume) -> Result<Arc<Volume>, Refusal> {
        let _changing = self.change(&request.name).await?;
        let volume = self.make(request, false, None).await?;
        Ok(self.put(volume))
    }

    /// Lets nobody else add or remove a volume. A base that does not answer may hold up whoever adds it, for as long as it likes.
    pub(crate) async fn change(&self, name: &Name) -> Result<MutexGuard<'_, ()>, Refusal> {
        let changing = tokio::time::timeout(END, self.changing.lock()).await;
        let changing = changing.map_err(|_| Refusal::BeingChanged(name.clone()))?;
        self.refuse_when_stopping()?;
        Ok(changing)
    }

    /// Makes a volume, in the place of one that could not be made before. With `changing` held.
    pub(crate) async fn make(
        self: &Arc<Self>,
        request: &AddVolume,
        declared: bool,
        replaced: Option<&Arc<Volume>>,
    ) -> Result<Volume, Refusal> {
        self.check(request, replaced)?;
        let record = record::new_record(hex(system::random_id()), request, declared);
        let directory = VolumeDirectory::new(&self.paths, &record.name);
        let (volumes, request) = (Arc::clone(self), request.clone());
        let (base, made_base) = off_thread(move || volumes.open_new(&request)).await?;
        let (theirs, new) = (directory.clone(), record.clone());
        let made = match off_thread(move || theirs.create(&new)).await {
            Ok(()) => self.open(directory.clone(), record.clone(), base, Patience::None).await,
            Err(error) => Err(error.into()),
        };
        match made_base {
            Some(base) if made.is_ok() => base.keep(),
            unused => off_thread(move || drop(unused)).await,
        }
        if made.is_err() {
            off_thread(move || {
                if let Err(error) = directory.remove(Some(&record)) {
                    tracing::warn!(volume = %record.name, "what was begun stays behind: {error}");
                }
            })
            .await;
        }
        made
    }

    /// Opens a volume over its open base.
    pub(crate) async fn open(
        &self,
        directory: VolumeDirectory,
        record: VolumeRecord,
        base: OpenBase,
        patience: Patience,
    ) -> Result<Volume, Refusal> {
        Volume::open(&self.threads, &self.opening, directory, record, base, patience).await
    }

    /// Removes a volume that nobody uses and that has no snapshots. Its base stays as it is.
    pub(crate) async fn remove(&self, name: &Name) -> Result<Arc<Volume>, Refusal> {
        let _changing = self.change(name).await?;
        let volume = self.get(name)?;
        self.refuse_with_snapshots(&volume).await?;
        volume.without_clients().await?;
        let gate = volume.enter_alone().await?;
        self.take_out(&volume)?;
        if let Err(error) = volume.close(&self.threads).await {
            // The snapshots are gone and the host's bytes are where the host's own flushes have put them.
            tracing::warn!(volume = %name, "{error}");
        }
        let gone = Arc::clone(&volume);
        off_thread(move || gone.release_export()).await;
        let gone = Arc::clone(&volume);
        match off_thread(move || gone.directory.remove(gone.record().as_deref())).await {
            // Declared, but it could never be opened.
            Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        drop(gate);
        Ok(volume)
    }

    /// Of a volume that is not served too: what it has comes back with its base.
    async fn refuse_with_snapshots(&self, volume: &Arc<Volume>) -> Result<(), Refusal> {
        match count_snapshots(volume).await {
            0 => Ok(()),
            count => Err(Refusal::HasSnapshots { volume: volume.name.clone(), count }),
        }
    }

    /// Deletes a snapshot of a volume that is not served.
    pub(crate) async fn delete_dormant(&self, volume: &Arc<Volume>, id: SnapshotId) -> Result<(), Refusal> {
        let _changing = self.change(&volume.name).await?;
        // An attempt to open it may be under way.
        let gate = tokio::time::timeout(ATTEMPT, volume.gate.write()).await;
        let is_there = self.get(&volume.name).is_ok_and(|now| Arc::ptr_eq(&now, volume));
        let (true, Ok(gate)) = (is_there, gate) else { return Err(Refusal::BeingChanged(volume.name.clone())) };
        let theirs = Arc::clone(volume);
        let deleted = off_thread(move || {
            let record = theirs.record().ok_or(io::ErrorKind::NotFound)?;
            let done = dormant::delete(&theirs.directory, id_bytes(&record.id), id);
            theirs.copy_snapshots();
            done
        });
        let deleted = deleted.await;
        drop(gate);
        deleted.map_err(|source| Refusal::Records { volume: volume.name.clone(), source })
    }

    fn take_out(&self, volume: &Arc<Volume>) -> Result<(), Refusal> {
        let mut members = self.members.write().expect("nothing panics under this lock");
        refuse_with_clients(&members, volume)?;
        refuse_with_any_snapshots(volume)?;
        members.remove(&volume.name);
        Ok(())
    }

    /// Puts a volume that is not served in the place of one that nobody uses: nobody comes to use that any more. Snapshots are only its own
    /// affair where they may be there.
    pub(crate) fn supplant(
        &self,
        old: &Arc<Volume>,
        new: Volume,
        snapshots: Snapshots,
    ) -> Result<Arc<Volume>, Refusal> {
        let mut members = self.members.write().expect("nothing panics under this lock");
        refuse_with_clients(&members, old)?;
        match snapshots {
            Snapshots::None => refuse_with_any_snapshots(old)?,
            Snapshots::Stay => old.refuse_movers()?,
        }
        let new = Arc::new(new);
        members.insert(old.name.clone(), Arc::clone(&new));
        Ok(new)
    }

    pub(crate) fn refuse_when_stopping(&self) -> Result<(), Refusal> {
        if self.stopping.load(Ordering::Acquire) { Err(Refusal::Stopping) } else { Ok(()) }
    }

    /// Closes all volumes at once; gives how many could not be closed in good order. Whoever waited to change one is refused then.
    pub(crate) async fn close(&self) -> usize {
        // Whoever adds a volume may wait for a base that does not answer. What is not a volume yet has nothing to close.
        let _changing = tokio::time::timeout(ATTEMPT, self.changing.lock()).await;
        let closing: Vec<_> = self
            .all()
            .into_iter()
            .map(|volume| {
                let threads = Arc::clone(&self.threads);
                tokio::spawn(async move {
                    // Of one that is being opened, whoever opens it sees that it comes too late.
                    let attempt = matches!(volume.condition, Condition::Failed(_));
                    let Ok(_gate) =
                        tokio::time::timeout(if attempt { LAST_ATTEMPT } else { END }, volume.gate.write()).await
                    else {
                        return Err(Refusal::BeingChanged(volume.name.clone()));
                    };
                    volume.close(&threads).await
                })
            })
            .collect();
        let mut failed = 0;
        for close in closing {
            match close.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!("{error}");
                    failed += 1;
                }
                Err(_) => failed += 1,
            }
        }
        failed
    }
}

/// How many snapshots a volume has, served or not.
pub(crate) async fn count_snapshots(volume: &Arc<Volume>) -> usize {
    let counted = Arc::clone(volume);
    off_thread(move || counted.snapshots().len()).await
}

/// Whether a volume that gives its place up may have snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Snapshots {
    /// It may not.
    None,
    /// They are found again.
    Stay,
}

/// Refuses a volume that has clients, or whose place another value has.
fn refuse_with_clients(members: &BTreeMap<Name, Arc<Volume>>, volume: &Arc<Volume>) -> Result<(), Refusal> {
    // One that was not served may be by now: another value has its place, and what that has was not looked at.
    if !members.get(&volume.name).is_some_and(|now| Arc::ptr_eq(now, volume)) {
        return Err(Refusal::BeingChanged(volume.name.clone()));
    }
    volume.refuse_clients()
}

/// Of a volume that is served, again: one may have been taken since they were counted.
fn refuse_with_any_snapshots(volume: &Volume) -> Result<(), Refusal> {
    let count = volume.serving().map_or(0, |serving| serving.engine.snapshots().len());
    if count > 0 { Err(Refusal::HasSnapshots { volume: volume.name.clone(), count }) } else { Ok(()) }
}

/// How long an attempt to open a volume is waited for by whoever removes it,
pub(crate) const ATTEMPT: Duration = Duration::from_secs(2);
/// and at the end of the daemon: it may wait that long itself for what a killed one left.
const LAST_ATTEMPT: Duration = Duration::from_millis(5500);
/// How long a command in progress is.
const END: Duration = Duration::from_secs(10);

/// An id as people and records have it.
pub(crate) fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

#[cfg(test)]
mod tests;
