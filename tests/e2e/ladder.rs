//! What gives when the original cache is short of space, rung by rung: each is taken out, and what it was worth is seen to be missing.
//!
//! The host never meets an error, whichever rung is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use e2e::daemon::Setting;
use e2e::nbd::Client;
use e2e::random::Random;
use e2e::scratch::{bytes, read};
use e2e::{Daemon, Finished, MIB, Process, Program, Scratch};
use serde_json::Value;

const GRAIN: u64 = 4096;

/// Sizes of a scene.
#[derive(Clone, Copy)]
struct Sizes {
    volume: u64,
    memory: u64,
    disk: u64,
    /// The host writes to so much of the volume's end.
    hot: u64,
}

/// For CI, and as large as it is promised.
const SMALL: Sizes = Sizes { volume: 192 * MIB, memory: MIB, disk: 7 * MIB, hot: 16 * MIB };
const LARGE: Sizes = Sizes { volume: 512 * MIB, memory: 8 * MIB, disk: 64 * MIB, hot: 128 * MIB };

/// A write waits for 20 ms in all; with what its save, and the machine, take for themselves.
const BOUND: Duration = Duration::from_millis(20 + 15);

/// A host that writes as fast as it can, each grain once at first, and how long that took it.
struct Host {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Host {
    fn start(daemon: &Daemon, sizes: Sizes, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client: Client = daemon.connect("vol");
        let stopping = Arc::clone(&stop);
        let thread = spawn(move || {
            let mut random = Random::new(seed);
            let first = (sizes.volume - sizes.hot) / GRAIN;
            let mut left: Vec<u64> = (first..sizes.volume / GRAIN).collect();
            let data = bytes(GRAIN as usize, seed);
            let mut latencies = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                // Once all were changed, any: the host goes on.
                let grain = random.take(&mut left).unwrap_or_else(|| first + random.below(sizes.hot / GRAIN));
                let began = Instant::now();
                client.write(grain * GRAIN, &data).expect("the host is never refused");
                latencies.push(began.elapsed());
            }
            latencies
        });
        Self { stop, thread }
    }

    /// Ends it; what its writes took, ascending.
    fn end(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = self.thread.join().expect("the host met no error");
        latencies.sort();
        latencies
    }
}

fn p99(latencies: &[Duration]) -> Duration {
    latencies[latencies.len() * 99 / 100]
}

/// A destination that takes its time.
fn slow_destination(scratch: &Scratch, size: u64) -> (Process, String) {
    let socket = scratch.join("slow.sock");
    let mut server = Program::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--filter=delay", "--unix"])
        .arg(&socket)
        .args(["memory", &size.to_string(), "delay-write=100ms"])
        .start();
    server.until(|| socket.exists());
    (server, format!("image:nbd+unix:///?socket={}", socket.display()))
}

/// A daemon without some rungs, serving `vol` of random bytes.
fn serving(scratch: &Scratch, sizes: Sizes, without: &str) -> Daemon {
    let base = scratch.random("base", sizes.volume, 51);
    let mut daemon = Setting::new(&scratch.join("state")).env("TZERO_TEST_WITHOUT", without).start();
    daemon.announce("broken");
    let (memory, disk) = (sizes.memory, sizes.disk);
    daemon.ok(&format!("volume add vol {} --memory-limit {memory} --cache-limit {disk}", base.display()));
    daemon
}

fn used(daemon: &Daemon) -> Vec<(String, u64)> {
    let shown = daemon.json("volume show vol")["volume"].clone();
    let tiers = shown["tiers"].as_array().expect("the tiers are listed");
    let tier =
        |tier: &Value| (tier["kind"].as_str().unwrap_or_default().to_owned(), tier["used"].as_u64().unwrap_or(0));
    tiers.iter().map(tier).collect()
}

/// What became of a backup under a host that is faster than it.
struct Story {
    finished: Finished,
    latencies: Vec<Duration>,
}

