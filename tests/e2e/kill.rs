//! `kill -9` of the daemon at every named crash point, snapshots standing and writers on.
//!
//! One volume lives through all kills of a test. After each, whatever was acknowledged is there: host data, and every
//! snapshot with its own time zero. What was not acknowledged may be there or not, but never half.

use std::collections::BTreeSet;

use e2e::daemon::Setting;
use e2e::nbd::{Client, EIO, Failure};
use e2e::process::Until;
use e2e::random::Random;
use e2e::scratch::read;
use e2e::{Daemon, Instant, MIB};
use rustix::process::Signal;
use tzero_engine::Point;

use crate::load::{Load, Shape};

const SIZE: u64 = 4 * MIB;

/// Points that every host write over a pending grain passes.
const WRITE: &[&str] = &[
    "arrived",
    "admitted",
    "base-write",
    "base-written",
    "claimed",
    "original-read",
    "reserved",
    "payload",
    "entry",
    "indexed",
    "bit",
];
/// Points that only originals pass which are to outlive a loss of power.
const POWER: &[&str] = &["batch", "flushed", "confirm-landed", "confirmed"];
/// Points that only a start after a loss of power passes; the power tests and the simulator go through it.
const REBOOT: &[&str] = &["recovery-rebuilt"];
/// Points of snapshots, their views and their movers.
const SNAPSHOT: &[&str] = &[
    "create-prepared",
    "create",
    "create-durable",
    "delete",
    "swept",
    "capture",
    "capture-cleared",
    "capture-freed",
    "view-arrived",
    "view-base-read",
    "view-resolved",
    "view-overlaid",
];
/// Points of start and stop.
const START: &[&str] = &["recovery-opened", "recovery-marked", "recovery-lost", "recovery-indexed", "close-synced"];
/// Points that only a failing cache leads to.
const FAULT: &[&str] = &["save-failed", "broken"];
/// Points to which no command leads yet: only outboard copies end a snapshot.
const UNREACHED: &[&str] = &["ended"];

#[test]
fn every_point_has_its_test() {
    let tested: BTreeSet<&str> =
        [WRITE, SNAPSHOT, START, FAULT, POWER, REBOOT, UNREACHED].concat().into_iter().collect();
    let all: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
    assert_eq!(tested, all);
}

/// How a daemon is to die.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// By itself, when it passes a point for the nth time.
    At(&'static str, u64),
    /// By our hand, after so many steps.
    After(u64),
}

/// A snapshot that may stand.
#[derive(Clone, Debug)]
struct Standing {
    name: String,
    instant: Instant,
    /// Its creation was acknowledged, and no deletion was asked for.
    sure: bool,
}

/// A volume that lives through many deaths of its daemon.
struct Trial {
    load: Load,
    standing: Vec<Standing>,
    random: Random,
    made: u64,
    /// Snapshots may be broken: the cache is too small.
    breakable: bool,
}

impl Trial {
    fn new(seed: u64, shape: Shape) -> Self {
        let load = Load::shaped(SIZE, shape);
        let daemon = load.serve();
        let breakable = shape == Shape::Scarce;
        let mut trial = Self { load, standing: Vec::new(), random: Random::new(seed), made: 0, breakable };
        trial.create(&daemon);
        daemon.stop();
        trial
    }

    fn setting(&self) -> Setting {
        self.load.setting()
    }

    /// One life of a daemon: it starts, works, dies; the next one finds everything.
    fn live(&mut self, death: Death) {
        let mut setting = self.setting();
        if let Death::At(point, count) = death {
            setting = setting.env("TZERO_TEST_CRASH", &format!("{point}:{count}"));
        }
        let mut daemon = setting.launch();
        self.tolerate(&mut daemon);
        if daemon.comes_up() {
            self.work(&daemon, death);
        }
        daemon.died();
        self.verify(death);
    }

    fn tolerate(&self, daemon: &mut Daemon) {
        daemon.announce("a backup was interrupted");
        if self.breakable {
            daemon.announce("broken");
        }
    }

    fn work(&mut self, daemon: &Daemon, death: Death) {
        let seed = self.random.draw();
        let writers = self.load.writers(daemon, seed);
        let mut step = 0;
        while !daemon.process().has_ended() {
            match step % 8 {
                0 | 2 | 5 => self.create(daemon),
                1 | 6 => self.look(daemon),
                3 => self.delete(daemon),
                4 => self.copy(daemon),
                _ => {}
            }
            writers.progress(40);
            step += 1;
            match death {
                Death::After(steps) if step >= steps => daemon.process().signal(Signal::KILL),
                // What is passed only on the way out.
                Death::At(..) if step == 40 => daemon.process().signal(Signal::TERM),
                _ => {}
            }
            if step >= 40 {
                break;
            }
        }
        writers.cut_off();
    }

    fn create(&mut self, daemon: &Daemon) {
        if self.standing.len() >= 8 {
            self.delete(daemon);
        }
        let name = format!("s{}", self.made);
        self.made += 1;
        let (instant, finished) = self.load.history.instant(|| daemon.run(&format!("snapshot create {name} vol")));
        self.standing.push(Standing { name, instant, sure: finished.code() == Some(0) });
    }

    fn delete(&mut self, daemon: &Daemon) {
        let Some(mut snapshot) = self.random.take(&mut self.standing) else { return };
        let finished = daemon.run(&format!("snapshot delete vol@{}", snapshot.name));
        if finished.code() != Some(0) {
            snapshot.sure = false;
            self.standing.push(snapshot);
        }
    }

