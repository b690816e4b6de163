//! Volumes that are not served, or have lost a part of their base: what they have is listed, and nothing of it goes unasked.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use e2e::daemon::Setting;
use e2e::nbd::Client;
use e2e::scratch::{bytes, read};
use e2e::waiting::until;
use e2e::{Daemon, MIB, Scratch};
use serde_json::Value;

const SIZE: u64 = 8 * MIB;

/// A volume with the snapshots `one` and `two`, its daemon stopped, its base away.
fn without_base(scratch: &Scratch) -> (PathBuf, PathBuf) {
    fs::create_dir(scratch.join("disk")).expect("it can be made");
    let base = scratch.random("disk/base", SIZE, 1);
    let daemon = Daemon::serving(scratch, &base);
    daemon.ok("snapshot create one vol");
    daemon.connect("vol").write(0, &bytes(MIB as usize, 2)).expect("writing works");
    daemon.ok("snapshot create two vol");
    daemon.stop();
    let away = scratch.join("away");
    fs::rename(scratch.join("disk"), &away).expect("it can be moved");
    (scratch.join("disk"), away)
}

fn start(scratch: &Scratch, announced: &[&str]) -> Daemon {
    let mut daemon = Setting::new(&scratch.join("state")).launch();
    announced.iter().for_each(|text| daemon.announce(text));
    daemon.ready();
    daemon
}

fn volume(daemon: &Daemon) -> Value {
    daemon.json("volume show vol")["volume"].clone()
}

#[test]
fn snapshots_of_a_failed_volume_are_listed_and_kept() {
    let scratch = Scratch::new();
    let (disk, away) = without_base(&scratch);
    let daemon = start(&scratch, &["not served"]);
    assert_eq!(volume(&daemon)["snapshots"], 2);
    let status = daemon.json("status");
    for list in [&daemon.json("snapshot list")["snapshots"], &status["status"]["snapshots"]] {
        let list = list.as_array().expect("a list");
        let names: Vec<_> = list.iter().map(|snapshot| snapshot["name"].as_str().expect("a name")).collect();
        assert_eq!(names, ["one", "two"]);
        for snapshot in list {
            assert_eq!(snapshot["state"], "unavailable", "{snapshot}");
            assert!(snapshot["reason"].as_str().is_some_and(|why| why.contains("does not exist")), "{snapshot}");
            assert_eq!(snapshot["id"].as_str().map(str::len), Some(32), "{snapshot}");
        }
    }
    assert_eq!(daemon.json("snapshot show vol@one")["snapshot"]["size"], SIZE);
    let said = daemon.refuses(1, "volume remove vol");
    assert!(said.contains("snapshots (2)"), "{said}");
    daemon.refuses(1, "snapshot show vol@three");
    daemon.refuses(1, "snapshot delete vol@three");
    daemon.ok("snapshot delete vol@two");
    assert_eq!(daemon.snapshots("vol"), ["one"]);

    fs::rename(&away, &disk).expect("it can be moved");
    until(|| volume(&daemon)["state"] == "serving");
    assert_eq!(daemon.snapshots("vol"), ["one"], "what was deleted stays so");
    let mut one = read(&disk.join("base"));
    one[..MIB as usize].copy_from_slice(&bytes(SIZE as usize, 1)[..MIB as usize]);
    assert!(daemon.contents("vol@one") == one, "what stood is right");
    daemon.ok("snapshot create two vol");
    daemon.stop();
}

#[test]
fn a_failed_volume_without_snapshots_can_be_removed() {
    let scratch = Scratch::new();
    without_base(&scratch);
    let daemon = start(&scratch, &["not served"]);
    daemon.ok("snapshot delete vol@one");
    daemon.ok("snapshot delete vol@two");
    daemon.ok("volume remove vol");
    assert_eq!(daemon.json("volume list")["volumes"].as_array().map(Vec::len), Some(0));
    daemon.stop();
    assert!(!scratch.join("state/volumes/vol").exists());
}

/// Half of the base of a served volume with a snapshot is cut off.
fn cut(scratch: &Scratch) -> (Daemon, PathBuf) {
    let base = scratch.random("base", SIZE, 1);
    let mut daemon = Daemon::serving(scratch, &base);
    daemon.announce("was cut to");
    daemon.ok("snapshot create s vol");
    set_size(&base, SIZE / 2);
    (daemon, base)
}

fn set_size(base: &Path, size: u64) {
    let file = File::options().write(true).open(base).expect("it is there");
    file.set_len(size).expect("it can be cut");
}

#[test]
fn a_base_that_shrinks_is_said_to_have() {
    let scratch = Scratch::new();
    let (daemon, base) = cut(&scratch);
    let to = scratch.join("copy");
    for line in [format!("backup vol --to {0}", to.display()), format!("backup vol@s --to {0}", to.display())] {
        let said = daemon.refuses(1, &line);
        assert!(said.contains("was cut to 4194304 bytes") && said.contains("8388608"), "{said}");
    }
    daemon.refuses(1, "snapshot create t vol");
    let shown = volume(&daemon);
    assert_eq!(shown["state"], "failed", "{shown}");
    assert!(shown["reason"].as_str().is_some_and(|why| why.contains("cut")), "{shown}");
    assert_eq!(daemon.json("snapshot show vol@s")["snapshot"]["state"], "unavailable");
    assert!(Client::connect(&daemon.socket(), "vol").is_err(), "no client expects such a disk");
    // Its size alone does not make it whole.
    set_size(&base, SIZE);
    assert_eq!(volume(&daemon)["state"], "failed");
    set_size(&base, SIZE / 2);
    daemon.stop();

    let daemon = start(&scratch, &["not served"]);
    let shown = volume(&daemon);
    assert!(shown["reason"].as_str().is_some_and(|why| why.contains("4194304 bytes long")), "{shown}");
    daemon.stop();
    set_size(&base, SIZE);
    let daemon = start(&scratch, &["changed while the daemon was down"]);
    assert_eq!(volume(&daemon)["state"], "serving");
    assert_eq!(daemon.json("snapshot show vol@s")["snapshot"]["state"], "broken");
    daemon.stop();
}

#[test]
fn a_base_that_shrank_under_a_killed_daemon_broke_its_snapshots() {
    let scratch = Scratch::new();
    let (daemon, base) = cut(&scratch);
    until(|| daemon.process().stderr().contains("was cut to"));
    set_size(&base, SIZE);
    daemon.kill();
    let daemon = start(&scratch, &["changed while the daemon was down"]);
    assert_eq!(volume(&daemon)["state"], "serving");
    assert_eq!(daemon.json("snapshot show vol@s")["snapshot"]["state"], "broken");
    daemon.stop();
}

#[test]
fn a_base_among_the_records_is_refused() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.ok("snapshot create s vol");
    let table = scratch.join("state/volumes/vol/state/snapshots");
    let before = read(&table);
    let said = daemon.refuses(1, &format!("volume add other {}", table.display()));
    assert!(said.contains("records"), "{said}");
    assert!(read(&table) == before);
    daemon.stop();
}
