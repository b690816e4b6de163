//! `durability = power`, as far as a test can lose power: the daemon is killed, what a loss of power would garble is garbled, and the next
//! start is told of another boot. What flushes leave is the simulator's to lose.

use std::fs;
use std::path::Path;

use e2e::daemon::Setting;
use e2e::nbd::Command;
use e2e::scratch::{bytes, read};
use e2e::waiting::until;
use e2e::{Daemon, MIB, Scratch};

const SIZE: u64 = 8 * MIB;
/// A way to spoil a file.
type Spoil = fn(&Path);
/// The boot after the loss of power.
const ANOTHER_BOOT: &str = "0123456789abcdef0123456789abcdef";

fn outlives(daemon: &Daemon, snapshot: &str) -> bool {
    daemon.json(&format!("snapshot show {snapshot}"))["snapshot"]["outlives_power"] == true
}

#[test]
fn a_confirmed_snapshot_outlives_the_machine() {
    for options in ["", "--grain 512", "--grain 64K --cache-limit 8M"] {
        let scratch = Scratch::new();
        let base = scratch.random("base", SIZE, 1);
        let one = read(&base);
        let daemon = Daemon::start(&scratch);
        daemon.ok(&format!("volume add vol {} --durability power {options}", base.display()));
        assert_eq!(daemon.json("volume show vol")["volume"]["durability"], "power");
        daemon.ok("snapshot create one vol");
        until(|| outlives(&daemon, "vol@one"));
        let mut host = daemon.connect("vol");
        host.write(4096, &bytes(MIB as usize, 2)).expect("writing works");
        host.write(2 * MIB + 512, &bytes(1024, 3)).expect("writing works");
        host.order(Command::WriteZeroes, 0, 3 * MIB, MIB as u32).expect("zeroing works");
        drop(host);
        let two = daemon.contents("vol");
        daemon.ok("snapshot create two vol");
        until(|| outlives(&daemon, "vol@two"));
        daemon.connect("vol").write(0, &bytes(2 * MIB as usize, 4)).expect("writing works");
        let now = daemon.contents("vol");
        daemon.kill();

        // The map was never flushed: whatever is there now.
        let map = scratch.join("state/volumes/vol/state/map");
        fs::write(&map, bytes(8192, 5)).expect("it can be written");
        let daemon = Setting::new(&scratch.join("state")).env("TZERO_TEST_BOOT", ANOTHER_BOOT).start();
        assert!(daemon.contents("vol") == now, "{options}: the host's bytes");
        assert!(daemon.contents("vol@one") == one, "{options}: the older snapshot");
        assert!(daemon.contents("vol@two") == two, "{options}: the younger snapshot");
        let copy = scratch.join("copy.img");
        daemon.ok(&format!("backup vol@one --to {} --verify", copy.display()));
        assert!(read(&copy) == one);
        let shown = daemon.json(&format!("copy show {}", copy.display()));
        assert_eq!(shown["copy"]["durability"], "power", "{shown}");
        daemon.connect("vol").write(5 * MIB, &bytes(MIB as usize, 6)).expect("the host goes on");
        assert!(daemon.contents("vol@one") == one && daemon.contents("vol@two") == two);
        // Deleted, it stays deleted, and its originals are freed.
        daemon.ok("snapshot delete vol@one");
        daemon.ok("snapshot delete vol@two");
        daemon.kill();
        let daemon = Setting::new(&scratch.join("state")).start();
        assert_eq!(daemon.snapshots("vol"), Vec::<String>::new());
        assert_eq!(daemon.json("volume show vol")["volume"]["cache_used"], 0);
        daemon.stop();
    }
}

#[test]
fn of_a_killed_daemon_everything_is_there_as_ever() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let one = read(&base);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add vol {} --durability power", base.display()));
    daemon.ok("snapshot create one vol");
    daemon.connect("vol").write(0, &bytes(3 * MIB as usize, 2)).expect("writing works");
    daemon.kill();
    let daemon = Daemon::start(&scratch);
    assert!(daemon.contents("vol@one") == one);
    until(|| outlives(&daemon, "vol@one"));
    daemon.stop();
    // A clean stop, and a restart of the machine.
    let daemon = Setting::new(&scratch.join("state")).env("TZERO_TEST_BOOT", ANOTHER_BOOT).start();
    assert!(daemon.contents("vol@one") == one);
    daemon.stop();
}

#[test]
fn what_a_loss_of_power_may_have_taken_is_not_believed() {
    // The cache's records are of another volume, or void, or gone.
    let spoil: [(&str, Spoil); 2] = [
        ("the header is gone", |cache| {
            let mut contents = read(cache);
            contents[..512].fill(0);
            fs::write(cache, contents).expect("it can be written");
        }),
        ("the cache is gone", |cache| fs::remove_file(cache).expect("it was there")),
    ];
    for (how, spoil) in spoil {
        let scratch = Scratch::new();
        let base = scratch.random("base", SIZE, 1);
        let daemon = Daemon::start(&scratch);
        daemon.ok(&format!("volume add vol {} --durability power", base.display()));
        daemon.ok("snapshot create one vol");
        until(|| outlives(&daemon, "vol@one"));
        daemon.connect("vol").write(0, &bytes(MIB as usize, 2)).expect("writing works");
        let now = daemon.contents("vol");
        daemon.kill();
        spoil(&scratch.join("state/volumes/vol/originals"));
        let mut daemon = Setting::new(&scratch.join("state")).env("TZERO_TEST_BOOT", ANOTHER_BOOT).launch();
        daemon.announce("broken");
        daemon.ready();
        assert!(daemon.contents("vol") == now, "{how}");
        let shown = daemon.json("snapshot show vol@one");
        assert_eq!(shown["snapshot"]["state"], "broken", "{how}: {shown}");
        daemon.ok("snapshot delete vol@one");
        daemon.ok("snapshot create one vol");
        daemon.connect("vol").write(0, &bytes(MIB as usize, 3)).expect("the host goes on");
        assert!(daemon.contents("vol@one") == now, "{how}: a new snapshot is right");
        daemon.stop();
    }
}

#[test]
fn without_it_snapshots_are_broken_and_that_is_said() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add vol {}", base.display()));
    daemon.ok("snapshot create one vol");
    assert!(!outlives(&daemon, "vol@one"));
    daemon.kill();
    let mut daemon = Setting::new(&scratch.join("state")).env("TZERO_TEST_BOOT", ANOTHER_BOOT).start();
    daemon.announce("broken");
    let shown = daemon.json("snapshot show vol@one");
    assert_eq!(shown["snapshot"]["state"], "broken", "{shown}");
    assert!(shown["snapshot"]["reason"].as_str().is_some_and(|reason| reason.contains("clean stop")), "{shown}");
    daemon.stop();
}

#[test]
fn what_cannot_outlive_it_is_refused() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::start(&scratch);
    daemon.refuses(2, &format!("volume add vol {} --durability none", base.display()));
    daemon.refuses(2, &format!("volume add vol {} --durability power --cache-limit 8K", base.display()));
    daemon.ok(&format!("volume add vol {} --durability power --cache-limit 16K", base.display()));
    daemon.stop();
}
