//! Restores of ranges and of what differs; to volumes that are served, to exports of other servers; interrupted at any moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::mounts::Loop;
use e2e::nbd::Client;
use e2e::process::{Program, Until};
use e2e::scratch::{allocated, assert_same, bytes, read};
use e2e::tzero::{result, sentence};
use e2e::{Daemon, MIB, Process, Scratch, Tzero};
use rustix::process::Signal;
use serde_json::Value;

const SIZE: u64 = 64 * MIB;
/// Large enough that a restore is not over before it is interrupted.
const LARGE: u64 = 512 * MIB;

/// A copy of random bytes, at `copy.img`; gives its path.
fn copied(tzero: &Tzero, scratch: &Scratch, size: u64, seed: u64) -> PathBuf {
    let (plain, copy) = (scratch.random("plain", size, seed), scratch.join("copy.img"));
    tzero.command(["backup"]).arg(&plain).arg("--to").arg(&copy).run().exited(3);
    copy
}

fn restore(copy: &Path, to: &str, more: &str) -> String {
    format!("restore {} --to {to} {more}", copy.display())
}

fn count(value: &Value, member: &str) -> u64 {
    value[member].as_u64().unwrap_or_else(|| panic!("no number {member}: {value}"))
}

/// Notes of restores, as the daemon tells them.
fn unfinished(daemon: &Daemon) -> Vec<Value> {
    daemon.json("status")["status"]["restores"].as_array().expect("a list").clone()
}

/// Somebody else's server of a file.
fn serve(scratch: &Scratch, server: &str, file: &Path) -> (Process, String) {
    let socket = scratch.join(format!("{server}.sock"));
    let program = match server {
        "qemu-nbd" => Program::new("qemu-nbd")
            .args(["--format=raw", "--persistent", "--shared=4", "--cache=writeback", "-x", "disk", "-k"])
            .arg(&socket)
            .arg(file),
        _ => Program::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket)
            .args(["--exportname", "disk", "file"])
            .arg(file),
    };
    let mut process = program.start();
    assert_eq!(process.until(|| Client::connect(&socket, "disk").is_ok()), Until::Held, "{server} serves");
    (process, format!("nbd+unix:///disk?socket={}", socket.display()))
}

#[test]
fn a_volume_is_restored_under_a_writer_while_two_snapshots_stand() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let copy = copied(&daemon, &scratch, SIZE, 2);
    let first = read(&base);
    daemon.ok("snapshot create first vol");
    let mut host = daemon.connect("vol");
    let mut second = first.clone();
    for (index, at) in (0..SIZE).step_by(3 << 20).enumerate() {
        let new = bytes(70_000, 100 + index as u64);
        let at = at as usize / 512 * 512;
        let new = &new[..new.len().min(second.len() - at) / 512 * 512];
        host.write(at as u64, new).expect("writing works");
        second[at..at + new.len()].copy_from_slice(new);
    }
    daemon.ok("snapshot create second vol");

    // The host goes on in the upper half, the lower one is restored.
    let half = SIZE / 2;
    let stop = AtomicBool::new(false);
    let mut upper = second[half as usize..].to_vec();
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writes = 0_u64;
            while !stop.load(Ordering::Relaxed) || writes < 100 {
                let at = (writes * 37 % (half / 4096 - 8)) * 4096;
                let new = bytes(20_480, 1000 + writes);
                host.write(half + at, &new).expect("the host meets no error");
                upper[at as usize..at as usize + new.len()].copy_from_slice(&new);
                writes += 1;
            }
            writes
        });
        let refused = daemon.refuses(1, &restore(&copy, "volume:vol", &format!("--range 0+{half}")));
        assert!(refused.contains("--force"), "{refused}");
        for flags in ["--differing --force", "--force"] {
            let restored = daemon.json(&restore(&copy, "volume:vol", &format!("--range 0+{half} {flags}")));
            let restored = &restored["restored"];
            assert_eq!((count(restored, "bytes_restored"), &restored["target"]), (half, &"volume:vol".into()));
            assert_eq!(restored["verified"], true);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer lives")
    });
    assert!(written >= 100);
    let now = daemon.contents("vol");
    assert!(now[..half as usize] == read(&copy)[..half as usize], "the restored half");
    assert!(now[half as usize..] == upper, "the other half is the host's");
    assert!(daemon.contents("vol@first") == first, "the first snapshot");
    assert!(daemon.contents("vol@second") == second, "the second snapshot");
    assert!(unfinished(&daemon).is_empty());

    // All of it, and then there is nothing left to do.
    let restored = daemon.json(&restore(&copy, "volume:vol", "--differing --force"));
    assert!(count(&restored["restored"], "bytes_equal") >= half);
    let again = daemon.json(&restore(&copy, "volume:vol", "--differing"));
    assert_eq!(count(&again["restored"], "bytes_written"), 0);
    assert!(daemon.contents("vol") == read(&copy));
    assert!(daemon.contents("vol@first") == first && daemon.contents("vol@second") == second);
    daemon.stop();
    assert_same(&base, &copy);
}

