//! Originals in memory first, then on disk: the order of spill, the daemon's death, and what memory there must be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::daemon::Setting;
use e2e::mounts::Mounted;
use e2e::scratch::{bytes, read};
use e2e::{Daemon, MIB, Scratch};
use serde_json::Value;

use crate::load::Load;

const GRAIN: u64 = 4096;

/// Each tier's kind, bytes in use and limit.
fn tiers(daemon: &Daemon) -> Vec<(String, u64, Option<u64>)> {
    let shown = daemon.json("volume show v");
    let tier = |tier: &Value| {
        let kind = tier["kind"].as_str().expect("a tier has a kind").to_owned();
        (kind, tier["used"].as_u64().expect("a number"), tier["limit"].as_u64())
    };
    shown["volume"]["tiers"].as_array().expect("the tiers are listed").iter().map(tier).collect()
}

fn memory_file(daemon: &Daemon) -> PathBuf {
    let place = daemon.json("volume show v")["volume"]["tiers"][0]["place"].as_str().expect("a path").to_owned();
    place.into()
}

/// Overwrites so many grains from one on.
fn overwrite(daemon: &Daemon, first: u64, count: u64) {
    let mut client = daemon.connect("v");
    for grain in first..first + count {
        client.write(grain * GRAIN, &bytes(GRAIN as usize, grain + 1000)).expect("the host goes on");
    }
}

#[test]
fn memory_fills_up_first_then_disk_then_the_snapshot_breaks() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 8 * MIB, 1);
    let t0 = read(&base);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add v {} --memory-limit 1M --cache-limit 2M", base.display()));
    daemon.ok("snapshot create s v");
    let file = memory_file(&daemon);
    let metadata = file.metadata().expect("the file in memory");
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (MIB, 0o600));

    overwrite(&daemon, 0, 400);
    assert_eq!(tiers(&daemon), [("memory".into(), MIB, Some(MIB)), ("disk".into(), 144 * GRAIN, Some(2 * MIB)),]);
    let mut offsets: Vec<_> = daemon.places("v@s").into_iter().map(|(_, block, slot)| (slot, block)).collect();
    offsets.sort_unstable();
    let expected: Vec<_> = (0..400).map(|grain| (Some(grain * GRAIN), grain * 8)).collect();
    assert_eq!(offsets, expected, "slots spill from memory to disk in order");
    assert!(daemon.contents("v@s") == t0);
    let copy = scratch.join("copy.img");
    daemon.backup(&["v@s", "--to", copy.to_str().expect("a plain path")]).run().exited(0);
    assert!(read(&copy) == t0, "a mover reads both tiers");

    // The daemon's death takes nothing of it.
    daemon.kill();
    let daemon = Daemon::start(&scratch);
    assert!(daemon.contents("v@s") == t0);
    assert_eq!(tiers(&daemon)[0].1, MIB);
    daemon.stop();
    let daemon = Daemon::start(&scratch);
    assert!(daemon.contents("v@s") == t0, "nor does a clean stop");

    overwrite(&daemon, 400, 368);
    assert!(daemon.contents("v@s") == t0, "just full");
    overwrite(&daemon, 768, 1);
    assert_eq!(daemon.json("snapshot show v@s")["snapshot"]["state"], "broken");
    daemon.ok("snapshot delete v@s");
    e2e::waiting::until(|| tiers(&daemon).iter().all(|(_, used, _)| *used == 0));
    daemon.ok("volume remove v");
    assert!(!file.exists());
    daemon.stop();
}

#[test]
fn an_instant_under_load_lies_in_both_tiers() {
    let load = Load::new(16 * MIB);
    let base = load.scratch.join("base");
    let daemon = Daemon::start(&load.scratch);
    daemon.ok(&format!("volume add vol {} --memory-limit 1M --grain 512", base.display()));
    let writers = load.writers(&daemon, 1);
    writers.progress(100);
    let standing = load.snapshot(&daemon, "s");
    writers.progress(1500);
    load.prove(&daemon, "vol@s", standing);
    let to = load.scratch.join("copy.img");
    let image = format!("image:{}", to.display());
    let (instant, finished) = load.history.instant(|| daemon.backup(&["vol", "--verify", "--to", &image]).run());
    finished.exited(0);
    load.history.prove("the copy", &read(&to), instant);
    daemon.kill();
    writers.cut_off();
    let daemon = load.setting().start();
    load.prove(&daemon, "vol@s", standing);
    daemon.ok("snapshot delete vol@s");
    daemon.ok("volume remove vol");
    daemon.stop();
}

