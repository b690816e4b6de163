//! The stage of one schedule: devices, the daemon of the moment, what clients know.
//!
//! Clients live outside the daemon. What they ask of it runs as a task of its process ([`Scene::call`]); when the process dies
//! the answer is `None`, and the client goes on with the next incarnation.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tzero_block::{Action, ByteRange};
use tzero_engine::{
    CacheOptions, Durability, FirstTier, Planted, Recovered, SnapshotInfo, SnapshotState, Volume, VolumeOptions,
};
use tzero_io::Notify;
use tzero_originals::{BrokenReason, Components, OnFull, RangeSet, SnapshotId};

use crate::contents::{Cells, Version};
use crate::disk::{DiskOptions, Row};
use crate::executor::{Crash, Process, die, draw, fail, is_dead, moment, note, sleep, spawn, spawn_joined};
use crate::mover::Copy;
use crate::oracle::{Oracle, Standing};
use crate::plan::{MOST_COMPONENTS, Plan, Shape};
use crate::platform::SimPlatform;
use crate::power::{Cut, Loss};
use crate::races::{Doing, Race, Races};
use crate::random::mix;
use crate::savings::{Savings, Sizes};
use crate::storage::Directory;

/// Names of the components of the base, and of the tiers of the cache.
const BASES: [&str; MOST_COMPONENTS] = ["base", "base 1", "base 2", "base 3"];
const TIERS: [&str; 2] = ["cache", "cache 1"];
/// Id of the simulated volume.
const VOLUME_ID: [u8; 16] = *b"simulated volume";

/// An engine in the simulator.
pub type SimVolume = Volume<SimPlatform>;

/// One incarnation of the daemon, once it serves.
#[derive(Clone)]
pub struct Daemon {
    /// Its process.
    pub process: Process,
    /// What it serves.
    pub volume: Arc<SimVolume>,
    /// Changes of clients that it has not answered: it is not stopped while there are any.
    pub busy: Rc<Cell<usize>>,
}

/// A snapshot, as clients know it.
#[derive(Clone, Debug)]
pub struct Known {
    /// The schedule's number of it; its name is `s` and the number.
    pub number: u32,
    /// The engine's id.
    pub id: SnapshotId,
    /// It releases.
    pub release: bool,
    /// A mover works on it, or will again.
    pub private: bool,
    /// It was made for a mover, whatever became of that.
    pub was_private: bool,
    /// What gives when the cache is full.
    pub on_full: OnFull,
    /// What it is of; empty: the whole volume.
    pub scope: Vec<ByteRange>,
    /// Bytes that the volume had at its T0; 0 where nobody was told.
    pub size: u64,
    /// Its copy-on-write was, or may have been, ended.
    pub ended: bool,
    /// It was: what it retains is pinned.
    pub retained: bool,
}

impl Known {
    /// Whether it shows all of a range.
    pub fn has_in_scope(&self, range: ByteRange) -> bool {
        let mut scope = RangeSet::default();
        self.scope.iter().for_each(|range| scope.insert(*range));
        self.scope.is_empty() || scope.contains(range)
    }
}

