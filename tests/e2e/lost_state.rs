//! State that was lost, damaged, locked or moved while no daemon ran. The host's volume is served whatever became of it; snapshots are right or
//! broken, and listed either way; nothing is replaced in silence.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use e2e::daemon::Setting;
use e2e::mounts::{Loop, Mounted};
use e2e::process::Program;
use e2e::scratch::{allocated, bytes, names, read};
use e2e::{Daemon, MIB, Scratch};
use serde_json::Value;

const SIZE: u64 = 8 * MIB;
/// Where the base is, so that it can come and go without a change of its own.
const BASE: &str = "disk/base";

/// A volume `vol` with snapshots `one` and `two`, originals saved for both, its daemon stopped.
struct Scene {
    scratch: Scratch,
    /// What the volume reads as.
    contents: Vec<u8>,
    /// What the snapshots do.
    one: Vec<u8>,
}

impl Scene {
    fn new(options: &str) -> Self {
        let scratch = Scratch::new();
        fs::create_dir(scratch.join("disk")).expect("it can be made");
        let base = scratch.random(BASE, SIZE, 1);
        let one = read(&base);
        let daemon = Daemon::start(&scratch);
        daemon.ok(&format!("volume add vol {} {options}", base.display()));
        daemon.ok("snapshot create one vol");
        let mut host = daemon.connect("vol");
        host.write(0, &bytes(2 * MIB as usize, 2)).expect("writing works");
        daemon.ok("snapshot create two vol");
        host.write(4 * MIB, &bytes(MIB as usize, 3)).expect("writing works");
        drop(host);
        let contents = daemon.contents("vol");
        assert!(daemon.contents("vol@one") == one);
        daemon.stop();
        Self { scratch, contents, one }
    }

    fn state(&self) -> PathBuf {
        self.scratch.join("state")
    }

    fn volume(&self) -> PathBuf {
        self.state().join("volumes/vol")
    }

    fn setting(&self) -> Setting {
        Setting::new(&self.state())
    }

    fn start(&self, announced: &[&str]) -> Daemon {
        let mut daemon = self.setting().launch();
        // What was lost stays broken, and every start says so.
        daemon.announce("broken");
        announced.iter().for_each(|text| daemon.announce(text));
        daemon.ready();
        daemon
    }

    /// The volume is whole and serves its host; both snapshots are broken, by name; and everything works anew.
    fn is_served_without_its_snapshots(&self, daemon: &Daemon) {
        assert!(daemon.contents("vol") == self.contents, "the host's bytes");
        let mut listed = daemon.snapshots("vol");
        listed.sort();
        assert_eq!(listed, ["one", "two"], "what was lost is listed");
        for name in ["vol@one", "vol@two"] {
            let shown = daemon.json(&format!("snapshot show {name}"));
            assert_eq!(shown["snapshot"]["state"], "broken", "{shown}");
            assert!(shown["snapshot"]["reason"].as_str().is_some_and(|reason| reason.contains("damaged")), "{shown}");
            assert!(e2e::nbd::Client::connect(&daemon.socket(), name).is_err(), "{name} is readable");
            daemon.refuses(1, &format!("backup {name} --to {}", self.scratch.join("copy").display()));
        }
        daemon.ok("snapshot delete vol@one");
        daemon.ok("snapshot create one vol");
        let new = bytes(MIB as usize, 4);
        daemon.connect("vol").write(0, &new).expect("the host goes on");
        assert!(daemon.contents("vol@one") == self.contents, "a new snapshot is right");
        assert!(daemon.contents("vol")[..new.len()] == new);
    }

    fn notices(daemon: &Daemon) -> Vec<Value> {
        daemon.json("volume show vol")["volume"]["notices"].as_array().cloned().unwrap_or_default()
    }
}

fn aside(directory: &Path, name: &str) -> bool {
    names(directory).contains(&format!("{name}.damaged-1"))
}

