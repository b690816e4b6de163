//! Originals saved ahead of the host's changes (R14): how far, how fast, and that a change then waits for nothing.

use std::path::PathBuf;
use std::time::Instant;

use e2e::scratch::{bytes, read};
use e2e::waiting::until;
use e2e::{Daemon, MIB, Scratch};
use serde_json::Value;

const SIZE: u64 = 16 * MIB;

fn volume(daemon: &Daemon) -> Value {
    daemon.json("volume show v")["volume"].clone()
}

/// A daemon that serves `v` over random bytes.
fn serving(scratch: &Scratch, options: &str) -> (Daemon, PathBuf) {
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::start(scratch);
    daemon.ok(&format!("volume add v {} {options}", base.display()));
    (daemon, base)
}

fn until_it_is(daemon: &Daemon, state: &str) {
    until(|| volume(daemon)["save_ahead"]["state"] == state);
}

#[test]
fn everything_is_saved_before_a_change_asks_for_it() {
    let scratch = Scratch::new();
    let (daemon, base) = serving(&scratch, "--save-ahead 1G/s");
    let t0 = read(&base);
    until_it_is(&daemon, "idle");
    assert_eq!(volume(&daemon)["save_ahead"]["saved"], 0, "there is no snapshot");

    daemon.ok("snapshot create s v");
    until(|| volume(&daemon)["save_ahead"]["saved"] == SIZE);
    until_it_is(&daemon, "idle");
    let used = volume(&daemon)["cache_used"].clone();
    assert_eq!(used, SIZE);
    assert_eq!(volume(&daemon)["full_in_seconds"], Value::Null, "what nobody asked for foretells nothing");
    let mut client = daemon.connect("v");
    for offset in (0..SIZE).step_by(MIB as usize) {
        client.write(offset, &bytes(MIB as usize, offset)).expect("writing works");
    }
    assert_eq!(volume(&daemon)["cache_used"], used, "nothing was left to save");
    assert!(daemon.contents("v@s") == t0);
    assert!(daemon.ok("volume show v").contains("save ahead  1G/s at most; 16.0 MiB saved, nothing is left to save"));

    // Of a younger snapshot all is to be saved again; and a killed daemon's successor goes on.
    let t1 = read(&base);
    daemon.ok("snapshot create t v");
    until(|| volume(&daemon)["cache_used"] == 2 * SIZE);
    daemon.kill();
    let daemon = Daemon::start(&scratch);
    assert_eq!(volume(&daemon)["save_ahead"]["rate"], 1 << 30);
    assert!(daemon.contents("v@s") == t0 && daemon.contents("v@t") == t1);
    daemon.stop();
}

#[test]
fn it_leaves_half_of_the_cache_to_the_changes_and_breaks_nothing() {
    let scratch = Scratch::new();
    let (daemon, base) = serving(&scratch, "--cache-limit 4M --save-ahead 1G");
    let t0 = read(&base);
    daemon.ok("snapshot create s v");
    until_it_is(&daemon, "waits_for_space");
    let used = volume(&daemon)["cache_used"].as_u64().expect("a number");
    assert!((2 * MIB..=3 * MIB).contains(&used), "{used}");
    assert!(daemon.ok("volume show v").contains("the cache is half full"));
    // The half that is left is enough for these.
    let mut client = daemon.connect("v");
    client.write(8 * MIB, &bytes(MIB as usize, 3)).expect("writing works");
    assert!(daemon.contents("v@s") == t0);
    daemon.ok("snapshot delete v@s");
    until_it_is(&daemon, "idle");
    daemon.stop();
}

#[test]
fn its_rate_is_a_limit() {
    let scratch = Scratch::new();
    let (daemon, base) = serving(&scratch, "--save-ahead 1M/s");
    let began = Instant::now();
    daemon.ok("snapshot create s v");
    until(|| volume(&daemon)["save_ahead"]["saved"].as_u64() >= Some(MIB));
    let (took, saved) = (began.elapsed(), volume(&daemon)["save_ahead"]["saved"].as_u64().expect("a number"));
    // The first piece needs no rest before it.
    let most = (took.as_secs_f64() + 0.5) * MIB as f64;
    assert!(saved as f64 <= most, "{saved} bytes in {took:?}");
    for bad in ["0", "1M/h", "fast"] {
        daemon.refuses(2, &format!("volume add w {} --save-ahead {bad}", base.display()));
    }
    daemon.stop();
}
