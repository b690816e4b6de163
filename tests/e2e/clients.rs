//! Unmodified clients on host exports and on views (R23-R25).

use std::path::Path;

use e2e::daemon::Setting;
use e2e::nbd::{Command, EPERM, FUA, Failure};
use e2e::scratch::{assert_same, bytes, copy, read};
use e2e::{Daemon, MIB, Program, Scratch};
use serde_json::Value;

use crate::load::Shape;

const SIZE: u64 = 16 * MIB;

/// A volume `vol` of random bytes with a snapshot `vol@s`, and what it holds.
fn snapshotted(scratch: &Scratch, shape: Shape) -> (Daemon, Vec<u8>) {
    let base = scratch.random("base", SIZE, 7);
    let reference = read(&base);
    let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
    daemon.ok("snapshot create s vol");
    (daemon, reference)
}

/// What the base, or all components of it, hold.
fn stored(scratch: &Scratch, shape: Shape) -> Vec<u8> {
    let mut bytes = read(&scratch.join("base"));
    if shape == Shape::Two {
        bytes.extend(read(&scratch.join("base.second")));
    }
    bytes
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
}

fn info(uri: &str) -> Value {
    let all = parsed(&Program::new("nbdinfo").args(["--json", uri]).ok());
    all["exports"][0].clone()
}

#[test]
fn nbdinfo_sees_what_a_volume_offers() {
    for &shape in Shape::ALL {
        let scratch = Scratch::new();
        let (daemon, _) = snapshotted(&scratch, shape);
        let export = info(&daemon.uri("vol"));
        assert_eq!(export["export-size"], SIZE);
        assert_eq!(export["is_read_only"], false);
        for can in
            ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
        {
            assert_eq!(export[can], true, "{can}: {export}");
        }
        assert!(export["block_size_minimum"].as_u64().is_some_and(|size| size <= 512), "{export}");
        assert!(export["block_size_maximum"].as_u64().is_some_and(|size| size >= 32 * MIB), "{export}");
        let contexts = export["contexts"].as_array().expect("contexts");
        assert!(contexts.iter().any(|context| context == "base:allocation"), "{export}");
        for can in ["connect", "flush", "fua", "trim", "zero", "write", "df", "multi-conn", "structured"] {
            Program::new("nbdinfo").args(["--can", can, &daemon.uri("vol")]).ok();
        }
        daemon.stop();
    }
}

#[test]
fn nbdinfo_sees_that_a_view_is_read_only() {
    for &shape in Shape::ALL {
        let scratch = Scratch::new();
        let (daemon, _) = snapshotted(&scratch, shape);
        let export = info(&daemon.uri("vol@s"));
        assert_eq!(export["export-size"], SIZE);
        assert_eq!(export["is_read_only"], true);
        assert_eq!(export["can_multi_conn"], true);
        Program::new("nbdinfo").args(["--is", "read-only", &daemon.uri("vol@s")]).ok();
        daemon.stop();
    }
}

#[test]
fn nbdinfo_lists_volumes_and_snapshots() {
    let scratch = Scratch::new();
    let (daemon, _) = snapshotted(&scratch, Shape::Plain);
    let uri = format!("nbd+unix://?socket={}", daemon.socket().display());
    let list = parsed(&Program::new("nbdinfo").args(["--list", "--json", &uri]).ok());
    let exports = list["exports"].as_array().expect("exports");
    let names: Vec<&str> = exports.iter().filter_map(|export| export["export-name"].as_str()).collect();
    assert_eq!(names, ["vol", "vol@s"]);
    let unknown = Program::new("nbdinfo").arg(daemon.uri("vol@none")).run();
    assert_ne!(unknown.code(), Some(0), "{unknown}");
    daemon.ok("snapshot delete vol@s");
    let gone = Program::new("nbdinfo").arg(daemon.uri("vol@s")).run();
    assert_ne!(gone.code(), Some(0), "{gone}");
    daemon.stop();
}

/// Extents of an export: (offset, length, type), type 0 being data.
fn extents(uri: &str) -> Vec<(u64, u64, u64)> {
    let map = parsed(&Program::new("nbdinfo").args(["--map", "--json", uri]).ok());
    let number = |extent: &Value, name: &str| extent[name].as_u64().unwrap_or_else(|| panic!("{name}: {extent}"));
    let list = map.as_array().expect("a list of extents").iter();
    list.map(|extent| (number(extent, "offset"), number(extent, "length"), number(extent, "type"))).collect()
}

