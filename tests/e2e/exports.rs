//! Volumes on exports of other servers, and originals on them: servers that die and come back, servers that do not, and movers.

use std::path::{Path, PathBuf};

use e2e::daemon::Setting;
use e2e::nbd::{Client, Command};
use e2e::process::Process;
use e2e::scratch::{bytes, read};
use e2e::tzero::result;
use e2e::waiting::until;
use e2e::{Daemon, MIB, Program, Scratch};
use rustix::process::Signal;

use crate::load::Load;

const SIZE: u64 = 16 * MIB;

/// A server of one file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Its connections see each other's changes, and it says so.
    Nbdkit,
    /// It does not say so.
    QemuNbd,
    /// What it has acknowledged and not flushed goes with it when it is killed.
    Forgetful,
}

struct Server {
    kind: Kind,
    socket: PathBuf,
    file: PathBuf,
    process: Option<Process>,
}

impl Server {
    fn start(kind: Kind, socket: PathBuf, file: PathBuf) -> Self {
        let mut server = Self { kind, socket, file, process: None };
        server.serve();
        server
    }

    fn serve(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let program = match self.kind {
            Kind::Nbdkit => Program::new("nbdkit").args(["-f", "-U"]).arg(&self.socket).arg("file").arg(&self.file),
            Kind::Forgetful => Program::new("nbdkit")
                .args(["-f", "-U"])
                .arg(&self.socket)
                .args(["--filter=cache", "file"])
                .arg(&self.file)
                .arg("cache=writeback"),
            Kind::QemuNbd => Program::new("qemu-nbd")
                .args(["-t", "-f", "raw", "--cache=writeback", "-k"])
                .arg(&self.socket)
                .arg(&self.file),
        };
        self.process = Some(program.limit(std::time::Duration::from_secs(120)).start());
        until(|| std::os::unix::net::UnixStream::connect(&self.socket).is_ok());
    }

    fn kill(&mut self) {
        let process = self.process.take().expect("it runs");
        process.signal(Signal::KILL);
        let _ = process.wait();
    }

    /// It is there, and does nothing until [`Self::go_on`].
    fn stop(&mut self) {
        self.process.as_ref().expect("it runs").signal(Signal::STOP);
    }

    fn go_on(&mut self) {
        self.process.as_ref().expect("it runs").signal(Signal::CONT);
    }

    fn uri(&self) -> String {
        uri(&self.socket, "")
    }
}

fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

/// A backup of a volume; gives its instant's proof and how the bytes came.
fn backup(load: &Load, daemon: &Daemon, name: &str) -> String {
    let to = load.scratch.join(name);
    let image = format!("image:{}", to.display());
    let (instant, finished) =
        load.history.instant(|| daemon.backup(&["vol", "--verify", "--json", "--to", &image]).run());
    finished.exited(0);
    load.history.prove("the copy", &read(&to), instant);
    result(&finished)["copy"]["transport"].as_str().expect("the copy says how its bytes came").to_owned()
}

/// A base whose server is killed and started again under load: the host sees no error, and what was taken stands.
fn base_that_comes_back(kind: Kind, transport: &str) {
    let load = Load::new(SIZE);
    let mut server = Server::start(kind, load.scratch.join("base.sock"), load.scratch.join("base"));
    let daemon = Daemon::start(&load.scratch);
    let added = daemon.json(&format!("volume add vol {}", server.uri()));
    assert_eq!(added["volume"]["base"].as_str(), Some(server.uri().as_str()));
    let writers = load.writers(&daemon, 1);
    writers.progress(300);
    let standing = load.snapshot(&daemon, "s");
    writers.progress(300);
    for _ in 0..3 {
        server.kill();
        server.serve();
        writers.progress(200);
        load.prove(&daemon, "vol@s", standing);
    }
    assert_eq!(backup(&load, &daemon, "copy.img"), transport);
    writers.progress(200);
    load.prove(&daemon, "vol@s", standing);
    // The daemon is killed, and finds the server again; and not, and again.
    daemon.kill();
    writers.cut_off();
    let daemon = load.setting().start();
    load.prove(&daemon, "vol@s", standing);
    daemon.stop();
    server.kill();
    let mut daemon = load.setting().start();
    daemon.announce("not served, and tried again");
    assert_eq!(daemon.json("volume show vol")["volume"]["state"], "failed");
    server.serve();
    until(|| daemon.json("volume show vol")["volume"]["state"] == "serving");
    load.prove(&daemon, "vol@s", standing);
    load.history.prove("the volume", &daemon.contents("vol"), load.history.now());
    daemon.stop();
}

