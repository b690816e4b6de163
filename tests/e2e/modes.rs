//! Ways of copying, parts of volumes, and what gives when the original cache is full.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use e2e::mounts::{Loop, Mounted};
use e2e::nbd::{EIO, Failure};
use e2e::scratch::{allocated, bytes, read};
use e2e::tzero::result;
use e2e::{Daemon, MIB, Program, Scratch};
use rustix::fs::{Advice, fadvise};
use serde_json::Value;

use crate::load::Load;

/// Modes and boundaries of a copy whose image is that of time zero.
const WAYS: [(&str, &[&str]); 5] = [
    ("timezero", &["--mode", "timezero"]),
    ("reconciled", &["--mode", "reconciled"]),
    ("all", &["--mode", "outboard"]),
    ("marker", &["--mode", "outboard", "--boundary", "marker", "--layout", "overwrite"]),
    ("terminate", &["--mode", "outboard", "--boundary", "terminate"]),
];

/// Copies in every way under load, each proved against what the volume held.
fn every_way(load: &Load, daemon: &Daemon) {
    let writers = load.writers(daemon, 5);
    writers.progress(300);
    for (name, options) in WAYS {
        let to = load.scratch.join(format!("{name}.img"));
        let image = format!("image:{}", to.display());
        let arguments = [&["vol", "--verify", "--json", "--to", &image][..], options].concat();
        let (instant, finished) = load.history.instant(|| daemon.backup(&arguments).run());
        finished.exited(0);
        let copy = &result(&finished)["copy"];
        assert_eq!(copy["mode_used"], copy["mode_asked"], "{copy}");
        assert_eq!(copy["mode_used"], options[1], "{copy}");
        if options[1] == "outboard" {
            let boundary = options.get(3).copied().unwrap_or("all");
            assert_eq!(
                (&copy["outboard"]["layout"], &copy["outboard"]["boundary"]),
                (&"overwrite".into(), &boundary.into())
            );
            assert!(copy["boundary"].as_u64().is_some(), "{copy}");
        }
        load.history.prove(name, &read(&to), instant);
        fs::remove_file(&to).expect("the copy can be removed");
        assert!(daemon.snapshots("vol").is_empty(), "{name}: nothing is left");
        writers.progress(50);
    }
    writers.stop();
}

#[test]
fn every_way_of_copying_gives_time_zero() {
    let load = Load::new(24 * MIB);
    let daemon = load.serve();
    every_way(&load, &daemon);
    daemon.stop();
}

#[test]
fn every_way_of_copying_with_small_and_large_grains_direct_and_in_two_components() {
    for (options, cut) in [("--grain 512", 0), ("--grain 64K --direct", 0), ("--direct", 7 * MIB)] {
        let load = Load::new(16 * MIB);
        let daemon = Daemon::start(&load.scratch);
        let base = load.scratch.join("base");
        let bases = if cut == 0 {
            base.display().to_string()
        } else {
            let whole = read(&base);
            let parts = [load.scratch.join("one"), load.scratch.join("two")];
            fs::write(&parts[0], &whole[..cut as usize]).expect("the scratch directory can be written");
            fs::write(&parts[1], &whole[cut as usize..]).expect("the scratch directory can be written");
            format!("{} {}", parts[0].display(), parts[1].display())
        };
        daemon.ok(&format!("volume add vol {bases} {options}"));
        every_way(&load, &daemon);
        daemon.stop();
    }
}

#[test]
fn a_standing_snapshot_in_every_way() {
    let load = Load::new(16 * MIB);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 6);
    writers.progress(100);
    let instant = load.snapshot(&daemon, "s");
    writers.progress(300);
    for (name, options) in WAYS {
        let to = load.scratch.join(format!("{name}.img"));
        let image = format!("image:{}", to.display());
        daemon.backup(&[&["vol@s", "--to", &image][..], options].concat()).run().exited(0);
        load.history.prove(name, &read(&to), instant);
    }
    writers.stop();
    // The last of them has ended its copy-on-write.
    let shown = daemon.json("snapshot show vol@s");
    assert_eq!(shown["snapshot"]["state"], "ended");
    let refused = daemon.refuses(1, &format!("backup vol@s --to {}", load.scratch.join("again.img").display()));
    assert!(refused.contains("has ended"), "{refused}");
    assert!(e2e::nbd::Client::connect(&daemon.socket(), "vol@s").is_err(), "its view is gone");
    daemon.ok("snapshot delete vol@s");
    daemon.stop();
}