fn kind_at(extents: &[(u64, u64, u64)], offset: u64) -> u64 {
    let found = extents.iter().find(|(start, length, _)| (*start..start + length).contains(&offset));
    found.unwrap_or_else(|| panic!("no extent covers {offset}: {extents:?}")).2
}

#[test]
fn holes_are_holes_and_a_view_remembers_them() {
    for &shape in Shape::ALL {
        let scratch = Scratch::new();
        let base = scratch.sparse("base", SIZE);
        let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
        let mut host = daemon.connect("vol");
        host.write(4 * MIB, &bytes(MIB as usize, 1)).expect("writing works");
        host.order(Command::Flush, 0, 0, 0).expect("flushing works");
        daemon.ok("snapshot create s vol");
        let before = extents(&daemon.uri("vol"));
        assert_eq!(before.iter().map(|extent| extent.1).sum::<u64>(), SIZE, "extents cover everything: {before:?}");
        assert_ne!(kind_at(&before, 0), 0, "{before:?}");
        assert_eq!(kind_at(&before, 4 * MIB), 0, "{before:?}");
        assert_ne!(kind_at(&before, 8 * MIB), 0, "{before:?}");
        host.write(8 * MIB, &bytes(MIB as usize, 2)).expect("writing works");
        host.order(Command::WriteZeroes, 0, 4 * MIB, MIB as u32).expect("zeroing works");
        host.order(Command::Flush, 0, 0, 0).expect("flushing works");
        assert_eq!(kind_at(&extents(&daemon.uri("vol")), 8 * MIB), 0, "new data is data");
        let view = extents(&daemon.uri("vol@s"));
        assert_eq!(kind_at(&view, 4 * MIB), 0, "the view's data is data, whatever the base has now: {view:?}");
        assert_ne!(kind_at(&view, 8 * MIB), 0, "a hole at time zero is a hole of the view: {view:?}");
        let contents = daemon.contents("vol@s");
        assert_eq!(contents[4 * MIB as usize..5 * MIB as usize], bytes(MIB as usize, 1));
        assert!(contents[8 * MIB as usize..9 * MIB as usize].iter().all(|byte| *byte == 0));
        daemon.stop();
    }
}

#[test]
fn qemu_img_reads_volume_and_view() {
    for &shape in Shape::ALL {
        let scratch = Scratch::new();
        let (daemon, reference) = snapshotted(&scratch, shape);
        daemon.connect("vol").write(MIB, &bytes(3 * MIB as usize, 8)).expect("writing works");
        let mut now = reference.clone();
        now[MIB as usize..4 * MIB as usize].copy_from_slice(&bytes(3 * MIB as usize, 8));
        for (export, expected) in [("vol", &now), ("vol@s", &reference)] {
            let uri = daemon.uri(export);
            let seen = parsed(&Program::new("qemu-img").args(["info", "--output=json", "-f", "raw", &uri]).ok());
            assert_eq!(seen["virtual-size"], SIZE);
            let map = parsed(&Program::new("qemu-img").args(["map", "--output=json", "-f", "raw", &uri]).ok());
            let length: u64 =
                map.as_array().expect("extents").iter().filter_map(|extent| extent["length"].as_u64()).sum();
            assert_eq!(length, SIZE);
            let out = scratch.join("out");
            Program::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", "-W", "-m", "8", &uri]).arg(&out).ok();
            assert!(read(&out) == *expected, "{export} converted differs");
            Program::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &uri]).arg(&out).ok();
        }
        daemon.stop();
    }
}

fn qemu_io(uri: &str, commands: &[&str]) {
    let finished = Program::new("qemu-io")
        .args(["-f", "raw", uri])
        .args(commands.iter().flat_map(|command| ["-c", command]))
        .run();
    finished.exited(0);
    // Some releases say only in words that a pattern was not found.
    assert!(!finished.stdout.contains("failed"), "{finished}");
}