/// A backup to a slow destination, and a host that writes flat out, to the end of the volume first.
fn backup_under_fire(sizes: Sizes, without: &str, on_full: &str) -> Story {
    let scratch = Scratch::new();
    let daemon = serving(&scratch, sizes, without);
    let (_server, destination) = slow_destination(&scratch, sizes.volume);
    let backup = daemon
        .backup(&["vol", "--verify", "--on-full", on_full, "--to", &destination])
        .env("TZERO_TEST_WITHOUT", without)
        .limit(Duration::from_secs(300))
        .start();
    let begun = || !daemon.snapshots("vol").is_empty();
    let mut backup = backup;
    backup.until(begun);
    let host = Host::start(&daemon, sizes, 52);
    let finished = backup.wait();
    let latencies = host.end();
    if finished.code() == Some(1) {
        assert!(daemon.snapshots("vol").is_empty(), "what cannot be finished leaves no snapshot");
    }
    Story { finished, latencies }
}

/// With every rung a backup that is slower than the host gets there; without one of these it does not.
fn rungs_of_a_backup(sizes: Sizes) {
    let figures = |without: &str, on_full: &str| {
        let story = backup_under_fire(sizes, without, on_full);
        let slowed = story.latencies.iter().filter(|latency| **latency > Duration::from_millis(5)).count();
        eprintln!(
            "without {without:?}, {on_full}: exit {:?}, the host's p99 {:?}, {slowed} of {} writes over 5 ms",
            story.finished.code(),
            p99(&story.latencies),
            story.latencies.len()
        );
        (story, slowed)
    };
    let (whole, slowed) = figures("", "break");
    whole.finished.exited(0);
    assert!(p99(&whole.latencies) < BOUND, "slowed down, the host's p99 is {:?}", p99(&whole.latencies));
    let (sequential, slowed_longer) = figures("hurry", "break");
    assert!(
        sequential.finished.code() != Some(0) || slowed_longer > 2 * slowed,
        "without hurry {slowed_longer} writes were slowed down, with it {slowed}"
    );
    let (unslowed, _) = figures("slow-down", "break");
    assert!(
        unslowed.finished.code() != Some(0) || 2 * p99(&unslowed.latencies) < p99(&whole.latencies),
        "without slowing down the backup gets there, and the host's p99 is {:?}, with it {:?}",
        p99(&unslowed.latencies),
        p99(&whole.latencies)
    );
    // Where waiting is all that is left it is what the backup lives by.
    let (waiting, _) = figures("slow-down", "wait:10s");
    waiting.finished.exited(0);
    let (broken, _) = figures("slow-down,wait", "wait:10s");
    broken.finished.exited(1);
    assert!(broken.finished.stderr.contains("full"), "{}", broken.finished);
}

/// Memory fills up first, then the disk; the forecast says when; then the snapshot breaks, and the host goes on.
fn tiers_in_order(sizes: Sizes, rate: u64) {
    let scratch = Scratch::new();
    let daemon = serving(&scratch, sizes, "");
    daemon.ok("snapshot create s vol");
    let mut client = daemon.connect("vol");
    let (began, all) = (Instant::now(), (sizes.memory + sizes.disk) / GRAIN);
    let data = bytes(GRAIN as usize, 53);
    let mut forecast = None;
    for grain in 0..all + 16 {
        let due = Duration::from_secs_f64(grain as f64 * GRAIN as f64 / rate as f64);
        while began.elapsed() < due {
            std::thread::park_timeout(due.saturating_sub(began.elapsed()));
        }
        client.write(grain * GRAIN, &data).expect("the host is never refused");
        if grain == sizes.memory / GRAIN / 2 {
            let filled = used(&daemon);
            assert_eq!(filled[1].1, 0, "memory comes first: {filled:?}");
        }
        if grain == all / 2 {
            let filled = used(&daemon);
            assert_eq!(filled[0].1, sizes.memory, "then the disk: {filled:?}");
            let seconds = daemon.json("volume show vol")["volume"]["full_in_seconds"].as_f64().expect("a forecast");
            forecast = Some(began.elapsed().as_secs_f64() + seconds);
        }
    }
    let (full, forecast) = (all as f64 * GRAIN as f64 / rate as f64, forecast.expect("half-way it was asked for"));
    eprintln!("full after {full:.1} s, the forecast half-way was {forecast:.1} s");
    assert!((forecast / full - 1.0).abs() < 0.25, "full after {full} s, the forecast half-way was {forecast} s");
    let shown = daemon.json("snapshot show vol@s")["snapshot"].clone();
    assert_eq!(shown["state"], "broken", "{shown}");
    daemon.stop();
}

