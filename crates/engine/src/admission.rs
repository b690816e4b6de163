//! Admission of host changes: which requests count as before a T0, and which as after.
//!
//! A request registers *before* anything about it is decided and leaves when its base write is done. Its tag is the epoch at
//! registration. Starting an epoch is one store: nobody is held, nothing is drained. Requests still in flight with an older tag are
//! *straddlers*: they count as before T0, and whoever wants their grains waits for them.
//!
//! # Invariants
//! 1. Once the epoch is e, no request registers with a tag below e: registering publishes the tag first and then
//!    looks at the epoch again.
//! 2. Whoever has seen the epoch e sees every request in flight with a tag below e (both sides sequentially consistent).
//! 3. A lane's place is freed only by the request that holds it.
//!
//! | | register | leave | start epoch | look for straddlers |
//! |---|---|---|---|---|
//! | **register** | own place each | own place each | retried with the new epoch if it lost | 2 |
//! | **leave** | | own place each | no matter | wakes whoever waits: the place is freed before waiters are counted |
//! | **start epoch** | | | under the volume's lock | 2 |
//!
//! Deliberately absent: a queue of held requests. T0 never splits a request and never stops one.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, Weak};

use tzero_block::ByteRange;
use tzero_io::Notify;
use tzero_originals::Epoch;

/// Changes that one lane can have in flight.
const PLACES: usize = 256;
const FREE: u64 = 0;

/// In-flight change: written by its lane's thread, read by anyone.
struct Place {
    /// 0: free; else the tag plus one.
    tag: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
}

/// In-flight changes of one session.
pub(crate) struct Lane {
    places: Box<[Place]>,
    /// One bit per free place, a word for 64 of them.
    free: [AtomicU64; PLACES / 64],
}

/// All lanes of a volume and its current epoch.
pub(crate) struct Admission {
    epoch: AtomicU64,
    lanes: RwLock<Vec<Weak<Lane>>>,
    /// Nothing with a tag below this is in flight any more.
    settled: AtomicU64,
    /// Tasks that want to hear of a request that leaves.
    waiting: AtomicUsize,
    left: Notify,
}

impl Admission {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self {
            epoch: AtomicU64::new(epoch.0),
            lanes: RwLock::default(),
            settled: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            left: Notify::default(),
        }
    }

    /// The current epoch.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::SeqCst))
    }

    /// Starts an epoch. The caller holds the volume's lock and has armed everything.
    pub(crate) fn start(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::SeqCst);
    }

    /// A lane for a new session.
    pub(crate) fn lane(&self) -> Arc<Lane> {
        let place = || Place { tag: AtomicU64::new(FREE), start: AtomicU64::new(0), end: AtomicU64::new(0) };
        let lane = Arc::new(Lane {
            places: (0..PLACES).map(|_| place()).collect(),
            free: std::array::from_fn(|_| AtomicU64::new(u64::MAX)),
        });
        let mut lanes = self.lanes.write().expect("nothing panics under this lock");
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        lane
    }

    /// Registers a change; waits only if all places of the lane are taken.
    pub(crate) async fn admit<'a>(&'a self, lane: &'a Lane, range: ByteRange) -> Ticket<'a> {
        loop {
            if let Some(ticket) = self.try_admit(lane, range) {
                return ticket;
            }
            let waiting = Waiting::new(self);
            let left = self.left.listen();
            if let Some(ticket) = self.try_admit(lane, range) {
                return ticket;
            }
            left.await;
            drop(waiting);
        }
    }

    fn try_admit<'a>(&'a self, lane: &'a Lane, range: ByteRange) -> Option<Ticket<'a>> {
        let index = lane.take()?;
        let place = &lane.places[index];
        place.start.store(range.start(), Ordering::Relaxed);
        place.end.store(range.end(), Ordering::Relaxed);
        let mut epoch = self.epoch.load(Ordering::SeqCst);
        loop {
            place.tag.store(epoch + 1, Ordering::SeqCst);
            let now = self.epoch.load(Ordering::SeqCst);
            if now == epoch {
                return Some(Ticket { admission: self, lane, index, tag: Epoch(epoch) });
            }
            epoch = now;
        }
    }

    /// Whether a change with a tag below `epoch` is in flight somewhere in `range`.
    pub(crate) fn straddles(&self, range: ByteRange, epoch: Epoch) -> bool {
        if self.settled.load(Ordering::Acquire) >= epoch.0 {
            return false;
        }
        let mut any = false;
        let here = self.older(epoch, |place| {
            any = true;
            place.touches(range)
        });
        if !any && self.epoch() >= epoch {
            self.settled.fetch_max(epoch.0, Ordering::AcqRel);
        }
        here
    }

    /// How many changes with a tag below `epoch` are in flight.
    pub(crate) fn stragglers(&self, epoch: Epoch) -> usize {
        let mut count = 0;
        self.older(epoch, |_| {
            count += 1;
            false
        });
        count
    }

    /// Whether `found` says yes to some change in flight with a tag below `epoch`.
    fn older(&self, epoch: Epoch, mut found: impl FnMut(&Place) -> bool) -> bool {
        let lanes = self.lanes.read().expect("nothing panics under this lock");
        lanes.iter().filter_map(Weak::upgrade).any(|lane| {
            lane.taken().any(|index| {
                let place = &lane.places[index];
                let tag = place.tag.load(Ordering::SeqCst);
                tag != FREE && tag - 1 < epoch.0 && found(place)
            })
        })
    }

    /// Waits until nothing straddles; `true` if it had to wait.
    pub(crate) async fn landed(&self, range: ByteRange, epoch: Epoch) -> bool {
        let mut waited = false;
        while self.straddles(range, epoch) {
            waited = true;
            self.wait_unless(|| !self.straddles(range, epoch)).await;
        }
        waited
    }

    /// Waits for a request to leave or for [`Admission::announce`], unless `ready` holds already.
    pub(crate) async fn wait_unless(&self, ready: impl Fn() -> bool) {
        let waiting = Waiting::new(self);
        let left = self.left.listen();
        if !ready() {
            left.await;
        }
        drop(waiting);
    }

    /// Wakes whoever waits for something to change.
    pub(crate) fn announce(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.left.notify_all();
        }
    }
}

