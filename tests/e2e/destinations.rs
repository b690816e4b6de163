//! Where copies and restores go, and where they must not: onto volumes, into the state, over somebody else's files.

use std::fs;
use std::path::Path;

use e2e::mounts::Loop;
use e2e::process::Program;
use e2e::scratch::{assert_same, bytes, names, read};
use e2e::{Daemon, MIB, Scratch, Tzero};

const SIZE: u64 = 16 * MIB;

/// A daemon that serves `base` as `vol`, and a copy of something else.
fn serving(scratch: &Scratch) -> (Daemon, std::path::PathBuf) {
    let daemon = Daemon::serving(scratch, &scratch.random("base", SIZE, 1));
    let (plain, copy) = (scratch.random("plain", SIZE, 2), scratch.join("copy.img"));
    daemon.run(&format!("backup {} --to image:{}", plain.display(), copy.display())).exited(3);
    (daemon, copy)
}

/// Neither a backup nor a restore writes there, whatever is asked for; gives what they say.
fn spares(tzero: &Tzero, code: i32, copy: &Path, to: &Path) -> String {
    let plain = copy.with_file_name("plain");
    let (copy, plain, to) = (copy.display(), plain.display(), to.display());
    let said = tzero.refuses(code, &format!("restore {copy} --to {to} --force"));
    tzero.refuses(code, &format!("backup {plain} --to image:{to} --replace"));
    said
}

#[test]
fn a_served_base_is_spared_through_other_devices() {
    let scratch = Scratch::new();
    let (daemon, copy) = serving(&scratch);
    let base = scratch.join("base");
    let before = read(&base);
    daemon.ok("snapshot create s vol");
    let (one, other) = (Loop::over(&base), Loop::over(&base));
    for to in [one.device(), other.device(), &base] {
        let said = spares(&daemon, 1, &copy, to);
        assert!(said.contains("volume vol") && said.contains("volume remove"), "{said}");
        daemon.refuses(1, &format!("backup vol@s --to image:{} --replace", to.display()));
    }
    assert!(read(&base) == before && daemon.contents("vol@s") == before);
    // Once it is no volume any more, nothing is in the way.
    daemon.ok("snapshot delete vol@s");
    daemon.ok("volume remove vol");
    daemon.ok(&format!("restore {} --to {} --force", copy.display(), one.device().display()));
    assert_same(&base, &copy);
    daemon.stop();
}

#[test]
fn a_volume_over_a_device_spares_the_file_below() {
    let scratch = Scratch::new();
    let file = scratch.random("base", SIZE, 1);
    let before = read(&file);
    let (one, other) = (Loop::over(&file), Loop::over(&file));
    let daemon = Daemon::serving(&scratch, one.device());
    let (plain, copy) = (scratch.random("plain", SIZE, 2), scratch.join("copy.img"));
    daemon.run(&format!("backup {} --to image:{}", plain.display(), copy.display())).exited(3);
    for to in [&file, other.device(), one.device()] {
        spares(&daemon, 1, &copy, to);
    }
    daemon.refuses(1, &format!("volume add again {}", other.device().display()));
    assert!(read(&file) == before);
    daemon.stop();
}

#[test]
fn a_registered_base_is_spared_when_no_daemon_runs() {
    let scratch = Scratch::new();
    let (daemon, copy) = serving(&scratch);
    let base = scratch.join("base");
    let before = read(&base);
    daemon.stop();
    let tzero = Tzero::at(&scratch.join("state"));
    let device = Loop::over(&base);
    for to in [&base, device.device()] {
        let said = spares(&tzero, 1, &copy, to);
        assert!(said.contains("volume vol"), "{said}");
    }
    assert!(read(&base) == before);
}

#[test]
fn a_base_that_another_daemon_serves_is_spared() {
    let scratch = Scratch::new();
    let (daemon, copy) = serving(&scratch);
    let base = scratch.join("base");
    let before = read(&base);
    let elsewhere = Tzero::at(&scratch.join("elsewhere"));
    let device = Loop::over(&base);
    for to in [&base, device.device()] {
        let said = spares(&elsewhere, 1, &copy, to);
        assert!(said.contains("locked"), "{said}");
    }
    assert!(read(&base) == before);
    daemon.stop();
}