#[test]
fn the_daemon_moves_nothing_of_an_outboard_copy() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 64 * MIB, 3);
    let daemon = Daemon::serving(&scratch, &base);
    let read_by_daemon = || {
        let text = fs::read_to_string(format!("/proc/{}/io", daemon.process().id())).expect("the daemon runs");
        let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("what it has read");
        line.parse::<u64>().expect("a number")
    };
    let before = read_by_daemon();
    let to = scratch.join("copy.img");
    daemon.backup(&["vol", "--mode", "outboard", "--to", &format!("image:{}", to.display())]).run().exited(0);
    let read_meanwhile = read_by_daemon() - before;
    assert!(read_meanwhile < MIB, "the daemon has read {read_meanwhile} bytes");
    assert!(read(&to) == read(&base));
    daemon.stop();
}

/// Pages of a file that are in the page cache.
fn cached(path: &std::path::Path) -> u64 {
    let told = Program::new("fincore").args(["--noheadings", "--output", "PAGES"]).arg(path).ok();
    told.trim().parse().unwrap_or_else(|_| panic!("no number of pages: {told:?}"))
}

#[test]
fn a_backup_leaves_the_page_cache_as_it_was() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 64 * MIB, 31);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.ok("snapshot create s vol");
    for (name, options) in [("timezero", &[][..]), ("outboard", &["--mode", "outboard"])] {
        // Nothing of it, and then a quarter in the middle, as a host that is at work has it.
        let file = fs::File::open(&base).expect("the base can be opened");
        file.sync_all().expect("the base can be synced");
        fadvise(&file, 0, None, Advice::DontNeed).expect("advice is taken");
        // What is read ahead counts only once it is there.
        fadvise(&file, 0, None, Advice::Random).expect("advice is taken");
        file.read_exact_at(&mut vec![0; 16 * MIB as usize], 16 * MIB).expect("the base can be read");
        let before = cached(&base);
        assert!((4096..4200).contains(&before), "the middle is there, and nothing else: {before}");
        let to = scratch.join(format!("{name}.img"));
        let image = format!("image:{}", to.display());
        daemon.backup(&[&["vol@s", "--to", &image][..], options].concat()).run().exited(0);
        let after = cached(&base);
        assert!(after >= before, "{name}: the host's pages were pushed out: {before}, then {after}");
        assert!(after < before + 1024, "{name}: the copy left pages behind: {before}, then {after}");
    }
    daemon.stop();
}

#[test]
fn one_snapshot_is_ended_and_another_goes_on() {
    let load = Load::new(16 * MIB);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 7);
    writers.progress(200);
    let first = load.snapshot(&daemon, "first");
    writers.progress(200);
    let second = load.snapshot(&daemon, "second");
    writers.progress(200);
    let to = load.scratch.join("first.img");
    let image = format!("image:{}", to.display());
    daemon.backup(&["vol@first", "--to", &image, "--mode", "outboard", "--boundary", "terminate"]).run().exited(0);
    load.history.prove("first", &read(&to), first);
    writers.progress(400);
    load.prove(&daemon, "vol@second", second);
    let to = load.scratch.join("second.img");
    let image = format!("image:{}", to.display());
    daemon.backup(&["vol@second", "--to", &image, "--mode", "outboard", "--boundary", "marker"]).run().exited(0);
    load.history.prove("second", &read(&to), second);
    writers.stop();
    daemon.ok("snapshot delete vol@first");
    load.prove(&daemon, "vol@second", second);
    daemon.stop();
}