/// See the module.
pub struct Scene {
    /// What is to happen.
    pub plan: Plan,
    /// The judge.
    pub oracle: Oracle,
    /// The counters.
    pub races: Races,
    /// The host's bytes.
    pub base: Row,
    /// Payloads.
    pub cache: Row,
    /// State files.
    pub directory: Directory,
    /// Interrupted copies.
    pub copies: RefCell<Vec<Copy>>,
    /// Operations that were finished.
    pub ops_done: Cell<u64>,
    /// The daemon takes nothing new.
    pub stopping: Cell<bool>,
    /// The cache was damaged.
    pub corrupted: Cell<bool>,
    /// The last daemon was stopped cleanly, not killed.
    pub stopped: Cell<bool>,
    /// The last incarnation, alive or dead.
    pub process: Cell<Option<Process>>,
    /// Movers, alive or dead.
    pub movers: RefCell<Vec<Process>>,
    /// How much was not durable when the power was lost last.
    pub logged: Cell<u64>,
    /// Number of the running boot.
    pub boot: Cell<u8>,
    /// The fault that is planted.
    pub planted: Option<Planted>,
    ids: Arc<AtomicU64>,
    /// The last daemon died with everything durable that a clean stop promises, so that it may be on record.
    close_synced: Arc<AtomicBool>,
    /// Snapshots that outlive a loss of power.
    confirmed: Arc<Mutex<BTreeSet<SnapshotId>>>,
    daemon: RefCell<Option<Daemon>>,
    known: RefCell<BTreeMap<u32, Known>>,
    next_snapshot: Cell<u32>,
    news: Notify,
    power_lost: Cell<bool>,
    /// Snapshots are being deleted so that the base can be cut.
    pub clearing: Cell<bool>,
    /// A daemon has served since the last clean stop.
    served: Cell<bool>,
    /// Stretches of the cache whose contents went with the machine's memory, until a daemon has taken that in.
    lost: RefCell<Vec<ByteRange>>,
    /// There is no memory for originals since the machine's last start.
    withheld: Cell<bool>,
    /// How long the base is on record, and what it may be instead.
    recorded: Cell<(u64, Option<u64>)>,
    /// How long the volume was at each T0, by epoch.
    sizes: Sizes,
}

impl Scene {
    /// The stage of a plan, with its devices filled.
    pub fn new(plan: Plan, planted: Option<Planted>) -> Rc<Self> {
        let Shape { cells, alignment, grain, fast_zeroes, .. } = plan.shape;
        let row = |names, lengths: &[u64], latency| {
            let logged = plan.power_loss.iter().any(Option::is_some);
            let options = DiskOptions { name: "", size: 0, alignment, latency, limit: None, fast_zeroes, logged };
            Row::new(plan.run_seed, names, lengths, &options)
        };
        let base = row(&BASES, &plan.shape.components, plan.shape.base_latency);
        let cache = row(&TIERS, &plan.shape.tiers, plan.shape.cache_latency);
        let (seed, filled) = (plan.seed, plan.shape.filled);
        // In stretches, so that there are whole grains of holes.
        let first = plan.shape.first_size;
        let is_filled =
            move |index: usize| (index as u64) * cells.cell < first && mix(seed ^ (index / 32) as u64) % 16 < filled;
        base.resize(first);
        fill(&base, cells, &is_filled);
        Rc::new(Self {
            oracle: Oracle::new(cells, is_filled),
            races: Races::new(u64::from(grain), &plan.shape.components),
            base,
            cache,
            directory: Directory::new(plan.run_seed),
            copies: RefCell::default(),
            ops_done: Cell::new(0),
            stopping: Cell::new(false),
            corrupted: Cell::new(false),
            stopped: Cell::new(false),
            process: Cell::new(None),
            movers: RefCell::default(),
            logged: Cell::new(0),
            boot: Cell::new(1),
            planted,
            ids: Arc::new(AtomicU64::new(1)),
            close_synced: Arc::default(),
            confirmed: Arc::default(),
            daemon: RefCell::default(),
            known: RefCell::default(),
            next_snapshot: Cell::new(1),
            news: Notify::default(),
            power_lost: Cell::new(false),
            clearing: Cell::new(false),
            served: Cell::new(false),
            lost: RefCell::default(),
            withheld: Cell::new(false),
            recorded: Cell::new((first, None)),
            sizes: Sizes::default(),
            plan,
        })
    }

    /// The daemon of the moment, if it serves.
    pub fn serving(&self) -> Option<Daemon> {
        self.daemon.borrow().clone().filter(|_| !self.stopping.get())
    }

    /// Waits until a daemon serves.
    pub async fn daemon(&self) -> Daemon {
        loop {
            let news = self.news.listen();
            if let Some(daemon) = self.serving() {
                return daemon;
            }
            note("a daemon that serves", 0, 0);
            news.await;
        }
    }

    /// Something that others may wait for has changed.
    pub fn announce(&self) {
        self.news.notify_all();
    }

