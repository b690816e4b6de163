//! A restored site becomes the source: volumes that get another base, served or not, and however the daemon dies meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::daemon::Setting;
use e2e::nbd::Client;
use e2e::process::{Program, Until};
use e2e::scratch::{bytes, copy, read};
use e2e::{Daemon, MIB, Scratch};
use serde_json::Value;

const SIZE: u64 = 8 * MIB;

fn volume(daemon: &Daemon) -> Value {
    daemon.json("volume show vol")["volume"].clone()
}

fn rebase(to: &Path) -> String {
    format!("volume rebase vol {}", to.display())
}

/// That the volume has this base, this generation, and these bytes.
fn assert_has(daemon: &Daemon, base: &Path, generation: u64, contents: &[u8]) {
    let shown = volume(daemon);
    assert_eq!(shown["state"], "serving", "{shown}");
    assert_eq!(shown["base"], base.to_str().expect("a plain path"), "{shown}");
    assert_eq!((&shown["generation"], &shown["size"]), (&generation.into(), &SIZE.into()), "{shown}");
    assert!(daemon.contents("vol") == contents, "the bytes of {}", base.display());
}

/// A served volume and, beside it, another site of the same size.
fn two_sites(scratch: &Scratch) -> (Daemon, PathBuf, PathBuf) {
    let (base, other) = (scratch.random("base", SIZE, 1), scratch.random("other", SIZE, 2));
    (Daemon::serving(scratch, &base), base, other)
}

#[test]
fn a_lost_base_is_replaced_by_a_restored_copy() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.connect("vol").write(MIB, &bytes(MIB as usize, 2)).expect("writing works");
    let saved = read(&base);
    let image = scratch.join("copy.img");
    daemon.ok(&format!("backup vol --to {}", image.display()));
    daemon.connect("vol").write(0, &bytes(MIB as usize, 3)).expect("writing works");
    daemon.stop();
    fs::remove_file(&base).expect("it is there");

    let mut daemon = Setting::new(&scratch.join("state")).launch();
    daemon.announce("not served");
    daemon.ready();
    let id = volume(&daemon)["id"].clone();
    assert_eq!(volume(&daemon)["state"], "failed");
    let site = scratch.join("site");
    daemon.ok(&format!("restore {} --to {}", image.display(), site.display()));
    let shown = daemon.json(&rebase(&site));
    assert_eq!((&shown["volume"]["id"], &shown["volume"]["state"]), (&id, &"serving".into()));
    assert_has(&daemon, &site, 2, &saved);

    // It is a volume like any other: snapshots and copies are of the new base.
    let mut host = daemon.connect("vol");
    daemon.ok("snapshot create s vol");
    host.write(0, &bytes(MIB as usize, 4)).expect("writing works");
    assert!(daemon.contents("vol@s") == saved);
    let again = scratch.join("again.img");
    daemon.ok(&format!("backup vol --verify --to {}", again.display()));
    drop(host);
    let now = daemon.contents("vol");
    assert!(read(&again) == now && read(&site) == now);
    assert_eq!(daemon.json(&format!("copy show {}", again.display()))["copy"]["volumes"][0]["generation"], 2);
    daemon.stop();

    let daemon = Daemon::start(&scratch);
    assert_has(&daemon, &site, 2, &now);
    assert!(daemon.contents("vol@s") == saved, "a snapshot of the new base stands");
    daemon.stop();
}

#[test]
fn a_served_volume_moves_and_its_old_base_is_free() {
    let scratch = Scratch::new();
    let (daemon, base, other) = two_sites(&scratch);
    let before = read(&base);
    let moved = read(&other);
    let mut host = daemon.connect("vol");
    let said = daemon.refuses(1, &rebase(&other));
    assert!(said.contains("clients connected (1)"), "{said}");
    assert!(host.read(0, 512).expect("it is left alone") == before[..512]);
    drop(host);
    daemon.ok("snapshot create s vol");
    let said = daemon.refuses(1, &rebase(&other));
    assert!(said.contains("snapshots (1)") && said.contains("back up"), "{said}");
    daemon.ok("snapshot delete vol@s");

    daemon.ok(&rebase(&other));
    assert_has(&daemon, &other, 2, &moved);
    daemon.connect("vol").write(0, &[7; 4096]).expect("writing works");
    assert!(read(&base) == before, "the old base stays as it is");
    assert!(read(&other)[..4096] == [7; 4096]);
    // Nobody holds it any more, and it may be another volume's.
    daemon.add("old", &base);
    assert!(daemon.contents("old") == before);
    let said = daemon.refuses(1, &rebase(&base));
    assert!(said.contains("base of volume old"), "{said}");
    daemon.stop();
}

