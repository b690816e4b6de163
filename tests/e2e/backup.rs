//! Backups under load, what may be replaced, restores, and what a program reads of them.

use std::path::Path;

use e2e::daemon::Setting;
use e2e::mounts::Loop;
use e2e::scratch::{allocated, assert_differ, assert_same, bytes, copy, names, read};
use e2e::tzero::{result, sentence};
use e2e::{Daemon, Instant, MIB, Scratch, Tzero};
use serde_json::Value;

use crate::load::Load;

const SIZE: u64 = 16 * MIB;

fn image(path: &Path) -> String {
    format!("image:{}", path.display())
}

/// The manifest beside an image.
fn manifest(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tzero");
    name.into()
}

#[test]
fn a_backup_under_load_is_one_instant_and_comes_back() {
    let load = Load::new(32 * MIB);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 1);
    writers.progress(300);
    let to = load.scratch.join("copy.img");
    let (instant, finished) =
        load.history.instant(|| daemon.backup(&["vol", "--verify", "--json", "--to", &image(&to)]).run());
    finished.exited(0);
    writers.progress(300);
    load.history.prove("the copy", &read(&to), instant);
    writers.stop();
    load.history.prove("the volume", &daemon.contents("vol"), load.history.now());
    assert!(daemon.snapshots("vol").is_empty(), "the private snapshot went with its backup");

    let copied = &result(&finished)["copy"];
    let id = copied["id"].as_str().expect("a copy has an id").to_owned();
    assert_eq!(copied["mode_asked"], "auto", "{copied}");
    assert_eq!(copied["mode_used"], "timezero", "{copied}");
    assert_eq!(copied["reason"], Value::Null, "{copied}");
    assert_eq!(copied["volumes"][0]["name"], "vol", "{copied}");
    assert_eq!(copied["volumes"][0]["size"], 32 * MIB, "{copied}");
    assert!(copied["bytes_read"].as_u64().is_some_and(|bytes| bytes >= 32 * MIB), "{copied}");
    assert!(copied["bytes_written"].as_u64().is_some_and(|bytes| bytes >= 32 * MIB), "{copied}");
    assert!(copied["pause_us"].is_u64(), "{copied}");

    let prefix = &id[..12];
    for name in [id.as_str(), prefix, &to.to_string_lossy(), &manifest(&to).to_string_lossy()] {
        daemon.ok(&format!("copy verify {name}"));
        assert_eq!(daemon.json(&format!("copy show {name}"))["copy"]["id"], id.as_str());
    }
    let list = daemon.json("copy list");
    assert_eq!(list["copies"][0]["id"], id.as_str(), "{list}");
    let restored = load.scratch.join("restored");
    daemon.ok(&format!("restore {id} --to {}", restored.display()));
    assert_same(&restored, &to);
    daemon.stop();

    // Neither daemon nor catalogue is needed for a copy that is named by its path.
    let elsewhere = Tzero::at(&load.scratch.join("elsewhere"));
    elsewhere.ok(&format!("copy verify {}", to.display()));
    let again = load.scratch.join("again");
    elsewhere.ok(&format!("restore {} --to {}", manifest(&to).display(), again.display()));
    assert_same(&again, &to);

    let alone = Tzero::at(&load.scratch.join("state"));
    alone.ok(&format!("copy remove {id}"));
    assert!(!to.exists() && !manifest(&to).exists(), "a removed copy is gone with its manifest");
    alone.refuses(1, &format!("copy show {id}"));
}

#[test]
fn a_backup_of_a_kept_snapshot_releases_nothing() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let reference = scratch.join("reference");
    copy(&base, &reference);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.ok("snapshot create s vol");
    daemon.connect("vol").write(0, &bytes(4 * MIB as usize, 2)).expect("writing works");
    let before = daemon.map("vol@s");
    for round in 0..2 {
        let to = scratch.join(format!("copy{round}"));
        daemon.ok(&format!("backup vol@s --to {}", image(&to)));
        assert_same(&to, &reference);
    }
    assert_eq!(daemon.map("vol@s"), before);
    assert!(daemon.contents("vol@s") == read(&reference));
    daemon.stop();
}

