//! Disks that fill up under load: the host never sees it, what suffers says so and what to do, and it goes on once there is room.

use std::fs;
use std::path::Path;

use e2e::daemon::Setting;
use e2e::mounts::Mounted;
use e2e::scratch::read;
use e2e::{Daemon, MIB, Program};
use serde_json::Value;

use crate::load::Load;

const SIZE: u64 = 24 * MIB;

fn snapshot(daemon: &Daemon, name: &str) -> Value {
    daemon.json(&format!("snapshot show vol@{name}"))["snapshot"].clone()
}

fn grow(mounted: &Mounted, size: u64) {
    let size = format!("remount,size={size}");
    Program::new("mount").args(["-o", &size]).arg(mounted.path()).ok();
}

/// Fills a file system to its last block.
fn fill(path: &Path) {
    let file = fs::File::create(path).expect("it can be made");
    let mut at = 0;
    for step in [MIB, 4096, 1] {
        let bytes = vec![7; step as usize];
        while std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).is_ok() {
            at += step;
        }
    }
}

#[test]
fn the_disk_of_the_cache() {
    for durability in ["process", "power"] {
        the_disk_of_a_cache(durability);
    }
}

fn the_disk_of_a_cache(durability: &str) {
    let load = Load::new(SIZE);
    let disk = Mounted::memory(&load.scratch.join("fast"), 4 * MIB);
    let daemon = Daemon::start(&load.scratch);
    let (base, cache) = (load.scratch.join("base"), disk.path().display().to_string());
    daemon.ok(&format!("volume add vol {} --cache-dir {cache} --durability {durability}", base.display()));
    let writers = load.writers(&daemon, 3);
    load.snapshot(&daemon, "s");
    while snapshot(&daemon, "s")["state"] == "live" {
        writers.progress(20);
    }
    let broken = snapshot(&daemon, "s");
    let reason = broken["reason"].as_str().expect("a reason");
    assert!(reason.contains("full"), "{broken}");
    let refused = daemon.refuses(1, &format!("backup vol@s --to {}", load.scratch.join("x.img").display()));
    assert!(refused.contains("broken") && refused.contains("delete it and take another"), "{refused}");
    writers.progress(100);
    daemon.ok("snapshot delete vol@s");
    grow(&disk, 64 * MIB);
    let instant = load.snapshot(&daemon, "t");
    writers.progress(600);
    load.prove(&daemon, "vol@t", instant);
    // Nobody of the host's has met an error.
    writers.stop();
    daemon.stop();
}

#[test]
fn the_disk_of_the_state() {
    for durability in ["process", "power"] {
        the_disk_of_a_state(durability);
    }
}

fn the_disk_of_a_state(durability: &str) {
    let load = Load::new(SIZE);
    let disk = Mounted::memory(&load.scratch.join("var"), 16 * MIB);
    let cache = load.scratch.join("cache");
    fs::create_dir(&cache).expect("it can be made");
    let mut daemon = Setting::new(&disk.join("state")).start();
    // What cannot be written down is told.
    daemon.announce("cannot be");
    // So small grains that the map has to grow.
    let base = load.scratch.join("base");
    let (base, cache) = (base.display(), cache.display());
    daemon.ok(&format!("volume add vol {base} --grain 512 --cache-dir {cache} --durability {durability}"));
    let writers = load.writers(&daemon, 4);
    load.snapshot(&daemon, "s");
    fill(&disk.join("filler"));
    while snapshot(&daemon, "s")["state"] == "live" {
        writers.progress(20);
    }
    let broken = snapshot(&daemon, "s");
    assert!(broken["reason"].as_str().is_some_and(|reason| reason.contains("map")), "{broken}");
    let refused = daemon.refuses(1, "snapshot create --scope vol:0+1M t vol");
    assert!(refused.contains("space"), "what to do is plain: {refused}");
    writers.progress(100);
    fs::remove_file(disk.join("filler")).expect("it is there");
    daemon.ok("snapshot delete vol@s");
    let instant = load.snapshot(&daemon, "u");
    writers.progress(300);
    load.prove(&daemon, "vol@u", instant);
    writers.stop();
    daemon.ok("snapshot delete vol@u");
    daemon.stop();
}

#[test]
fn the_disk_of_the_destination() {
    for (name, options) in [("timezero", &[][..]), ("outboard", &["--mode", "outboard", "--boundary", "marker"])] {
        let load = Load::new(SIZE);
        let disk = Mounted::memory(&load.scratch.join("backups"), 18 * MIB);
        let mut daemon = load.serve();
        daemon.announce("a backup was interrupted");
        let writers = load.writers(&daemon, 5);
        writers.progress(200);
        let to = disk.join("copy.img");
        let image = format!("image:{}", to.display());
        let arguments = [&["vol", "--to", &image][..], options].concat();
        let (instant, stopped) = load.history.instant(|| daemon.backup(&arguments).run());
        stopped.exited(4);
        assert!(stopped.stderr.contains("--resume") && stopped.stderr.contains("copy remove"), "{name}: {stopped}");
        assert!(stopped.stderr.contains("the destination is full"), "{name}: {stopped}");
        writers.progress(300);
        grow(&disk, 64 * MIB);
        let finished = daemon.backup(&[&arguments[..], &["--resume", "--verify"]].concat()).run();
        finished.exited(0);
        load.history.prove(name, &read(&to), instant);
        writers.stop();
        daemon.stop();
    }
}
