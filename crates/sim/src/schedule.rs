//! Running one schedule from its first operation to the last look at everything.

use std::collections::BTreeMap;
use std::rc::Rc;

use tzero_block::{Action, ByteRange};
use tzero_engine::{Planted, SnapshotState};

use crate::clients;
use crate::executor::{
    Crash, CrashPlan, Executor, Process, Ran, Stuck, die, draw, fail, is_dead, moments, note, sleep, spawn,
};
use crate::plan::{End, Plan};
use crate::power::Loss;
use crate::quiet::Quiet;
use crate::races::Race;
use crate::scene::{Daemon, Known, Scene};
use crate::snapshots;

/// More steps than any schedule takes that still gets anywhere.
const MOST_STEPS: u64 = 3_000_000;

/// What a schedule has shown.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What was wrong, if anything.
    pub failure: Option<String>,
    /// Operations that were finished.
    pub ops: u64,
    /// Steps of the executor.
    pub steps: u64,
    /// Hash over all steps.
    pub trace: u64,
    /// Races reached.
    pub races: BTreeMap<Race, u64>,
    /// How much was not durable when the power was lost last.
    pub logged: u64,
    /// Moments of the last incarnation at which it could have been killed, by kind as in [`Crash::ALL`].
    pub moments: [u64; Crash::ALL.len()],
}

/// Runs a plan, with a fault planted or without.
pub fn run(plan: &Plan, planted: Option<Planted>) -> Verdict {
    let quiet = Quiet::begin();
    let executor = Executor::new(plan.run_seed, plan.chaos.clone());
    let scene = Scene::new(plan.clone(), planted);
    let failure = play(&executor, &scene).err().map(|stuck| stuck.to_string());
    let last = scene.process.get();
    let verdict = Verdict {
        failure,
        ops: scene.ops_done.get(),
        steps: executor.steps(),
        trace: executor.trace(),
        races: scene.races.counts(),
        logged: scene.logged.get(),
        moments: Crash::ALL.map(|kind| last.map_or(0, |process| moments(process, kind))),
    };
    scene.down();
    drop(executor);
    drop(quiet);
    verdict
}

fn play(executor: &Executor, scene: &Rc<Scene>) -> Result<(), Stuck> {
    let mut lives = Lives { scene, ends: scene.plan.ends.iter().copied().zip(&scene.plan.power_loss), process: None };
    lives.begin();
    for (number, actor) in scene.plan.actors.iter().enumerate() {
        clients::start(scene, number, actor);
    }
    lives.until_done(executor)?;
    scene.heal();
    let last = Rc::clone(scene);
    spawn(Process::WORLD, "the last look".into(), true, async move { last_look(&last).await });
    lives.until_done(executor)
}

/// How an incarnation ends, and what the machine then loses, if it stops, too.
type Ending = (End, Option<Loss>);

/// The incarnations of the daemon.
struct Lives<'a, E> {
    scene: &'a Rc<Scene>,
    ends: E,
    process: Option<(Process, Option<Ending>)>,
}

impl<'a, E: Iterator<Item = (End, &'a Option<Loss>)>> Lives<'a, E> {
    fn begin(&mut self) {
        let process = Process::start();
        let end = self.ends.next().map(|(end, power_lost)| (end, *power_lost));
        match end {
            Some((End::Kill(plan), _)) => process.plan_crash(Some(plan)),
            Some((End::Stop { after_ops, killed, cut, .. }, _)) => {
                stop_after(self.scene, process, after_ops, killed, cut.is_some());
            }
            None => {}
        }
        self.process = Some((process, end));
        self.scene.process.set(Some(process));
        self.scene.start(process);
    }

    /// Runs until every client is done, starting a daemon whenever one dies.
    fn until_done(&mut self, executor: &Executor) -> Result<(), Stuck> {
        loop {
            let steps = MOST_STEPS.saturating_sub(executor.steps());
            match executor.run(steps)? {
                Ran::Finished => return Ok(()),
                Ran::Paused => return Err(Stuck::Livelock(executor.waiting())),
                Ran::Killed(process) => self.bury(executor, process)?,
            }
        }
    }

    fn bury(&mut self, executor: &Executor, process: Process) -> Result<(), Stuck> {
        let scene = self.scene;
        let end = self.process.take_if(|(daemon, _)| *daemon == process);
        if end.is_some() && !scene.stopped.get() {
            scene.races.crash();
        }
        executor.reap(process);
        let Some((_, end)) = end else { return Ok(()) };
        let clean = scene.stopped.take();
        if clean {
            scene.races.reach(Race::CleanStop);
            if matches!(end, Some((End::Stop { reboot: true, .. }, _))) {
                scene.reboot();
            }
        }
        let cut = end.and_then(|(end, _)| if let End::Stop { cut, .. } = end { cut.filter(|_| clean) } else { None });
        let unused = cut.filter(|_| scene.has_no_snapshots());
        scene.down();
        // Movers and requests in flight outlive the daemon for a while.
        let while_down = draw(|random| if random.chance(50) { random.magnitude(200) } else { 0 });
        executor.drift(while_down)?;
        scene.base.settle();
        scene.cache.settle();
        scene.oracle.crashed();
        if let Some(size) = unused {
            scene.cut(size);
        }
        if let Some((_, Some(loss))) = end {
            scene.lose_power(loss);
        }
        self.begin();
        Ok(())
    }
}