#[test]
fn what_a_host_writes_meanwhile_is_not_declared() {
    let scratch = Scratch::new();
    let daemon = Daemon::serving(&scratch, &scratch.sparse("base", LARGE));
    let copy = copied(&daemon, &scratch, LARGE, 2);
    let to = daemon.command(restore(&copy, "volume:vol", "--json").split_whitespace()).start();
    to.line(|line| line.contains("\"copy\"") && line.contains("progress") && !line.contains("\"done\":0"));
    // It has been written already.
    daemon.connect("vol").write(4096, &[7; 512]).expect("the host is served");
    let finished = to.wait();
    finished.exited(1);
    assert!(sentence(&finished).contains("somebody has written there"), "{finished}");
    let notes = unfinished(&daemon);
    assert_eq!((notes.len(), &notes[0]["running"]), (1, &false.into()));
    daemon.ok(&restore(&copy, "volume:vol", "--differing --force"));
    assert!(daemon.contents("vol") == read(&copy) && unfinished(&daemon).is_empty());
    daemon.stop();
}

#[test]
fn exports_of_other_servers() {
    for server in ["qemu-nbd", "nbdkit"] {
        let scratch = Scratch::new();
        let tzero = Tzero::at(&scratch.join("state"));
        let copy = copied(&tzero, &scratch, SIZE, 3);
        let disk = scratch.sparse("disk", SIZE + MIB);
        let (_process, uri) = serve(&scratch, server, &disk);
        let restored = tzero.json(&restore(&copy, &uri, ""));
        assert_eq!(restored["restored"]["target"], uri.as_str());
        assert!(read(&disk)[..SIZE as usize] == read(&copy), "{server}");
        // Ranges off every unit.
        let mut host = Client::connect(&scratch.join(format!("{server}.sock")), "disk").expect("it serves");
        let mut model = bytes((SIZE + MIB) as usize, 9);
        for (index, chunk) in model.chunks(1 << 20).enumerate() {
            host.write(index as u64 * MIB, chunk).expect("writing works");
        }
        tzero.refuses(1, &restore(&copy, &uri, "--range 1+2"));
        tzero.ok(&restore(&copy, &uri, "--range 1+2 --range 4M+5000 --range 67108000+800 --force"));
        for (at, len) in [(1, 2), (4 << 20, 5000), (67_108_000, 800)] {
            model[at..at + len].copy_from_slice(&read(&copy)[at..at + len]);
        }
        assert!(host.read_all().expect("reading works") == model, "{server}");
        let restored = tzero.json(&restore(&copy, &uri, "--range 4M+1M --differing --force"));
        assert_eq!(count(&restored["restored"], "bytes_restored"), MIB);
        assert_eq!(count(&restored["restored"], "bytes_equal"), 4096, "the first piece of those 5000 bytes is there");
        assert_eq!(count(&restored["restored"], "bytes_written"), MIB - 4096);
        model[4 << 20..5 << 20].copy_from_slice(&read(&copy)[4 << 20..5 << 20]);
        assert!(host.read_all().expect("reading works") == model, "{server}");
        tzero.ok(&restore(&copy, &uri, "--differing --force"));
        assert!(read(&disk)[..SIZE as usize] == read(&copy) && read(&disk)[SIZE as usize..] == model[SIZE as usize..]);
    }
}