    /// Resolves at the next [`Scene::announce`].
    pub fn listen(&self) -> tzero_io::Listen<'_> {
        self.news.listen()
    }

    /// Has `daemon` do something. `None`: it died.
    pub async fn call_on<T: 'static>(
        &self,
        daemon: &Daemon,
        name: &str,
        request: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let current = self.serving().is_some_and(|serving| serving.process == daemon.process);
        if !current {
            return None;
        }
        let answer = spawn_joined(daemon.process, format!("daemon: {name}"), request);
        note("an answer of the daemon", 0, 0);
        answer.await
    }

    /// Has the daemon of the moment do something, and waits for one to be there first. `None`: it died.
    pub async fn call<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        name: &str,
        request: impl FnOnce(Arc<SimVolume>) -> F,
    ) -> Option<T> {
        let daemon = self.daemon().await;
        self.call_on(&daemon, name, request(Arc::clone(&daemon.volume))).await
    }

    /// A process of a mover, which the machine's death is the death of.
    pub fn start_mover(&self) -> Process {
        let process = Process::start();
        self.movers.borrow_mut().push(process);
        process
    }

    /// A number for a new snapshot.
    pub fn number_snapshot(&self) -> u32 {
        self.next_snapshot.replace(self.next_snapshot.get() + 1)
    }

    /// A snapshot was created.
    pub fn learn(&self, known: Known) {
        self.known.borrow_mut().insert(known.number, known);
        self.count_standing();
    }

    /// Whether there is, or was, a snapshot that would rather see writes fail than break.
    pub fn may_fail_writes(&self) -> bool {
        self.known.borrow().values().any(|known| known.on_full == OnFull::FailWrites)
    }

    /// Changes what is known of a snapshot.
    pub fn update(&self, number: u32, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.known.borrow_mut().get_mut(&number) {
            change(known);
        }
        self.count_standing();
    }

    /// Snapshots that stand, as far as clients know, and that `want` wants.
    pub fn standing(&self, want: impl Fn(&Known) -> bool) -> Vec<Known> {
        let known = self.known.borrow();
        known
            .values()
            .filter(|known| self.oracle.standing(known.number) == Standing::Live && want(known))
            .cloned()
            .collect()
    }

    /// The one of [`Scene::standing`] that a plan's number means.
    pub fn pick(&self, pick: u64, want: impl Fn(&Known) -> bool) -> Option<Known> {
        let mut standing = self.standing(want);
        (!standing.is_empty()).then(|| standing.swap_remove((pick % standing.len() as u64) as usize))
    }

    /// How many originals were ever saved, as far as is known now.
    pub fn sequence(&self) -> u64 {
        self.daemon.borrow().as_ref().map_or(0, |daemon| daemon.volume.statistics().originals.sequence)
    }

    /// Tells the counters how many snapshots stand.
    pub fn count_standing(&self) {
        self.races.standing(self.standing(|_| true).len());
    }

    /// Widens a range to whole grains.
    pub fn touched(&self, range: ByteRange) -> ByteRange {
        let (grain, size) = (u64::from(self.plan.shape.grain), self.plan.shape.cells.size);
        ByteRange::between(range.start() / grain * grain, range.end().next_multiple_of(grain).min(size))
    }

    /// Narrows a range of a snapshot to its whole grains.
    pub fn covered(&self, known: &Known, range: ByteRange) -> Option<ByteRange> {
        let (grain, size) = (u64::from(self.plan.shape.grain), known.size);
        let end = if range.end() == size { size } else { range.end() / grain * grain };
        let start = range.start().next_multiple_of(grain);
        (start < end).then(|| ByteRange::between(start, end))
    }

    /// The state of a snapshot, as the daemon of the moment says; tells the judge.
    pub fn state_of(&self, known: &Known) -> Option<SnapshotState> {
        let volume = self.daemon.borrow().clone()?.volume;
        let info = volume.snapshot_by_id(known.id)?;
        self.oracle.state_seen(known.number, is_broken(&info));
        let full = matches!(info.state, SnapshotState::Broken { reason: BrokenReason::CacheFull, .. });
        let retained = self.known.borrow().get(&known.number).is_some_and(|known| known.retained);
        if full && retained {
            fail(format!("snapshot {} broke of a full cache, and what it retains was not copied yet", known.number));
        }
        if full && known.on_full == OnFull::FailWrites {
            fail(format!("snapshot {} broke of a full cache, and it was to fail writes instead", known.number));
        }
        Some(info.state)
    }

    /// Whether a read of a snapshot may fail: it is going or gone, ended, released there, or faults have cost these bytes.
    pub fn may_refuse(&self, known: &Known, range: ByteRange, cache_failures: u64) -> bool {
        // Where the daemon has died meanwhile, nobody can say whether the snapshot was broken.
        let broken = self.daemon.borrow().is_none() || {
            self.state_of(known);
            self.oracle.is_broken(known.number)
        };
        broken && self.plan.may_break()
            || self.corrupted.get()
            || self.oracle.standing(known.number) != Standing::Live
            || self.known.borrow().get(&known.number).is_none_or(|known| known.ended)
            || self.oracle.may_be_released(known.number, self.touched(range))
            || self.base.has_failed(Action::Read, self.touched(range))
            || self.cache.failures(Action::Read) != cache_failures
    }

    /// Makes the volume longer, as a daemon does that is asked to.
    pub async fn grow(self: &Rc<Self>, who: &str, size: u64) {
        let daemon = self.daemon().await;
        let was = self.base.size();
        if size <= was {
            return;
        }
        let (scene, process, volume) = (Rc::clone(self), daemon.process, Arc::clone(&daemon.volume));
        let early = self.planted == Some(Planted::SizeRecordedFirst);
        let doing = self.races.begin(Doing::Grow);
        self.call_on(&daemon, who, async move {
            scene.recorded.set(if early { (size, None) } else { (was, Some(size)) });
            step(process).await;
            scene.base.resize(size);
            step(process).await;
            scene.recorded.set((size, None));
            step(process).await;
            if volume.grow() != Ok(size) {
                fail(format!("the volume has not grown to {size} bytes"));
            }
        })
        .await;
        drop(doing);
    }

    /// Whether the daemon of the moment, alive or dead, has no snapshot.
    pub fn has_no_snapshots(&self) -> bool {
        self.daemon.borrow().as_ref().is_some_and(|daemon| daemon.volume.snapshots().is_empty())
    }

    /// The base is cut while nobody serves it, and no snapshot stands.
    pub fn cut(&self, size: u64) {
        let was = self.base.size();
        if size < was {
            self.base.resize(size);
            self.recorded.set((size, None));
            self.oracle.cut(ByteRange::between(size, was));
            self.sizes.forget();
            self.races.reach(Race::Cut);
        }
    }

    /// How long the base is, which must be what is on record.
    fn found_size(&self) -> u64 {
        let (found, (size, becoming)) = (self.base.size(), self.recorded.get());
        if found != size && Some(found) != becoming {
            fail(format!("the base is {found} bytes long, and {size} ({becoming:?}) is on record"));
        }
        self.recorded.set((found, None));
        found
    }

    /// Starts a daemon.
    pub fn start(self: &Rc<Self>, process: Process) {
        let size = self.found_size();
        let platform = SimPlatform {
            process,
            oracle: self.oracle.clone(),
            races: self.races.clone(),
            savings: Savings::default(),
            planted: self.planted,
            ids: Arc::clone(&self.ids),
            close_synced: Arc::clone(&self.close_synced),
            confirmed: Arc::clone(&self.confirmed),
            longest_save: self.plan.shape.longest_save_ns,
            increment: self.plan.shape.increment,
            size: AtomicU64::new(size),
            grain: self.plan.shape.grain.into(),
            sizes: self.sizes.clone(),
        };
        let Shape { grain, components, tiers, .. } = &self.plan.shape;
        let memory = if tiers.len() > 1 && !self.plan.shape.outlives_power() { tiers[0] } else { 0 };
        let options = VolumeOptions {
            name: "volume".into(),
            id: VOLUME_ID,
            grain: *grain,
            components: Components::new(components, *grain).expect("the plan's components are a row"),
            boot_id: [self.boot.get(); 16],
            base_changed: false,
            durability: self.plan.shape.durability,
            map_shape: self.plan.shape.map,
            cache: CacheOptions {
                first_tier: FirstTier { bytes: memory, withheld: self.withheld.get() },
                lost: self.lost.borrow().clone(),
            },
        };
        let (base, cache) = (self.base.open(process), self.cache.open(process));
        let storage = self.directory.open(process);
        let failures = self.directory.failures();
        let scene = Rc::clone(self);
        let again = process;
        spawn(process, "daemon: recovery".into(), false, async move {
            let recovery = scene.races.begin(Doing::Recovery);
            let opened = Volume::open(platform, base, cache, storage, options).await;
            drop(recovery);
            if is_dead(process) {
                return;
            }
            match opened {
                Ok((volume, recovered)) => scene.opened(process, volume, &recovered),
                Err(error) => {
                    if scene.directory.failures() == failures {
                        fail(format!("the volume cannot be opened: {error}"));
                    }
                    scene.directory.heal();
                    scene.start(again);
                }
            }
        });
    }

    /// Whether a snapshot may be as it was found after a start.
    fn judge_found(&self, number: u32, info: &SnapshotInfo, broken: bool) {
        let power = self.plan.shape.durability == Durability::Power;
        let lost = self.power_lost.get() && !self.close_synced.load(Ordering::Relaxed);
        let confirmed = self.confirmed.lock().expect("nothing panics under this lock").contains(&info.id);
        if broken && !self.plan.may_break() {
            fail(format!("snapshot {number} is broken after a restart without a reason: {:?}", info.state));
        }
        if matches!(info.state, SnapshotState::Broken { reason: BrokenReason::MemoryLost, .. }) {
            self.races.reach(Race::MemoryLost);
        } else if !broken && !self.lost.borrow().is_empty() {
            self.races.reach(Race::MemoryLostElsewhere);
        }
        if !broken && lost && !power {
            fail(format!("snapshot {number} is live after the power was lost"));
        }
        let known_broken = self.oracle.is_broken(number) || self.plan.may_break_of_itself() || self.corrupted.get();
        if power && broken && !known_broken && (confirmed || !lost) {
            fail(format!("snapshot {number} outlives a loss of power and is broken after one: {:?}", info.state));
        }
        if power && lost {
            self.races.reach(match info.state {
                SnapshotState::Broken { reason: BrokenReason::PowerLost, .. } => Race::NotConfirmed,
                SnapshotState::Broken { reason: BrokenReason::Damaged, .. } => Race::RecordsDamaged,
                SnapshotState::Broken { .. } => return,
                SnapshotState::Live | SnapshotState::Ended { .. } => Race::OutlivedPower,
            });
        }
    }

    fn opened(&self, process: Process, volume: Arc<SimVolume>, recovered: &Recovered) {
        let mut found = Vec::new();
        for info in &recovered.snapshots {
            let Some(number) = info.name.strip_prefix('s').and_then(|number| number.parse().ok()) else {
                fail(format!("a snapshot {} was found that nobody made", info.name));
                continue;
            };
            // The daemon may have died before anybody heard of it.
            self.sizes.armed(info.epoch.0, info.size);
            let broken = is_broken(info);
            self.judge_found(number, info, broken);
            if broken {
                self.races.found_broken(info.id);
            } else if self.power_lost.get() && !self.races.is_broken(info.id) {
                self.oracle.stands_after_all(number);
            }
            found.push((number, info.epoch.0, broken));
            let mut known = self.known.borrow_mut();
            let entry = known.entry(number).or_insert_with(|| Known {
                number,
                id: info.id,
                release: info.originals == tzero_originals::Originals::Release,
                private: true,
                was_private: info.private,
                on_full: info.on_full,
                scope: info.scope.clone().unwrap_or_default(),
                size: info.size,
                ended: false,
                retained: false,
            });
            if ![0, info.size].contains(&entry.size) {
                fail(format!("snapshot {number} had {} bytes and is found with {}", entry.size, info.size));
            }
            (entry.id, entry.size) = (info.id, info.size);
            entry.ended |= matches!(info.state, SnapshotState::Ended { .. });
        }
        if recovered.damaged > 0 {
            fail(format!("{} entries of the map were damaged by a death of the process", recovered.damaged));
        }
        self.lost.borrow_mut().clear();
        self.served.set(true);
        self.close_synced.store(false, Ordering::Relaxed);
        let power = self.plan.shape.durability == Durability::Power;
        // Of a private snapshot nothing is durable, unless it is to outlive this.
        let known = self.known.borrow();
        let may_be_lost = |number| !power && known.get(&number).is_some_and(|known| known.was_private);
        // Its record could not be cleared when it could not be made.
        let uncleared = |number| known.get(&number).is_some_and(|known| self.races.mark_lost(known.id));
        self.oracle.recovered(&found, self.power_lost.take(), power, may_be_lost, uncleared);
        drop(known);
        let maintained = Arc::clone(&volume);
        spawn(process, "daemon: maintain".into(), false, async move { maintained.maintain().await });
        let confirming = Arc::clone(&volume);
        spawn(process, "daemon: confirm".into(), false, async move { confirming.confirm().await });
        *self.daemon.borrow_mut() = Some(Daemon { process, volume, busy: Rc::default() });
        self.count_standing();
        self.announce();
    }

    /// The daemon has recorded a clean stop.
    pub fn stopped_cleanly(&self) {
        self.stopped.set(true);
        self.served.set(false);
    }

    /// The daemon is dead: nobody serves until the next one does.
    pub fn down(&self) {
        let daemon = self.daemon.borrow_mut().take();
        drop(daemon);
        self.stopping.set(false);
        self.announce();
    }

    /// The machine started anew after a clean stop: what the first tier held is gone, but for what had been put by.
    pub fn reboot(&self) {
        self.boot.set(self.boot.get() + 1);
        let Shape { tiers, memory_loss, grain, .. } = &self.plan.shape;
        let [memory, _] = tiers[..] else { return };
        if self.plan.shape.outlives_power() {
            return;
        }
        self.withheld.set(draw(|random| random.chance(10)));
        let slots = ByteRange::new(0, memory).pieces(u64::from(*grain));
        let lost: Vec<ByteRange> =
            slots.filter(|_| self.withheld.get() || draw(|random| random.chance(*memory_loss))).collect();
        for slot in &lost {
            self.cache.fill(slot.start(), &vec![0xEE; slot.len() as usize]);
        }
        self.lost.borrow_mut().extend(lost);
    }

    /// The machine stopped, too, and with it every mover. Snapshots are lost with it if the daemon had served since the last clean stop.
    pub fn lose_power(&self, loss: Loss) {
        for mover in self.movers.take() {
            die(mover);
        }
        self.base.settle();
        self.cache.settle();
        let mut logged = self.base.logged();
        logged.extend(self.cache.logged());
        logged.extend(self.directory.logged());
        logged.sort_unstable();
        self.logged.set(logged.len() as u64);
        let cut = match loss {
            Loss::Sampled => Cut::sampled(self.plan.run_seed),
            Loss::Last(count) => match logged.len().checked_sub(count as usize) {
                None | Some(0) => Cut::Before(0),
                Some(kept) => Cut::Before(logged[kept - 1] + 1),
            },
        };
        self.base.lose_power(&cut);
        self.cache.lose_power(&cut);
        self.directory.lose_power(&cut);
        self.oracle.lost_power();
        self.boot.set(self.boot.get() + 1);
        self.power_lost.set(self.power_lost.get() || self.served.get());
        self.races.reach(Race::PowerLost);
    }

    /// Disarms every fault.
    pub fn heal(&self) {
        self.base.heal();
        self.cache.heal();
        self.directory.heal();
    }
}

/// Time between two steps of the daemon, in which others run, and it may be killed.
async fn step(process: Process) {
    if moment(process, Crash::Point) {
        return std::future::pending().await;
    }
    sleep(draw(|random| random.magnitude(4_000_000))).await;
}

fn is_broken(info: &SnapshotInfo) -> bool {
    matches!(info.state, SnapshotState::Broken { .. })
}

fn fill(base: &Row, cells: Cells, is_filled: &dyn Fn(usize) -> bool) {
    for index in (0..cells.count()).filter(|index| is_filled(*index)) {
        let range = cells.range(index);
        let mut bytes = vec![0; range.len() as usize];
        crate::contents::fill(Version::FIRST, index, &mut bytes);
        base.fill(range.start(), &bytes);
    }
}