#[test]
fn a_base_at_nbdkit_is_killed_and_comes_back() {
    base_that_comes_back(Kind::Nbdkit, "nbd");
}

#[test]
fn a_base_at_qemu_is_killed_and_comes_back() {
    base_that_comes_back(Kind::QemuNbd, "view");
}

#[test]
fn a_base_at_another_tzero_is_killed_and_comes_back() {
    let load = Load::new(SIZE);
    let below = Setting::new(&load.scratch.join("below"));
    let server = below.start();
    server.add("base", &load.scratch.join("base"));
    let mut daemon = Daemon::start(&load.scratch);
    daemon.ok(&format!("volume add vol {}", server.uri("base")));
    let writers = load.writers(&daemon, 1);
    writers.progress(300);
    let standing = load.snapshot(&daemon, "s");
    writers.progress(300);
    server.kill();
    let server = below.start();
    writers.progress(300);
    load.prove(&daemon, "vol@s", standing);
    assert_eq!(backup(&load, &daemon, "copy.img"), "nbd");
    writers.stop();
    load.history.prove("the volume", &daemon.contents("vol"), load.history.now());
    // The writers never asked for anything to be durable, so nobody was told of the break.
    daemon.announce("nobody had asked for them to be durable");
    assert!(server.contents("base") == daemon.contents("vol"));
    daemon.stop();
    server.stop();
}

#[test]
fn a_base_that_is_gone_for_good_costs_its_host_and_no_stop() {
    let scratch = Scratch::new();
    let base = scratch.random("base", MIB, 1);
    let mut server = Server::start(Kind::Nbdkit, scratch.join("base.sock"), base);
    let daemon = Daemon::start(&scratch);
    let other = scratch.random("other", MIB, 2);
    daemon.ok(&format!("volume add v {}", server.uri()));
    daemon.ok(&format!("volume add w {}", other.display()));
    let mut client = daemon.connect("v");
    client.write(0, &[1; 512]).expect("a write");
    server.kill();
    let asked = std::time::Instant::now();
    let late = std::thread::spawn(move || (client.read(4096, 512).map(drop), asked.elapsed()));
    // Others are served meanwhile, on the same threads.
    let mut elsewhere = daemon.connect("w");
    for sector in 0..200 {
        elsewhere.write(sector * 512, &[3; 512]).expect("another volume is no worse for it");
    }
    assert!(asked.elapsed() < std::time::Duration::from_secs(20), "{:?}", asked.elapsed());
    let (read, waited) = late.join().expect("the reader does not panic");
    assert!(matches!(read, Err(e2e::nbd::Failure::Refused(e2e::nbd::EIO))), "{read:?}");
    assert!((25..60).contains(&waited.as_secs()), "{waited:?}");

    // A request that waits for the server holds up no stop; without its base the stop cannot be clean.
    let mut client = daemon.connect("v");
    let _waits = std::thread::spawn(move || client.read(8192, 512).map(drop));
    let finished = daemon.ends();
    finished.exited(1);
    assert!(finished.stderr.contains("without a clean stop"), "{finished}");
}

