//! A volume gets another base: a restored site becomes the source (R46).
//!
//! ```text
//!  new base open, locked, checked ─▶ nobody comes in ─▶ closed ─▶ record replaced ─▶ open over the new base
//!        │ the old base is served, or is why nothing is ──────┘        │ the new base is what the volume has
//! ```
//!
//! # Invariants
//! 1. One rename decides, that of the record. Whatever happens before it leaves the volume on its old base, whatever happens after it on the new
//!    one; neither is written to meanwhile.
//! 2. No snapshot stands and no client is connected: originals that were not saved are on the old base, and a client would find other bytes
//!    under its feet.
//! 3. The generation counts bases: it grows with the rename.
//!
//! | | rebase | another change of volumes | a client that connects | the daemon's end |
//! |---|---|---|---|---|
//! | **rebase** | `changing` | `changing` | under the members' lock: it is counted, or finds the volume closed | waits for the gate; comes too late to be served |

use std::fs;
use std::sync::Arc;

use tzero_api::control::{AddVolume, UnfinishedRestore};
use tzero_api::{Name, Place, RebaseVolume, Size};

use crate::base::OpenBase;
use crate::platform::Moment;
use crate::record::{BaseRecord, VolumeRecord};
use crate::refusal::Refusal;
use crate::remote;
use crate::restores;
use crate::threads::off_thread;
use crate::volume::Volume;
use crate::volumes::{Snapshots, Volumes, count_snapshots};

impl Volumes {
    /// Gives a volume another base; gives the volume. One that is not served may get one, too.
    pub(crate) async fn rebase(self: &Arc<Self>, name: &Name, request: &RebaseVolume) -> Result<Arc<Volume>, Refusal> {
        request.check()?;
        let _changing = self.change(name).await?;
        let volume = self.get(name)?;
        let old = record_of(&volume)?;
        refuse_in_use(&volume).await?;
        let base = self.open_other(&volume, &old, request.base.clone()).await?;
        let new = rebased(&old, &base);
        let gate = volume.enter_alone().await?;
        let waiting = Volume::failed(name.clone(), Some(old.clone()), volume.directory.clone(), "it gets another base");
        let place = self.supplant(&volume, waiting, Snapshots::None)?;
        if let Err(error) = volume.close(&self.threads).await {
            // There are no snapshots, and the host's bytes are where the host's own flushes have put them.
            tracing::warn!(volume = %name, "{error}");
        }
        drop(gate);
        drop(volume);
        self.opening.pass(Moment::RebaseClosed);
        let (directory, wanted) = (place.directory.clone(), new.clone());
        let decided = off_thread(move || {
            // It is about the old base.
            directory.record_clean_stop(None)?;
            directory.write(&wanted)
        });
        if let Err(error) = decided.await {
            return self.after_failure(place, old, base, error.into()).await;
        }
        self.opening.pass(Moment::RebaseRecorded);
        let to = request.base.clone();
        let served = self.reopen(place, new, Some(base)).await;
        served.map_err(|why| Refusal::RebasedNotServed { volume: name.clone(), place: to, why: Box::new(why) })
    }

    /// Opens what is to be the base of a volume, and looks at everything that it must not be.
    async fn open_other(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        record: &VolumeRecord,
        base: Place,
    ) -> Result<OpenBase, Refusal> {
        let (volumes, volume, record) = (Arc::clone(self), Arc::clone(volume), record.clone());
        off_thread(move || {
            volumes.refuse_unrestored(&volume, &base)?;
            refuse_same_export(&volume, &record, &base)?;
            let request = AddVolume {
                grain: Some(Size(record.grain.into())),
                cache_dir: record.cache_dir.clone(),
                direct: record.direct,
                ..AddVolume::new(record.name.clone(), base.clone())
            };
            let (open, _) = volumes.open_new(&request)?;
            let (found, size) = (open.lengths().iter().sum(), record.size());
            if found != size {
                return Err(Refusal::RebaseSize { volume: record.name.clone(), place: base, found, size });
            }
            Ok(open)
        })
        .await
    }