#[test]
fn memory_that_goes_while_the_daemon_is_down_costs_the_snapshots_that_need_it() {
    let scratch = Scratch::new();
    let base = scratch.random("base", MIB, 1);
    let t0 = read(&base);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add v {} --memory-limit 1M", base.display()));
    daemon.ok("snapshot create old v");
    overwrite(&daemon, 0, 10);
    daemon.ok("snapshot create new v");
    let now = daemon.contents("v");
    let file = memory_file(&daemon);
    daemon.kill();
    fs::remove_file(&file).expect("the file in memory");
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("snapshot=v@old");
    let state = |name: &str| daemon.json(&format!("snapshot show v@{name}"))["snapshot"].clone();
    assert_eq!(state("old")["state"], "broken");
    assert!(state("old")["reason"].as_str().is_some_and(|why| why.contains("in memory")), "{}", state("old"));
    assert_eq!(state("new")["state"], "live", "it needs none of them");
    assert!(daemon.contents("v@new") == now && daemon.contents("v") == now && now != t0);
    overwrite(&daemon, 10, 10);
    assert!(daemon.contents("v@new") == now);
    daemon.stop();

    // After a clean stop they were put by, whatever became of the memory.
    fs::remove_file(&file).expect("the file in memory");
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("snapshot=v@old");
    assert_eq!(daemon.json("snapshot show v@new")["snapshot"]["state"], "live");
    assert!(daemon.contents("v@new") == now);
    daemon.kill();
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("snapshot=v@old");
    assert!(daemon.contents("v@new") == now);
    for name in ["old", "new"] {
        daemon.ok(&format!("snapshot delete v@{name}"));
    }
    daemon.ok("volume remove v");
    daemon.stop();
}

#[test]
fn what_memory_there_must_be() {
    let scratch = Scratch::new();
    let base = scratch.random("base", MIB, 1);
    let line = format!("volume add v {} --memory-limit 2M", base.display());
    let state = scratch.join("state");
    let disk = scratch.join("disk");
    fs::create_dir(&disk).expect("a directory");
    let memory = Mounted::memory(&scratch.join("memory"), MIB);
    let within = |place: &std::path::Path| {
        Setting::new(&state).env("TZERO_MEMORY_DIR", place.to_str().expect("a plain path")).start()
    };
    let daemon = within(&disk);
    assert!(daemon.refuses(1, &line).contains("tmpfs"));
    daemon.stop();
    let daemon = within(memory.path());
    assert!(daemon.refuses(1, &line).contains("no room for 2097152 bytes"));
    assert_eq!(fs::read_dir(memory.path()).expect("a mount").count(), 0, "nothing stays behind");
    assert!(daemon.refuses(2, &format!("volume add v {} --memory-limit 2048", base.display())).contains("one grain"));
    let line = format!("volume add v {} --memory-limit 512K", base.display());
    daemon.ok(&line);
    daemon.ok("snapshot create s v");
    daemon.stop();

    // Where there is no memory any more, the volume is served, and what is saved goes to disk.
    fs::remove_file(fs::read_dir(memory.path()).expect("a mount").next().expect("a file").expect("a file").path())
        .expect("the file in memory");
    let t0 = read(&base);
    let setting = Setting::new(&state).env("TZERO_MEMORY_DIR", disk.to_str().expect("a plain path"));
    let mut daemon = setting.start();
    daemon.announce("not kept in memory");
    assert_eq!(daemon.json("volume show v")["volume"]["notices"].as_array().expect("notices").len(), 1);
    overwrite(&daemon, 0, 20);
    assert!(daemon.contents("v@s") == t0);
    assert_eq!(tiers(&daemon), [("disk".into(), 20 * GRAIN, None)]);
    assert!(daemon.places("v@s").iter().all(|(_, _, slot)| slot.is_some_and(|slot| slot >= 512 << 10)));
    let copy = scratch.join("copy.img");
    daemon.backup(&["v@s", "--to", copy.to_str().expect("a plain path")]).run().exited(0);
    assert!(read(&copy) == t0);
    daemon.stop();
    let daemon = within(memory.path());
    assert!(daemon.contents("v@s") == t0);
    daemon.ok("snapshot delete v@s");
    daemon.ok("volume remove v");
    daemon.stop();
}

#[test]
fn the_forecast_counts_both_tiers() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 16 * MIB, 1);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add v {} --memory-limit 2M --cache-limit 6M", base.display()));
    daemon.ok("snapshot create s v");
    let mut client = daemon.connect("v");
    // A host of a steady hundred first writes a second: full after 20.48 s.
    let (pace, all) = (Duration::from_millis(10), 2048);
    let begun = Instant::now();
    let mut forecasts = Vec::new();
    for grain in 0..all {
        let due = begun + pace * grain;
        e2e::waiting::until(|| Instant::now() >= due);
        client.write(u64::from(grain) * GRAIN, &bytes(GRAIN as usize, u64::from(grain))).expect("the host goes on");
        // In memory, and on disk.
        if [400, 900].contains(&grain) {
            let seconds = daemon.json("volume show v")["volume"]["full_in_seconds"].as_f64().expect("a forecast");
            forecasts.push((Instant::now() + Duration::from_secs_f64(seconds), begun.elapsed()));
        }
    }
    let full = Instant::now();
    assert_eq!(daemon.json("snapshot show v@s")["snapshot"]["state"], "live", "just full");
    for (forecast, asked) in forecasts {
        let (off, left) = (forecast.max(full) - forecast.min(full), begun.elapsed() - asked);
        assert!(off <= left / 4 + Duration::from_secs(1), "after {asked:?}: off by {off:?} of {left:?}");
    }
    client.write(u64::from(all) * GRAIN, &[1; GRAIN as usize]).expect("the host goes on");
    assert_eq!(daemon.json("snapshot show v@s")["snapshot"]["state"], "broken");
    drop(client);
    e2e::waiting::until(|| daemon.json("volume show v")["volume"]["connections"] == 0);
    daemon.ok("snapshot delete v@s");
    daemon.ok("volume remove v");
    daemon.stop();
}
