//! QEMU's `reconnect-delay` client: a killed, stopped or exchanged daemon is a pause for it, never an error.

use std::path::{Path, PathBuf};

use e2e::daemon::Setting;
use e2e::nbd::Client;
use e2e::scratch::copy;
use e2e::{Daemon, MIB, Process, Program, Scratch, Writers};

use crate::load::{Load, Shape};

const SIZE: u64 = 16 * MIB;

/// `qemu-storage-daemon` between us and an export: a client with patience, a server for our writers.
fn qemu(load: &Load, daemon: &Daemon) -> (Process, PathBuf) {
    let socket = load.scratch.join("qemu.sock");
    let mut process = Program::new("qemu-storage-daemon")
        .arg("--blockdev")
        .arg(format!(
            "driver=nbd,node-name=disk,server.type=unix,server.path={},export=vol,reconnect-delay=60",
            daemon.socket().display()
        ))
        .arg("--nbd-server")
        .arg(format!("addr.type=unix,addr.path={}", socket.display()))
        .args(["--export", "type=nbd,id=export,node-name=disk,name=through,writable=on"])
        .start();
    process.until(|| Client::connect(&socket, "through").is_ok());
    (process, socket)
}

fn through_qemu(load: &Load, socket: &Path, seed: u64) -> Writers {
    Writers::start(socket, "through", &load.history, 3, seed)
}

#[test]
fn writers_behind_qemu_see_a_pause_when_the_daemon_is_killed() {
    a_pause_when_killed(Shape::Plain);
}

fn a_pause_when_killed(shape: Shape) {
    let load = Load::shaped(SIZE, shape);
    let mut daemon = load.serve();
    let (qemu, socket) = qemu(&load, &daemon);
    let writers = through_qemu(&load, &socket, 1);
    let mut instants = Vec::new();
    for kill in 0..4 {
        writers.progress(100);
        let name = format!("s{kill}");
        instants.push((format!("vol@{name}"), load.snapshot(&daemon, &name)));
        writers.progress(100);
        daemon.kill();
        daemon = load.setting().start();
        for (export, instant) in &instants {
            load.prove(&daemon, export, *instant);
        }
    }
    writers.progress(100);
    writers.stop();
    assert!(!qemu.has_ended(), "{}", qemu.stderr());
    load.prove(&daemon, "vol", load.history.now());
    drop(qemu);
    daemon.stop();
}

#[test]
fn writers_behind_qemu_see_a_pause_when_the_binary_is_exchanged() {
    a_pause_when_exchanged(Shape::Plain);
}

fn a_pause_when_exchanged(shape: Shape) {
    let load = Load::shaped(SIZE, shape);
    let daemon = load.serve();
    let (qemu, socket) = qemu(&load, &daemon);
    let writers = through_qemu(&load, &socket, 1);
    writers.progress(100);
    let instant = load.snapshot(&daemon, "s");
    let installed = load.scratch.join("tzero");
    let mut running = daemon;
    for _ in 0..3 {
        writers.progress(100);
        // As a package does it: a new file takes the old one's name while the old one runs.
        let fresh = load.scratch.join("tzero.new");
        copy(&e2e::tzero::binary(), &fresh);
        std::fs::rename(&fresh, &installed).expect("a file can be renamed");
        running.stop();
        running = load.setting().binary(&installed).start();
        load.prove(&running, "vol@s", instant);
    }
    writers.progress(100);
    writers.stop();
    assert!(!qemu.has_ended(), "{}", qemu.stderr());
    load.prove(&running, "vol", load.history.now());
    drop(qemu);
    running.stop();
}

#[test]
fn a_request_that_was_sent_while_nobody_served_is_answered_later() {
    let scratch = Scratch::new();
    let base = scratch.sparse("base", SIZE);
    let daemon = Daemon::serving(&scratch, &base);
    let options = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=vol,file.reconnect-delay=60",
        daemon.socket().display()
    );
    let mut client = Program::new("qemu-io").args(["--image-opts", &options]).with_stdin().start();
    client.say("write -P 0xa1 0 64k\n");
    client.line(|line| line.contains("wrote 65536/65536 bytes at offset 0"));
    daemon.kill();
    client.say("write -P 0xb2 64k 64k\n");
    let daemon = Setting::new(&scratch.join("state")).start();
    client.line(|line| line.contains("wrote 65536/65536 bytes at offset 65536"));
    // A line at a time: it waits for its descriptor, not for what it has read ahead.
    client.say("read -P 0xa1 0 64k\n");
    client.line(|line| line.contains("read 65536/65536 bytes at offset 0"));
    client.say("read -P 0xb2 64k 64k\n");
    client.line(|line| line.contains("read 65536/65536 bytes at offset 65536"));
    client.say("quit\n");
    let finished = client.wait();
    finished.exited(0);
    assert!(!finished.stdout.contains("failed") && !finished.stderr.contains("error"), "{finished}");
    daemon.stop();
}

mod lane {
    use super::*;

    #[test]
    fn writers_behind_qemu_see_a_pause_whatever_the_volume() {
        for shape in Shape::ALL {
            a_pause_when_killed(*shape);
            a_pause_when_exchanged(*shape);
            eprintln!("{shape:?}: 4 kills, 3 exchanges");
        }
    }
}