    /// Only what is declared may become the source: neither the new base nor the volume may be half restored.
    fn refuse_unrestored(&self, volume: &Volume, base: &Place) -> Result<(), Refusal> {
        let concerns = |restore: &UnfinishedRestore| {
            let record = &restore.record;
            record.volume_id.as_ref() == Some(&volume.id()) || is_same_place(&record.target.as_str().into(), base)
        };
        match restores::unfinished(self.paths.root()).into_iter().find(concerns) {
            None => Ok(()),
            Some(UnfinishedRestore { record, resume, discard, .. }) => {
                Err(Refusal::Unrestored { target: record.target, resume, discard })
            }
        }
    }

    /// The record could not be replaced, or not for certain: what it says decides.
    async fn after_failure(
        self: &Arc<Self>,
        place: Arc<Volume>,
        old: VolumeRecord,
        base: OpenBase,
        why: Refusal,
    ) -> Result<Arc<Volume>, Refusal> {
        let directory = place.directory.clone();
        let found = off_thread(move || directory.read()).await;
        let (volume, record, base) = match found {
            Ok(found) if found.places() != old.places() => {
                (place.name.clone(), VolumeRecord { declared: old.declared, ..found }, Some(base))
            }
            _ => (place.name.clone(), old, None),
        };
        let (rebased, to) = (base.is_some(), record.bases[0].place.clone());
        let served = self.reopen(place, record, base).await;
        match served {
            Ok(served) if rebased => {
                tracing::warn!(volume = %volume, "{why}; a loss of power now may put the volume back on its old base");
                Ok(served)
            }
            Ok(_) => Err(why),
            Err(why) if rebased => Err(Refusal::RebasedNotServed { volume, place: to, why: Box::new(why) }),
            Err(why) => Err(Refusal::NotRebased { volume, why: Box::new(why) }),
        }
    }
}

/// The record of a volume that was served at least once, on a single base.
fn record_of(volume: &Volume) -> Result<VolumeRecord, Refusal> {
    let Some(record) = volume.record().filter(|record| !record.is_new()) else {
        return Err(volume.serving().err().unwrap_or_else(|| Refusal::BeingChanged(volume.name.clone())));
    };
    match record.bases.len() {
        1 => Ok(VolumeRecord::clone(&record)),
        count => Err(Refusal::SeveralBases { volume: record.name.clone(), count }),
    }
}

async fn refuse_in_use(volume: &Arc<Volume>) -> Result<(), Refusal> {
    match count_snapshots(volume).await {
        0 => volume.without_clients().await,
        count => Err(Refusal::SnapshotsOnBase { volume: volume.name.clone(), count }),
    }
}

/// A served volume's own export is no other base. Files and devices are told apart when they are opened.
fn refuse_same_export(volume: &Volume, record: &VolumeRecord, base: &Place) -> Result<(), Refusal> {
    let is_own = base.uri().is_some() && volume.serving().is_ok() && is_same_place(&record.bases[0].place, base);
    match base.uri().filter(|_| is_own) {
        Some(uri) => Err(Refusal::ExportTaken { uri: uri.into(), volume: record.name.clone() }),
        None => Ok(()),
    }
}

/// Whether two places are the same file or device by their paths, or the same export.
fn is_same_place(one: &Place, other: &Place) -> bool {
    match (one, other) {
        (Place::Path(one), Place::Path(other)) => {
            one == other
                || fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
        }
        (Place::Export(one), Place::Export(other)) => {
            let resolved = |uri: &String| uri.parse().map(|uri| remote::resolved(&uri));
            resolved(one).is_ok_and(|one| resolved(other).is_ok_and(|other| one == other))
        }
        _ => false,
    }
}

/// The record of the volume on its new base.
fn rebased(old: &VolumeRecord, base: &OpenBase) -> VolumeRecord {
    let bases =
        base.components.iter().map(|component| BaseRecord::new(component.place.clone(), Some(component.identity())));
    VolumeRecord { bases: bases.collect(), generation: old.generation + 1, ..old.clone().of_today() }
}