/// Stops the daemon cleanly once so many operations are done.
/// Where the base is to be cut, without the snapshots that clients have.
fn stop_after(scene: &Rc<Scene>, process: Process, after_ops: u64, killed: Option<CrashPlan>, cuts: bool) {
    let scene = Rc::clone(scene);
    spawn(Process::WORLD, "operator: stop".into(), false, async move {
        while scene.ops_done.get() < after_ops {
            sleep(20_000).await;
        }
        scene.clearing.set(cuts);
        while cuts && let Some(known) = scene.standing(|known| !known.private).pop() {
            snapshots::delete(&scene, "operator: stop", &known).await;
        }
        scene.clearing.set(false);
        stop(&scene, process, killed).await;
    });
}

/// Stops a daemon cleanly, unless it is killed meanwhile.
async fn stop(scene: &Rc<Scene>, process: Process, killed: Option<CrashPlan>) {
    let daemon = scene.daemon().await;
    if daemon.process != process {
        return;
    }
    scene.stopping.set(true);
    loop {
        let news = scene.listen();
        if daemon.busy.get() == 0 {
            break;
        }
        note("the last changes before the stop", 0, 0);
        news.await;
    }
    if let Some(CrashPlan { at, number }) = killed {
        process.plan_crash(Some(CrashPlan { at, number: moments(process, at) + number }));
    }
    let closing = Rc::clone(scene);
    spawn(process, "daemon: close".into(), false, async move {
        let failed = |scene: &Scene| {
            scene.directory.failures() + scene.base.failures(Action::Flush) + scene.cache.failures(Action::Flush)
        };
        let failures = failed(&closing);
        let token = closing.oracle.flush_begins();
        let closed = daemon.volume.close().await;
        if is_dead(process) {
            return;
        }
        match closed {
            Ok(()) => {
                if closing.base.failures(Action::Flush) == 0 {
                    closing.oracle.flushed(&token);
                }
                closing.stopped_cleanly();
            }
            // A stop that is not clean: as if it had been killed.
            Err(_) if failed(&closing) != failures || closing.base.failures(Action::Flush) > 0 => {}
            Err(error) => fail(format!("the volume cannot be closed: {error}")),
        }
        die(process);
    });
}

/// Reads every snapshot that stands, deletes them all, and looks for what is left.
async fn last_look(scene: &Rc<Scene>) {
    read_all(scene).await;
    if scene.plan.restart_at_end {
        let daemon = scene.daemon().await;
        stop(scene, daemon.process, None).await;
        read_all(scene).await;
    }
    loop {
        if let Some(known) = scene.standing(|_| true).pop() {
            snapshots::delete(scene, "the last look", &known).await;
            // A deletion that a death interrupted is taken up, or not, by the next life.
            scene.daemon().await;
        } else if scene.clearing.get() {
            sleep(100_000).await;
        } else {
            break;
        }
    }
    let mut daemon = scene.daemon().await;
    let left = |daemon: &Daemon| {
        let statistics = daemon.volume.statistics();
        (statistics.originals.entries, statistics.originals.bytes, statistics.saving, statistics.snapshots)
    };
    if left(&daemon) != (0, 0, 0, 0) && scene.directory.failures() > 0 {
        // What could not be freed because the map could not be written is freed by the next start.
        stop(scene, daemon.process, None).await;
        daemon = scene.daemon().await;
    }
    let left = left(&daemon);
    if left != (0, 0, 0, 0) {
        fail(format!("entries, bytes, saves, snapshots left with nothing standing: {left:?}"));
    }
    while scene.base.in_flight(daemon.process) > 0 {
        sleep(100_000).await;
    }
    scene.oracle.quiesced(&scene.base.peek(ByteRange::new(0, scene.plan.shape.cells.size)));
}

async fn read_all(scene: &Rc<Scene>) {
    for known in scene.standing(|known| !known.ended) {
        read_whole(scene, &known).await;
    }
}

async fn read_whole(scene: &Rc<Scene>, known: &Known) {
    let size = known.size;
    let cell = scene.plan.shape.cells.cell;
    let mut at = 0;
    while at < size {
        scene.daemon().await;
        if let Some(SnapshotState::Broken { reason, .. }) = scene.state_of(known) {
            if !scene.plan.may_break() {
                fail(format!("snapshot {} is broken ({reason}), and nothing could have broken it", known.number));
            }
            return;
        }
        let most = (size - at).div_ceil(cell);
        let len = draw(|random| random.between(1, most.min(64 * 1024 / cell)) * cell).min(size - at);
        let range = ByteRange::new(at, len);
        let before = scene.serving().map(|daemon| daemon.process);
        let read = snapshots::read_view(scene, "the last look", known, range, None).await;
        if read || scene.serving().map(|daemon| daemon.process) == before {
            at += len;
        }
    }
}

/// Adds up what schedules have reached.
pub fn add(total: &mut BTreeMap<Race, u64>, races: &BTreeMap<Race, u64>) {
    for (race, count) in races {
        *total.entry(*race).or_default() += count;
    }
}
