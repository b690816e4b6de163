//! What a volume can stand on: several components in a row, and what must not be one.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use e2e::mounts::Loop;
use e2e::scratch::{allocated, bytes, read};
use e2e::{Daemon, MIB, Scratch};

use crate::load::Load;

/// The components of a volume, cut from the base of a load at these lengths; the last one has the rest.
fn cut(load: &Load, lengths: &[u64]) -> Vec<PathBuf> {
    let whole = read(&load.scratch.join("base"));
    let mut rest = &whole[..];
    let mut parts = Vec::new();
    for (number, length) in lengths.iter().chain([&u64::MAX]).enumerate() {
        let (part, others) = rest.split_at((*length).min(rest.len() as u64) as usize);
        let path = load.scratch.join(format!("part{number}"));
        fs::write(&path, part).expect("the scratch directory can be written");
        parts.push(path);
        rest = others;
    }
    parts
}

fn line(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
}

/// A snapshot, a copy and a second one under load, the daemon killed and started again with the snapshot standing; and the components hold the
/// volume.
fn keeps_its_instants(load: &Load, parts: &[PathBuf], options: &str) {
    let daemon = Daemon::start(&load.scratch);
    daemon.ok(&format!("volume add vol {} {options}", line(parts)));
    let writers = load.writers(&daemon, 1);
    writers.progress(300);
    let standing = load.snapshot(&daemon, "s");
    writers.progress(300);
    let to = load.scratch.join("copy.img");
    let image = format!("image:{}", to.display());
    let (instant, finished) = load.history.instant(|| daemon.backup(&["vol", "--verify", "--to", &image]).run());
    finished.exited(0);
    load.history.prove("the copy", &read(&to), instant);
    daemon.kill();
    writers.cut_off();

    let daemon = load.setting().start();
    load.prove(&daemon, "vol@s", standing);
    let to = load.scratch.join("kept.img");
    daemon.backup(&["vol@s", "--to", &format!("image:{}", to.display())]).run().exited(0);
    load.history.prove("the copy of the snapshot", &read(&to), standing);
    let writers = load.writers(&daemon, 2);
    writers.progress(300);
    load.prove(&daemon, "vol@s", standing);
    writers.stop();
    let now = daemon.contents("vol");
    load.history.prove("the volume", &now, load.history.now());
    let lengths: Vec<u64> =
        parts.iter().map(|part| File::open(part).unwrap().seek(SeekFrom::End(0)).unwrap()).collect();
    for (unit, block, _) in daemon.places("vol@s") {
        assert!(block * 512 < lengths[unit as usize], "block {block} of unit {unit} lies outside");
    }
    let together: Vec<u8> = parts.iter().flat_map(|part| read(part)).collect();
    assert!(together == now, "the components hold the volume, one after the other");
    daemon.ok("snapshot delete vol@s");
    daemon.stop();
}

#[test]
fn two_components() {
    let load = Load::new(16 * MIB);
    let parts = cut(&load, &[5 * MIB]);
    keeps_its_instants(&load, &parts, "");
}

#[test]
fn three_components_of_odd_sizes_with_small_and_large_grains() {
    for (grain, lengths, size) in [
        ("512", [3 * MIB + 1536, 512], 8 * MIB + 2560),
        ("64K", [MIB + 65_536, 65_536], 8 * MIB + 4608),
        ("1M", [MIB, 3 * MIB], 8 * MIB + 512),
    ] {
        let load = Load::new(size);
        let parts = cut(&load, &lengths);
        keeps_its_instants(&load, &parts, &format!("--grain {grain}"));
    }
}

#[test]
fn direct_components_one_of_them_a_device() {
    let load = Load::new(16 * MIB);
    let mut parts = cut(&load, &[4 * MIB, 6 * MIB]);
    let device = Loop::over(&parts[1]);
    parts[1] = device.device().to_path_buf();
    keeps_its_instants(&load, &parts, "--direct");
}

#[test]
fn a_write_across_components_is_saved_place_by_place() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.random("first", 64 << 10, 1), scratch.random("second", 68 << 10, 2));
    let t0: Vec<u8> = [read(&first), read(&second)].concat();
    let daemon = Daemon::start(&scratch);
    let added = daemon.json(&format!("volume add vol {} {}", first.display(), second.display()));
    let volume = &added["volume"];
    assert_eq!((volume["size"].as_u64(), volume["base"].as_str()), (Some(132 << 10), first.to_str()));
    let bases = volume["bases"].as_array().expect("the bases are listed");
    let told: Vec<_> = bases
        .iter()
        .map(|base| (base["unit"].as_u64(), base["place"].as_str(), base["offset"].as_u64(), base["size"].as_u64()))
        .collect();
    assert_eq!(
        told,
        [
            (Some(0), first.to_str(), Some(0), Some(64 << 10)),
            (Some(1), second.to_str(), Some(64 << 10), Some(68 << 10)),
        ]
    );
    daemon.ok("snapshot create s vol");
    let mut client = daemon.connect("vol");
    let fresh = bytes(12 << 10, 3);
    client.write(60 << 10, &fresh).expect("a write across the boundary");
    let mut units: Vec<_> = daemon.places("vol@s").into_iter().map(|(unit, block, _)| (unit, block)).collect();
    units.sort_unstable();
    assert_eq!(units, [(0, 120), (1, 0), (1, 8)]);
    assert!(daemon.contents("vol@s") == t0);
    assert_eq!(read(&first)[60 << 10..], fresh[..4 << 10]);
    assert_eq!(read(&second)[..8 << 10], fresh[4 << 10..]);
    daemon.stop();
}