    /// Reads one view, as far as the daemon lives.
    fn look(&mut self, daemon: &Daemon) {
        let Some(snapshot) = self.standing.last() else { return };
        let export = format!("vol@{}", snapshot.name);
        let Ok(mut client) = Client::connect(&daemon.socket(), &export) else { return };
        match client.read_all() {
            Ok(image) => self.load.history.prove(&export, &image, snapshot.instant),
            Err(Failure::Refused(EIO)) if self.breakable => {}
            Err(Failure::Refused(number)) => panic!("{export} is refused with error {number}"),
            Err(Failure::Gone(_)) => {}
        }
    }

    /// Copies the volume, as far as the daemon lives.
    fn copy(&mut self, daemon: &Daemon) {
        let image = self.load.scratch.join("copy.img");
        let to = format!("image:{}", image.display());
        let (instant, finished) = self.load.history.instant(|| daemon.backup(&["vol", "--replace", "--to", &to]).run());
        if finished.code() == Some(0) {
            self.load.history.prove("the copy", &read(&image), instant);
        }
    }

    /// The next daemon has everything that was acknowledged.
    fn verify(&mut self, death: Death) {
        let mut daemon = self.setting().start();
        self.tolerate(&mut daemon);
        self.load.prove(&daemon, "vol", self.load.history.now());
        let listed = daemon.snapshots("vol");
        let mut found = Vec::new();
        for snapshot in self.standing.drain(..) {
            let export = format!("vol@{}", snapshot.name);
            if !listed.contains(&snapshot.name) {
                assert!(!snapshot.sure, "{death:?}: {export} is gone");
                continue;
            }
            let shown = daemon.json(&format!("snapshot show {export}"));
            if shown["snapshot"]["state"] == "broken" {
                assert!(self.breakable, "{death:?}: {shown}");
            } else {
                self.load.prove(&daemon, &export, snapshot.instant);
            }
            found.push(Standing { sure: true, ..snapshot });
        }
        self.standing = found;
        for private in listed.iter().filter(|name| name.starts_with("backup-")) {
            daemon.ok(&format!("snapshot delete vol@{private}"));
        }
        daemon.kill();
    }
}

fn each_once(points: &[&'static str], shape: Shape, seed: u64) {
    let mut trial = Trial::new(seed, shape);
    for point in points {
        trial.live(Death::At(point, 1));
    }
}

#[test]
fn killed_on_the_way_of_a_host_write() {
    each_once(WRITE, Shape::Plain, 1);
}

#[test]
fn killed_while_snapshots_come_and_go_and_are_read() {
    each_once(SNAPSHOT, Shape::Plain, 2);
}

#[test]
fn killed_at_start_and_stop() {
    each_once(START, Shape::Plain, 3);
}

#[test]
fn killed_while_a_snapshot_breaks() {
    each_once(FAULT, Shape::Scarce, 4);
}

#[test]
fn killed_while_originals_become_durable() {
    each_once(POWER, Shape::Power, 6);
}

#[test]
fn killed_whatever_the_volume_is_like() {
    for (shape, seed) in Shape::OTHERS.iter().zip(10..) {
        each_once(&["payload", "entry", "bit", "base-write", "create", "delete", "capture-cleared"], *shape, seed);
    }
}

#[test]
fn killed_at_any_moment() {
    let mut trial = Trial::new(5, Shape::Plain);
    for steps in [1, 3, 6] {
        trial.live(Death::After(steps));
    }
}

#[test]
fn a_copy_goes_on_after_the_daemon_was_killed_capturing() {
    let load = Load::new(64 * MIB);
    let daemon = load.serve();
    daemon.stop();
    for point in ["capture", "capture-cleared", "capture-freed"] {
        let mut daemon = load.setting().env("TZERO_TEST_CRASH", &format!("{point}:2")).start();
        daemon.announce("a backup was interrupted");
        let writers = load.writers(&daemon, 1);
        writers.progress(100);
        let image = load.scratch.join(format!("{point}.img"));
        let to = format!("image:{}", image.display());
        let after = load.history.tick();
        let mut backup = daemon.backup(&["vol", "--to", &to]).start();
        let before = match backup.until(|| daemon.process().has_ended()) {
            Until::Held | Until::Ended => load.history.tick(),
        };
        let finished = backup.wait();
        writers.cut_off();
        daemon.died();
        finished.exited(4);
        let daemon = load.setting().start();
        let writers = load.writers(&daemon, 2);
        writers.progress(100);
        daemon.backup(&["vol", "--resume", "--to", &to]).run().exited(0);
        writers.stop();
        load.history.prove(point, &read(&image), Instant { after, before });
        load.prove(&daemon, "vol", load.history.now());
        daemon.stop();
    }
}

mod lane {
    use super::*;

    #[test]
    fn two_hundred_kills() {
        for shape in Shape::ALL {
            kills(*shape);
            eprintln!("{shape:?}: 170 kills");
        }
        let mut random = Random::new(201);
        let mut trial = Trial::new(201, Shape::Scarce);
        for _ in 0..30 {
            trial.live(Death::At(FAULT[random.below(2) as usize], 1));
        }
    }

    fn kills(shape: Shape) {
        let mut random = Random::new(200);
        let power = if shape == Shape::Power { POWER } else { &[] };
        let points = [WRITE, SNAPSHOT, START, power].concat();
        let mut trial = Trial::new(200, shape);
        for _ in 0..170 {
            let death = match random.below(4) {
                0 => Death::After(1 + random.below(30)),
                _ => {
                    let point = points[random.below(points.len() as u64) as usize];
                    let most = if WRITE.contains(&point) { 500 } else { 4 };
                    let count = if START.contains(&point) { 1 } else { 1 + random.below(most) };
                    Death::At(point, count)
                }
            };
            trial.live(death);
        }
    }
}