#[test]
fn copies_on_exports_of_other_servers() {
    for server in ["qemu-nbd", "nbdkit"] {
        let scratch = Scratch::new();
        let base = scratch.random("base", SIZE, 4);
        let before = read(&base);
        let daemon = Daemon::serving(&scratch, &base);
        let disk = scratch.sparse("disk", SIZE);
        let (_process, uri) = serve(&scratch, server, &disk);
        let made = daemon.json(&format!("backup vol --verify --to image:{uri}"));
        let id = made["copy"]["id"].as_str().expect("an id").to_owned();
        assert_eq!(made["copy"]["image"], uri.as_str());
        daemon.connect("vol").write(0, &[1; 4096]).expect("the host goes on");
        assert!(read(&disk) == before, "{server}");
        for name in [id.as_str(), uri.as_str()] {
            daemon.ok(&format!("copy verify {name}"));
            assert_eq!(daemon.json(&format!("copy show {name}"))["copy"]["id"], id.as_str());
        }
        let back = scratch.join("back");
        daemon.ok(&format!("restore {id} --to {}", back.display()));
        assert!(read(&back) == before);
        daemon.ok(&format!("restore {id} --to volume:vol --differing --force"));
        assert!(daemon.contents("vol") == before);
        // It is neither overwritten unasked nor its own target.
        let said = daemon.refuses(1, &format!("backup vol --to {uri}"));
        assert!(said.contains("--replace"), "{said}");
        daemon.refuses(1, &format!("restore {id} --to {uri} --force"));
        // Damage is found, and it is no longer restored from.
        Client::connect(&scratch.join(format!("{server}.sock")), "disk")
            .and_then(|mut host| host.write(5 * MIB, &[0; 512]))
            .expect("writing works");
        daemon.refuses(1, &format!("copy verify {id}"));
        daemon.ok(&format!("copy remove {id}"));
        daemon.refuses(1, &format!("copy show {uri}"));
        daemon.stop();
    }
}

#[test]
fn exports_of_our_own_that_are_the_source() {
    let scratch = Scratch::new();
    let daemon = Daemon::serving(&scratch, &scratch.random("base", SIZE, 1));
    daemon.add("other", &scratch.sparse("other-base", SIZE));
    daemon.ok("snapshot create s vol");
    for (export, what) in [("vol", "vol"), ("vol", "vol@s"), ("vol@s", "vol")] {
        let said = daemon.refuses(1, &format!("backup {what} --replace --to image:{}", daemon.uri(export)));
        assert!(said.contains("same bytes"), "{said}");
    }
    assert_eq!(daemon.snapshots("vol"), ["s"]);
    // Another volume is somebody else's disk; what is restored to it by its URI is restored to the volume.
    daemon.ok(&format!("backup vol@s --verify --to image:{}", daemon.uri("other")));
    assert!(daemon.contents("other") == daemon.contents("vol@s"));
    let copy = copied(&daemon, &scratch, SIZE, 5);
    let restored = daemon.json(&restore(&copy, &daemon.uri("vol"), "--force"));
    assert_eq!(restored["restored"]["target"], "volume:vol");
    let said = daemon.refuses(1, &restore(&copy, &daemon.uri("vol@s"), "--force"));
    assert!(said.contains("read-only"), "{said}");
    daemon.stop();
}

#[test]
fn a_copy_of_a_part_is_restored_where_it_has_something() {
    let scratch = Scratch::new();
    let daemon = Daemon::serving(&scratch, &scratch.random("base", SIZE, 1));
    daemon.ok("snapshot create part vol --scope vol:1M+1M --scope vol:9000000+5");
    let t0 = daemon.contents("vol");
    daemon.connect("vol").write(0, &bytes(3 * MIB as usize, 2)).expect("the host goes on");
    let (_server, uri) = serve(&scratch, "nbdkit", &scratch.sparse("disk", SIZE));
    let image = scratch.join("part.img");
    let parts = [(1 << 20, 1 << 20), (9_000_000, 5)];
    let mut model = bytes(SIZE as usize, 3);
    for (index, to) in [image.display().to_string(), uri].into_iter().enumerate() {
        daemon.ok(&format!("backup vol@part --to image:{to}"));
        let name = format!("v{index}");
        daemon.add(&name, &scratch.random(&format!("base-{index}"), SIZE, 3));
        let target = format!("volume:{name}");
        let copy = Path::new(&to);
        for outside in ["0+1", "1M+1048577", "3M+1"] {
            let said = daemon.refuses(2, &restore(copy, &target, &format!("--force --range {outside}")));
            assert!(said.contains("scope"), "{said}");
        }
        daemon.refuses(1, &restore(copy, &target, ""));
        let restored = daemon.json(&restore(copy, &target, "--force"));
        assert_eq!(count(&restored["restored"], "bytes_restored"), MIB + 5);
        for (at, len) in parts {
            model[at..at + len].copy_from_slice(&t0[at..at + len]);
        }
        assert!(daemon.contents(&name) == model, "{to}");
        let file = scratch.random(&format!("file-{index}"), 10 * MIB, 4);
        let mut kept = read(&file);
        daemon.refuses(1, &restore(copy, &file.display().to_string(), ""));
        daemon.ok(&restore(copy, &file.display().to_string(), "--force"));
        parts.iter().for_each(|&(at, len)| kept[at..at + len].copy_from_slice(&t0[at..at + len]));
        assert!(read(&file) == kept, "what the copy is not of stays");
        let again = daemon.json(&restore(copy, &target, "--differing"));
        assert_eq!(
            (count(&again["restored"], "bytes_written"), count(&again["restored"], "bytes_equal")),
            (0, MIB + 5)
        );
    }
    daemon.stop();
}

