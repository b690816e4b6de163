//! Several snapshots at different instants under load: each is its own time zero, and together they cost what they must.

use std::collections::BTreeSet;

use e2e::daemon::Setting;
use e2e::process::Until;
use e2e::random::Random;
use e2e::scratch::{bytes, read};
use e2e::{Daemon, Instant, MIB, Scratch};

use crate::load::{Load, Shape};

#[test]
fn a_snapshot_taken_under_load_is_one_instant() {
    let load = Load::new(32 * MIB);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 1);
    writers.progress(500);
    let instant = load.snapshot(&daemon, "s");
    for _ in 0..3 {
        writers.progress(300);
        load.prove(&daemon, "vol@s", instant);
    }
    let first = daemon.contents("vol@s");
    writers.stop();
    assert!(daemon.contents("vol@s") == first, "a view never changes");
    load.history.prove("the volume", &daemon.contents("vol"), load.history.now());
    daemon.stop();
}

/// Eight snapshots at a time, random ones deleted in between, one backup draining while another snapshot is made.
fn eight(load: &Load, daemon: &Daemon, rounds: usize, seed: u64) {
    let mut random = Random::new(seed);
    let mut standing: Vec<(String, Instant)> = Vec::new();
    let mut made = 0;
    let writers = load.writers(daemon, seed);
    for round in 0..rounds {
        while standing.len() < 8 {
            writers.progress(60 + random.below(60));
            let name = format!("s{made}");
            made += 1;
            standing.push((name.clone(), load.snapshot(daemon, &name)));
            if made % 3 == 0
                && let Some((name, _)) = random.take(&mut standing)
            {
                daemon.ok(&format!("snapshot delete vol@{name}"));
            }
        }
        let image = load.scratch.join(format!("copy{round}"));
        let to = format!("image:{}", image.display());
        let after = load.history.tick();
        let mut backup = daemon.backup(&["vol", "--to", &to]).start();
        let private = |name: &String| name.starts_with("backup-");
        if backup.until(|| daemon.snapshots("vol").iter().any(private)) == Until::Held {
            let name = format!("during{round}");
            standing.push((name.clone(), load.snapshot(daemon, &name)));
        }
        backup.wait().exited(0);
        let instant = Instant { after, before: load.history.tick() };
        load.history.prove("the copy", &read(&image), instant);
        std::fs::remove_file(&image).expect("the copy can be removed");
        for (name, instant) in &standing {
            load.prove(daemon, &format!("vol@{name}"), *instant);
        }
        for _ in 0..4 {
            let (name, _) = random.take(&mut standing).expect("at least eight stand");
            daemon.ok(&format!("snapshot delete vol@{name}"));
        }
        for (name, instant) in &standing {
            load.prove(daemon, &format!("vol@{name}"), *instant);
        }
    }
    writers.stop();
    load.history.prove("the volume", &daemon.contents("vol"), load.history.now());
    let mut names: Vec<String> = standing.into_iter().map(|(name, _)| name).collect();
    names.sort();
    let mut listed = daemon.snapshots("vol");
    listed.sort();
    assert_eq!(listed, names, "private snapshots of finished backups are gone");
}

#[test]
fn eight_snapshots_are_each_their_own_instant() {
    for shape in Shape::ALL {
        let load = Load::shaped(16 * MIB, *shape);
        let daemon = load.serve();
        eight(&load, &daemon, 1, 1);
        daemon.stop();
    }
}

#[test]
fn what_is_saved_is_what_one_writer_needs_and_no_more() {
    for shape in Shape::ALL {
        saved_is_what_is_needed(*shape);
    }
}