/// The snapshot with the most originals of its own makes room for the younger one; without that rung whoever needs room breaks.
fn the_largest_breaks(sizes: Sizes) {
    for (without, broken) in [("", "old"), ("break-largest", "young")] {
        let scratch = Scratch::new();
        let daemon = serving(&scratch, sizes, without);
        let mut host = daemon.connect("vol");
        let data = bytes(GRAIN as usize, 54);
        let half = (sizes.memory + sizes.disk) / GRAIN / 2;
        daemon.ok("snapshot create old vol");
        let mut write = |grains: std::ops::Range<u64>| {
            grains.for_each(|grain| host.write(grain * GRAIN, &data).expect("the host is never refused"));
        };
        write(0..half + half / 2);
        let t0 = daemon.contents("vol");
        daemon.ok("snapshot create young vol");
        write(0..half + half / 4);
        let state = |name: &str| daemon.json(&format!("snapshot show vol@{name}"))["snapshot"]["state"].clone();
        for name in ["old", "young"] {
            let expected = if name == broken { "broken" } else { "live" };
            assert_eq!(state(name), expected, "{name}, without {without:?}");
        }
        if without.is_empty() {
            assert!(daemon.contents("vol@young") == t0, "and it is right");
        }
        daemon.stop();
    }
}

/// Slots of what the reader had are used again; without that rung the snapshot breaks.
fn what_was_read_makes_room(sizes: Sizes) {
    for (without, state) in [("", "live"), ("reuse", "broken")] {
        let scratch = Scratch::new();
        let daemon = serving(&scratch, sizes, without);
        let t0 = read(&scratch.join("base"));
        daemon.ok("snapshot create s vol --originals release");
        let mut host = daemon.connect("vol");
        let mut reader = daemon.connect("vol@s");
        let step = MIB.min(sizes.memory);
        let data = bytes(step as usize, 55);
        for start in (0..2 * (sizes.memory + sizes.disk)).step_by(step as usize) {
            host.write(start, &data).expect("the host is never refused");
            let Ok(found) = reader.read(start, step as u32) else { break };
            assert!(found == t0[start as usize..(start + step) as usize], "at {start}");
        }
        let shown = daemon.json("snapshot show vol@s")["snapshot"].clone();
        assert_eq!(shown["state"], state, "without {without:?}: {shown}");
        daemon.stop();
    }
}

#[test]
fn tiers_fill_up_in_order_as_forecast() {
    tiers_in_order(SMALL, MIB);
}

#[test]
fn a_backup_needs_every_rung() {
    rungs_of_a_backup(SMALL);
}

#[test]
fn the_largest_snapshot_makes_room() {
    the_largest_breaks(SMALL);
}

#[test]
fn what_its_reader_had_makes_room() {
    what_was_read_makes_room(SMALL);
}

mod lane {
    use super::*;

    #[test]
    fn tiers_of_8_and_64_mebibytes() {
        tiers_in_order(LARGE, 2 * MIB);
        rungs_of_a_backup(LARGE);
        the_largest_breaks(LARGE);
        what_was_read_makes_room(LARGE);
    }
}