/// A way to lose a file.
type Loss = fn(&Path);

/// Loses a file of the state in several ways; each time the volume is served.
fn survives(file: &str, what: &str, lose: &[(&str, Loss)]) {
    for (how, lose) in lose {
        eprintln!("{file}: {how}");
        let scene = Scene::new("");
        let path = scene.volume().join(file);
        let before = read(&path);
        lose(&path);
        let left = path.exists();
        let daemon = scene.start(&[what]);
        scene.is_served_without_its_snapshots(&daemon);
        let directory = path.parent().expect("it is in a directory");
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        assert_eq!(aside(directory, &name), left, "{how}: what is damaged is kept for inspection");
        let notices = Scene::notices(&daemon);
        assert!(
            notices.iter().any(|notice| notice.as_str().is_some_and(|notice| notice.contains(what))),
            "{notices:?}"
        );
        assert!(daemon.ok("status").contains(what), "the status tells");
        daemon.stop();
        assert!(before.len() > 8);
        // The next start finds nothing wrong any more.
        let daemon = scene.start(&[]);
        assert_eq!(Scene::notices(&daemon), Vec::<Value>::new());
        assert!(daemon.contents("vol@one") == scene.contents);
        assert_eq!(daemon.snapshots("vol").len(), 2);
        daemon.stop();
    }
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("it can be removed");
}

fn scribble(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).expect("it is there");
    file.write_all_at(&[0xA5; 64], 0).expect("it can be written");
}

fn zero(path: &Path) {
    let len = fs::metadata(path).expect("it is there").len();
    let file = OpenOptions::new().write(true).open(path).expect("it is there");
    file.set_len(0).and_then(|()| file.set_len(len)).expect("it can be emptied");
}

fn cut(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).expect("it is there");
    file.set_len(4096).expect("it can be cut");
}

fn become_directory(path: &Path) {
    remove(path);
    fs::create_dir(path).expect("it can be made");
}

#[test]
fn a_lost_modified_map_costs_the_snapshots_and_not_the_volume() {
    survives(
        "state/map",
        "modified map",
        &[
            ("removed", remove),
            ("scribbled", scribble),
            ("zeroed", zero),
            ("cut", cut),
            ("a directory", become_directory),
        ],
    );
}

#[test]
fn a_lost_snapshot_table_costs_the_snapshots_and_not_their_names() {
    survives(
        "state/snapshots",
        "snapshot table",
        &[
            ("removed", remove),
            ("scribbled", scribble),
            ("zeroed", zero),
            ("cut", cut),
            ("a directory", become_directory),
        ],
    );
}

#[test]
fn a_lost_cache_costs_the_snapshots_and_not_the_volume() {
    survives(
        "originals",
        "original cache",
        &[("removed", remove), ("zeroed", zero), ("cut", cut), ("a directory", become_directory)],
    );
}

#[test]
fn state_that_only_looked_right_is_set_aside_whole() {
    let scene = Scene::new("");
    let state = scene.volume().join("state");
    // Whatever the engine keeps beside table and map: a directory in its place can be neither opened nor removed.
    let others: Vec<_> =
        names(&state).into_iter().filter(|name| !["map", "snapshots"].contains(&name.as_str())).collect();
    assert!(!others.is_empty(), "nothing to be damaged");
    for name in others {
        become_directory(&state.join(&name));
        fs::write(state.join(name).join("in-the-way"), "x").expect("it can be written");
    }
    let daemon = scene.start(&["could not be used"]);
    scene.is_served_without_its_snapshots(&daemon);
    assert!(aside(&scene.volume(), "state"), "it is kept");
    daemon.stop();
    scene.start(&[]).stop();
}

#[test]
fn all_state_lost_at_once() {
    let scene = Scene::new("");
    fs::remove_dir_all(scene.volume().join("state")).expect("it can be removed");
    remove(&scene.volume().join("originals"));
    let daemon = scene.start(&["broken"]);
    scene.is_served_without_its_snapshots(&daemon);
    daemon.stop();
}

