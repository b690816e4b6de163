//! Nothing that a path leads to, and nobody who connects and says nothing, holds up the daemon or its end.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::daemon::Setting;
use e2e::mounts::Loop;
use e2e::nbd::Client;
use e2e::scratch::read;
use e2e::{Daemon, MIB, Program, Scratch, Tzero};
use rustix::process::Signal;

const SIZE: u64 = 4 * MIB;

fn fifo(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.join(name);
    Program::new("mkfifo").arg(&path).ok();
    path
}

#[test]
fn a_fifo_is_no_base() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let (fifo, config) = (fifo(&scratch, "fifo"), scratch.join("tzero.toml"));
    let daemon = Daemon::serving(&scratch, &base);
    let said = daemon.refuses(1, &format!("volume add f {}", fifo.display()));
    assert!(said.contains("neither a file nor a block device") && said.contains("fifo"), "{said}");
    daemon.ok("snapshot create s vol");
    daemon.ok("status");
    daemon.stop();

    // Where one took the base's place, and where the configuration names one.
    std::fs::remove_file(&base).expect("it can be removed");
    Program::new("mkfifo").arg(&base).ok();
    std::fs::write(&config, format!("[volume.f]\nbase = \"{}\"\n", fifo.display())).expect("it can be written");
    let mut daemon =
        Setting::new(&scratch.join("state")).args(&["--config", config.to_str().expect("a plain path")]).launch();
    daemon.announce("not served");
    daemon.ready();
    for volume in ["vol", "f"] {
        let shown = &daemon.json(&format!("volume show {volume}"))["volume"];
        assert_eq!(shown["state"], "failed", "{shown}");
        assert!(shown["reason"].as_str().is_some_and(|reason| reason.contains("neither a file")), "{shown}");
    }
    daemon.stop();
}

#[test]
fn a_configuration_that_cannot_be_ends_before_it_is_ready() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let fifo = fifo(&scratch, "fifo");
    let tzero = Tzero::at(&scratch.join("state"));
    let config = scratch.join("tzero.toml");
    let refuses = |path: &std::path::Path, part: &str| {
        let said = tzero.refuses(2, &format!("serve --config {}", path.display()));
        assert!(said.contains(part) && said.contains(&path.display().to_string()), "{said}");
    };
    refuses(&fifo, "no file");
    refuses("/dev/zero".as_ref(), "no file");
    refuses(scratch.path(), "no file");
    for (setting, part) in [
        ("grain = '3K'", "power of two"),
        ("grain = 256", "power of two"),
        ("cache_limit = '0'", "no room"),
        ("cache_limit = 1", "no room"),
        ("grain = '64K'\ncache_limit = '4K'", "no room"),
        ("cache_dir = 'here'", "relative"),
    ] {
        let text = format!("[volume.vol]\nbase = '{}'\n{setting}\n", base.display());
        std::fs::write(&config, text).expect("it can be written");
        refuses(&config, part);
    }
    std::fs::write(&config, vec![b'#'; 2 << 20]).expect("it can be written");
    refuses(&config, "longer");
    assert!(!scratch.join("state").exists(), "nothing was made");
}

#[test]
fn a_signal_that_comes_before_it_is_ready_ends_it() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    Daemon::serving(&scratch, &base).stop();
    // The start waits for whoever has the base, as a killed daemon's last requests do.
    let held = std::fs::File::open(&base).expect("it is there");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("nobody else has it");
    let daemon = Tzero::at(&scratch.join("state")).command(["serve"]).limit(Duration::from_secs(20)).start();
    let has_base_open = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).into_iter().flatten().flatten();
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|path| path == base)
    };
    let began = Instant::now();
    while !has_base_open() {
        assert!(began.elapsed() < Duration::from_secs(20), "it waits for the base");
        std::thread::yield_now();
    }
    let asked = Instant::now();
    daemon.signal(Signal::TERM);
    let finished = daemon.wait();
    finished.exited(0);
    assert_eq!(finished.stdout, "", "it was never ready");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    drop(held);
    let daemon = Setting::new(&scratch.join("state")).start();
    assert!(daemon.contents("vol") == read(&base));
    daemon.stop();
}

#[test]
fn who_says_nothing_keeps_no_host_out() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let mut host = daemon.connect("vol");
    let connect = |_| UnixStream::connect(daemon.socket()).expect("it listens");
    let _silent: Vec<UnixStream> = (0..600).map(connect).collect();
    for _ in 0..3 {
        assert!(daemon.contents("vol") == read(&base), "another host comes in");
    }
    host.write(0, &[7; 4096]).expect("who is there already goes on");
    daemon.stop();
}

#[test]
fn a_file_that_is_used_through_a_loop_device_is_in_use() {
    let scratch = Scratch::new();
    let image = scratch.sparse("image", 64 * MIB);
    Program::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).ok();
    let daemon = Daemon::start(&scratch);
    let disk = Loop::over(&image);
    {
        let _mounted = e2e::mounts::Mounted::device(disk.device(), &scratch.join("mnt"));
        for base in [&image, disk.device()] {
            let said = daemon.refuses(1, &format!("volume add vol {}", base.display()));
            assert!(said.contains("in use") && said.contains("unmount"), "{said}");
        }
        let said = daemon.refuses(1, &format!("volume add vol {}", image.display()));
        assert!(said.contains(&disk.device().display().to_string()), "{said}");
    }
    daemon.add("vol", &image);
    daemon.stop();
    let mut daemon = {
        let _mounted = e2e::mounts::Mounted::device(disk.device(), &scratch.join("mnt"));
        let mut daemon = Setting::new(&scratch.join("state")).launch();
        daemon.announce("not served");
        daemon.ready();
        assert_eq!(daemon.json("volume show vol")["volume"]["state"], "failed");
        daemon
    };
    let began = Instant::now();
    while Client::connect(&daemon.socket(), "vol").is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "it is tried again");
        std::thread::yield_now();
    }
    daemon.announce("the base was changed while the daemon was down");
    daemon.stop();
}