#[test]
fn qemu_io_writes_patterns_zeroes_and_parts_of_blocks() {
    for &shape in Shape::ALL {
        let scratch = Scratch::new();
        let (daemon, reference) = snapshotted(&scratch, shape);
        qemu_io(
            &daemon.uri("vol"),
            &[
                "write -P 0xa1 512 1024",
                "write -P 0xb2 4000 100",
                "write -P 0xc3 1M 192k",
                "write -z 2M 64k",
                "write -z -u 3M 12k",
                "write -f -P 0xd4 16776704 512",
                "aio_write -P 0xe5 5M 64k",
                "aio_write -P 0xe6 6M 64k",
                "aio_flush",
                "flush",
                "read -P 0xa1 512 1024",
                "read -P 0xb2 4000 100",
                "read -P 0 2M 64k",
            ],
        );
        let mut expected = reference.clone();
        let mut fill = |from: usize, length: usize, byte: u8| expected[from..from + length].fill(byte);
        fill(512, 1024, 0xa1);
        fill(4000, 100, 0xb2);
        fill(MIB as usize, 192 << 10, 0xc3);
        fill(2 * MIB as usize, 64 << 10, 0);
        fill(3 * MIB as usize, 12 << 10, 0);
        fill(16_776_704, 512, 0xd4);
        fill(5 * MIB as usize, 64 << 10, 0xe5);
        fill(6 * MIB as usize, 64 << 10, 0xe6);
        assert!(daemon.contents("vol") == expected, "the volume");
        assert!(daemon.contents("vol@s") == reference, "the view");
        daemon.stop();
        assert!(stored(&scratch, shape) == expected, "the base");
    }
}

#[test]
fn a_discard_leaves_old_bytes_or_zeroes_and_the_view_alone() {
    for &shape in Shape::ALL {
        let scratch = Scratch::new();
        let (daemon, reference) = snapshotted(&scratch, shape);
        qemu_io(&daemon.uri("vol"), &["discard 1M 1M", "discard 8190k 12k", "flush"]);
        assert!(daemon.contents("vol@s") == reference, "the view");
        let after = daemon.contents("vol");
        let discarded = |offset: usize| {
            let mib = MIB as usize;
            (mib..2 * mib).contains(&offset) || (8190 << 10..8202 << 10).contains(&offset)
        };
        for (offset, (new, old)) in after.iter().zip(&reference).enumerate() {
            assert!(new == old || (discarded(offset) && *new == 0), "byte {offset}: {old} became {new}");
        }
        daemon.ok("snapshot delete vol@s");
        // Nothing is pending now: the advice can be taken.
        qemu_io(&daemon.uri("vol"), &["discard 1M 1M", "flush"]);
        let after = daemon.contents("vol");
        assert!(after[2 * MIB as usize..8190 << 10] == reference[2 * MIB as usize..8190 << 10]);
        daemon.stop();
    }
}

#[test]
fn nbdcopy_goes_both_ways() {
    for &shape in Shape::ALL {
        let scratch = Scratch::new();
        let (daemon, reference) = snapshotted(&scratch, shape);
        let new = scratch.random("new", SIZE, 9);
        let out = scratch.join("out");
        let copier = || Program::new("nbdcopy").args(["--requests=16", "--connections=4"]);
        copier().arg(&new).arg(daemon.uri("vol")).ok();
        copier().arg(daemon.uri("vol@s")).arg(&out).ok();
        assert!(read(&out) == reference, "the view, while and after all of the volume was overwritten");
        copier().arg(daemon.uri("vol")).arg(&out).ok();
        assert_same(&out, &new);
        daemon.stop();
        assert!(stored(&scratch, shape) == read(&new));
    }
}

#[test]
fn buffered_and_single_block_reads_give_one_image() {
    for &shape in Shape::ALL {
        // R22
        let scratch = Scratch::new();
        let (daemon, reference) = snapshotted(&scratch, shape);
        let mut host = daemon.connect("vol");
        for block in (0..2048).step_by(3) {
            host.write(block * 512, &[0x5a; 512]).expect("writing works");
        }
        let mut view = daemon.connect("vol@s");
        for block in 0..2048_u64 {
            let bytes = view.read(block * 512, 512).expect("reading works");
            assert_eq!(bytes, reference[(block * 512) as usize..][..512], "block {block}");
        }
        for (offset, length) in
            [(0, 4096), (100, 5000), (511, 1), (4095, 2), (1, 70_000), (SIZE - 1, 1), (SIZE - 4097, 4097)]
        {
            if offset % shape.block() + length % shape.block() != 0 {
                continue;
            }
            let bytes = view.read(offset, length as u32).expect("reading works");
            assert!(bytes == reference[offset as usize..][..length as usize], "{length} bytes at {offset}");
        }
        daemon.stop();
    }
}