#[test]
fn a_foreign_cache_is_noticed_and_left_alone() {
    let scene = Scene::new("");
    let cache = scene.volume().join("originals");
    let foreign = bytes(fs::metadata(&cache).expect("it is there").len() as usize, 9);
    remove(&cache);
    fs::write(&cache, &foreign).expect("it can be written");
    let daemon = scene.start(&["original cache"]);
    scene.is_served_without_its_snapshots(&daemon);
    assert!(read(&scene.volume().join("originals.damaged-1")) == foreign, "it is somebody's");
    daemon.stop();
}

#[test]
fn a_state_directory_that_was_moved_is_the_same() {
    let scene = Scene::new("");
    let moved = scene.scratch.join("moved");
    Program::new("cp").args(["-a", "--sparse=always"]).arg(scene.state()).arg(&moved).ok();
    fs::remove_dir_all(scene.state()).expect("it can be removed");
    let daemon = Setting::new(&moved).start();
    assert!(daemon.contents("vol@one") == scene.one);
    assert!(daemon.contents("vol") == scene.contents);
    daemon.stop();
}

#[test]
fn a_missing_cache_directory_costs_snapshots_only() {
    let scratch = Scratch::new();
    let fast = scratch.join("fast");
    fs::create_dir(&fast).expect("it can be made");
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add vol {} --cache-dir {}", base.display(), fast.display()));
    daemon.ok("snapshot create one vol");
    daemon.connect("vol").write(0, &[5; 4096]).expect("writing works");
    daemon.stop();
    fs::rename(&fast, scratch.join("unmounted")).expect("it can be moved");

    let mut daemon = Setting::new(&scratch.join("state")).launch();
    daemon.announce("originals of volume vol cannot be kept");
    daemon.announce("snapshot=vol@one");
    daemon.ready();
    daemon.connect("vol").write(4096, &[6; 4096]).expect("the host goes on");
    assert_eq!(daemon.json("snapshot show vol@one")["snapshot"]["state"], "broken");
    let sentence = daemon.refuses(1, "snapshot create two vol");
    assert!(sentence.contains("fast"), "{sentence}");
    daemon.refuses(1, &format!("backup vol --to {}", scratch.join("copy").display()));
    daemon.stop();
    assert!(!fast.exists(), "nothing was made where something is to be mounted");

    fs::rename(scratch.join("unmounted"), &fast).expect("it can be moved");
    let mut daemon = Setting::new(&scratch.join("state")).start();
    daemon.announce("snapshot=vol@one");
    daemon.ok("snapshot delete vol@one");
    daemon.ok("snapshot create one vol");
    daemon.connect("vol").write(0, &[7; 8192]).expect("the host goes on");
    assert_eq!(daemon.contents("vol@one")[..8192], [[5; 4096], [6; 4096]].concat());
    daemon.stop();
}

