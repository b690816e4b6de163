//! What writers did, and whether an image can be what a volume held at one instant.
//!
//! One clock ticks for everything. A write's identity is the tick at which it was sent; when its reply came, that tick is
//! kept too. An instant is known only to lie between two ticks (before the request for a snapshot was sent, after
//! its reply came), and yet an image of it is checked strictly:
//!
//! 1. every unit holds the bytes of one write to it, whole;
//! 2. a write that was answered before the instant could begin is in the image; one sent after it must have ended is not;
//! 3. the image is a consistent cut: when it holds a write, it holds every write that was answered before that one was sent;
//! 4. a write that was answered is in the image with all of its units or with none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::stamps::{UNIT, identify};

/// A write of stamped units.
#[derive(Clone, Copy, Debug)]
struct Written {
    first: u64,
    count: u64,
    answered: Option<u64>,
}

/// Every write that was ever sent to one volume, by identity.
#[derive(Debug)]
pub struct History {
    units: u64,
    clock: AtomicU64,
    writes: Mutex<BTreeMap<u64, Written>>,
}

/// An instant, known to lie between two ticks.
#[derive(Clone, Copy, Debug)]
pub struct Instant {
    /// Everything answered before this tick is in.
    pub after: u64,
    /// Nothing sent after this tick is in.
    pub before: u64,
}

impl History {
    /// Of a volume of `size` bytes that [`crate::stamps::file`] filled.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { units: size / UNIT, clock: AtomicU64::new(1), writes: Mutex::default() }
    }

    /// Units of the volume.
    #[must_use]
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Lets the clock tick.
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Runs what takes a snapshot, and says when its instant was.
    pub fn instant<T>(&self, take: impl FnOnce() -> T) -> (Instant, T) {
        let after = self.tick();
        let taken = take();
        (Instant { after, before: self.tick() }, taken)
    }

    /// The instant that is now; nobody may be writing.
    pub fn now(&self) -> Instant {
        self.instant(|| ()).0
    }

    /// A write is about to be sent; gives its identity.
    pub fn sent(&self, first: u64, count: u64) -> u64 {
        let mut writes = self.lock();
        let write = self.tick();
        writes.insert(write, Written { first, count, answered: None });
        write
    }

    /// Its reply has come.
    ///
    /// # Panics
    /// When it was never sent.
    pub fn answered(&self, write: u64) {
        let mut writes = self.lock();
        let tick = self.tick();
        writes.get_mut(&write).expect("a write that was sent").answered = Some(tick);
    }

    /// Writes that were answered so far.
    pub fn count(&self) -> u64 {
        self.lock().values().filter(|write| write.answered.is_some()).count() as u64
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Written>> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Proves that `image` is what the volume held at `instant`.
    ///
    /// # Panics
    /// When it is not; the message says where and why.
    pub fn prove(&self, what: &str, image: &[u8], instant: Instant) {
        assert_eq!(image.len() as u64, self.units * UNIT, "{what}: size");
        let held = self.identities(what, image);
        let writes = self.lock();
        let newest = self.complete(what, &writes, &held, instant);
        for (write, written) in writes.iter().filter(|(write, _)| **write <= instant.before) {
            let Some(answered) = written.answered else { continue };
            let range = written.first..written.first + written.count;
            let within = range.clone().filter(|unit| held[*unit as usize] >= *write).count() as u64;
            assert!(
                within == 0 || within == written.count,
                "{what}: write {write} (units {range:?}) is in the image with {within} of its units"
            );
            if within == 0 {
                assert!(
                    answered > instant.after,
                    "{what}: write {write} (units {range:?}) was answered at {answered}, before {instant:?}, and is not in the image"
                );
                assert!(
                    answered > newest,
                    "{what}: write {write} (units {range:?}) was answered at {answered}, before write {newest} was sent; \
                     the image holds that one but not this one"
                );
            }
        }
    }

    /// Which write each unit holds.
    fn identities(&self, what: &str, image: &[u8]) -> Vec<u64> {
        let units = image.chunks_exact(UNIT as usize).enumerate();
        units
            .map(|(unit, bytes)| identify(unit as u64, bytes).unwrap_or_else(|stray| panic!("{what}: {stray:?}")))
            .collect()
    }

    /// Every unit holds a write that was sent to it, in time; gives the newest of those that were answered.
    fn complete(&self, what: &str, writes: &BTreeMap<u64, Written>, held: &[u64], instant: Instant) -> u64 {
        let mut newest = 0;
        for (unit, write) in held.iter().enumerate().filter(|(_, write)| **write != 0) {
            let written =
                writes.get(write).unwrap_or_else(|| panic!("{what}: unit {unit} holds unknown write {write}"));
            assert!(
                (written.first..written.first + written.count).contains(&(unit as u64)),
                "{what}: unit {unit} holds write {write}, which was never sent there"
            );
            assert!(
                *write <= instant.before,
                "{what}: unit {unit} holds write {write}, which was sent after {instant:?}"
            );
            newest = newest.max(*write);
        }
        newest
    }
}
