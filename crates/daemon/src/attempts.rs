//! Opening what is remembered or declared, and trying again what cannot be opened.
//!
//! A volume whose base is missing, or whose files somebody else holds, is there as failed, with the reason; it is tried again until it is
//! served, removed, or the daemon ends. The others are served meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tzero_api::control::AddVolume;

use crate::base::{self, OpenBase, Patience};
use crate::config::{Config, VolumeConfig};
use crate::record::{self, RecordError, VolumeDirectory, VolumeRecord};
use crate::refusal::Refusal;
use crate::threads::off_thread;
use crate::volume::Volume;
use crate::volumes::Volumes;

/// Time between two attempts.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the first attempts are waited for. What takes longer, a dead network disk for one, comes when it comes.
const FIRST: Duration = Duration::from_secs(60);

/// A volume that is to be served.
enum Wanted {
    Remembered { directory: VolumeDirectory, record: Option<Box<VolumeRecord>>, settings: Option<VolumeConfig> },
    Declared(Box<AddVolume>),
}

impl Volumes {
    /// Opens every volume that is remembered, then those that are declared and new. Comes back when each was tried once.
    pub(crate) async fn start(self: &Arc<Self>, config: &Config) -> Result<(), RecordError> {
        let mut tried = Vec::new();
        for name in record::remembered(&self.paths)? {
            let directory = VolumeDirectory::new(&self.paths, &name);
            let opening = Volume::failed(name.clone(), None, directory.clone(), "it is still being opened");
            let settings = config.volume.get(&name).cloned();
            tried.push(self.keep_trying(opening, Wanted::Remembered { directory, record: None, settings }));
        }
        let deadline = tokio::time::Instant::now() + FIRST;
        wait(tried, deadline).await;
        for (name, settings) in &config.volume {
            if self.get(name).is_ok() {
                continue;
            }
            let request = settings.request(name);
            let record = record::new_record(String::new(), &request, true);
            let directory = VolumeDirectory::new(&self.paths, name);
            let opening = Volume::failed(name.clone(), Some(record), directory, "it is still being made");
            let first = self.keep_trying(opening, Wanted::Declared(Box::new(request)));
            wait([first], deadline).await;
        }
        Ok(())
    }

    /// Serves a volume again that a change of it has closed, over its base if that is open already; gives it. What cannot be opened is tried
    /// again, as at start.
    ///
    /// # Errors
    /// Why it is not served yet.
    pub(crate) async fn reopen(
        self: &Arc<Self>,
        place: Arc<Volume>,
        record: VolumeRecord,
        base: Option<OpenBase>,
    ) -> Result<Arc<Volume>, Refusal> {
        let directory = place.directory.clone();
        let opened = {
            let _gate = place.enter()?;
            match base {
                Some(base) => self.open(directory.clone(), record.clone(), base, Patience::Linger).await,
                None => self.open_remembered(&directory, &record, Patience::Linger).await,
            }
        };
        let why = match opened {
            Ok(volume) => match self.swap(&place, volume) {
                Ok(volume) => return Ok(volume),
                Err(late) => {
                    drop(late.close(&self.threads).await);
                    return Err(Refusal::Closed(late.name.clone()));
                }
            },
            Err(why) => why,
        };
        let failed = Volume::failed(place.name.clone(), Some(record.clone()), directory.clone(), &why);
        if let Ok(place) = self.swap(&place, failed) {
            let record = Some(Box::new(record));
            self.try_again(place, Wanted::Remembered { directory, record, settings: None });
        }
        Err(why)
    }

    /// Tries in the background until it succeeds; tells when it has tried once.
    fn keep_trying(self: &Arc<Self>, opening: Volume, wanted: Wanted) -> oneshot::Receiver<()> {
        let place = self.put(opening);
        self.try_again(place, wanted)
    }