/// A server that is slow enough to be cut.
fn slow(scratch: &Scratch, file: &Path, delay: &str) -> (Process, String) {
    let socket = scratch.join("slow.sock");
    // A killed one leaves it.
    let _ = fs::remove_file(&socket);
    let mut process = Program::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(&socket)
        .args(["--filter=delay", "file"])
        .arg(file)
        .arg(format!("wdelay={delay}"))
        .start();
    assert_eq!(process.until(|| Client::connect(&socket, "").is_ok()), Until::Held, "nbdkit serves");
    (process, format!("nbd+unix:///?socket={}", socket.display()))
}

#[test]
fn a_link_that_is_cut() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 6);
    let before = read(&base);
    let mut daemon = Daemon::serving(&scratch, &base);
    daemon.announce("a backup was interrupted");
    let copy = copied(&daemon, &scratch, SIZE, 7);
    let (disk, copied) = (scratch.sparse("disk", SIZE), scratch.sparse("copied", SIZE));
    let (server, uri) = slow(&scratch, &disk, "20ms");
    let mut restoring = daemon.command(restore(&copy, &uri, "--json").split_whitespace()).start();
    restoring.until(|| allocated(&disk) >= SIZE / 4);
    drop(server);
    let finished = restoring.wait();
    finished.exited(4);
    let said = sentence(&finished);
    let go_on =
        said.split('`').nth(1).and_then(|text| text.strip_prefix("tzero ")).expect("a command").replace('\'', "");
    let notes = unfinished(&daemon);
    assert_eq!((notes.len(), &notes[0]["target"]), (1, &uri.as_str().into()));
    let (server, again) = slow(&scratch, &disk, "0");
    assert_eq!(again, uri);
    daemon.ok(&go_on);
    assert_same(&disk, &copy);
    assert!(unfinished(&daemon).is_empty());
    drop(server);

    // The same for a backup.
    let (server, uri) = slow(&scratch, &copied, "20ms");
    let mut backup = daemon.backup(&["vol", "--json", "--to", &format!("image:{uri}")]).start();
    backup.until(|| allocated(&copied) >= SIZE / 4);
    drop(server);
    let finished = backup.wait();
    finished.exited(4);
    let said = sentence(&finished);
    assert!(said.contains("--resume") && said.contains("copy remove"), "{said}");
    daemon.connect("vol").write(0, &bytes(1 << 20, 8)).expect("the host goes on");
    let _server = slow(&scratch, &copied, "0");
    daemon.ok(&format!("backup vol --resume --verify --to image:{uri}"));
    assert!(read(&copied) == before && daemon.snapshots("vol").is_empty());
    daemon.stop();
}

/// Restores to a target, killed when so many of `file`'s bytes are there; then again to its end.
fn killed_and_repeated(daemon: &Daemon, copy: &Path, to: &str, file: &Path, at: u64) {
    let line = restore(copy, to, "--force --json");
    let mut restoring = daemon.command(line.split_whitespace()).start();
    restoring.until(|| allocated(file) >= at);
    restoring.signal(Signal::KILL);
    let killed = restoring.wait();
    assert_eq!(killed.signal(), Some(9), "it was over too soon\n{killed}");
    assert!(!killed.stdout.contains("restored"), "{killed}");
    let notes = unfinished(daemon);
    assert_eq!((notes.len(), &notes[0]["running"], &notes[0]["target"]), (1, &false.into(), &to.into()), "{notes:?}");
    let shown = daemon.ok("status");
    let resume = notes[0]["resume"].as_str().expect("a command");
    assert!(shown.contains(resume) && shown.contains("neither what it was nor the copy"), "{shown}");
    daemon.ok(resume.strip_prefix("tzero ").expect("a command of ours"));
    assert!(unfinished(daemon).is_empty());
}