#[test]
fn what_stands_at_the_destination_is_replaced_only_on_request() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let to = scratch.join("copy.img");
    let backup = format!("backup vol --to {}", image(&to));

    std::fs::write(&to, b"somebody else's").expect("a file can be written");
    daemon.refuses(1, &backup);
    assert_eq!(read(&to), b"somebody else's");
    daemon.ok(&format!("{backup} --replace"));
    assert_same(&to, &base);

    let first = scratch.join("first");
    copy(&to, &first);
    daemon.connect("vol").write(MIB, &bytes(MIB as usize, 2)).expect("writing works");
    daemon.refuses(1, &backup);
    assert_same(&to, &first);
    let old = daemon.json(&format!("copy show {}", to.display()))["copy"]["id"].clone();
    daemon.ok(&format!("{backup} --replace"));
    assert_same(&to, &base);
    assert_differ(&to, &first);
    daemon.ok(&format!("copy verify {}", to.display()));
    assert_ne!(daemon.json(&format!("copy show {}", to.display()))["copy"]["id"], old, "another copy, another id");
    assert!(daemon.snapshots("vol").is_empty(), "refused backups leave no snapshot");
    let left = names(scratch.path());
    assert_eq!(left, ["base", "copy.img", "copy.img.tzero", "first", "state"], "nothing else is left beside");
    daemon.stop();
}

#[test]
fn a_copy_is_as_sparse_as_its_source() {
    let scratch = Scratch::new();
    let base = scratch.sparse("base", 256 * MIB);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.connect("vol").write(100 * MIB, &bytes(MIB as usize, 2)).expect("writing works");
    let to = scratch.join("copy.img");
    daemon.ok(&format!("backup vol --to {}", image(&to)));
    assert_same(&to, &base);
    assert!(allocated(&to) < 8 * MIB, "{} bytes on disk", allocated(&to));
    let back = scratch.join("back");
    daemon.ok(&format!("restore {} --to {}", to.display(), back.display()));
    assert_same(&back, &base);
    assert!(allocated(&back) < 8 * MIB, "{} bytes on disk", allocated(&back));
    daemon.stop();
}

#[test]
fn volumes_copies_and_restores_can_be_block_devices() {
    let scratch = Scratch::new();
    let disk = Loop::over(&scratch.random("disk", SIZE, 1));
    let target = Loop::over(&scratch.sparse("target", SIZE));
    let other = Loop::over(&scratch.random("other", SIZE, 2));
    let small = Loop::over(&scratch.sparse("small", SIZE / 2));
    let daemon = Daemon::serving(&scratch, disk.device());
    daemon.ok("snapshot create s vol");
    let reference = daemon.contents("vol@s");
    daemon.connect("vol").write(MIB, &bytes(MIB as usize, 3)).expect("writing works");
    let to = image(target.device());
    daemon.ok(&format!("backup vol@s --to {to} --replace"));
    assert!(read(target.device())[..SIZE as usize] == reference);
    daemon.ok(&format!("copy verify {}", target.device().display()));
    let restore = format!("restore {} --to", target.device().display());
    daemon.refuses(1, &format!("{restore} {} --force", small.device().display()));
    daemon.ok(&format!("{restore} {} --force", other.device().display()));
    assert!(read(other.device()) == reference);
    daemon.stop();
}

#[test]
fn a_plain_file_is_copied_without_a_daemon_and_says_what_it_lacks() {
    let scratch = Scratch::new();
    let tzero = Tzero::at(&scratch.join("state"));
    let base = scratch.random("base", SIZE, 1);
    let to = scratch.join("copy.img");
    let finished = tzero.backup(&[&base.to_string_lossy(), "--to", &image(&to), "--json"]).run();
    finished.exited(3);
    let copied = &result(&finished)["copy"];
    assert!(copied["reason"].is_string(), "{copied}");
    assert_same(&to, &base);
    tzero.ok(&format!("copy verify {}", to.display()));
    let plain = tzero.backup(&[&base.to_string_lossy(), "--to", &image(&to), "--replace"]).run();
    plain.exited(3);
    sentence(&plain);

    let fixed = Loop::with(&["--read-only"], &base);
    let second = scratch.join("second.img");
    tzero.backup(&[&fixed.device().to_string_lossy(), "--to", &image(&second)]).run().exited(0);
    assert_same(&second, &base);
}