    fn try_again(self: &Arc<Self>, mut place: Arc<Volume>, mut wanted: Wanted) -> oneshot::Receiver<()> {
        let (tell, tried) = oneshot::channel();
        let volumes = Arc::clone(self);
        tokio::spawn(async move {
            let mut tell = Some(tell);
            let mut patience = Patience::Linger;
            let mut said = String::new();
            loop {
                let why = match volumes.attempt(&mut wanted, patience, &place).await {
                    // It was removed, or the daemon ends.
                    Ok(()) | Err(Refusal::Closed(_)) => return,
                    Err(why) => why,
                };
                let reason = why.to_string();
                // Somebody is at it for a moment, which is no news.
                if reason != said && !matches!(why, Refusal::BeingChanged(_)) {
                    tracing::error!(volume = %place.name, "not served, and tried again: {reason}");
                    let record = wanted.record().or_else(|| place.record().map(|record| VolumeRecord::clone(&record)));
                    let failed = Volume::failed(place.name.clone(), record, place.directory.clone(), &why);
                    let Ok(failed) = volumes.swap(&place, failed) else { return };
                    (place, said) = (failed, reason);
                }
                patience = Patience::None;
                drop(tell.take());
                tokio::time::sleep(AGAIN).await;
            }
        });
        tried
    }

    /// Opens a volume and puts it into its place; or closes it again where it comes too late.
    async fn attempt(
        self: &Arc<Self>,
        wanted: &mut Wanted,
        patience: Patience,
        place: &Arc<Volume>,
    ) -> Result<(), Refusal> {
        let opened = match wanted {
            Wanted::Remembered { directory, record, settings } => {
                // Nobody removes it meanwhile.
                let _gate = place.enter()?;
                if record.is_none() {
                    let theirs = directory.clone();
                    *record = Some(Box::new(declared(off_thread(move || theirs.read()).await?, settings.as_ref())));
                }
                let record = record.as_deref().expect("it was read").clone();
                let volume = self.open_remembered(directory, &record, patience).await?;
                self.swap(place, volume)
            }
            Wanted::Declared(request) => {
                let _changing = self.changing.lock().await;
                let _gate = place.enter()?;
                self.refuse_when_stopping()?;
                let volume = self.make(request, true, Some(place)).await?;
                self.swap(place, volume)
            }
        };
        match opened {
            Ok(volume) => tracing::info!(volume = %volume.name, "served"),
            Err(late) => drop(late.close(&self.threads).await),
        }
        Ok(())
    }
}

impl Volumes {
    /// Opens a volume over the base that is on record.
    async fn open_remembered(
        &self,
        directory: &VolumeDirectory,
        record: &VolumeRecord,
        patience: Patience,
    ) -> Result<Volume, Refusal> {
        let (places, direct) = (record.places(), record.direct);
        let threads = Arc::clone(&self.threads);
        let base = off_thread(move || {
            let base = OpenBase::open(&threads, &places, direct, patience)?;
            base::refuse_in_use_through(&base).map(|()| base)
        })
        .await?;
        self.open(directory.clone(), record.clone(), base, patience).await
    }
}

impl Wanted {
    fn record(&self) -> Option<VolumeRecord> {
        match self {
            Self::Remembered { record, .. } => record.as_deref().cloned(),
            Self::Declared(_) => None,
        }
    }
}

async fn wait(tried: impl IntoIterator<Item = oneshot::Receiver<()>>, deadline: tokio::time::Instant) {
    for tried in tried {
        // It is dropped, not sent.
        let _ = tokio::time::timeout_at(deadline, tried).await;
    }
}

/// The record with what the configuration may change of it.
fn declared(mut record: VolumeRecord, settings: Option<&VolumeConfig>) -> VolumeRecord {
    record.declared = false;
    if let Some(settings) = settings {
        record.declared = true;
        record.direct = settings.direct;
        record.save_ahead = settings.save_ahead;
        match settings.cache_limit {
            Some(limit) if limit.0 < u64::from(record.grain) => {
                tracing::warn!(volume = %record.name, "cache_limit is less than the volume's grain and stays as it was");
            }
            limit => record.cache_limit = limit.map(|limit| limit.0),
        }
        let fixed = [
            ("base", record.places() != settings.places()),
            ("grain", settings.grain.is_some_and(|grain| grain.0 != u64::from(record.grain))),
            ("cache_dir", record.cache_dir != settings.cache_dir),
            ("durability", record.durability != settings.durability),
            ("memory_limit", record.memory_limit != settings.memory_limit.map(|limit| limit.0)),
        ];
        for (what, _) in fixed.into_iter().filter(|(_, differs)| *differs) {
            tracing::warn!(volume = %record.name, "{what} cannot be changed in the configuration and stays as it was");
        }
    }
    record
}