/// The server forgets a change from before T0, and whoever takes the snapshot dies before it is known.
#[test]
fn a_snapshot_that_nobody_was_given_is_none() {
    let scratch = Scratch::new();
    let file = scratch.random("base", SIZE, 21);
    let mut server = Server::start(Kind::Forgetful, scratch.join("base.sock"), file);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add vol {}", server.uri()));
    let mut host = daemon.connect("vol");
    host.write(0, &[0xA; 65536]).expect("a write");
    host.order(Command::Flush, 0, 0, 0).expect("a flush");
    host.write(0, &[0xB; 65536]).expect("a write");
    server.stop();
    let taking = daemon.command(["snapshot", "create", "s", "vol"]).start();
    until(|| !daemon.snapshots("vol").is_empty());
    let shown = daemon.json("snapshot show vol@s")["snapshot"].clone();
    assert_eq!(shown["state"], "unavailable", "{shown}");
    assert!(Client::connect(&daemon.socket(), "vol@s").is_err(), "its T0 is not certain");
    let to = scratch.join("copy.img");
    let said = daemon.refuses(1, &format!("backup vol@s --to {}", to.display()));
    assert!(said.contains("being taken"), "{said}");
    daemon.kill();
    taking.wait().exited(1);
    server.kill();
    server.serve();
    let daemon = Daemon::start(&scratch);
    assert!(daemon.snapshots("vol").is_empty(), "the server has forgotten what was before its T0");
    daemon.ok("snapshot create s vol");
    daemon.ok(&format!("backup vol@s --verify --to {}", to.display()));
    assert!(read(&to) == daemon.contents("vol"));
    daemon.stop();
}

#[test]
fn a_view_for_a_mover_is_a_secret() {
    let load = Load::new(SIZE);
    let server = Server::start(Kind::QemuNbd, load.scratch.join("base.sock"), load.scratch.join("base"));
    let daemon = Daemon::start(&load.scratch);
    daemon.ok(&format!("volume add vol {}", server.uri()));
    let to = load.scratch.join("copy.img");
    let mut mover = daemon.backup(&["vol", "--json", "--to", to.to_str().expect("a plain path")]).start();
    let socket = daemon.socket();
    let mut seen = false;
    let look = || {
        let list = Program::new("nbdinfo").args(["--list", &uri(&socket, "")]).run();
        assert!(!list.stdout.contains("mover:"), "{list}");
        seen = true;
        false
    };
    let _ = mover.until(look);
    assert!(seen);
    mover.wait().exited(0);
    // A part, in a mode that marks what it has had, reads it too; an outboard copy cannot be made of it.
    let t0 = daemon.contents("vol");
    let part = load.scratch.join("part.img");
    let line = format!("backup vol --scope vol:100000+5000 --mode reconciled --json --to {}", part.display());
    let copied = daemon.run(&line);
    copied.exited(0);
    assert_eq!(result(&copied)["copy"]["transport"], "view");
    assert!(read(&part)[100_000..105_000] == t0[100_000..105_000]);
    daemon.ok("snapshot create s vol");
    let outboard = format!("backup vol@s --mode outboard --to {}", load.scratch.join("no.img").display());
    assert!(daemon.refuses(2, &outboard).contains("outboard"));
    assert!(e2e::nbd::Client::connect(&socket, "mover:00000000000000000000000000000000").is_err());
    daemon.stop();
}

#[test]
fn a_flush_after_a_break_fails_once() {
    let scratch = Scratch::new();
    let base = scratch.random("base", MIB, 1);
    let mut server = Server::start(Kind::Nbdkit, scratch.join("base.sock"), base);
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("snapshot=v@");
    daemon.ok(&format!("volume add v {}", server.uri()));
    let mut client = daemon.connect("v");
    client.write(0, &[1; 512]).expect("a write");
    server.kill();
    server.serve();
    let flush = e2e::nbd::Command::Flush;
    assert!(client.order(flush, 0, 0, 0).is_err(), "what was acknowledged may be lost, and is not vouched for");
    client.order(flush, 0, 0, 0).expect("that was told once");
    // A snapshot between tells nobody in the host's place.
    client.write(512, &[2; 512]).expect("a write");
    server.kill();
    server.serve();
    let _ = daemon.run("snapshot create s v");
    assert!(client.order(flush, 0, 0, 0).is_err());
    client.order(flush, 0, 0, 0).expect("that was told once");
    daemon.ok("snapshot create t v");
    daemon.stop();
}

