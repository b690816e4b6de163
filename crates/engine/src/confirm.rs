//! From when on a snapshot outlives a loss of power (`durability = power`).
//!
//! Originals are durable before the changes that they permit. What has no original is read from the base, and there T0's bytes are durable once
//! a flush of the base that began after T0's straddlers had landed has succeeded. That is then put on record: the snapshot is *confirmed*. One that
//! is not is broken after a loss of power, whether it would have been right or not.
//!
//! ```text
//!  created ──▶ straddlers landed ──▶ flush of the base, a host's or our own ──▶ record ──▶ confirmed
//! ```
//!
//! # Invariants
//! 1. A host's flush waits for nothing here but a flush of our own that is on its way.
//! 2. Once a flush of the base has failed nobody knows what is on it: what is not confirmed then never is in this boot, and no stop of it is
//!    clean, whatever flushes succeed later.
//! 3. A flush of our own takes no failure from a host: the kernel, and a server, say once that something was lost, and to whoever asks first.
//!    Each session's next flush fails for it, and a FUA write that was on its way meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tzero_block::{BlockDevice, ByteRange, Error};
use tzero_io::Notify;

use crate::platform::Platform;
use crate::points::{Event, Planted, Point};
use crate::snapshots::Snapshot;
use crate::volume::{Durability, Volume};

/// How long it rests after a record could not be made durable, in nanoseconds.
const TRY_AGAIN: u64 = 1_000_000_000;

/// What is to be known of the base.
#[derive(Default)]
pub(crate) struct Confirming {
    /// There may be a snapshot that is not confirmed.
    wanted: AtomicBool,
    /// A flush of the base has failed in this boot.
    in_doubt: AtomicBool,
    /// There is something to confirm.
    news: Notify,
    /// A flush of our own is on its way.
    flushing: AtomicBool,
    /// It is over.
    over: Notify,
    /// How many flushes of our own have failed,
    failures: AtomicU64,
    /// and how many of them some session was told of.
    told: AtomicU64,
}

/// Which failed flushes of our own a host's session was told of.
pub(crate) struct Told(AtomicU64);

/// A flush of our own is on its way, until this is dropped.
struct Flushing<'a>(&'a Confirming);

impl<'a> Flushing<'a> {
    fn begin(confirming: &'a Confirming) -> Self {
        confirming.flushing.store(true, Ordering::SeqCst);
        Self(confirming)
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        self.0.flushing.store(false, Ordering::SeqCst);
        self.0.over.notify_all();
    }
}

impl Confirming {
    /// Whether a flush of the base has failed in this boot.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::SeqCst)
    }

    pub(crate) fn new(in_doubt: bool) -> Self {
        Self { wanted: AtomicBool::new(true), in_doubt: AtomicBool::new(in_doubt), ..Self::default() }
    }

    /// Of a new session. What nobody was told of yet it will be: it may be the one that had sent what was lost, connected anew.
    pub(crate) fn session(&self) -> Told {
        Told(AtomicU64::new(self.told.load(Ordering::SeqCst)))
    }

    /// How many flushes of our own have failed, once one that is on its way is over.
    pub(crate) async fn failures(&self) -> u64 {
        loop {
            let over = self.over.listen();
            if !self.flushing.load(Ordering::SeqCst) {
                return self.failures.load(Ordering::SeqCst);
            }
            over.await;
        }
    }

    /// How many have failed so far.
    pub(crate) fn failures_now(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }
}

impl<P: Platform> Volume<P> {
    /// A snapshot is to be confirmed.
    pub(crate) fn want_confirmation(&self) {
        if self.durability == Durability::Power {
            self.confirming.wanted.store(true, Ordering::SeqCst);
            self.confirming.news.notify_all();
        }
    }

    /// Flushes the base for a host. Settled volumes pay one load for it.
    pub(crate) async fn flush_base(&self) -> Result<(), Error> {
        let power = self.durability == Durability::Power;
        let wanted = power && self.confirming.wanted.load(Ordering::SeqCst);
        let covered = if wanted { self.landed_snapshots() } else { Vec::new() };
        let result = self.base.flush().await;
        self.base_flushed(&covered, &result);
        result
    }

    /// Whether a session that was `told` of some failures of our own flushes has to be told of more. It is told by that.
    pub(crate) async fn owes_failure(&self, told: &Told) -> bool {
        let failures = self.confirming.failures().await;
        if told.0.fetch_max(failures, Ordering::SeqCst) >= failures || self.platform.planted(Planted::FailureKept) {
            return false;
        }
        self.confirming.told.fetch_max(failures, Ordering::SeqCst);
        self.platform.observe(Event::FailureTold);
        true
    }