#[test]
fn a_killed_restore_is_visible_and_can_be_repeated() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch);
    let copy = copied(&daemon, &scratch, LARGE, 8);
    for (index, at) in [1, LARGE / 8, LARGE / 2].into_iter().enumerate() {
        let base = scratch.sparse(&format!("base-{index}"), LARGE);
        daemon.add(&format!("v{index}"), &base);
        let to = format!("volume:v{index}");
        killed_and_repeated(&daemon, &copy, &to, &base, at);
        assert!(daemon.contents(&format!("v{index}")) == read(&copy));
        daemon.ok(&format!("volume remove v{index}"));
        fs::remove_file(&base).expect("it is there");
    }
    let disk = scratch.sparse("disk", LARGE);
    let device = Loop::over(&disk);
    let to = device.device().to_str().expect("a plain path");
    killed_and_repeated(&daemon, &copy, to, &disk, LARGE / 4);
    drop(device);
    assert_same(&disk, &copy);
    daemon.stop();
}

#[test]
fn an_unfinished_restore_of_a_volume_is_told_with_it_and_can_be_dismissed() {
    let scratch = Scratch::new();
    let base = scratch.sparse("base", LARGE);
    let daemon = Daemon::serving(&scratch, &base);
    let copy = copied(&daemon, &scratch, LARGE, 9);
    let mut restoring = daemon.command(restore(&copy, "volume:vol", "").split_whitespace()).start();
    restoring.until(|| allocated(&base) >= LARGE / 8);
    restoring.signal(Signal::STOP);
    let running = &daemon.json("volume show vol")["volume"]["restores"][0];
    assert_eq!((&running["running"], &running["state"]), (&true.into(), &"writing".into()), "{running}");
    let discard =
        running["discard"].as_str().and_then(|text| text.strip_prefix("tzero ")).expect("a command").to_owned();
    let said = daemon.refuses(1, &discard);
    assert!(said.contains("running"), "{said}");
    let said = daemon.refuses(1, &restore(&copy, "volume:vol", "--range 0+4096 --force"));
    assert!(said.contains("another run"), "{said}");
    restoring.signal(Signal::INT);
    restoring.signal(Signal::CONT);
    let finished = restoring.wait();
    finished.exited(4);
    let said = sentence(&finished);
    let stopped = &daemon.json("volume show vol")["volume"]["restores"][0];
    assert!(said.contains(stopped["resume"].as_str().expect("a command")), "{said}");
    assert!(said.contains(&discard), "{said}");
    assert_eq!((&stopped["running"], &stopped["state"]), (&false.into(), &"stopped".into()), "{stopped}");
    // It outlives the daemon.
    daemon.stop();
    let daemon = Daemon::start(&scratch);
    assert_eq!(unfinished(&daemon).len(), 1);
    let shown = daemon.ok("volume show vol");
    assert!(shown.contains(&discard), "{shown}");
    daemon.ok(&discard);
    assert!(unfinished(&daemon).is_empty());
    daemon.refuses(1, &discard);
    daemon.stop();
}

#[test]
fn a_volume_s_restore_outlives_its_daemon() {
    let scratch = Scratch::new();
    let base = scratch.sparse("base", LARGE);
    let daemon = Daemon::serving(&scratch, &base);
    let copy = copied(&daemon, &scratch, LARGE, 10);
    daemon.ok("snapshot create s vol");
    // Killed and started again: a pause.
    let mut restoring = daemon.command(restore(&copy, "volume:vol", "").split_whitespace()).start();
    restoring.until(|| allocated(&base) >= LARGE / 8);
    daemon.kill();
    let daemon = Daemon::start(&scratch);
    restoring.wait().exited(0);
    assert!(daemon.contents("vol") == read(&copy));
    assert!(daemon.contents("vol@s").iter().all(|byte| *byte == 0), "the snapshot stands");
    // Gone for longer: it gives up, and can be repeated.
    let other = scratch.random("plain", LARGE, 11);
    let second = scratch.join("second.img");
    daemon.command(["backup"]).arg(&other).arg("--to").arg(&second).run().exited(3);
    let mut restoring = daemon.command(restore(&second, "volume:vol", "--force --json").split_whitespace()).start();
    restoring.line(|line| line.contains("\"copy\"") && line.contains("progress") && !line.contains("\"done\":0"));
    restoring.until(|| unfinished(&daemon).len() == 1);
    daemon.kill();
    let finished = restoring.wait();
    finished.exited(4);
    assert_eq!(result(&finished)["error"]["exit"], 4);
    let daemon = Daemon::start(&scratch);
    let notes = unfinished(&daemon);
    let resume = notes[0]["resume"].as_str().and_then(|text| text.strip_prefix("tzero ")).expect("a command");
    daemon.ok(resume);
    assert!(daemon.contents("vol") == read(&second) && unfinished(&daemon).is_empty());
    assert!(daemon.contents("vol@s").iter().all(|byte| *byte == 0), "the snapshot stands");
    daemon.stop();
}

