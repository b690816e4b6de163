//! A mover that is stopped or killed: the host notices nothing, nothing is declared, and it goes on with the same time zero.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use e2e::random::Random;
use e2e::scratch::read;
use e2e::tzero::{result, sentence};
use e2e::{Daemon, Finished, Instant, MIB, Process};
use rustix::process::Signal;
use serde_json::Value;

use crate::load::{Load, Shape};

/// Large enough that a copy is not over before it is interrupted.
const SIZE: u64 = 512 * MIB;

/// Bytes that a mover may have copied since it last wrote into its journal.
const INTERVAL: u64 = 16 * MIB;

/// A backup of `vol` that is to be interrupted.
struct Interrupted<'a> {
    load: &'a Load,
    to: PathBuf,
    /// When its time zero was, once it has one.
    instant: Option<Instant>,
    t0: Value,
}

impl<'a> Interrupted<'a> {
    fn new(load: &'a Load) -> Self {
        Self { load, to: load.scratch.join("copy.img"), instant: None, t0: Value::Null }
    }

    fn start(&self, daemon: &Daemon) -> Process {
        let to = format!("image:{}", self.to.display());
        let mut arguments = vec!["vol", "--json", "--to", &to];
        if self.instant.is_some() {
            arguments.push("--resume");
        }
        daemon.backup(&arguments).start()
    }

    /// Runs it until it has its time zero and so many bytes lie at the destination, then sends a signal to it; gives what
    /// it left. It may have been over before.
    fn interrupt(&mut self, daemon: &mut Daemon, at: u64, signal: Signal) -> Finished {
        daemon.announce("a backup was interrupted");
        let after = self.load.history.tick();
        let mut process = self.start(daemon);
        process.line(|line| event(line, "begun").is_some());
        let before = self.load.history.tick();
        process.until(|| self.copied() >= at);
        process.signal(signal);
        let finished = process.wait();
        self.note(&finished, Instant { after, before });
        finished
    }

    /// Bytes that lie at the destination, whatever the file is called until it is declared.
    fn copied(&self) -> u64 {
        let entries = fs::read_dir(self.load.scratch.path()).expect("the scratch directory can be listed").flatten();
        let copies = entries.filter(|entry| entry.file_name().to_string_lossy().contains("copy.img"));
        copies.filter_map(|entry| entry.metadata().ok()).map(|found| found.blocks() * 512).sum()
    }

    /// Every run says the same time zero, and the first says when it was.
    fn note(&mut self, finished: &Finished, instant: Instant) {
        let begun = finished.stdout.lines().find_map(|line| event(line, "begun"));
        let begun = begun.unwrap_or_else(|| panic!("it never began\n{finished}"));
        assert_eq!(begun["resumed"], self.instant.is_some(), "{begun}");
        if self.instant.is_none() {
            self.instant = Some(instant);
            self.t0 = begun["t0"].clone();
        }
        assert_eq!(begun["t0"], self.t0, "another time zero");
    }

    /// Lets it end and proves what it made.
    fn finish(&mut self, daemon: &Daemon) -> Finished {
        let after = self.load.history.tick();
        let finished = self.start(daemon).wait();
        finished.exited(0);
        self.note(&finished, Instant { after, before: self.load.history.tick() });
        self.prove(daemon);
        finished
    }

    fn prove(&self, daemon: &Daemon) {
        let instant = self.instant.expect("it began");
        self.load.history.prove("the copy", &read(&self.to), instant);
        daemon.ok(&format!("copy verify {}", self.to.display()));
        assert!(daemon.snapshots("vol").is_empty(), "its snapshot went with it");
    }

    fn undeclared(&self, daemon: &Daemon) {
        daemon.refuses(1, &format!("copy show {}", self.to.display()));
        assert_eq!(daemon.json("copy list")["copies"].as_array().map(Vec::len), Some(0), "nothing is in the catalogue");
        let private = daemon.snapshots("vol");
        assert!(private.len() == 1 && private[0].starts_with("backup-"), "{private:?}");
    }
}

fn event(line: &str, kind: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    (value["event"] == kind).then_some(value)
}

#[test]
fn a_killed_mover_goes_on_with_the_same_time_zero() {
    goes_on(Shape::Plain);
}

#[test]
fn a_killed_mover_goes_on_whatever_the_volume_is_like() {
    for shape in Shape::OTHERS {
        goes_on(*shape);
    }
}

fn goes_on(shape: Shape) {
    let load = Load::shaped(SIZE, shape);
    let mut daemon = load.serve();
    let writers = load.writers(&daemon, 1);
    writers.progress(200);
    let mut backup = Interrupted::new(&load);
    let killed = backup.interrupt(&mut daemon, SIZE / 8, Signal::KILL);
    assert_eq!(killed.signal(), Some(9), "it was over too soon\n{killed}");
    backup.undeclared(&daemon);
    // The host notices nothing.
    writers.progress(200);
    let finished = backup.finish(&daemon);
    writers.stop();
    let begun = finished.stdout.lines().find_map(|line| event(line, "begun")).expect("it began");
    let already = begun["already"].as_u64().expect("bytes that were done");
    assert!(already + INTERVAL >= SIZE / 8, "an eighth was copied, {already} bytes are remembered");
    let progress = finished.stdout.lines().filter_map(|line| event(line, "progress"));
    let first = progress.filter(|event| event["phase"] == "copy").find_map(|event| event["done"].as_u64());
    assert!(first.is_none_or(|done| done >= already), "it went back to {first:?}");
    load.prove(&daemon, "vol", load.history.now());
    daemon.stop();
}

