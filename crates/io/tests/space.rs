//! Mappings where blocks are shared and space runs out: a store fails or works, and never kills.

mod support;

use std::fs::File;
use std::io::ErrorKind;
use std::process::Command;

use support::Mounted;
use tzero_io::{Directory, MappedFile, Mapping, Storage};

const LEN: u64 = 1 << 20;
const XFS: &[&str] = &["mkfs.xfs", "-q", "-m", "reflink=1"];

fn words() -> impl Iterator<Item = u64> {
    (0..LEN).step_by(8)
}

fn fill_in(mapping: &MappedFile, number: u64) {
    words().for_each(|at| mapping.store(at, at + number).unwrap());
    mapping.sync().unwrap();
}

/// Stores to every page and looks at what became of it; gives how many stores failed.
fn store_everywhere(mapping: &MappedFile, was: u64, becomes: u64) -> usize {
    let mut failed = 0;
    for at in words().step_by(512) {
        let expected = match mapping.store_all(at, &[at + becomes, at + 8 + becomes]) {
            Ok(()) => becomes,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                failed += 1;
                was
            }
        };
        assert_eq!([mapping.load(at), mapping.load(at + 8)], [at + expected, at + 8 + expected]);
    }
    failed
}

#[test]
fn a_store_into_blocks_that_were_shared_meanwhile_fails_and_does_not_kill() {
    let mounted = Mounted::new(XFS);
    let mapping = Directory::new(mounted.path()).open("state", LEN).unwrap();
    fill_in(&mapping, 1);
    mounted.share("state", "copy");
    mounted.fill();
    assert!(store_everywhere(&mapping, 1, 2) > 0, "there is space for new blocks: the test shows nothing");
}

#[test]
fn a_copied_state_that_shares_its_blocks_gets_its_own_when_opened() {
    let mounted = Mounted::new(XFS);
    let directory = Directory::new(mounted.path());
    fill_in(&directory.open("original", LEN).unwrap(), 1);
    mounted.share("original", "state");
    mounted.share("original", "late");
    let mapping = directory.open("state", LEN).unwrap();
    mounted.fill();
    assert_eq!(store_everywhere(&mapping, 1, 2), 0);
    mapping.sync().unwrap();
    let late = directory.open("late", LEN).err().expect("there is no space for blocks of its own");
    assert_eq!(late.kind(), ErrorKind::StorageFull);
}

#[test]
fn where_nothing_is_ever_shared_a_full_disk_does_not_matter() {
    for mkfs in [&["mkfs.xfs", "-q", "-m", "reflink=0"][..], &["mkfs.ext4", "-q"]] {
        let mounted = Mounted::new(mkfs);
        let mapping = Directory::new(mounted.path()).open("state", LEN).unwrap();
        mounted.fill();
        assert_eq!(store_everywhere(&mapping, 0, 2), 0, "{mkfs:?}");
        mapping.sync().unwrap();
    }
}

#[test]
fn btrfs_writes_in_place() {
    let mounted = Mounted::new(&["mkfs.btrfs", "--quiet"]);
    let mapping = Directory::new(mounted.path()).open("state", LEN).unwrap();
    let flags = Command::new("lsattr").arg(mounted.path().join("state")).output().unwrap();
    let flags = String::from_utf8(flags.stdout).unwrap();
    assert!(flags.split_whitespace().next().unwrap().contains('C'), "copied on write: {flags}");
    fill_in(&mapping, 1);
    mounted.fill();
    for round in 2..4 {
        assert_eq!(store_everywhere(&mapping, round - 1, round), 0);
        mapping.sync().unwrap();
    }
    let reader = MappedFile::from_file(File::open(mounted.path().join("state")).unwrap(), false).unwrap();
    assert_eq!(reader.load(0), 3);
}
