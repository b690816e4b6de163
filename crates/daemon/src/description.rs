//! Volumes and snapshots as the control interface shows them. Everything here blocks: it asks the system.

use std::path::PathBuf;

use tzero_api::control::{self, Basis, VolumeState};
use tzero_api::{Place, sentence};
use tzero_engine::{Share, SnapshotInfo, SnapshotState};
use tzero_io::system;

use crate::backups::Backups;
use crate::filling::{Rates, full_in};
use crate::identity::BaseIdentity;
use crate::record::{BaseRecord, VolumeRecord};
use crate::refusal::Refusal;
use crate::volume::{Condition, Volume, broken};
use crate::words;

impl Volume {
    /// When the cache will be full.
    pub(crate) fn forecast(&self) -> Result<control::Forecast, Refusal> {
        let serving = self.serving()?;
        let used = serving.engine.statistics().originals;
        let Rates { saved, changed } =
            serving.filling.rates(system::monotonic_ns(), used.bytes, serving.engine.saved_ahead().stored());
        let is_live = |info: &SnapshotInfo| info.state == SnapshotState::Live;
        let (rate, basis) = match serving.engine.snapshots().iter().any(is_live) {
            true => (saved, Basis::Saved),
            false => (changed, Basis::Changed),
        };
        let room = serving.tiers.room(used);
        Ok(control::Forecast {
            id: self.id(),
            volume: self.name.clone(),
            foretold: control::Foretold { room, rate: rate as u64, basis, full_in_seconds: full_in(room, rate) },
        })
    }

    /// Looks how much room there is for originals. Blocking.
    pub(crate) fn look_for_room(&self) {
        if let Ok(serving) = self.serving() {
            let used = serving.engine.statistics().originals;
            serving.engine.has_room_for(serving.tiers.room(used));
        }
    }

    /// The volume as the control interface describes it.
    pub(crate) fn describe(&self) -> control::Volume {
        let record = self.record();
        let record = record.as_deref();
        let mut described = control::Volume {
            id: self.id(),
            name: self.name.clone(),
            state: VolumeState::Failed,
            reason: None,
            base: record.map_or(Place::Path(PathBuf::new()), |record| record.bases[0].place.clone()),
            bases: record.map(components).unwrap_or_default(),
            size: 0,
            grain: record.map_or(0, |record| record.grain),
            direct: record.is_some_and(|record| record.direct),
            generation: record.map_or(0, |record| record.generation),
            cache: record.map(|record| self.directory.cache(record)).unwrap_or(Place::Path(PathBuf::new())),
            cache_used: 0,
            cache_file: 0,
            cache_limit: record.and_then(|record| record.cache_limit),
            memory_limit: record.and_then(|record| record.memory_limit),
            tiers: Vec::new(),
            durability: record.map(|record| record.durability).unwrap_or_default(),
            save_ahead: None,
            full_in_seconds: None,
            forecast: None,
            declared: record.is_some_and(|record| record.declared),
            connections: self.connections(),
            snapshots: self.snapshots().len() as u64,
            restores: Vec::new(),
            notices: Vec::new(),
        };
        described.size = described.bases.iter().map(|base| base.size).sum();
        match &self.condition {
            Condition::Failed(reason) => described.reason = Some(reason.to_string()),
            Condition::Serving(serving) => {
                self.look_at_base();
                match self.whole() {
                    Ok(_) => described.state = VolumeState::Serving,
                    Err(lost) => described.reason = Some(sentence(lost)),
                }
                described.size = serving.engine.size();
                let used = serving.engine.statistics().originals;
                described.cache_used = used.bytes;
                described.cache_file = serving.tiers.on_disk();
                described.tiers = serving.tiers.describe(used);
                let rate = record.and_then(|record| record.save_ahead);
                described.save_ahead = rate.map(|rate| serving.ahead.describe(rate, &serving.engine));
                described.forecast = self.forecast().ok().map(|forecast| forecast.foretold);
                let saved = described.forecast.as_ref().filter(|forecast| forecast.basis == Basis::Saved);
                described.full_in_seconds = saved.and_then(|forecast| forecast.full_in_seconds);
                described.notices.clone_from(&serving.notices);
            }
        }
        described
    }

    /// Snapshots as the control interface describes them. Goes through all originals.
    pub(crate) fn describe_snapshots(&self, infos: &[SnapshotInfo]) -> Vec<control::Snapshot> {
        let shares = self.serving().map(|serving| serving.engine.shares()).unwrap_or_default();
        let share = |info: &SnapshotInfo| shares.get(&info.id).copied().unwrap_or_default();
        infos.iter().filter_map(|info| self.describe_snapshot(info, share(info))).collect()
    }

    fn describe_snapshot(&self, info: &SnapshotInfo, share: Share) -> Option<control::Snapshot> {
        let (state, reason) = match (broken(&info.state), self.whole()) {
            (Some(reason), _) => (control::SnapshotState::Broken, Some(reason)),
            (None, Err(refusal)) => (control::SnapshotState::Unavailable, Some(sentence(refusal))),
            (None, Ok(_)) if matches!(info.state, SnapshotState::Ended { .. }) => (control::SnapshotState::Ended, None),
            (None, Ok(_)) if self.unsettled.has(&info.name) => {
                (control::SnapshotState::Unavailable, Some("it is being taken: its base has not flushed yet".into()))
            }
            (None, Ok(_)) => (control::SnapshotState::Live, None),
        };
        Some(control::Snapshot {
            id: info.id.to_string(),
            volume: self.name.clone(),
            volume_id: self.id(),
            name: info.name.parse().ok()?,
            state,
            reason,
            t0_ns: info.created_ns,
            pause_us: info.pause_ns.div_ceil(1000),
            size: info.size,
            grain: self.record().map_or(0, |record| record.grain),
            epoch: info.epoch.0,
            originals: words::shown_originals(info.originals),
            on_full: words::shown_on_full(info.on_full),
            scope: info.scope.as_ref().map(|scope| {
                scope.iter().map(|part| control::Part { offset: part.start(), length: part.len() }).collect()
            }),
            captured_bytes: info.captured_bytes,
            unique_bytes: share.unique,
            unreadable_bytes: share.unreadable + info.damaged_bytes,
            outlives_power: info.confirmed,
            private: info.private,
            mover: self.has_mover(info.id),
            destination: Some(&info.name)
                .filter(|_| info.private)
                .and_then(|name| Backups::of(&self.directory).destination(name)),
            readers: self.readers_of(info.id),
        })
    }
}

/// What a volume stands on, as far as it was ever opened.
fn components(record: &VolumeRecord) -> Vec<control::Component> {
    let mut offset = 0;
    let component = |(unit, base): (u32, &BaseRecord)| {
        let size = base.identity.as_ref().map_or(0, BaseIdentity::size);
        offset += size;
        control::Component { unit, place: base.place.clone(), offset: offset - size, size }
    };
    (0..).zip(&record.bases).map(component).collect()
}