#[test]
fn an_interrupted_backup_names_the_ways_on() {
    let load = Load::new(SIZE);
    let mut daemon = load.serve();
    let mut backup = Interrupted::new(&load);
    let stopped = backup.interrupt(&mut daemon, SIZE / 8, Signal::INT);
    stopped.exited(4);
    let said = sentence(&stopped);
    backup.undeclared(&daemon);
    let commands: Vec<&str> =
        said.split('`').skip(1).step_by(2).filter_map(|text| text.strip_prefix("tzero ")).collect();
    let [go_on, discard] = commands[..] else { panic!("not two commands: {said}") };
    assert!(go_on.starts_with("backup vol ") && go_on.contains("--resume"), "{said}");
    let elsewhere = format!("backup vol --resume --to image:{}", load.scratch.join("other.img").display());
    let refused = daemon.run(&elsewhere);
    assert!(matches!(refused.code(), Some(1 | 2)), "there is nothing to resume there\n{refused}");
    // What contradicts the unfinished copy is not ignored, and costs it nothing.
    let refused = daemon.refuses(1, &format!("{go_on} --scope vol:0+4K"));
    assert!(refused.contains("another scope"), "{refused}");
    let refused = daemon.refuses(1, &format!("{go_on} --mode outboard --boundary marker"));
    assert!(refused.contains("another mode"), "{refused}");
    let refused = daemon.refuses(2, &format!("{go_on} --on-full fail-writes"));
    assert!(refused.contains("--on-full"), "{refused}");
    backup.undeclared(&daemon);
    // Discarded, it cannot be resumed, and a new one can be made.
    daemon.ok(discard);
    assert!(daemon.snapshots("vol").is_empty(), "its snapshot goes with it");
    assert!(!backup.to.exists());
    let resume = daemon.run(go_on);
    assert!(matches!(resume.code(), Some(1 | 2)), "it was discarded\n{resume}");
    let again = daemon.backup(&["vol", "--to", &format!("image:{}", backup.to.display())]).run();
    again.exited(0);
    load.history.prove("the copy", &read(&backup.to), load.history.now());
    daemon.stop();
}

#[test]
fn the_way_on_that_an_interrupted_backup_names_leads_on() {
    let load = Load::new(SIZE);
    let mut daemon = load.serve();
    let mut backup = Interrupted::new(&load);
    let stopped = backup.interrupt(&mut daemon, SIZE / 8, Signal::INT);
    stopped.exited(4);
    let said = sentence(&stopped);
    let go_on = said.split('`').nth(1).and_then(|text| text.strip_prefix("tzero ")).expect("a command");
    daemon.connect("vol").write(0, &[1; 4096]).expect("writing works");
    daemon.ok(go_on);
    backup.prove(&daemon);
    daemon.stop();
}

#[test]
fn a_backup_outlives_the_daemon() {
    let load = Load::new(SIZE);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 1);
    writers.progress(200);
    let mut backup = Interrupted::new(&load);
    let after = load.history.tick();
    let process = backup.start(&daemon);
    process.line(|line| event(line, "begun").is_some());
    let before = load.history.tick();
    process.line(|line| event(line, "progress").is_some_and(|event| event["done"].as_u64() > Some(0)));
    daemon.kill();
    let finished = process.wait();
    writers.cut_off();
    finished.exited(4);
    backup.note(&finished, Instant { after, before });
    let daemon = load.setting().start();
    let writers = load.writers(&daemon, 2);
    backup.finish(&daemon);
    writers.stop();
    load.prove(&daemon, "vol", load.history.now());
    daemon.stop();
}

#[test]
fn a_new_backup_may_take_the_place_of_an_interrupted_one() {
    let load = Load::new(SIZE);
    let mut daemon = load.serve();
    let mut backup = Interrupted::new(&load);
    let killed = backup.interrupt(&mut daemon, SIZE / 8, Signal::KILL);
    assert_eq!(killed.signal(), Some(9), "it was over too soon\n{killed}");
    let again = daemon.backup(&["vol", "--json", "--to", &format!("image:{}", backup.to.display())]).run();
    if again.code() == Some(0) {
        assert_ne!(result(&again)["copy"]["t0"], backup.t0, "a new one has a new time zero");
        load.history.prove("the copy", &read(&backup.to), load.history.now());
        assert!(daemon.snapshots("vol").is_empty(), "the interrupted one's snapshot is discarded");
    } else {
        again.exited(1);
        assert!(Path::new(&backup.to).parent().is_some_and(Path::is_dir));
        backup.undeclared(&daemon);
        backup.finish(&daemon);
    }
    daemon.stop();
}

mod lane {
    use super::*;

    #[test]
    fn a_mover_killed_again_and_again() {
        for shape in Shape::ALL {
            again_and_again(*shape);
        }
    }

    fn again_and_again(shape: Shape) {
        let load = Load::shaped(SIZE, shape);
        let mut daemon = load.serve();
        let mut random = Random::new(1);
        let mut kills = 0;
        for round in 0..10 {
            let writers = load.writers(&daemon, round);
            let mut backup = Interrupted::new(&load);
            for _ in 0..8 {
                let finished = backup.interrupt(&mut daemon, random.below(load.size()), Signal::KILL);
                if finished.signal().is_none() {
                    finished.exited(0);
                    backup.prove(&daemon);
                    break;
                }
                kills += 1;
                backup.undeclared(&daemon);
                writers.progress(100);
            }
            if !daemon.snapshots("vol").is_empty() {
                backup.finish(&daemon);
            }
            writers.stop();
            daemon.ok(&format!("copy remove {}", backup.to.display()));
        }
        eprintln!("{shape:?}: {kills} kills");
        assert!(kills >= 20, "{shape:?}: only {kills} kills came in time");
        daemon.stop();
    }
}