#[test]
fn a_device_that_holds_something_is_restored_to_only_on_request() {
    let scratch = Scratch::new();
    let (daemon, copy) = serving(&scratch);
    let restore = |to: &Path| format!("restore {} --to {}", copy.display(), to.display());
    let system = scratch.sparse("system", SIZE);
    Program::new("mkfs.ext4").args(["-q", "-F"]).arg(&system).ok();
    let before = read(&system);
    let device = Loop::over(&system);
    let said = daemon.refuses(1, &restore(device.device()));
    assert!(said.contains("not blank") && said.contains("--force"), "{said}");
    assert!(read(&system) == before);
    daemon.ok(&format!("{} --force", restore(device.device())));
    assert_same(&system, &copy);

    let blank = Loop::over(&scratch.sparse("blank", SIZE));
    daemon.ok(&restore(blank.device()));

    // A copy of ours is one of these things, also when it is all zeroes.
    let held = Loop::over(&scratch.sparse("held", SIZE));
    let zeroes = scratch.sparse("zeroes", SIZE);
    daemon.run(&format!("backup {} --to {}", zeroes.display(), held.device().display())).exited(3);
    let said = daemon.refuses(1, &restore(held.device()));
    assert!(said.contains("copy") && said.contains("--force"), "{said}");
    daemon.ok(&format!("copy verify {}", held.device().display()));
    daemon.ok(&format!("{} --force", restore(held.device())));
    daemon.refuses(1, &format!("copy show {}", held.device().display()));
    let copies = daemon.json("copy list")["copies"].as_array().map(Vec::len);
    assert_eq!(copies, Some(1), "what was overwritten is listed no more");
    daemon.stop();
}

#[test]
fn names_and_places_that_are_taken() {
    let scratch = Scratch::new();
    let (daemon, copy) = serving(&scratch);
    for suffix in ["", "-partial", "-journal", "-restore", ".new"] {
        spares(&daemon, 2, &copy, &scratch.join(format!("copy.img.tzero{suffix}")));
    }
    daemon.ok(&format!("copy verify {}", copy.display()));
    let state = scratch.join("state");
    let record = read(&state.join("volumes/vol/volume.json"));
    for inside in ["volumes/vol/volume.json", "volumes/vol/originals", "catalogue/x", "x"] {
        spares(&daemon, 2, &copy, &state.join(inside));
    }
    assert!(read(&state.join("volumes/vol/volume.json")) == record);
    daemon.stop();
}

#[test]
fn files_of_somebody_else_are_never_overwritten() {
    let scratch = Scratch::new();
    let (daemon, copy) = serving(&scratch);
    let dir = scratch.join("dir");
    fs::create_dir(&dir).expect("a directory can be made");
    let to = dir.join("new.img");
    for suffix in [".tzero", ".tzero-partial", ".tzero-journal", ".tzero.new"] {
        let foreign = dir.join(format!("new.img{suffix}"));
        fs::write(&foreign, b"precious").expect("a file can be written");
        let line = format!("backup vol --to image:{}", to.display());
        for line in [line.clone(), format!("{line} --replace")] {
            let said = daemon.refuses(1, &line);
            assert!(said.contains(&foreign.display().to_string()), "{said}");
        }
        assert!(daemon.snapshots("vol").is_empty(), "refused backups leave no snapshot");
        assert_eq!((names(&dir), read(&foreign)), (vec![format!("new.img{suffix}")], b"precious".to_vec()));
        fs::remove_file(&foreign).expect("it is there");
    }
    for suffix in [".tzero", ".tzero-journal", ".tzero.new", ".tzero-restore"] {
        let foreign = dir.join(format!("new.img{suffix}"));
        fs::write(&foreign, b"precious").expect("a file can be written");
        for force in ["", " --force"] {
            daemon.refuses(1, &format!("restore {} --to {}{force}", copy.display(), to.display()));
        }
        assert_eq!((names(&dir), read(&foreign)), (vec![format!("new.img{suffix}")], b"precious".to_vec()));
        fs::remove_file(&foreign).expect("it is there");
    }
    daemon.stop();
}

#[test]
fn a_killed_restore_can_be_repeated_at_once() {
    let scratch = Scratch::new();
    let (plain, copy) = (scratch.random("plain", 128 * MIB, 2), scratch.join("copy.img"));
    let tzero = Tzero::at(&scratch.join("state"));
    tzero.run(&format!("backup {} --to image:{}", plain.display(), copy.display())).exited(3);
    let target = scratch.join("target");
    for round in 0..6 {
        let restore = ["restore", &copy.display().to_string(), "--to", &target.display().to_string(), "--json"];
        let process = tzero.command(restore).start();
        process.line(|line| line.contains("progress"));
        if round % 2 == 1 {
            process.line(|line| line.contains("\"verify\""));
        }
        process.signal(rustix::process::Signal::KILL);
        let _ = process.wait();
        if target.exists() {
            assert_same(&target, &copy);
            fs::remove_file(&target).expect("it is there");
        }
        tzero.command(restore).run().exited(0);
        assert_same(&target, &copy);
        fs::remove_file(&target).expect("it is there");
    }
}

#[test]
fn a_base_that_was_cut_is_told_as_such() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let mut daemon = Daemon::serving(&scratch, &base);
    daemon.announce("");
    fs::File::options().write(true).open(&base).and_then(|file| file.set_len(SIZE / 2)).expect("it can be cut");
    let said = daemon.refuses(1, &format!("backup vol --to image:{}", scratch.join("copy.img").display()));
    assert!(said.contains("cut") && said.contains(&(SIZE / 2).to_string()), "{said}");
    assert!(daemon.snapshots("vol").is_empty());
    fs::write(&base, bytes(SIZE as usize, 1)).expect("it can be mended");
    daemon.stop();
}
