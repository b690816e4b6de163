//! Volumes that become longer while they are used, and shorter while they are not; and however the daemon dies meanwhile.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use e2e::daemon::Setting;
use e2e::mounts::Loop;
use e2e::nbd::Client;
use e2e::process::{Program, Until};
use e2e::scratch::{bytes, read};
use e2e::{Daemon, MIB, Scratch};
use serde_json::Value;

use crate::load::{Load, Shape};

/// Sizes whose last grain is short, whatever the grain.
const OLD: u64 = 8 * MIB + 1536;
const NEW: u64 = 13 * MIB + 2560;

fn volume(daemon: &Daemon) -> Value {
    daemon.json("volume show vol")["volume"].clone()
}

fn resize(size: u64) -> String {
    format!("volume resize vol {size}")
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).expect("it is there").len()
}

fn assert_size(daemon: &Daemon, size: u64) {
    let shown = volume(daemon);
    assert_eq!((&shown["state"], &shown["size"]), (&"serving".into(), &size.into()), "{shown}");
    assert_eq!(daemon.connect("vol").size(), size);
}

/// Copies of a snapshot, made in every way, hold what its view holds.
fn assert_copies(load: &Load, daemon: &Daemon, snapshot: &str, contents: &[u8]) {
    for mode in ["timezero", "reconciled", "outboard"] {
        let to = load.scratch.join(format!("{snapshot}-{mode}.img"));
        daemon.ok(&format!("backup {snapshot} --verify --replace --mode {mode} --to {}", to.display()));
        assert!(read(&to) == contents, "{snapshot} by {mode}");
    }
}

/// Two snapshots, one from before the growth and one from after it, while writers never rest on what was there before.
fn grows_under_load(shape: Shape) {
    let load = Load::shaped(OLD, shape);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 1);
    writers.progress(200);
    let before = load.snapshot(&daemon, "before");
    writers.progress(200);
    // A mover that has begun knows one size, whichever, to its end.
    let own = load.scratch.join("own.img");
    let (whole, _) = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            load.history.instant(|| {
                daemon.ok(&format!("backup vol --verify --to {}", own.display()));
            })
        });
        daemon.ok(&resize(NEW));
        mover.join().expect("the mover ends well")
    });
    assert_size(&daemon, NEW);
    let own = read(&own);
    assert!(own.len() as u64 == OLD || own.len() as u64 == NEW);
    load.history.prove("the copy that was under way", &own[..OLD as usize], whole);
    assert!(own[OLD as usize..].iter().all(|byte| *byte == 0));

    // What was added begins within the last grain of before.
    let mut tail = vec![0; (NEW - OLD) as usize];
    let mut client = daemon.connect("vol");
    let write = |client: &mut Client, tail: &mut [u8], at: u64, len: usize, seed: u64| {
        let new = bytes(len, seed);
        client.write(OLD + at, &new).expect("writing works");
        tail[at as usize..at as usize + len].copy_from_slice(&new);
    };
    write(&mut client, &mut tail, 0, 512, 2);
    write(&mut client, &mut tail, MIB, 300 * 1024, 3);
    write(&mut client, &mut tail, NEW - OLD - 1024, 1024, 4);
    writers.progress(200);
    let after = load.snapshot(&daemon, "after");
    let then = tail.clone();
    write(&mut client, &mut tail, 0, 128 * 1024, 5);
    write(&mut client, &mut tail, NEW - OLD - 512, 512, 6);
    writers.progress(400);

    let prove = |daemon: &Daemon| {
        let view = daemon.contents("vol@before");
        assert_eq!(view.len() as u64, OLD, "it has the size that the volume had");
        load.history.prove("before", &view, before);
        let view = daemon.contents("vol@after");
        load.history.prove("after", &view[..OLD as usize], after);
        assert!(view[OLD as usize..] == then, "the end of the younger one");
    };
    prove(&daemon);
    assert_copies(&load, &daemon, "vol@before", &daemon.contents("vol@before"));
    assert_copies(&load, &daemon, "vol@after", &daemon.contents("vol@after"));
    drop(client);
    daemon.kill();
    writers.cut_off();

    let daemon = load.setting().start();
    assert_size(&daemon, NEW);
    prove(&daemon);
    let writers = load.writers(&daemon, 2);
    writers.progress(300);
    write(&mut daemon.connect("vol"), &mut tail, 2 * MIB, 4096, 7);
    prove(&daemon);
    writers.stop();
    let now = daemon.contents("vol");
    load.history.prove("the volume", &now[..OLD as usize], load.history.now());
    assert!(now[OLD as usize..] == tail, "the end of the volume");
    daemon.stop();
    let daemon = load.setting().start();
    prove(&daemon);
    daemon.stop();
}