#[test]
fn what_cannot_be_the_new_base() {
    let scratch = Scratch::new();
    let (daemon, base, other) = two_sites(&scratch);
    let contents = read(&base);
    let larger = scratch.sparse("larger", SIZE + 512);
    let smaller = scratch.sparse("smaller", SIZE - 512);
    for (to, why) in [
        (&larger, "is 8389120 bytes long and volume vol 8388608"),
        (&smaller, "8388096 bytes long"),
        (&base, "is the base of volume vol already"),
        (&scratch.join("nothing"), "does not exist"),
        (&scratch.join("state/volumes/vol/state/map"), "records"),
        (&scratch.path().to_path_buf(), "neither a file nor a block device"),
    ] {
        let said = daemon.refuses(1, &rebase(to));
        assert!(said.contains(why), "{}: {said}", to.display());
    }
    let held = fs::File::open(&other).expect("it is there");
    held.try_lock().expect("nobody else has it");
    let said = daemon.refuses(1, &rebase(&other));
    assert!(said.contains("locked"), "{said}");
    drop(held);
    let said = daemon.refuses(1, "volume rebase nobody /dev/null");
    assert!(said.contains("no volume nobody"), "{said}");

    // What is half restored is no source.
    let note = scratch.join("state/restores");
    fs::create_dir_all(&note).expect("it can be made");
    let id = "1a".repeat(16);
    let path = other.to_str().expect("a plain path");
    let text = format!(
        r#"{{"version":1,"id":"{id}","copy":"{id}","source":"/c.img","target":"{path}","differing":false,"force":true,"begun":"2026-01-31T12:00:00.000000000Z","by":{{"uid":0,"pid":1}},"state":"stopped"}}"#
    );
    fs::write(note.join(format!("{id}.json")), text).expect("it can be written");
    let said = daemon.refuses(1, &rebase(&other));
    assert!(said.contains("tzero restore /c.img --to") && said.contains("tzero copy remove"), "{said}");
    fs::remove_dir_all(&note).expect("it is there");

    // Several bases cannot be replaced by one.
    let (a, b) = (scratch.random("a", MIB, 3), scratch.random("b", MIB, 4));
    daemon.ok(&format!("volume add two {} {}", a.display(), b.display()));
    let said = daemon.refuses(1, &format!("volume rebase two {}", other.display()));
    assert!(said.contains("2 bases"), "{said}");
    assert_has(&daemon, &base, 1, &contents);
    daemon.stop();
}

#[test]
fn a_record_that_cannot_be_replaced_changes_nothing() {
    let scratch = Scratch::new();
    let (daemon, base, other) = two_sites(&scratch);
    let contents = read(&base);
    let beside = scratch.join("state/volumes/vol/volume.json~new");
    fs::create_dir(&beside).expect("it can be made");
    let said = daemon.refuses(1, &rebase(&other));
    assert!(said.contains("volume.json"), "{said}");
    fs::remove_dir(&beside).expect("it is there");
    assert_has(&daemon, &base, 1, &contents);
    daemon.ok(&rebase(&other));
    assert_has(&daemon, &other, 2, &read(&other));
    daemon.stop();
}

#[test]
fn a_daemon_that_dies_leaves_one_base_or_the_other() {
    for (moment, generation) in [("rebase-closed", 1), ("rebase-recorded", 2)] {
        let scratch = Scratch::new();
        let (base, other) = (scratch.random("base", SIZE, 1), scratch.random("other", SIZE, 2));
        let daemon = Setting::new(&scratch.join("state")).env("TZERO_TEST_CRASH", &format!("{moment}:1")).start();
        daemon.add("vol", &base);
        daemon.connect("vol").write(4096, &bytes(4096, 3)).expect("writing works");
        let sites = [read(&base), read(&other)];
        daemon.run(&rebase(&other)).exited(1);
        daemon.died();

        let daemon = Daemon::start(&scratch);
        let (now, contents) = if generation == 1 { (&base, &sites[0]) } else { (&other, &sites[1]) };
        assert_has(&daemon, now, generation, contents);
        assert!(read(&base) == sites[0] && read(&other) == sites[1], "{moment}: nothing was written");
        daemon.ok("snapshot create s vol");
        daemon.connect("vol").write(0, &[9; 8192]).expect("writing works");
        assert!(daemon.contents("vol@s") == *contents, "{moment}");
        daemon.ok("snapshot delete vol@s");
        // From either it goes on to the other, or back.
        let to = if generation == 1 { &other } else { &base };
        daemon.ok(&rebase(to));
        assert_has(&daemon, to, generation + 1, &read(to));
        daemon.stop();
    }
}

#[test]
fn an_export_may_be_the_new_base() {
    let scratch = Scratch::new();
    let (daemon, _, other) = two_sites(&scratch);
    let socket = scratch.join("kit.sock");
    let mut server = Program::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(&socket)
        .args(["--exportname", "disk", "file"])
        .arg(&other)
        .start();
    assert_eq!(server.until(|| Client::connect(&socket, "disk").is_ok()), Until::Held, "nbdkit serves");
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    daemon.ok(&format!("volume rebase vol {uri}"));
    let mut expected = read(&other);
    assert!(daemon.contents("vol") == expected);
    daemon.connect("vol").write(512, &[5; 512]).expect("writing works");
    expected[512..1024].fill(5);
    daemon.connect("vol").order(e2e::nbd::Command::Flush, 0, 0, 0).expect("flushing works");
    assert!(daemon.contents("vol") == expected);
    let said = daemon.refuses(1, &format!("volume rebase vol {uri}"));
    assert!(said.contains("in use by volume vol"), "{said}");
    // A copy beside the old site, and back.
    let back = scratch.join("back");
    copy(&other, &back);
    daemon.ok(&rebase(&back));
    assert_has(&daemon, &back, 3, &read(&back));
    daemon.stop();
}