#[test]
fn a_lowered_cache_limit_keeps_what_was_saved() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let one = read(&base);
    let config = scratch.join("tzero.toml");
    let serve = |limit: &str| {
        let text = format!("[volume.vol]\nbase = \"{}\"\ncache_limit = \"{limit}\"\n", base.display());
        fs::write(&config, text).expect("it can be written");
        let mut daemon =
            Setting::new(&scratch.join("state")).args(&["--config", config.to_str().expect("a plain path")]).launch();
        daemon.announce("broken");
        daemon.ready();
        daemon
    };
    let daemon = serve("64M");
    daemon.ok("snapshot create one vol");
    daemon.connect("vol").write(0, &bytes(4 * MIB as usize, 2)).expect("writing works");
    daemon.stop();

    let daemon = serve("1M");
    assert!(daemon.contents("vol@one") == one, "what lies past the limit is read");
    let to = scratch.join("copy");
    daemon.backup(&["vol@one", "--verify", "--to", to.to_str().expect("a plain path")]).run().exited(0);
    assert!(read(&to) == one, "by a mover too");
    daemon.connect("vol").write(4 * MIB, &[1; 4096]).expect("the host goes on");
    assert_eq!(daemon.json("snapshot show vol@one")["snapshot"]["state"], "broken", "there is no room for more");
    daemon.ok("snapshot delete vol@one");
    daemon.ok("snapshot create two vol");
    let two = daemon.contents("vol");
    daemon.connect("vol").write(0, &bytes(MIB as usize, 3)).expect("writing works");
    assert!(daemon.contents("vol@two") == two, "as much as the limit says");
    for (_, _, slot) in daemon.map("vol@two") {
        assert!(slot.is_some_and(|slot| slot < MIB), "no new original lies past the limit");
    }
    daemon.connect("vol").write(2 * MIB, &[1; 4096]).expect("the host goes on");
    assert_eq!(daemon.json("snapshot show vol@two")["snapshot"]["state"], "broken", "and no more");
    daemon.stop();
}

/// Holds a lock on a file until it is dropped.
struct Held(File);

impl Held {
    fn on(path: &Path) -> Self {
        let file = File::open(path).expect("it is there");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("nobody else has it");
        Self(file)
    }
}

fn until(daemon: &mut Daemon, held: impl Fn(&Daemon) -> bool) {
    e2e::waiting::until(|| held(daemon));
}