#[test]
fn originals_on_an_export_are_as_good_as_on_disk() {
    let load = Load::new(SIZE);
    let cache = load.scratch.sparse("cache", 64 * MIB);
    let mut server = Server::start(Kind::Nbdkit, load.scratch.join("cache.sock"), cache);
    let daemon = Daemon::start(&load.scratch);
    let base = load.scratch.join("base");
    daemon.ok(&format!("volume add vol {} --cache-dir {} --memory-limit 1M", base.display(), server.uri()));
    let writers = load.writers(&daemon, 1);
    writers.progress(200);
    let standing = load.snapshot(&daemon, "s");
    writers.progress(600);
    load.prove(&daemon, "vol@s", standing);
    assert_eq!(backup(&load, &daemon, "copy.img"), "nbd");
    let shown = daemon.json("volume show vol");
    let tiers = shown["volume"]["tiers"].as_array().expect("the tiers are listed");
    assert_eq!((tiers[0]["kind"].as_str(), tiers[1]["kind"].as_str()), (Some("memory"), Some("nbd")));
    assert_eq!(tiers[1]["limit"].as_u64(), Some(64 * MIB - 4096));
    assert!(tiers[1]["used"].as_u64().is_some_and(|used| used > 0));
    server.kill();
    server.serve();
    writers.progress(300);
    load.prove(&daemon, "vol@s", standing);
    daemon.kill();
    writers.cut_off();
    let daemon = load.setting().start();
    load.prove(&daemon, "vol@s", standing);
    daemon.stop();

    // The export is this volume's: no other's, here or elsewhere, until it is given up.
    let daemon = load.setting().start();
    load.prove(&daemon, "vol@s", standing);
    let other = load.scratch.random("other", MIB, 5);
    let line = format!("volume add w {} --cache-dir {}", other.display(), server.uri());
    assert!(daemon.refuses(1, &line).contains("in use by volume vol"));
    assert!(daemon.refuses(1, &format!("volume add w {}", server.uri())).contains("in use by volume vol"));
    let elsewhere = Setting::new(&load.scratch.join("elsewhere")).start();
    let id = daemon.json("volume show vol")["volume"]["id"].as_str().expect("an id").to_owned();
    assert!(elsewhere.refuses(1, &line).contains(&id));
    daemon.ok("snapshot delete vol@s");
    daemon.ok("volume remove vol");
    elsewhere.ok(&line);
    elsewhere.stop();
    daemon.stop();
}

#[test]
fn a_dead_link_to_the_originals_breaks_the_snapshot_and_not_the_host() {
    let load = Load::new(SIZE);
    let cache = load.scratch.sparse("cache", 64 * MIB);
    let mut server = Server::start(Kind::QemuNbd, load.scratch.join("cache.sock"), cache);
    let mut daemon = Daemon::start(&load.scratch);
    daemon.announce("broken");
    let base = load.scratch.join("base");
    daemon.ok(&format!("volume add vol {} --cache-dir {}", base.display(), server.uri()));
    let writers = load.writers(&daemon, 1);
    writers.progress(200);
    let standing = load.snapshot(&daemon, "s");
    writers.progress(200);
    load.prove(&daemon, "vol@s", standing);
    assert_eq!(backup(&load, &daemon, "copy.img"), "view");
    server.kill();
    until(|| daemon.json("snapshot show vol@s")["snapshot"]["state"] == "broken");
    let reason = daemon.json("snapshot show vol@s")["snapshot"]["reason"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("could not be written to the cache"), "{reason}");
    writers.progress(1000);
    server.serve();
    daemon.ok("snapshot delete vol@s");
    // What hung is left alone for ten seconds; then there is a cache again, and a snapshot stands.
    until(|| {
        let again = load.snapshot(&daemon, "again");
        writers.progress(300);
        let stands = daemon.json("snapshot show vol@again")["snapshot"]["state"] == "live";
        if stands {
            load.prove(&daemon, "vol@again", again);
        }
        daemon.ok("snapshot delete vol@again");
        stands
    });
    writers.stop();
    load.history.prove("the volume", &daemon.contents("vol"), load.history.now());
    drop(daemon);
}

