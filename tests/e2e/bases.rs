//! Every kind of base and grain keeps its instants: files and block devices, through the page cache and past it. And every way to be reached.

use std::path::Path;

use e2e::daemon::Setting;
use e2e::mounts::Loop;
use e2e::process::Program;
use e2e::scratch::{assert_same, read};
use e2e::{Daemon, MIB};

use crate::load::Load;

const SIZE: u64 = 16 * MIB;

/// A snapshot and a backup under load, the daemon killed and started again with the snapshot standing.
fn keeps_its_instants(load: &Load, base: &Path, options: &str) {
    let daemon = Daemon::start(&load.scratch);
    daemon.ok(&format!("volume add vol {} {options}", base.display()));
    let writers = load.writers(&daemon, 1);
    writers.progress(200);
    let standing = load.snapshot(&daemon, "s");
    writers.progress(200);
    let to = load.scratch.join("copy.img");
    let image = format!("image:{}", to.display());
    let (instant, finished) = load.history.instant(|| daemon.backup(&["vol", "--verify", "--to", &image]).run());
    finished.exited(0);
    load.history.prove("the copy", &read(&to), instant);
    writers.progress(200);
    daemon.kill();
    writers.cut_off();

    let daemon = load.setting().start();
    load.prove(&daemon, "vol@s", standing);
    let writers = load.writers(&daemon, 2);
    writers.progress(200);
    load.prove(&daemon, "vol@s", standing);
    writers.stop();
    load.history.prove("the volume", &daemon.contents("vol"), load.history.now());
    daemon.ok("snapshot delete vol@s");
    daemon.stop();
}

#[test]
fn a_direct_file() {
    let load = Load::new(SIZE);
    keeps_its_instants(&load, &load.scratch.join("base"), "--direct");
}

#[test]
fn a_block_device() {
    let load = Load::new(SIZE);
    let device = Loop::over(&load.scratch.join("base"));
    keeps_its_instants(&load, device.device(), "");
}

#[test]
fn a_direct_block_device_with_large_blocks() {
    let load = Load::new(SIZE);
    let device = Loop::with(&["--sector-size", "4096"], &load.scratch.join("base"));
    keeps_its_instants(&load, device.device(), "--direct");
}

#[test]
fn small_and_large_grains() {
    for grain in ["512", "64K", "1M"] {
        let load = Load::new(SIZE);
        keeps_its_instants(&load, &load.scratch.join("base"), &format!("--grain {grain}"));
    }
}

#[test]
fn a_configured_volume_is_reached_over_tcp() {
    let load = Load::new(SIZE);
    let config = load.scratch.join("tzero.toml");
    let base = load.scratch.join("base");
    let text = format!("[volume.vol]\nbase = \"{}\"\ngrain = \"8K\"\n", base.display());
    std::fs::write(&config, text).expect("the scratch directory can be written");
    let socket = load.scratch.join("state/nbd.sock");
    let serve = |arguments: &[&str]| {
        let mut all = vec!["--config", config.to_str().expect("a plain path")];
        all.extend(arguments);
        Setting::new(&load.scratch.join("state")).args(&all).start()
    };
    let unix = format!("unix:{}", socket.display());
    let daemon = serve(&["--nbd", "tcp:127.0.0.1:0", "--nbd", &unix]);
    let status = daemon.json("status");
    let address = status.to_string();
    let at = address.find("tcp:127.0.0.1:").expect("the status tells the port") + "tcp:".len();
    let end = address[at..].find('"').expect("a JSON string ends") + at;
    let instant = load.snapshot(&daemon, "s");
    let to = load.scratch.join("over-tcp");
    let uri = format!("nbd://{}/vol@s", &address[at..end]);
    Program::new("nbdcopy").args([uri.as_str()]).arg(&to).ok();
    load.history.prove("the view over TCP", &read(&to), instant);
    assert_same(&to, &base);
    assert_eq!(daemon.json("volume show vol")["volume"]["grain"], 8192);
    daemon.stop();

    // Declared and there already: it is the same volume, and its snapshot stands.
    let daemon = serve(&[]);
    load.prove(&daemon, "vol@s", instant);
    daemon.stop();
}