fn saved_is_what_is_needed(shape: Shape) {
    let (block, grain) = (shape.block(), shape.grain());
    let scratch = Scratch::new();
    let base = scratch.random("base", 16 * MIB, 3);
    let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
    let mut host = daemon.connect("vol");
    let mut random = Random::new(3);
    // Grains changed in each epoch; the first write of an epoch saves, the others do not.
    let mut changed: Vec<BTreeSet<u64>> = Vec::new();
    let mut images = Vec::new();
    for epoch in 0..8_u64 {
        images.push(daemon.contents("vol"));
        daemon.ok(&format!("snapshot create s{epoch} vol"));
        let mut grains = BTreeSet::new();
        for _ in 0..120 {
            let (offset, length) =
                (random.below(4 * MIB) / block * block, block + random.below(3 * 4096) / block * block);
            host.write(offset, &bytes(length as usize, random.draw())).expect("writing works");
            grains.extend(offset / grain..=(offset + length - 1) / grain);
        }
        changed.push(grains);
    }
    let mut slots = BTreeSet::new();
    for (epoch, image) in images.iter().enumerate() {
        let name = format!("vol@s{epoch}");
        let map = daemon.map(&name);
        let needed: BTreeSet<u64> = changed[epoch..].iter().flatten().copied().collect();
        let mapped: BTreeSet<u64> = map.iter().map(|(sector, ..)| sector * 512 / grain).collect();
        assert_eq!(map.len(), mapped.len(), "{name}: one line a grain");
        assert_eq!(mapped, needed, "{name}: every grain changed since, and no other");
        slots.extend(map.iter().map(|(block, _, slot)| (*block, slot.expect("nothing here was a hole"))));
        assert!(daemon.contents(&name) == *image, "{name}");
    }
    let saves: usize = changed.iter().map(BTreeSet::len).sum();
    assert_eq!(slots.len(), saves, "originals that all snapshots together resolve to");
    let used = daemon.json("volume show vol")["volume"]["cache_used"].as_u64().expect("a figure");
    assert_eq!(used, saves as u64 * grain, "bytes of originals");
    for epoch in [3, 0, 7, 5, 1, 6, 2, 4] {
        daemon.ok(&format!("snapshot delete s{epoch}"));
    }
    let used = daemon.json("volume show vol")["volume"]["cache_used"].as_u64().expect("a figure");
    assert_eq!(used, 0, "nothing is kept for nobody");
    daemon.stop();
}

#[test]
fn a_snapshot_is_deleted_under_its_readers() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 16 * MIB, 3);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.ok("snapshot create s vol");
    let mut view = daemon.connect("vol@s");
    view.read(0, 4096).expect("reading works");
    daemon.ok("snapshot delete vol@s");
    assert!(view.read(0, 4096).is_err(), "a reader of a deleted snapshot gets errors");
    daemon.connect("vol").write(0, &[1; 4096]).expect("the host goes on");
    daemon.ok("snapshot create s vol");
    assert_eq!(daemon.contents("vol@s")[..4096], [1; 4096], "the new one of that name is another");
    assert!(view.read(0, 4096).is_err(), "the old reader does not see the new snapshot");
    daemon.stop();
}

#[test]
fn a_full_cache_breaks_the_snapshot_and_not_the_host() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 16 * MIB, 3);
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("broken");
    daemon.command(["volume", "add", "vol"]).arg(&base).args(["--cache-limit", "1M"]).run().exited(0);
    daemon.ok("snapshot create s vol");
    let new = bytes(8 * MIB as usize, 4);
    let mut host = daemon.connect("vol");
    let mut view = daemon.connect("vol@s");
    for (index, chunk) in new.chunks(64 << 10).enumerate() {
        host.write(index as u64 * (64 << 10), chunk).expect("the host goes on");
    }
    assert!(daemon.contents("vol")[..new.len()] == new[..]);
    let shown = daemon.json("snapshot show vol@s");
    assert_eq!(shown["snapshot"]["state"], "broken", "{shown}");
    let reason = shown["snapshot"]["reason"].as_str().expect("a reason");
    assert!(reason.split_whitespace().count() >= 3, "{reason}");
    assert!(daemon.ok("snapshot show vol@s").contains("broken"));
    for offset in [0, 12 * MIB] {
        assert!(view.read(offset, 4096).is_err(), "a broken snapshot answers errors");
    }
    let to = format!("image:{}", scratch.join("copy").display());
    daemon.refuses(1, &format!("backup vol@s --to {to}"));
    assert!(!scratch.join("copy").exists());
    daemon.ok("snapshot delete vol@s");
    daemon.ok("snapshot create s vol");
    assert!(daemon.contents("vol@s")[..new.len()] == new[..]);
    daemon.stop();
}

mod lane {
    use super::*;

    #[test]
    fn eight_snapshots_over_many_rounds() {
        for shape in Shape::ALL {
            let load = Load::shaped(64 * MIB, *shape);
            let daemon = load.serve();
            for seed in 0..5 {
                eight(&load, &daemon, 6, 100 + seed);
                for name in daemon.snapshots("vol") {
                    daemon.ok(&format!("snapshot delete vol@{name}"));
                }
            }
            daemon.stop();
            eprintln!("{shape:?}: 30 rounds of eight");
        }
    }
}