#[test]
fn a_slow_link_to_the_originals_costs_time_and_nothing_else() {
    let load = Load::new(SIZE);
    let socket = load.scratch.join("slow.sock");
    let mut server = Program::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--filter=delay", "--unix"])
        .arg(&socket)
        .args(["memory", "64M", "delay-write=30ms", "delay-read=30ms"])
        .start();
    server.until(|| socket.exists());
    let daemon = Daemon::start(&load.scratch);
    let base = load.scratch.join("base");
    daemon.ok(&format!("volume add vol {} --cache-dir {}", base.display(), uri(&socket, "")));
    let writers = load.writers(&daemon, 1);
    writers.progress(50);
    let standing = load.snapshot(&daemon, "s");
    writers.progress(200);
    writers.stop();
    load.prove(&daemon, "vol@s", standing);
    load.history.prove("the volume", &daemon.contents("vol"), load.history.now());
    daemon.stop();
}

#[test]
fn what_is_to_outlive_power_needs_a_server_that_flushes() {
    let scratch = Scratch::new();
    let base = scratch.random("base", MIB, 1);
    let socket = scratch.join("eval.sock");
    let mut server = Program::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(&socket)
        .args(["eval", "get_size=echo 16M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null"])
        .args(["can_flush=exit 3", "can_write=exit 0"])
        .start();
    server.until(|| socket.exists());
    let daemon = Daemon::start(&scratch);
    let server = uri(&socket, "");
    for line in [format!("{} --cache-dir {server}", base.display()), server.clone()] {
        let said = daemon.refuses(1, &format!("volume add vol {line} --durability power"));
        assert!(said.contains("cannot flush") && said.contains("--durability process"), "{said}");
    }
    daemon.ok(&format!("volume add vol {} --cache-dir {server}", base.display()));
    daemon.stop();
}

#[test]
fn originals_that_cannot_be_reached_at_start_cost_the_snapshots_not_the_volume() {
    let scratch = Scratch::new();
    let (base, cache) = (scratch.random("base", MIB, 1), scratch.sparse("cache", 4 * MIB));
    let mut server = Server::start(Kind::Nbdkit, scratch.join("cache.sock"), cache);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add v {} --cache-dir {}", base.display(), server.uri()));
    daemon.ok("snapshot create s v");
    daemon.connect("v").write(0, &[7; 4096]).expect("a write");
    daemon.stop();
    server.kill();
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("cannot be kept at");
    daemon.announce("cannot be used");
    daemon.announce("cannot be reached");
    daemon.announce("broken");
    assert_eq!(daemon.json("volume show v")["volume"]["state"], "serving");
    assert_eq!(daemon.json("snapshot show v@s")["snapshot"]["state"], "broken");
    assert_eq!(daemon.connect("v").read(0, 4096).expect("a read"), [7; 4096]);
    daemon.stop();
    server.serve();
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("snapshot=v@s");
    daemon.ok("snapshot create t v");
    daemon.connect("v").write(0, &[8; 4096]).expect("a write");
    assert_eq!(daemon.connect("v@t").read(0, 4096).expect("a read"), [7; 4096]);
    daemon.stop();
}