impl Place {
    /// A place that changes hands now goes to a request that registers with the current epoch: no straddler is missed.
    fn touches(&self, range: ByteRange) -> bool {
        self.start.load(Ordering::Acquire) < range.end() && range.start() < self.end.load(Ordering::Relaxed)
    }
}

impl Lane {
    fn take(&self) -> Option<usize> {
        for (word_index, word) in self.free.iter().enumerate() {
            // Not weaker: a change that waits has counted itself before it looks, one that leaves has freed its place before it looks
            // for those who wait.
            let mut free = word.load(Ordering::SeqCst);
            while free != 0 {
                let bit = free.trailing_zeros();
                match word.compare_exchange_weak(free, free & !(1 << bit), Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => return Some(word_index * 64 + bit as usize),
                    Err(now) => free = now,
                }
            }
        }
        None
    }

    fn taken(&self) -> impl Iterator<Item = usize> {
        self.free.iter().enumerate().flat_map(|(word_index, word)| {
            let taken = !word.load(Ordering::SeqCst);
            (0..64).filter(move |bit| taken & 1 << bit != 0).map(move |bit| word_index * 64 + bit)
        })
    }
}

struct Waiting<'a>(&'a Admission);

impl<'a> Waiting<'a> {
    fn new(admission: &'a Admission) -> Self {
        admission.waiting.fetch_add(1, Ordering::SeqCst);
        Self(admission)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A registered change. It leaves on drop: drop it only when nothing of it can reach the base any more.
pub(crate) struct Ticket<'a> {
    admission: &'a Admission,
    lane: &'a Lane,
    index: usize,
    tag: Epoch,
}

impl Ticket<'_> {
    /// The epoch that it belongs to.
    pub(crate) fn tag(&self) -> Epoch {
        self.tag
    }

    /// Nothing of the change is on its way any more before this byte: nobody has to wait for that.
    pub(crate) fn landed(&self, from: u64) {
        self.lane.places[self.index].start.fetch_max(from, Ordering::Release);
        self.admission.announce();
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.lane.places[self.index].tag.store(FREE, Ordering::SeqCst);
        self.lane.free[self.index / 64].fetch_or(1 << (self.index % 64), Ordering::SeqCst);
        self.admission.announce();
    }
}