#[test]
fn a_file_grows_under_load() {
    grows_under_load(Shape::Plain);
}

#[test]
fn a_file_grows_under_load_past_the_page_cache() {
    grows_under_load(Shape::Direct);
}

#[test]
fn a_volume_of_large_grains_grows_under_load() {
    grows_under_load(Shape::Coarse);
}

#[test]
fn the_last_of_two_bases_grows_under_load() {
    grows_under_load(Shape::Two);
}

#[test]
fn a_volume_that_outlives_power_grows_under_load() {
    grows_under_load(Shape::Power);
}

#[test]
fn it_grows_again_and_again() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 1536, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let mut model = read(&base);
    let mut shown: Vec<(String, Vec<u8>)> = Vec::new();
    for (round, size) in [2048, 4096, 4608, 65_536, 20 * MIB, 20 * MIB + 512, 50 * MIB].into_iter().enumerate() {
        let name = format!("s{round}");
        daemon.ok(&format!("snapshot create {name} vol"));
        shown.push((name, model.clone()));
        let said = daemon.json(&resize(size));
        assert_eq!(said["volume"]["size"], size);
        // Nothing is to be done the second time.
        daemon.ok(&resize(size));
        let was = model.len();
        model.resize(size as usize, 0);
        let mut host = daemon.connect("vol");
        for at in [0, was / 2 / 512 * 512, was - 512, size as usize - 512] {
            let new = bytes(512, (round * 1000 + at) as u64);
            host.write(at as u64, &new).expect("writing works");
            model[at..at + 512].copy_from_slice(&new);
        }
        for (name, contents) in &shown {
            assert!(daemon.contents(&format!("vol@{name}")) == *contents, "{name} in round {round}");
        }
    }
    assert!(daemon.contents("vol") == model && read(&base) == model);
    daemon.kill();
    let daemon = Daemon::start(&scratch);
    for (name, contents) in &shown {
        assert!(daemon.contents(&format!("vol@{name}")) == *contents, "{name}");
    }
    assert!(daemon.contents("vol") == model);
    daemon.stop();
}

#[test]
fn a_daemon_that_dies_leaves_one_size_or_the_other() {
    for (moment, size) in [("resize-intended", OLD), ("resize-done", NEW), ("resize-recorded", NEW)] {
        let scratch = Scratch::new();
        let base = scratch.random("base", OLD, 1);
        let daemon = Setting::new(&scratch.join("state")).env("TZERO_TEST_CRASH", &format!("{moment}:1")).start();
        daemon.add("vol", &base);
        let t0 = read(&base);
        daemon.ok("snapshot create s vol");
        daemon.connect("vol").write(OLD - 1024, &bytes(1024, 2)).expect("writing works");
        let mut now = read(&base);
        daemon.run(&resize(NEW)).exited(1);
        daemon.died();

        let daemon = Daemon::start(&scratch);
        assert_size(&daemon, size);
        assert_eq!(length(&base), size, "{moment}");
        now.resize(size as usize, 0);
        assert!(daemon.contents("vol") == now, "{moment}");
        assert!(daemon.contents("vol@s") == t0, "{moment}: the snapshot stands");
        let record = fs::read_to_string(scratch.join("state/volumes/vol/volume.json")).expect("it is there");
        assert!(!record.contains("becoming"), "{moment}: {record}");
        daemon.ok(&resize(NEW));
        now.resize(NEW as usize, 0);
        daemon.connect("vol").write(NEW - 512, &[7; 512]).expect("writing works");
        now[NEW as usize - 512..].fill(7);
        assert!(daemon.contents("vol") == now && daemon.contents("vol@s") == t0, "{moment}");
        daemon.stop();
    }
}

