//! What the engine stands on in the simulator.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tzero_engine::{Event, Planted, Platform, Point};
use tzero_originals::SnapshotId;

use crate::disk::RowHandle;
use crate::executor::{Crash, Process, current_name, fail, interleave, is_dead, moment, now_ns};
use crate::oracle::{Oracle, current_change};
use crate::races::Races;
use crate::random::mix;
use crate::savings::{Savings, Sizes};
use crate::storage::StorageHandle;
use crate::story::happens;

/// Wall-clock time at the beginning of a simulation.
const EPOCH_NS: u64 = 1_700_000_000_000_000_000;

/// How the names of tasks end that save ahead of any change.
pub const AHEAD: &str = ", ahead";

/// The hooks of one incarnation of the daemon.
pub struct SimPlatform {
    /// The incarnation.
    pub process: Process,
    /// The judge.
    pub oracle: Oracle,
    /// The counters.
    pub races: Races,
    /// What it has saved.
    pub savings: Savings,
    /// What is done wrong on purpose.
    pub planted: Option<Planted>,
    /// Everything that a clean stop promises is durable.
    pub close_synced: Arc<AtomicBool>,
    /// Snapshots that outlive a loss of power.
    pub confirmed: Arc<Mutex<BTreeSet<SnapshotId>>>,
    /// Longest wait for the cache.
    pub longest_save: u64,
    /// Bytes of an increment.
    pub increment: u64,
    /// Ids given out so far, over all incarnations.
    pub ids: Arc<AtomicU64>,
    /// Bytes of the volume, as far as the engine knows.
    pub size: AtomicU64,
    /// Bytes of a grain.
    pub grain: u64,
    /// How long the volume was at each T0.
    pub sizes: Sizes,
}

impl Platform for SimPlatform {
    type Base = RowHandle;
    type Cache = RowHandle;
    type Storage = StorageHandle;

    fn monotonic_ns(&self) -> u64 {
        now_ns()
    }

    fn wall_ns(&self) -> u64 {
        EPOCH_NS + now_ns()
    }

    fn random_id(&self) -> [u8; 16] {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&mix(number).to_le_bytes());
        id[8..].copy_from_slice(&number.to_le_bytes());
        id
    }

    async fn point(&self, point: Point) {
        if moment(self.process, Crash::Point) {
            return pending().await;
        }
        happens(|| format!("{} {point:?}", current_name()));
        match point {
            Point::Claimed => self.races.saving(true),
            Point::Bit => self.races.saving(false),
            Point::CloseSynced => self.close_synced.store(true, Ordering::Relaxed),
            _ => {}
        }
        interleave(point as u32).await;
    }

    async fn sleep(&self, ns: u64) {
        crate::executor::sleep(ns).await;
    }

    fn longest_save(&self) -> u64 {
        self.longest_save
    }

    fn increment(&self) -> u64 {
        self.increment
    }

    fn planted(&self, fault: Planted) -> bool {
        self.planted == Some(fault)
    }

    fn observe(&self, event: Event) {
        if is_dead(self.process) {
            return;
        }
        happens(|| format!("{} {event:?}", current_name()));
        if let Event::Admitted { tag } = event
            && let Some(change) = current_change()
        {
            self.oracle.admitted(change, tag.0);
        }
        if let (Event::IncrementLanded { .. }, Some(change)) = (event, current_change()) {
            self.races.landed_in_part(change);
        }
        if let Event::Broken { id, .. } = event
            && current_name().ends_with(AHEAD)
        {
            fail(format!("snapshot {id} broke by a save ahead of any change"));
        }
        if let Event::Confirmed { id } = event {
            self.confirmed.lock().expect("nothing panics under this lock").insert(id);
        }
        match event {
            Event::Grown { to, .. } => self.size.store(to, Ordering::Relaxed),
            Event::Armed { epoch, .. } => self.sizes.armed(epoch.0, self.size.load(Ordering::Relaxed)),
            Event::Published { grain, tag, .. } => self.sizes.saved(grain.0 * self.grain, tag.0),
            _ => {}
        }
        self.savings.observe(event);
        self.races.observe(event);
    }
}