#[test]
fn the_record_says_what_moved_the_base() {
    for (kind, engine) in [("ext4", "copy_file_range"), ("xfs", "reflink"), ("btrfs", "reflink")] {
        let scratch = Scratch::new();
        let image = scratch.sparse("disk", 512 * MIB);
        Program::new(format!("mkfs.{kind}")).arg(if kind == "ext4" { "-q" } else { "-f" }).arg(&image).ok();
        let device = Loop::over(&image);
        let mount = Mounted::device(device.device(), &scratch.join("mount"));
        let base = mount.join("base");
        fs::copy(scratch.random("seed", 24 * MIB, 4), &base).expect("there is room");
        let daemon = Daemon::serving(&scratch, &base);
        let reference = read(&base);
        daemon.connect("vol").write(MIB, &bytes(MIB as usize, 5)).expect("writing works");
        let mut now = reference.clone();
        now[MIB as usize..2 * MIB as usize].copy_from_slice(&bytes(MIB as usize, 5));
        for (place, moved_by) in [(mount.join("copy.img"), engine), (scratch.join("elsewhere.img"), "read")] {
            let image = format!("image:{}", place.display());
            let finished = daemon.backup(&["vol", "--json", "--mode", "outboard", "--verify", "--to", &image]).run();
            finished.exited(0);
            assert_eq!(result(&finished)["copy"]["outboard"]["engine"], moved_by, "{kind}: {finished}");
            assert!(read(&place) == now, "{kind}, by {moved_by}");
        }
        daemon.stop();
    }
}

#[test]
fn a_part_of_a_volume() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 16 * MIB, 8);
    let t0 = read(&base);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.ok("snapshot create s vol --scope vol:1M+2M --scope vol:8M+1000");
    let shown = daemon.json("snapshot show vol@s");
    let parts = serde_json::json!([{"offset": MIB, "length": 2 * MIB}, {"offset": 8 * MIB, "length": 1000}]);
    assert_eq!(shown["snapshot"]["scope"], parts);
    let mut host = daemon.connect("vol");
    for offset in [0, MIB, 2 * MIB, 5 * MIB, 8 * MIB, 12 * MIB] {
        host.write(offset, &bytes(64 << 10, 9)).expect("writing works");
    }
    let saved: Vec<u64> = daemon.map("vol@s").into_iter().map(|(block, ..)| block * 512).collect();
    assert_eq!(saved.len(), 16 + 16 + 1, "nothing outside is saved: {saved:?}");
    let mut view = daemon.connect("vol@s");
    assert_eq!(view.read(MIB, 2 * MIB as u32).expect("it is in scope"), t0[MIB as usize..3 * MIB as usize]);
    assert_eq!(view.read(8 * MIB, 1000).expect("it is in scope"), t0[8 * MIB as usize..8 * MIB as usize + 1000]);
    for (offset, len) in [(0, 512), (MIB - 512, 1024), (3 * MIB - 512, 1024), (8 * MIB, 1024), (15 * MIB, 4096)] {
        let outside = view.read(offset, len);
        assert!(matches!(outside, Err(Failure::Refused(EIO))), "{offset}+{len}: {outside:?}");
    }
    for (name, source, options) in [
        ("standing", "vol@s", &[][..]),
        ("outboard", "vol@s", &["--mode", "outboard"]),
        ("own", "vol", &["--scope", "vol:1M+2M", "--scope", "vol:8M+1000"]),
    ] {
        let to = scratch.join(format!("{name}.img"));
        let image = format!("image:{}", to.display());
        let arguments = [&[source, "--json", "--verify", "--to", &image][..], options].concat();
        let finished = daemon.backup(&arguments).run();
        finished.exited(0);
        let copy = result(&finished)["copy"].clone();
        assert_eq!(copy["scope"], parts, "{copy}");
        let expected = if source == "vol" { read(&base) } else { t0.clone() };
        let mut image = vec![0; 16 * MIB as usize];
        for (from, to) in [(MIB, 3 * MIB), (8 * MIB, 8 * MIB + 1000)] {
            image[from as usize..to as usize].copy_from_slice(&expected[from as usize..to as usize]);
        }
        assert!(read(&to) == image, "{name}: what is in scope, and nothing else");
        assert!(allocated(&to) < 3 * MIB, "{name}: a hole is a hole");
        daemon.ok(&format!("copy verify {}", to.display()));
    }
    daemon.stop();
}

