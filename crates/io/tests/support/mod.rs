//! File systems of chosen kinds, on loop devices.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program that the test cannot do without.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: `cargo xtask setup` installs it"));
    assert!(
        output.status.success(),
        "{program} {arguments:?} (mounting needs root and a loop device): {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A fresh file system; unmounted on drop.
pub(crate) struct Mounted {
    place: PathBuf,
    _directory: tempfile::TempDir,
}

impl Mounted {
    /// Made by `mkfs`, a program and its options.
    pub(crate) fn new(mkfs: &[&str]) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = directory.path().join("image");
        // About the least that each kind takes: it is to be filled.
        let mib = if mkfs[0] == "mkfs.xfs" { 304 } else { 128 };
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let image = image.to_str().unwrap();
        run(mkfs[0], &[&mkfs[1..], &[image]].concat());
        let place = directory.path().join("mounted");
        fs::create_dir(&place).unwrap();
        run("mount", &["-o", "loop", image, place.to_str().unwrap()]);
        Self { place, _directory: directory }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.place
    }

    /// A copy of a file that shares its blocks.
    pub(crate) fn share(&self, from: &str, to: &str) {
        let path = |name: &str| self.place.join(name).to_str().unwrap().to_owned();
        run("cp", &["--reflink=always", &path(from), &path(to)]);
    }

    /// Leaves no space.
    pub(crate) fn fill(&self) {
        let mut filler = File::create(self.place.join("filler")).unwrap();
        for size in [1 << 20, 64 << 10, 4 << 10] {
            let piece = vec![0xA5; size];
            // Space is given out late: what was taken counts once it is on the medium. Some give back a little each time, without end.
            for _ in 0..4 {
                let mut taken = 0;
                let refused = loop {
                    match filler.write_all(&piece) {
                        Ok(()) => taken += 1,
                        Err(error) => break error,
                    }
                };
                assert_eq!(refused.kind(), ErrorKind::StorageFull);
                let _ = filler.sync_all();
                if taken == 0 {
                    break;
                }
            }
        }
    }
}

/// A file system in which every change waits, until dropped.
pub(crate) struct Frozen<'a>(&'a Mounted);

impl Mounted {
    /// Whoever changes anything now hangs as on a device that does not answer.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &["--freeze", self.place.to_str().unwrap()]);
        Frozen(self)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", self.0.place.to_str().unwrap()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).status();
    }
}