#[test]
fn a_view_refuses_every_change() {
    for &shape in Shape::ALL {
        // R24
        let scratch = Scratch::new();
        let (daemon, reference) = snapshotted(&scratch, shape);
        let mut view = daemon.connect("vol@s");
        assert!(view.is_read_only());
        let refused = |result: Result<(), Failure>| match result {
            Err(Failure::Refused(number)) => assert_eq!(number, EPERM),
            other => panic!("not refused: {other:?}"),
        };
        refused(view.write(0, &[1; 4096]));
        refused(view.order(Command::WriteZeroes, FUA, 0, 4096));
        refused(view.order(Command::Trim, 0, 0, 4096));
        assert_eq!(view.read(0, 4096).expect("the connection lives on"), reference[..4096]);
        let qemu = Program::new("qemu-io").args(["-f", "raw", &daemon.uri("vol@s"), "-c", "write 0 4k"]).run();
        assert_ne!(qemu.code(), Some(0), "{qemu}");
        daemon.stop();
        assert!(stored(&scratch, shape) == reference);
    }
}

#[test]
fn fio_verifies_what_it_wrote() {
    for &shape in Shape::ALL {
        let scratch = Scratch::new();
        let base = scratch.sparse("base", 4 * SIZE);
        let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
        daemon.ok("snapshot create s vol");
        Program::new("fio")
            .dir(scratch.path())
            .args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-64k", "--iodepth=16"])
            .args(["--numjobs=3", "--size=16m", "--offset_increment=16m", "--verify=crc32c", "--verify_fatal=1"])
            .args(["--do_verify=1", "--group_reporting=1", "--verify_state_save=0"])
            .arg(format!("--uri={}", daemon.uri("vol")))
            .ok();
        assert!(daemon.contents("vol@s").iter().all(|byte| *byte == 0), "the view is as empty as the volume was");
        daemon.stop();
        assert!(stored(&scratch, shape).iter().any(|byte| *byte != 0), "fio wrote");
    }
}

/// fio at full speed on several connections until it is killed; in threads, so that all of it is.
pub(crate) fn flat_out(daemon: &Daemon, size: u64) -> Program {
    Program::new("fio")
        .args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--numjobs=3", "--thread"])
        .args(["--time_based", "--runtime=600", "--norandommap", "--randrepeat=0"])
        .arg(format!("--size={size}"))
        .arg(format!("--uri={}", daemon.uri("vol")))
}

/// A volume full of known bytes, a snapshot, fio flat out; then `rounds` copies of the view, each compared with T0.
fn copies_under_load(shape: Shape, size: u64, rounds: u32) {
    let scratch = Scratch::new();
    let base = scratch.random("base", size, 11);
    let reference = scratch.join("reference");
    copy(&base, &reference);
    let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
    daemon.ok("snapshot create s vol");
    let mut load = flat_out(&daemon, size).start();
    load.until(|| !daemon.map("vol@s").is_empty());
    let out = scratch.join("out");
    for round in 0..rounds {
        Program::new("nbdcopy").args(["--connections=2", &daemon.uri("vol@s")]).arg(&out).ok();
        assert!(!load.has_ended(), "{shape:?}, round {round}: fio met an error: {}", load.stderr());
        assert_same(&out, &reference);
    }
    drop(load);
    changed(&daemon.contents("vol"), &reference);
    daemon.stop();
}

fn changed(now: &[u8], reference: &Path) {
    let differing = now.chunks(4096).zip(read(reference).chunks(4096)).filter(|(a, b)| a != b).count();
    assert!(differing > 100, "the load changed only {differing} blocks of the volume");
}

#[test]
fn nbdcopy_of_a_view_is_time_zero_while_fio_writes_flat_out() {
    copies_under_load(Shape::Plain, 64 * MIB, 3);
    for shape in Shape::OTHERS {
        copies_under_load(*shape, 32 * MIB, 1);
    }
}

mod lane {
    use super::*;

    #[test]
    fn nbdcopy_of_a_large_view_is_time_zero_while_fio_writes_flat_out() {
        for shape in Shape::ALL {
            copies_under_load(*shape, 1024 * MIB, 10);
        }
    }
}
