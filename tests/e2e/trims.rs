//! `mkfs` and `fstrim` on a volume with a snapshot: the snapshot stands, and the cache is not flooded with what is only thrown away.

use std::fs;
use std::time::Duration;

use e2e::disk::Disk;
use e2e::scratch::{bytes, read};
use e2e::{Daemon, MIB, Program, Scratch};

const SIZE: u64 = 320 * MIB;

fn saved(daemon: &Daemon) -> u64 {
    daemon.json("volume show vol")["volume"]["cache_used"].as_u64().expect("a number of bytes")
}

#[test]
fn a_file_system_is_made_over_a_snapshot() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 41);
    let t0 = read(&base);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.ok("snapshot create s vol");
    let disk = Disk::that_trims(&scratch, &daemon, SIZE);
    // It discards the whole device first, then writes its tables.
    Program::new("mkfs.ext4").args(["-F", "-E", "discard"]).arg(disk.device()).limit(Duration::from_secs(60)).ok();
    Program::new("sync").arg(disk.device()).ok();
    let after_mkfs = saved(&daemon);
    assert!(after_mkfs < SIZE / 8, "mkfs saved {after_mkfs} bytes");
    assert!(daemon.contents("vol@s") == t0, "the snapshot is what the volume held");
    Program::new("mkfs.xfs").arg("-f").arg(disk.device()).limit(Duration::from_secs(60)).ok();
    Program::new("sync").arg(disk.device()).ok();
    let after_both = saved(&daemon);
    assert!(after_both < SIZE / 4, "both saved {after_both} bytes");
    assert!(daemon.contents("vol@s") == t0, "the snapshot is what the volume held");
    assert_eq!(daemon.json("snapshot show vol@s")["snapshot"]["state"], "live");
    drop(disk);
    daemon.stop();
}

#[test]
fn what_is_trimmed_is_not_saved() {
    let scratch = Scratch::new();
    let base = scratch.sparse("base", SIZE);
    let daemon = Daemon::serving(&scratch, &base);
    let disk = Disk::that_trims(&scratch, &daemon, SIZE);
    let mounted = disk.formatted(&scratch.join("mnt"));
    for file in 0..16 {
        fs::write(mounted.join(&format!("file{file}")), bytes(8 << 20, file)).expect("there is room");
    }
    Program::new("sync").arg("-f").arg(mounted.path()).ok();
    daemon.ok("snapshot create s vol");
    let t0 = daemon.contents("vol@s");
    for file in 0..14 {
        fs::remove_file(mounted.join(&format!("file{file}"))).expect("it is there");
    }
    Program::new("sync").arg("-f").arg(mounted.path()).ok();
    Program::new("fstrim").arg(mounted.path()).limit(Duration::from_secs(60)).ok();
    Program::new("sync").arg("-f").arg(mounted.path()).ok();
    let saved = saved(&daemon);
    assert!(saved < 8 * MIB, "112 MiB were trimmed and {saved} bytes saved");
    assert!(daemon.contents("vol@s") == t0, "the snapshot is what the volume held");
    let to = scratch.join("copy.img");
    daemon.backup(&["vol@s", "--to", &format!("image:{}", to.display())]).run().exited(0);
    assert!(read(&to) == t0);
    drop((mounted, disk));
    daemon.stop();
}