    /// Snapshots that a flush which begins now makes certain.
    fn landed_snapshots(&self) -> Vec<Arc<Snapshot>> {
        let mut waiting = self.unconfirmed();
        waiting.retain(|snapshot| {
            !snapshot.flushed.load(Ordering::Acquire) && self.admission.stragglers(snapshot.epoch) == 0
        });
        waiting
    }

    fn unconfirmed(&self) -> Vec<Arc<Snapshot>> {
        let mut all = self.snapshots.all();
        all.retain(|snapshot| !snapshot.goes() && !snapshot.confirmed.load(Ordering::Acquire));
        all
    }

    fn base_flushed(&self, covered: &[Arc<Snapshot>], result: &Result<(), Error>) {
        if let Err(error) = result {
            return self.doubt(error);
        }
        if covered.is_empty() || self.confirming.is_in_doubt() {
            return;
        }
        covered.iter().for_each(|snapshot| snapshot.flushed.store(true, Ordering::Release));
        self.confirming.news.notify_all();
    }

    /// A flush of the base has failed, or a change that was to be durable at once: what becomes of everything that was not flushed before nobody
    /// knows, for the kernel says so once, and to whoever asks first.
    pub(crate) fn doubt(&self, error: &Error) {
        if !error.leaves_doubt() || self.platform.planted(Planted::DoubtForgotten) {
            return;
        }
        self.platform.observe(Event::BaseInDoubt);
        self.confirming.in_doubt.store(true, Ordering::SeqCst);
        // In the page cache that is enough: it says something about this boot only.
        let _ = self.table.set_base_in_doubt(true);
    }

    /// Confirms snapshots, now and whenever one is taken. Never ends: a task for as long as the volume is served; at once the end of it
    /// where originals do not outlive a loss of power.
    pub async fn confirm(&self) {
        if self.durability == Durability::Process {
            return;
        }
        loop {
            let news = self.confirming.news.listen();
            self.confirming.wanted.store(false, Ordering::SeqCst);
            let waiting = self.unconfirmed();
            if waiting.is_empty() || self.confirming.is_in_doubt() {
                news.await;
                continue;
            }
            self.confirming.wanted.store(true, Ordering::SeqCst);
            for snapshot in waiting {
                if !snapshot.flushed.load(Ordering::Acquire) {
                    self.flush_for(&snapshot).await;
                }
            }
            if !self.record_confirmations().await {
                self.platform.sleep(TRY_AGAIN).await;
            }
        }
    }

    /// Flushes the base for a snapshot, once its straddlers have landed.
    async fn flush_for(&self, snapshot: &Arc<Snapshot>) {
        self.admission.landed(ByteRange::new(0, self.grains().size()), snapshot.epoch).await;
        self.platform.point(Point::ConfirmLanded).await;
        let covered = self.landed_snapshots();
        if !covered.is_empty() {
            let flushing = Flushing::begin(&self.confirming);
            let result = self.base.flush().await;
            if result.is_err() {
                self.confirming.failures.fetch_add(1, Ordering::SeqCst);
                self.platform.observe(Event::OwnFlushFailed);
            }
            self.base_flushed(&covered, &result);
            drop(flushing);
        }
    }

    /// Puts on record what is certain by now; `false` where that failed.
    async fn record_confirmations(&self) -> bool {
        let certain = |snapshot: &Arc<Snapshot>| {
            snapshot.flushed.load(Ordering::Acquire) || self.platform.planted(Planted::ConfirmedBeforeFlush)
        };
        let certain: Vec<_> = self.unconfirmed().into_iter().filter(certain).collect();
        let mut recorded = Vec::new();
        for snapshot in certain {
            let _claims = self.lock();
            // The record of one that goes may be another's by now.
            if !snapshot.goes() {
                if self.table.confirm(snapshot.slot, snapshot.id).is_err() {
                    return false;
                }
                recorded.push(snapshot);
            }
        }
        self.platform.point(Point::Confirmed).await;
        if !recorded.is_empty() && self.table.durable().await.is_err() {
            return false;
        }
        for snapshot in recorded {
            snapshot.confirmed.store(true, Ordering::Release);
            self.platform.observe(Event::Confirmed { id: snapshot.id });
        }
        true
    }
}