#[test]
fn scopes_that_are_none() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 4 * MIB, 9);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.ok("snapshot create s vol");
    let to = scratch.join("x.img");
    for line in [
        "snapshot create t vol --scope other:0+4096",
        "snapshot create t vol --scope vol:4M+1",
        "snapshot create t vol --scope vol:3M+2M",
        "snapshot create t vol --scope vol:0+0",
        &format!("backup vol --to {} --scope vol:4M+512", to.display()),
        &format!("backup vol --to {} --scope other:0+512", to.display()),
        &format!("backup vol@s --to {} --scope vol:0+512", to.display()),
        &format!("backup vol@s --to {} --on-full break", to.display()),
        &format!("backup vol --to {} --boundary all", to.display()),
        &format!("backup vol --to {} --layout overwrite", to.display()),
        &format!("backup vol --to {} --mode timezero --boundary marker", to.display()),
        &format!("backup vol --to {} --mode outboard --layout append", to.display()),
        &format!("backup {} --to {} --scope vol:0+512", scratch.random("plain", 4096, 1).display(), to.display()),
    ] {
        let sentence = daemon.refuses(2, line);
        assert!(!sentence.is_empty());
    }
    assert!(!to.exists());
    assert_eq!(daemon.snapshots("vol"), ["s"]);
    daemon.stop();
}

#[test]
fn a_snapshot_that_releases_has_one_reader_whose_slots_are_used_again() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 8 * MIB, 10);
    let t0 = read(&base);
    let daemon = Daemon::start(&scratch);
    // Room for an eighth of the volume.
    daemon.ok(&format!("volume add vol {} --cache-limit 1M", base.display()));
    daemon.ok("snapshot create s vol --originals release");
    assert_eq!(daemon.json("snapshot show vol@s")["snapshot"]["originals"], "release");
    let mut host = daemon.connect("vol");
    let mut reader = daemon.connect("vol@s");
    let second = e2e::nbd::Client::connect(&daemon.socket(), "vol@s");
    assert!(second.is_err(), "it has its one reader");
    let to = scratch.join("x.img");
    let refused = daemon.refuses(1, &format!("backup vol@s --to {}", to.display()));
    assert!(refused.contains("reads it"), "{refused}");
    let chunk = 512 << 10;
    for start in (0..8 * MIB).step_by(chunk) {
        // First all of it changes, so that what is read comes from the cache only.
        host.write(start, &bytes(chunk, 11)).expect("the host is never refused");
        let got = reader.read(start, chunk as u32).expect("it was not read before");
        assert!(got == t0[start as usize..start as usize + chunk], "at {start}");
    }
    let states: Vec<String> = daemon.map("vol@s").into_iter().map(|(_, state, _)| state).collect();
    assert!(states.iter().all(|state| state == "read") && !states.is_empty(), "{states:?}");
    let again: Vec<_> = (0..8 * MIB).step_by(chunk).map(|start| (start, reader.read(start, chunk as u32))).collect();
    let reused = again.iter().filter(|(_, read)| matches!(read, Err(Failure::Refused(EIO)))).count();
    assert!(reused >= 14, "slots were used again: {reused}");
    for (start, read) in &again {
        if let Ok(read) = read {
            assert!(*read == t0[*start as usize..*start as usize + chunk], "wrong bytes at {start}");
        }
    }
    assert_eq!(daemon.json("snapshot show vol@s")["snapshot"]["state"], "live");
    drop(reader);
    daemon.ok("snapshot delete vol@s");
    daemon.stop();
}

