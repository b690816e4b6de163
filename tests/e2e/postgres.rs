//! PostgreSQL for real: its files on ext4 on a loop device on a FUSE file of `qemu-storage-daemon`, which is a client of
//! the export; a backup while pgbench runs; the restored image mounts, recovers, starts, is sound, and its books balance.

use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::daemon::Setting;
use e2e::disk::Disk;
use e2e::mounts::{Loop, Mounted};
use e2e::scratch::allocated;
use e2e::{MIB, Process, Program, Scratch};
use rustix::process::Signal;

use crate::load::Shape;

const SIZE: u64 = 1024 * MIB;

/// A program of PostgreSQL's, which Debian keeps off `PATH`.
fn program(name: &str) -> Program {
    let releases = Path::new("/usr/lib/postgresql").read_dir();
    let releases = releases.unwrap_or_else(|_| panic!("this test needs PostgreSQL: run `cargo xtask setup`"));
    let found = releases.flatten().map(|entry| entry.path().join("bin").join(name)).find(|path| path.is_file());
    let path = found.unwrap_or_else(|| panic!("this test needs `{name}`: run `cargo xtask setup`"));
    Program::new(path).user("postgres").dir(Path::new("/")).env("LC_ALL", "C")
}

/// A running server. Its socket lies in a directory of its own.
struct Server {
    process: Process,
    socket: PathBuf,
}

impl Server {
    fn start(scratch: &Scratch, name: &str, data: &Path) -> Self {
        let socket = scratch.join(name);
        std::fs::create_dir(&socket).expect("a directory can be made");
        own(&socket);
        let mut process = program("postgres")
            .arg("-D")
            .arg(data)
            .args(["-c", "listen_addresses=", "-c", "shared_buffers=32MB", "-c"])
            .arg(format!("unix_socket_directories={}", socket.display()))
            .start();
        let ready = program("pg_isready").args(["-q", "-h"]).arg(&socket);
        process.until(|| ready.run().code() == Some(0));
        assert!(!process.has_ended(), "PostgreSQL did not start: {}", process.stderr());
        Self { process, socket }
    }

    fn query(&self, query: &str) -> String {
        let said = program("psql").args(["-X", "-A", "-t", "-d", "postgres", "-c", query, "-h"]).arg(&self.socket).ok();
        said.trim().to_owned()
    }

    fn count(&self, query: &str) -> i64 {
        self.query(query).parse().unwrap_or_else(|_| panic!("no number: {query}"))
    }

    fn bench(&self) -> Program {
        program("pgbench").arg("-h").arg(&self.socket)
    }

    /// What was paid, as each table has it, at one moment: the last clients may still be paying.
    fn balances(&self) -> [i64; 4] {
        let sums = self.query(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
             (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)",
        );
        let sums: Vec<i64> = sums.split('|').filter_map(|sum| sum.parse().ok()).collect();
        sums.try_into().unwrap_or_else(|sums| panic!("not four sums: {sums:?}"))
    }

    /// Ends it as an administrator would.
    fn stop(self) {
        self.process.signal(Signal::INT);
        self.process.wait().exited(0);
    }
}

fn own(path: &Path) {
    Program::new("chown").arg("postgres:").arg(path).ok();
}

/// The whole story, with so much data, so many clients, and so many backups.
fn story(shape: Shape, scale: u32, clients: u32, backups: u32) {
    let scratch = Scratch::new();
    let base = scratch.sparse("base", SIZE);
    let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
    let disk = Disk::of(&scratch, &daemon, SIZE);
    let mounted = disk.formatted(&scratch.join("mnt"));
    let data = mounted.join("data");
    std::fs::create_dir(&data).expect("a directory can be made");
    own(&data);
    program("initdb").args(["--auth=trust", "--data-checksums", "-D"]).arg(&data).ok();
    let server = Server::start(&scratch, "socket", &data);
    server.bench().args(["-i", "-q", "-s", &scale.to_string(), "postgres"]).limit(Duration::from_secs(120)).ok();
    let load = server
        .bench()
        .args(["-n", "-c", &clients.to_string(), "-T", "3600", "postgres"])
        .limit(Duration::from_secs(3600))
        .start();
    let paid = || server.count("select count(*) from pgbench_history");
    let mut images = Vec::new();
    for backup in 0..backups {
        more(&load, &paid);
        let before = paid();
        let image = scratch.join(format!("copy{backup}.img"));
        let to = format!("image:{}", image.display());
        daemon.backup(&["vol", "--verify", "--to", &to]).run().exited(0);
        let after = paid();
        assert!(!load.has_ended(), "pgbench met an error: {}", load.stderr());
        images.push((image, before, after));
        more(&load, &paid);
    }
    load.signal(Signal::INT);
    let _ = load.wait();
    let [accounts, others @ ..] = server.balances();
    assert_eq!(others, [accounts; 3], "the live books balance");
    server.stop();
    drop((mounted, disk));
    daemon.stop();
    for (index, (image, before, after)) in images.iter().enumerate() {
        comes_back(&scratch, index, image, *before, *after);
    }
}

/// Waits until pgbench has paid more.
fn more(load: &Process, paid: &impl Fn() -> i64) {
    let wanted = paid() + 200;
    while paid() < wanted {
        assert!(!load.has_ended(), "pgbench met an error: {}", load.stderr());
    }
}

/// A copy is restored, mounted, recovered, started, and looked through.
fn comes_back(scratch: &Scratch, index: usize, image: &Path, before: i64, after: i64) {
    let tzero = e2e::Tzero::at(&scratch.join("elsewhere"));
    let back = scratch.join(format!("back{index}"));
    tzero.ok(&format!("restore {} --to {}", image.display(), back.display()));
    assert!(allocated(&back) < SIZE, "as sparse as it was");
    let device = Loop::over(&back);
    {
        let mounted = Mounted::device(device.device(), &scratch.join(format!("mnt{index}")));
        let data = mounted.join("data");
        // What a server that was cut off leaves; the one that comes now must not take it for its own.
        let recovered = Server::start(scratch, &format!("socket{index}"), &data);
        let [accounts, tellers, branches, history] = recovered.balances();
        assert_eq!([tellers, branches, history], [accounts; 3], "the restored books balance");
        let paid = recovered.count("select count(*) from pgbench_history");
        assert!((before..=after).contains(&paid), "{paid} payments; at time zero there were {before} to {after}");
        program("pg_amcheck")
            .args(["--install-missing", "--heapallindexed", "-d", "postgres", "-h"])
            .arg(&recovered.socket)
            .ok();
        recovered.stop();
        program("pg_checksums").args(["--check", "-D"]).arg(&data).ok();
    }
    Program::new("e2fsck").args(["-f", "-n"]).arg(device.device()).ok();
}

#[test]
fn postgresql_comes_back_from_a_backup_under_pgbench() {
    story(Shape::Plain, 2, 4, 1);
}

mod lane {
    use super::*;

    #[test]
    fn postgresql_comes_back_from_every_backup() {
        for shape in Shape::ALL {
            story(*shape, 20, 8, 5);
            eprintln!("{shape:?}: 5 backups, 5 comebacks");
        }
    }
}