#[test]
fn what_no_row_of_components_can_be() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.random("first", 64 << 10, 1), scratch.random("second", 64 << 10, 2));
    let odd = scratch.random("odd", (64 << 10) + 512, 3);
    let link = scratch.join("link");
    std::os::unix::fs::symlink(&first, &link).expect("a link");
    let (a, b, odd, link) = (first.display(), second.display(), odd.display(), link.display());
    let daemon = Daemon::start(&scratch);
    assert!(daemon.refuses(2, &format!("volume add v {odd} {a}")).contains("component 0"));
    assert!(daemon.refuses(2, &format!("volume add v {a} {link}")).contains("twice"));
    assert!(daemon.refuses(2, &format!("volume add v {a} {b} --size 128K")).contains("single base"));
    let over = Loop::over(&second);
    let device = over.device().display();
    assert!(daemon.refuses(1, &format!("volume add v {b} {device}")).contains("same bytes"));
    daemon.ok(&format!("volume add v {a} {odd}"));
    for taken in [format!("{odd}"), format!("{b} {odd}"), format!("{link}")] {
        assert!(daemon.refuses(1, &format!("volume add w {taken}")).contains("base of volume v"), "{taken}");
    }
    // The second component is nobody's destination either, and its loss is noticed.
    let to = format!("backup v --to image:{odd} --replace");
    assert_eq!(daemon.run(&to).code(), Some(1));
    daemon.stop();

    let mut daemon = Daemon::start(&scratch);
    daemon.announce("was cut to");
    let cut = OpenOptions::new().write(true).open(scratch.join("odd")).expect("a base");
    cut.set_len(64 << 10).expect("a base can be cut");
    e2e::waiting::until(|| daemon.json("volume show v")["volume"]["state"] == "failed");
    assert!(daemon.json("volume show v")["volume"]["reason"].as_str().is_some_and(|why| why.contains("odd")));
    daemon.stop();
}

#[test]
fn a_component_that_changed_while_nobody_served_it_breaks_the_snapshots() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.random("first", 64 << 10, 1), scratch.random("second", 64 << 10, 2));
    let daemon = Daemon::start(&scratch);
    daemon.ok(&format!("volume add v {} {}", first.display(), second.display()));
    daemon.ok("snapshot create s v");
    daemon.stop();
    let daemon = Daemon::start(&scratch);
    assert_eq!(daemon.json("snapshot show v@s")["snapshot"]["state"], "live");
    daemon.stop();
    OpenOptions::new().write(true).open(&second).unwrap().write_all_at(b"!", 65_535).unwrap();
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("was changed while the daemon was down");
    assert_eq!(daemon.json("snapshot show v@s")["snapshot"]["state"], "broken");
    daemon.stop();

    // Two of one size, exchanged, are two others: served, as after a restore.
    fs::rename(&first, scratch.join("x")).unwrap();
    fs::rename(&second, &first).unwrap();
    fs::rename(scratch.join("x"), &second).unwrap();
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("was changed while the daemon was down");
    assert_eq!(daemon.json("volume show v")["volume"]["generation"], 2);
    daemon.stop();
    OpenOptions::new().append(true).open(&second).unwrap().write_all(&[0; 512]).unwrap();
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("not served, and tried again");
    let shown = daemon.json("volume show v");
    assert!(shown["volume"]["reason"].as_str().is_some_and(|why| why.contains("second") && why.contains("66048")));
    daemon.stop();
}

#[test]
fn a_base_that_is_not_there_is_made() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch);
    let base = scratch.join("made");
    let at = base.display();
    assert!(daemon.refuses(1, &format!("volume add v {at}")).contains("does not exist"));
    assert!(!base.exists());
    // It goes again with a volume that cannot be.
    let missing = scratch.join("missing");
    daemon.refuses(1, &format!("volume add v {at} --size 1G --cache-dir {}", missing.display()));
    assert!(!base.exists());
    assert_eq!(daemon.json(&format!("volume add v {at} --size 1G"))["volume"]["size"], 1 << 30);
    assert_eq!((base.metadata().unwrap().len(), allocated(&base)), (1 << 30, 0));
    daemon.connect("v").write((1 << 30) - 512, &[7; 512]).expect("its last sector");
    daemon.ok("volume remove v");
    assert!(daemon.refuses(2, &format!("volume add v {at} --size 2G")).contains("1073741824"));
    daemon.ok(&format!("volume add v {at} --size 1G"));
    assert_eq!(base.metadata().unwrap().len(), 1 << 30);
    for size in ["0", "100", "513"] {
        daemon.refuses(2, &format!("volume add w {} --size {size}", scratch.join("w").display()));
    }
    assert!(!scratch.join("w").exists());
    daemon.stop();
}