#[test]
fn an_unmodified_reader_of_a_snapshot_that_releases_gets_time_zero() {
    let load = Load::new(16 * MIB);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 8);
    writers.progress(200);
    let instant = load.history.instant(|| daemon.ok("snapshot create s vol --originals release")).0;
    writers.progress(200);
    let to = load.scratch.join("copied");
    Program::new("nbdcopy").arg(daemon.uri("vol@s")).arg(&to).limit(Duration::from_secs(60)).ok();
    load.history.prove("what nbdcopy made", &read(&to), instant);
    // What was read is used again as soon as a slot is wanted: each reader has a snapshot.
    daemon.ok("snapshot delete vol@s");
    let instant = load.history.instant(|| daemon.ok("snapshot create s vol --originals release")).0;
    writers.progress(200);
    let to = load.scratch.join("converted");
    Program::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &daemon.uri("vol@s")]).arg(&to).ok();
    load.history.prove("what qemu-img made", &read(&to), instant);
    writers.stop();
    daemon.stop();
}

#[test]
fn a_mover_is_held_back_as_it_is_told() {
    let load = Load::new(32 * MIB);
    let daemon = load.serve();
    let writers = load.writers(&daemon, 5);
    writers.progress(100);
    // 32 MiB at 16 MiB a second; what is in flight at the end has had its time.
    for (index, (options, longest)) in
        [("--rate 16M/s", None), ("--mode outboard --rate 16M/s", None), ("--host-p99 20us", Some(60))]
            .into_iter()
            .enumerate()
    {
        let to = load.scratch.join(format!("copy-{index}.img"));
        let begun = std::time::Instant::now();
        let line = format!("backup vol --to {} {options}", to.display());
        let (instant, copied) = load.history.instant(|| daemon.json(&line));
        let took = begun.elapsed();
        match longest {
            None => assert!(took > Duration::from_millis(1800), "{options}: {took:?}"),
            Some(longest) => assert!(took < Duration::from_secs(longest), "{options}: {took:?}"),
        }
        load.history.prove(options, &read(&to), instant);
        if options.contains("outboard") {
            assert_eq!(copied["copy"]["outboard"]["engine"], "read", "the kernel knows no rate: {copied}");
        }
    }
    writers.stop();
    for (wrong, word) in [
        ("backup vol --to /x --host-p99 1us", "10us"),
        ("backup vol --to /x --host-p99 2", "10us"),
        ("backup vol --to /x --rate 0", "leave it out"),
        ("backup ./base --to /x --host-p99 2ms", "--host-p99"),
    ] {
        assert!(daemon.refuses(2, wrong).contains(word), "{wrong}");
    }
}

#[test]
fn an_outboard_copy_needs_originals_that_are_kept() {
    let scratch = Scratch::new();
    let daemon = Daemon::serving(&scratch, &scratch.random("base", 4 * MIB, 12));
    daemon.ok("snapshot create s vol --originals release");
    let to = scratch.join("x.img");
    let refused = daemon.refuses(2, &format!("backup vol@s --mode outboard --to {}", to.display()));
    assert!(refused.contains("keeps"), "{refused}");
    assert!(!to.exists());
    daemon.stop();
}

#[test]
fn what_gives_when_the_cache_is_full() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 8 * MIB, 13);
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add vol {} --cache-limit 1M", base.display()));
    let state = |name: &str| daemon.json(&format!("snapshot show vol@{name}"))["snapshot"].clone();
    let mut host = daemon.connect("vol");
    for (name, on_full) in [("a", "break"), ("b", "wait:500ms")] {
        daemon.ok(&format!("snapshot create {name} vol --on-full {on_full}"));
        assert_eq!(state(name)["on_full"], on_full);
        for at in 0..32 {
            host.write((at * 128) << 10, &bytes(64 << 10, at)).expect("the host is never refused");
        }
        let broken = state(name);
        assert_eq!(broken["state"], "broken", "{broken}");
        assert!(broken["reason"].as_str().is_some_and(|reason| reason.contains("full")), "{broken}");
        daemon.ok(&format!("snapshot delete vol@{name}"));
    }
    daemon.ok("snapshot create c vol --on-full fail-writes");
    let t0 = daemon.contents("vol");
    let refused =
        (0..32).map(|at| host.write((at * 128) << 10, &bytes(64 << 10, 99 + at))).filter(Result::is_err).count();
    assert!(refused >= 14, "asked for, the host sees errors: {refused}");
    assert_eq!(state("c")["state"], "live");
    assert!(daemon.contents("vol@c") == t0, "and the snapshot is right");
    let _: Value = daemon.json("status");
    daemon.stop();
}