fn is_serving(daemon: &Daemon, volume: &str) -> bool {
    daemon.json(&format!("volume show {volume}"))["volume"]["state"] == "serving"
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for() {
    for file in [BASE, "state/volumes/vol/originals"] {
        let scene = Scene::new("");
        let other = scene.scratch.random("other", MIB, 5);
        let daemon = scene.start(&[]);
        daemon.add("other", &other);
        daemon.stop();
        let held = Held::on(&scene.scratch.join(file));
        let mut daemon = scene.start(&["not served"]);
        assert!(!is_serving(&daemon, "vol"));
        let reason = daemon.json("volume show vol")["volume"]["reason"].to_string();
        assert!(reason.contains("lock") || reason.contains("in use"), "{reason}");
        assert!(daemon.contents("other") == read(&other), "the others are served");
        drop(held.0);
        until(&mut daemon, |daemon| is_serving(daemon, "vol"));
        assert!(daemon.contents("vol@one") == scene.one, "the snapshots stand");
        assert!(daemon.contents("vol") == scene.contents);
        let said = daemon.process().stderr().matches("not served").count();
        assert_eq!(said, 1, "once is enough");
        daemon.stop();
    }
}

#[test]
fn a_missing_base_is_reported_and_served_when_it_comes() {
    let scene = Scene::new("");
    let (disk, away) = (scene.scratch.join("disk"), scene.scratch.join("away"));
    fs::rename(&disk, &away).expect("it can be moved");
    let mut daemon = scene.start(&["not served"]);
    assert!(!is_serving(&daemon, "vol"));
    assert!(daemon.ok("status").contains("does not exist"));
    daemon.refuses(1, "snapshot create three vol");
    fs::rename(&away, &disk).expect("it can be moved");
    until(&mut daemon, |daemon| is_serving(daemon, "vol"));
    assert!(daemon.contents("vol@one") == scene.one, "the snapshots stand");
    daemon.stop();
}

#[test]
fn a_volume_that_is_waited_for_can_be_removed() {
    let scene = Scene::new("");
    fs::remove_file(scene.scratch.join(BASE)).expect("it can be removed");
    let daemon = scene.start(&["not served"]);
    daemon.refuses(1, "volume remove vol");
    daemon.ok("snapshot delete vol@one");
    daemon.ok("snapshot delete vol@two");
    daemon.ok("volume remove vol");
    assert_eq!(daemon.json("volume list")["volumes"].as_array().map(Vec::len), Some(0));
    daemon.stop();
    assert!(!scene.volume().exists());
}

#[test]
fn a_resized_base_is_not_served_until_it_has_its_size_again() {
    let scene = Scene::new("");
    let base = OpenOptions::new().write(true).open(scene.scratch.join(BASE)).expect("it is there");
    base.set_len(SIZE + MIB).expect("it can be resized");
    let mut daemon = scene.start(&["not served", "the base was changed"]);
    let reason = daemon.json("volume show vol")["volume"]["reason"].to_string();
    assert!(reason.contains(&SIZE.to_string()), "{reason}");
    base.set_len(SIZE).expect("it can be resized");
    until(&mut daemon, |daemon| is_serving(daemon, "vol"));
    assert!(daemon.contents("vol") == scene.contents);
    // Somebody has been at it: its times tell.
    assert_eq!(daemon.json("snapshot show vol@one")["snapshot"]["state"], "broken");
    daemon.stop();
}

#[test]
fn a_restored_base_is_served_and_costs_the_snapshots() {
    let scene = Scene::new("");
    let base = scene.scratch.join(BASE);
    let restored = bytes(SIZE as usize, 7);
    remove(&base);
    fs::write(&base, &restored).expect("it can be written");
    let daemon = scene.start(&["the base was changed"]);
    assert!(daemon.contents("vol") == restored, "the host first");
    assert_eq!(daemon.json("snapshot show vol@one")["snapshot"]["state"], "broken");
    assert_eq!(daemon.json("volume show vol")["volume"]["generation"], 2);
    daemon.ok("snapshot delete vol@one");
    daemon.stop();
    let daemon = scene.start(&[]);
    assert_eq!(daemon.json("volume show vol")["volume"]["generation"], 2, "accepted once");
    daemon.stop();
}

#[test]
fn a_loop_device_is_the_file_behind_it() {
    let scratch = Scratch::new();
    let file = scratch.random("file", SIZE, 1);
    let one = read(&file);
    let link = scratch.join("disk");
    let attach = || {
        let device = Loop::over(&file);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(device.device(), &link).expect("a link can be made");
        device
    };
    let first = attach();
    let daemon = Daemon::serving(&scratch, &link);
    daemon.ok("snapshot create one vol");
    daemon.connect("vol").write(0, &[1; 4096]).expect("writing works");
    daemon.stop();
    let name = first.device().to_path_buf();
    drop(first);
    // Something else takes its number, as after a reboot.
    let filler = scratch.random("filler", MIB, 2);
    let taken = Loop::over(&filler);
    let second = attach();
    assert!(second.device() != name || taken.device() != name);
    let daemon = Setting::new(&scratch.join("state")).start();
    assert!(daemon.contents("vol@one") == one, "the same device by another number");
    daemon.stop();
    drop((second, taken));
}

#[test]
fn space_of_freed_originals_is_given_back() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 32 * MIB, 1);
    let mut daemon = Daemon::serving(&scratch, &base);
    let cache = scratch.join("state/volumes/vol/originals");
    daemon.ok("snapshot create one vol");
    daemon.connect("vol").write(0, &bytes(16 * MIB as usize, 2)).expect("writing works");
    assert!(allocated(&cache) >= 16 * MIB);
    daemon.ok("snapshot create two vol");
    daemon.connect("vol").write(20 * MIB, &bytes(MIB as usize, 3)).expect("writing works");
    let two = daemon.contents("vol@two");
    daemon.ok("snapshot delete vol@one");
    let mebibytes = |most: u64| {
        let cache = cache.clone();
        move |_: &Daemon| allocated(&cache) <= most * MIB
    };
    until(&mut daemon, mebibytes(2));
    assert!(daemon.contents("vol@two") == two, "what is needed stays");
    daemon.ok("snapshot delete vol@two");
    until(&mut daemon, mebibytes(0));
    // And it can be had again.
    daemon.ok("snapshot create three vol");
    let three = daemon.contents("vol");
    daemon.connect("vol").write(0, &bytes(16 * MIB as usize, 4)).expect("writing works");
    assert!(daemon.contents("vol@three") == three);
    daemon.ok("snapshot delete vol@three");
    daemon.kill();
    // A daemon that was killed had no time to: the next one does it.
    let daemon = Setting::new(&scratch.join("state")).start();
    assert_eq!(allocated(&cache), 0);
    daemon.stop();
}