#[test]
fn what_cannot_be_restored() {
    let scratch = Scratch::new();
    let daemon = Daemon::serving(&scratch, &scratch.random("base", SIZE, 1));
    let copy = copied(&daemon, &scratch, SIZE, 2);
    let end = SIZE.to_string();
    let before = daemon.contents("vol");
    for range in [
        format!("{end}+1"),
        format!("0+{}", SIZE + 1),
        "0+0".into(),
        "1".into(),
        "-1+1".into(),
        "1-2".into(),
        "16383P+16383P".into(),
        "99999999999999999999+1".into(),
        "18446744073709551615+1".into(),
    ] {
        daemon.refuses(2, &restore(&copy, "volume:vol", &format!("--force --range={range}")));
    }
    let said = daemon.refuses(2, &restore(&copy, "volume:vol", "--force --range 0+10 --range 100+1 --range 9+1"));
    assert!(said.contains("overlaps"), "{said}");
    daemon.refuses(2, &restore(&copy, "volume:", "--force"));
    daemon.refuses(2, &restore(&copy, "volume:a/b", "--force"));
    daemon.refuses(2, &restore(&copy, "nbd+unix:///vol", "--force"));
    daemon.refuses(2, &restore(&copy, "nbds://localhost/vol", "--force"));
    let said = daemon.refuses(1, &restore(&copy, "volume:nothing", "--force"));
    assert!(said.contains("nothing"), "{said}");
    daemon.refuses(1, &restore(&copy, &daemon.uri("nothing"), "--force"));
    daemon.refuses(1, &restore(&copy, "nbd+unix:///vol?socket=/no/such", "--force"));
    // Volumes of other sizes.
    daemon.add("small", &scratch.sparse("small-base", SIZE - MIB));
    daemon.add("large", &scratch.sparse("large-base", SIZE + MIB));
    for flags in ["", "--force", "--differing"] {
        daemon.refuses(1, &restore(&copy, "volume:small", flags));
        let said = daemon.refuses(1, &restore(&copy, "volume:large", flags));
        assert!(said.contains(&format!("--range 0+{end}")), "{said}");
    }
    daemon.ok(&restore(&copy, "volume:large", &format!("--range 0+{end}")));
    assert!(daemon.contents("large")[..SIZE as usize] == read(&copy));
    daemon.ok(&restore(&copy, "volume:small", "--range 0+1M"));
    // The copy itself, and a volume that stands on it.
    daemon.refuses(1, &restore(&copy, copy.to_str().expect("plain"), "--range 0+1 --force"));
    daemon.add("itself", &copy);
    let said = daemon.refuses(1, &restore(&copy, "volume:itself", "--force"));
    assert!(said.contains("the copy itself"), "{said}");
    daemon.ok("volume remove itself");
    // Without its digests a copy is none.
    let manifest = scratch.join("copy.img.tzero");
    let text = fs::read_to_string(&manifest).expect("it is text");
    fs::write(&manifest, text.replacen("\"digests\"", "\"digest5\"", 1)).expect("it can be written");
    daemon.refuses(1, &restore(&copy, "volume:vol", "--force"));
    assert!(daemon.contents("vol") == before && unfinished(&daemon).is_empty());
    // Without a daemon there is no volume.
    fs::write(&manifest, text).expect("it can be written");
    daemon.stop();
    let tzero = Tzero::at(&scratch.join("state"));
    let said = tzero.refuses(1, &restore(&copy, "volume:vol", "--force"));
    assert!(said.contains("not running"), "{said}");
}