#[test]
fn a_damaged_copy_says_where() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let to = scratch.join("copy.img");
    daemon.ok(&format!("backup vol --to {}", image(&to)));
    let mut damaged = read(&to);
    damaged[5 * MIB as usize + 17] ^= 1;
    std::fs::write(&to, &damaged).expect("a file can be written");
    let finished = daemon.run(&format!("copy verify {} --json", to.display()));
    finished.exited(1);
    let text = format!("{}{}", finished.stdout, finished.stderr);
    let chunk = text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok());
    let near = chunk.into_iter().any(|number| (4 * MIB..=5 * MIB + 17).contains(&number));
    assert!(near, "it does not say where\n{finished}");
    let back = scratch.join("back");
    let refused = daemon.run(&format!("restore {} --to {}", to.display(), back.display()));
    refused.exited(1);
    daemon.stop();
}

#[test]
fn a_restore_spares_what_it_was_not_told_to_overwrite() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let to = scratch.join("copy.img");
    daemon.ok(&format!("backup vol --to {}", image(&to)));
    let reference = read(&base);
    // A registered base is locked, --force or not.
    for force in ["", " --force"] {
        daemon.refuses(1, &format!("restore {} --to {}{force}", to.display(), base.display()));
    }
    assert!(read(&base) == reference);
    let other = scratch.random("other", SIZE, 2);
    let before = read(&other);
    daemon.refuses(1, &format!("restore {} --to {}", to.display(), other.display()));
    assert!(read(&other) == before);
    daemon.ok(&format!("restore {} --to {} --force", to.display(), other.display()));
    assert_same(&other, &base);
    daemon.stop();
}

#[test]
fn every_line_for_programs_is_an_object() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::start(&scratch);
    let added = daemon.command(["volume", "add", "vol", "--json"]).arg(&base).run();
    added.exited(0);
    let volume = result(&added)["volume"]["id"].clone();
    assert!(volume.is_string());
    assert_eq!(daemon.json("volume show vol")["volume"]["id"], volume);
    assert_eq!(daemon.json("volume list")["volumes"][0]["id"], volume);
    let snapshot = daemon.json("snapshot create s vol")["snapshot"]["id"].clone();
    assert!(snapshot.is_string());
    assert_eq!(daemon.json("snapshot show vol@s")["snapshot"]["id"], snapshot);
    assert!(daemon.json("status").is_object());
    let to = image(&scratch.join("copy.img"));
    let finished = daemon.backup(&["--json", "vol@s", "--to", &to]).run();
    finished.exited(0);
    assert!(result(&finished)["copy"]["id"].is_string());
    assert_eq!(daemon.json("snapshot delete vol@s")["snapshot"]["id"], snapshot);
    assert_eq!(daemon.json("volume remove vol")["volume"]["id"], volume);
    daemon.stop();
}

#[test]
fn volumes_and_snapshots_outlive_a_clean_stop() {
    let load = Load::new(SIZE);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 1);
    writers.progress(200);
    let instant = load.snapshot(&daemon, "s");
    writers.progress(200);
    writers.stop();
    daemon.stop();
    let daemon = Setting::new(&load.scratch.join("state")).start();
    load.prove(&daemon, "vol@s", instant);
    load.prove(&daemon, "vol", load.history.now());
    let writers = load.writers(&daemon, 2);
    writers.progress(200);
    load.prove(&daemon, "vol@s", instant);
    writers.stop();
    daemon.stop();
}

#[test]
fn a_backup_is_one_instant_although_another_stands() {
    let load = Load::new(SIZE);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 1);
    let kept = load.snapshot(&daemon, "s");
    writers.progress(300);
    let to = load.scratch.join("copy.img");
    let after = load.history.tick();
    daemon.ok(&format!("backup vol --to {}", image(&to)));
    let instant = Instant { after, before: load.history.tick() };
    writers.stop();
    load.history.prove("the copy", &read(&to), instant);
    load.prove(&daemon, "vol@s", kept);
    daemon.stop();
}