#[test]
fn shorter_only_when_nobody_looks() {
    let scratch = Scratch::new();
    let base = scratch.random("base", NEW, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let mut contents = read(&base);
    daemon.ok("snapshot create s vol");
    let said = daemon.refuses(1, &resize(OLD));
    assert!(said.contains("snapshots (1)"), "{said}");
    daemon.ok("snapshot delete vol@s");
    let mut host = daemon.connect("vol");
    let said = daemon.refuses(1, &resize(OLD));
    assert!(said.contains("clients connected (1)"), "{said}");
    host.write(0, &[3; 512]).expect("it is left alone");
    contents[..512].fill(3);
    drop(host);
    assert_eq!(length(&base), NEW);

    daemon.ok(&resize(OLD));
    contents.truncate(OLD as usize);
    assert_size(&daemon, OLD);
    assert!(daemon.contents("vol") == contents && read(&base) == contents);
    daemon.ok("snapshot create s vol");
    daemon.connect("vol").write(OLD - 512, &[4; 512]).expect("writing works");
    assert!(daemon.contents("vol@s") == contents);
    // What was cut off does not come back.
    daemon.ok(&resize(NEW));
    assert!(daemon.contents("vol")[OLD as usize..].iter().all(|byte| *byte == 0));
    assert!(daemon.contents("vol@s") == contents);
    daemon.stop();
    let daemon = Daemon::start(&scratch);
    assert!(daemon.contents("vol@s") == contents);
    daemon.stop();
}

#[test]
fn a_daemon_that_dies_while_it_cuts_leaves_one_size_or_the_other() {
    for (moment, size) in [("resize-intended", NEW), ("resize-done", OLD)] {
        let scratch = Scratch::new();
        let base = scratch.random("base", NEW, 1);
        let daemon = Setting::new(&scratch.join("state")).env("TZERO_TEST_CRASH", &format!("{moment}:1")).start();
        daemon.add("vol", &base);
        let mut contents = read(&base);
        daemon.run(&resize(OLD)).exited(1);
        daemon.died();
        let daemon = Daemon::start(&scratch);
        assert_size(&daemon, size);
        contents.truncate(size as usize);
        assert!(daemon.contents("vol") == contents, "{moment}");
        daemon.ok(&resize(OLD));
        contents.truncate(OLD as usize);
        assert!(daemon.contents("vol") == contents && read(&base) == contents, "{moment}");
        daemon.stop();
    }
}

#[test]
fn sizes_that_cannot_be() {
    let scratch = Scratch::new();
    let parts: Vec<PathBuf> = (0..2).map(|part| scratch.random(&format!("part-{part}"), MIB, part)).collect();
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add vol {} {} --direct", parts[0].display(), parts[1].display()));
    let contents = [read(&parts[0]), read(&parts[1])].concat();
    let said = daemon.refuses(1, &resize(MIB));
    assert!(said.contains("nothing would be left of") && said.contains("part-1"), "{said}");
    let said = daemon.refuses(1, "volume resize vol 8191P");
    assert!(said.contains("memory"), "{said}");
    let said = daemon.refuses(1, "volume resize nobody 1M");
    assert!(said.contains("no volume nobody"), "{said}");
    // Somebody else has made it longer, and what is there is not to be lost.
    let file = File::options().write(true).open(&parts[1]).expect("it is there");
    file.set_len(3 * MIB).expect("it can be extended");
    let said = daemon.refuses(1, &resize(3 * MIB));
    assert!(said.contains("3145728 bytes long already"), "{said}");
    assert_eq!(length(&parts[1]), 3 * MIB);
    daemon.ok(&resize(4 * MIB));
    assert_size(&daemon, 4 * MIB);
    assert!(daemon.contents("vol")[..2 * MIB as usize] == contents);
    // The record cannot be written: nothing has changed, and nothing is in the way later.
    let beside = scratch.join("state/volumes/vol/volume.json~new");
    fs::create_dir(&beside).expect("it can be made");
    let said = daemon.refuses(1, &resize(5 * MIB));
    assert!(said.contains("volume.json"), "{said}");
    assert_size(&daemon, 4 * MIB);
    assert_eq!(length(&parts[1]), 3 * MIB);
    fs::remove_dir(&beside).expect("it is there");
    daemon.ok(&resize(5 * MIB));
    assert_size(&daemon, 5 * MIB);
    daemon.stop();
}

#[test]
fn a_device_must_have_grown_before() {
    let scratch = Scratch::new();
    let file = scratch.random("file", 4 * MIB, 1);
    let device = Loop::over(&file);
    let daemon = Daemon::serving(&scratch, device.device());
    let mut host = daemon.connect("vol");
    daemon.ok("snapshot create s vol");
    let t0 = read(&file);
    let said = daemon.refuses(1, &resize(6 * MIB));
    assert!(said.contains("is 4194304 bytes long") && said.contains("give it that size first"), "{said}");
    File::options().write(true).open(&file).and_then(|file| file.set_len(6 * MIB)).expect("it can be extended");
    Program::new("losetup").arg("--set-capacity").arg(device.device()).ok();
    let said = daemon.refuses(1, &resize(7 * MIB));
    assert!(said.contains("is 6291456 bytes long"), "{said}");
    daemon.ok(&resize(6 * MIB));
    assert_size(&daemon, 6 * MIB);
    host.write(0, &[1; 4096]).expect("it was there all the time");
    daemon.connect("vol").write(6 * MIB - 4096, &[2; 4096]).expect("writing works");
    assert!(daemon.contents("vol@s") == t0);
    assert!(daemon.contents("vol")[6 * MIB as usize - 4096..] == [2; 4096]);
    drop(host);
    daemon.ok("snapshot delete vol@s");
    let said = daemon.refuses(1, &resize(4 * MIB));
    assert!(said.contains("only a file can be cut"), "{said}");
    daemon.kill();
    let daemon = Daemon::start(&scratch);
    assert_size(&daemon, 6 * MIB);
    daemon.stop();
}

#[test]
fn an_export_grows_with_its_snapshots() {
    let scratch = Scratch::new();
    let file = scratch.random("file", 4 * MIB, 1);
    let socket = scratch.join("kit.sock");
    let mut server = Program::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(&socket)
        .args(["--exportname", "disk", "file"])
        .arg(&file)
        .start();
    assert_eq!(server.until(|| Client::connect(&socket, "disk").is_ok()), Until::Held, "nbdkit serves");
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add vol nbd+unix:///disk?socket={}", socket.display()));
    let t0 = daemon.contents("vol");
    daemon.ok("snapshot create s vol");
    let mut host = daemon.connect("vol");
    host.write(0, &[1; 8192]).expect("writing works");
    File::options().write(true).open(&file).and_then(|file| file.set_len(5 * MIB)).expect("it can be extended");
    let said = daemon.refuses(1, &resize(5 * MIB));
    assert!(said.contains("clients connected (1)"), "{said}");
    drop(host);
    let said = daemon.refuses(1, &resize(6 * MIB));
    assert!(said.contains("is 5242880 bytes long"), "{said}");
    daemon.ok(&resize(5 * MIB));
    assert_size(&daemon, 5 * MIB);
    assert!(daemon.contents("vol@s") == t0, "its snapshot stands");
    daemon.connect("vol").write(5 * MIB - 512, &[2; 512]).expect("writing works");
    daemon.connect("vol").write(3 * MIB, &[3; 4096]).expect("writing works");
    assert!(daemon.contents("vol@s") == t0);
    assert!(daemon.contents("vol")[5 * MIB as usize - 512..] == [2; 512]);
    daemon.stop();
    let daemon = Daemon::start(&scratch);
    assert_size(&daemon, 5 * MIB);
    assert!(daemon.contents("vol@s") == t0);
    daemon.stop();
}
