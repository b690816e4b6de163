//! A view reader that stalls for ever in mid-read leaves the host as fast as it was: views never make host writes wait.

use std::time::{Duration, Instant};

use e2e::daemon::Setting;
use e2e::nbd::{Client, Command};
use e2e::random::Random;
use e2e::scratch::bytes;
use e2e::{Daemon, MIB, Scratch};

use crate::load::Shape;

const SIZE: u64 = 256 * MIB;
const GRAIN: u64 = 4096;

/// A client that asks for as much as the server will send, and never takes it.
fn stalled(daemon: &Daemon) -> Client {
    let mut client = daemon.connect("vol@s");
    for request in 0..16 {
        client.send(Command::Read, 0, request * MIB, MIB as u32, &[]).expect("a request can be sent");
    }
    client
}

/// Latencies of first writes to every grain of a part of the volume, in random order.
fn first_touches(host: &mut Client, grains: std::ops::Range<u64>, random: &mut Random) -> Vec<Duration> {
    let data = bytes(GRAIN as usize, random.draw());
    let mut left: Vec<u64> = grains.collect();
    let mut latencies = Vec::with_capacity(left.len());
    while let Some(grain) = random.take(&mut left) {
        let began = Instant::now();
        host.write(grain * GRAIN, &data).expect("writing works");
        latencies.push(began.elapsed());
    }
    latencies
}

fn percentile(latencies: &mut [Duration], percent: usize) -> Duration {
    latencies.sort();
    latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)]
}

#[test]
fn a_stalled_reader_stops_nobody() {
    for shape in Shape::ALL {
        stops_nobody(*shape);
    }
}

fn stops_nobody(shape: Shape) {
    let scratch = Scratch::new();
    let base = scratch.random("base", 64 * MIB, 1);
    let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
    daemon.ok("snapshot create s vol");
    let reference = daemon.contents("vol@s");
    let _readers = [stalled(&daemon), stalled(&daemon)];
    let mut host = daemon.connect("vol");
    let mut random = Random::new(1);
    let mut latencies = first_touches(&mut host, 0..4096, &mut random);
    // Where a writer waited for a reader it would wait for ever.
    assert!(percentile(&mut latencies, 100) < Duration::from_secs(5), "{:?}", percentile(&mut latencies, 100));
    assert!(daemon.contents("vol@s") == reference, "another reader of the view reads on");
    daemon.ok("snapshot delete vol@s");
    first_touches(&mut host, 0..64, &mut random);
    daemon.stop();
}

mod lane {
    use super::*;

    /// Rounds with and without a stalled reader take turns, so that what else the machine does meets both alike.
    #[test]
    fn first_touch_p99_stays_as_it_was() {
        for shape in Shape::ALL {
            stays_as_it_was(*shape);
        }
    }

    fn stays_as_it_was(shape: Shape) {
        const ROUNDS: usize = 25;
        const GRAINS: u64 = 10_000;
        // The reader is served as far as it takes, and only then does it stall: not before these writes are over.
        const BEFORE: u64 = 2000;
        let scratch = Scratch::new();
        let base = scratch.random("base", SIZE, 1);
        let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
        let mut host = daemon.connect("vol");
        let mut random = Random::new(1);
        let mut p99 = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS * 2 {
            let with = round % 2;
            daemon.ok("snapshot create s vol");
            let reader = (with == 1).then(|| stalled(&daemon));
            first_touches(&mut host, 0..BEFORE, &mut random);
            let mut latencies = first_touches(&mut host, BEFORE..BEFORE + GRAINS, &mut random);
            p99[with].push(percentile(&mut latencies, 99));
            drop(reader);
            daemon.ok("snapshot delete vol@s");
        }
        let [without, with] = p99.map(|mut rounds| percentile(&mut rounds, 50));
        let ratio = with.as_secs_f64() / without.as_secs_f64();
        eprintln!(
            "{shape:?}: first-touch p99, median of {ROUNDS} rounds: {without:?} without, {with:?} with a stalled reader: {ratio:.2} x"
        );
        daemon.stop();
        assert!(ratio <= 1.1, "{shape:?}: {ratio:.2} x: {without:?} without, {with:?} with a stalled reader");
    }
}