mod lane {
    use e2e::daemon::Setting;
    use e2e::scratch::{assert_same, copy};
    use e2e::waiting::until;
    use rustix::process::Signal;

    use super::*;
    use crate::clients::flat_out;
    use crate::load::Shape;

    #[test]
    fn every_way_while_fio_writes_flat_out() {
        for shape in Shape::ALL {
            flat_out_in_every_way(*shape, 512 * MIB);
        }
    }

    fn flat_out_in_every_way(shape: Shape, size: u64) {
        let scratch = Scratch::new();
        let base = scratch.random("base", size, 12);
        let reference = scratch.join("reference");
        copy(&base, &reference);
        let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
        for (name, options) in WAYS {
            // The host rests while there is one T0 that can be written down; then it writes and never rests.
            daemon.ok("snapshot create s vol");
            let mut load = flat_out(&daemon, size).start();
            load.until(|| !daemon.map("vol@s").is_empty());
            let to = scratch.join(format!("{name}.img"));
            let image = format!("image:{}", to.display());
            let copied = daemon.backup(&[&["vol@s", "--json", "--to", &image][..], options].concat()).run();
            copied.exited(0);
            assert!(!load.has_ended(), "{shape:?}, {name}: fio met an error: {}", load.stderr());
            drop(load);
            assert_same(&to, &reference);
            let record = &result(&copied)["copy"];
            eprintln!("{shape:?}, {name}: time zero, {} bytes of originals", record["bytes_changed"]);
            fs::remove_file(&to).expect("the copy can be removed");
            daemon.ok("snapshot delete vol@s");
            // What fio has sent may still be on its way in.
            until(|| daemon.json("volume show vol")["volume"]["connections"] == 0);
            fs::write(&reference, daemon.contents("vol")).expect("the reference can be written");
        }
        fuzzy(shape, &scratch, &daemon, &reference, size);
        daemon.stop();
    }

    /// What an outboard copy has before its originals are laid over it is no T0; with them it is.
    fn fuzzy(shape: Shape, scratch: &Scratch, daemon: &Daemon, reference: &std::path::Path, size: u64) {
        daemon.ok("snapshot create s vol");
        let mut load = flat_out(daemon, size).start();
        load.until(|| !daemon.map("vol@s").is_empty());
        let to = scratch.join("fuzzy.img");
        let image = format!("image:{}", to.display());
        let arguments = ["vol@s", "--json", "--mode", "outboard", "--to", &image];
        let copying = daemon.backup(&arguments).start();
        copying.line(|line| line.contains("\"phase\":\"originals\""));
        copying.signal(Signal::KILL);
        let _ = copying.wait();
        let unfinished = scratch.join("fuzzy.img.tzero-partial");
        let alone = read(&unfinished);
        let differing = alone.chunks(4096).zip(read(reference).chunks(4096)).filter(|(a, b)| a != b).count();
        assert!(
            differing > 100,
            "{shape:?}: the base alone was T0 but for {differing} blocks: the test proves nothing"
        );
        daemon.backup(&[&arguments[..], &["--resume"]].concat()).run().exited(0);
        assert!(!load.has_ended(), "{shape:?}: fio met an error: {}", load.stderr());
        drop(load);
        assert_same(&to, reference);
        eprintln!("{shape:?}: {differing} blocks of the base alone were not time zero, with the originals all are");
        fs::remove_file(&to).expect("the copy can be removed");
        daemon.ok("snapshot delete vol@s");
    }
}