#[test]
fn what_no_export_can_be() {
    let scratch = Scratch::new();
    let (base, full) = (scratch.random("base", MIB, 1), scratch.random("full", MIB, 2));
    let server = Server::start(Kind::Nbdkit, scratch.join("full.sock"), full.clone());
    let daemon = Daemon::start(&scratch);
    let base = base.display();
    for bad in ["nbd+unix:///x", "nbds://host/x", "nbd+unix:///x?socket=relative", "nbd://host:0/x"] {
        daemon.refuses(2, &format!("volume add v {bad}"));
        daemon.refuses(2, &format!("volume add v {base} --cache-dir {bad}"));
    }
    let missing = uri(&scratch.join("missing.sock"), "x");
    assert!(daemon.refuses(1, &format!("volume add v {missing}")).contains("cannot be reached"));
    assert!(daemon.refuses(1, &format!("volume add v {base} --cache-dir {missing}")).contains("cannot be reached"));
    let line = format!("volume add v {base} --cache-dir {}", server.uri());
    assert!(daemon.refuses(1, &line).contains("not blank"));
    assert!(read(&full) == bytes(MIB as usize, 2), "nothing was written to it");
    let twice = format!("volume add v {base} {} --cache-dir {}", server.uri(), server.uri());
    assert!(daemon.refuses(2, &twice).contains("twice"));
    daemon.ok(&format!("volume add v {base}"));
    let own = uri(&daemon.socket(), "v");
    assert!(daemon.refuses(2, &format!("volume add w {own}")).contains("own"));
    // A row of a file and an export is a volume like any other.
    daemon.ok("volume remove v");
    daemon.ok(&format!("volume add v {base} {}", server.uri()));
    let t0 = daemon.contents("v");
    daemon.ok("snapshot create s v");
    daemon.connect("v").write(MIB - 2048, &[9; 4096]).expect("a write across both");
    assert!(daemon.contents("v@s") == t0);
    let mut units: Vec<_> = daemon.places("v@s").into_iter().map(|(unit, block, _)| (unit, block)).collect();
    units.sort_unstable();
    assert_eq!(units, [(0, 2040), (1, 0)]);
    daemon.stop();
}

mod lane {
    use std::time::{Duration, Instant};

    use super::*;

    /// A server that has stopped in mid-air: its connections are there, and nothing comes.
    #[test]
    fn nobody_but_its_host_waits_for_a_server_that_says_nothing() {
        let load = Load::new(SIZE);
        let file = load.scratch.join("base");
        let mut server = Server::start(Kind::Nbdkit, load.scratch.join("base.sock"), file);
        let mut daemon = Daemon::start(&load.scratch);
        daemon.announce("a backup was interrupted");
        daemon.ok(&format!("volume add vol {}", server.uri()));
        daemon.ok("snapshot create s vol");
        let to = load.scratch.join("copy.img");
        let image = format!("image:{}", to.display());
        server.stop();
        let began = Instant::now();
        let stopped = daemon.backup(&["vol@s", "--to", &image]).limit(Duration::from_secs(150)).run();
        eprintln!("the backup ended after {:?} with {:?}", began.elapsed(), stopped.code());
        assert!(matches!(stopped.code(), Some(1 | 4)), "{stopped}");
        let mut other =
            Server::start(Kind::QemuNbd, load.scratch.join("other.sock"), load.scratch.sparse("cache", 16 * MIB));
        other.stop();
        let began = Instant::now();
        let base = load.scratch.random("other", MIB, 1);
        let said = daemon
            .command(["volume", "add", "other", &base.display().to_string(), "--cache-dir", &other.uri()])
            .limit(Duration::from_secs(60))
            .run();
        eprintln!("adding another volume ended after {:?}", began.elapsed());
        said.exited(1);
        other.go_on();
        server.go_on();
        let resumed = if stopped.code() == Some(4) { vec!["--resume"] } else { vec!["--replace"] };
        daemon.backup(&[&["vol@s", "--verify", "--to", &image][..], &resumed].concat()).run().exited(0);
        assert!(daemon.contents("vol") == read(&to));
        daemon.stop();
    }
}