#[test]
fn a_second_daemon_is_refused_and_files_are_private() {
    let scene = Scene::new("");
    let socket = scene.state().join("nbd.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a stale socket can be left"));
    let daemon = scene.start(&[]);
    let second = scene.setting().launch();
    assert!(!second.comes_up());
    let finished = daemon.tzero().command(["serve"]).run();
    finished.exited(1);
    assert!(finished.stderr.contains("another daemon"), "{finished}");
    let mode = |path: &Path| fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o777;
    let mut left = vec![scene.state()];
    while let Some(path) = left.pop() {
        let is_dir = fs::symlink_metadata(&path).expect("it is there").is_dir();
        assert_eq!(mode(&path), if is_dir { 0o700 } else { 0o600 }, "{}", path.display());
        if is_dir {
            left.extend(names(&path).iter().map(|name| path.join(name)));
        }
    }
    daemon.stop();
}

/// What a disk holds when the power goes now: whatever was not flushed is not in the copy.
fn after_power_loss(scratch: &Scratch, image: &Path, name: &str) -> Mounted {
    let copy = scratch.join(format!("{name}.img"));
    Program::new("cp").args(["--sparse=always"]).arg(image).arg(&copy).ok();
    Mounted::device(&copy, &scratch.join(name))
}

#[test]
fn what_was_answered_is_there_after_a_power_loss() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let image = scratch.join("image");
    let disk = Mounted::ext4(&image, 64 * MIB, &scratch.join("m"));
    let fast = disk.join("fast");
    fs::create_dir(&fast).expect("it can be made");
    File::open(disk.path()).and_then(|directory| directory.sync_all()).expect("it can be flushed");
    let daemon = Setting::new(&disk.join("state")).start();
    daemon.ok(&format!("volume add vol {} --cache-dir {}", base.display(), fast.display()));
    {
        let lost = after_power_loss(&scratch, &image, "added");
        let volume = lost.join("state/volumes/vol");
        let record: Value = serde_json::from_slice(&read(&volume.join("volume.json"))).expect("a whole record");
        assert!(record["bases"][0]["identity"].is_object(), "{record}");
        for file in ["state/map", "state/snapshots"] {
            assert!(volume.join(file).is_file(), "{file}");
        }
        assert_eq!(names(&lost.join("fast")).len(), 1, "the cache has a name");
    }
    daemon.ok("snapshot create a-snapshot vol");
    let lost = after_power_loss(&scratch, &image, "created");
    let table = read(&lost.join("state/volumes/vol/state/snapshots"));
    assert!(table.windows(10).any(|bytes| bytes == b"a-snapshot"), "the snapshot is on record");
    drop(lost);
    daemon.stop();
}

#[test]
fn stuck_clients_do_not_hold_up_the_end() {
    let scene = Scene::new("");
    let daemon = scene.start(&[]);
    let idle = daemon.connect("vol");
    let reader = daemon.connect("vol@one");
    let mut silent = daemon.connect("vol");
    // Asks for more than any socket holds, and takes nothing.
    for _ in 0..8 {
        silent.send(e2e::nbd::Command::Read, 0, 0, MIB as u32, &[]).expect("it is sent");
    }
    let greeted = std::os::unix::net::UnixStream::connect(daemon.socket()).expect("the daemon listens");
    daemon.stop();
    drop((idle, reader, silent, greeted));
    scene.start(&[]).stop();
}
