//! An export as a disk of the kernel: a FUSE file of one of its clients, and a loop device over that.
//!
//! | client | what it makes of the kernel's discards |
//! |---|---|
//! | `qemu-storage-daemon` | zeroes, which the volume must then read as |
//! | `nbdfuse` | trims |

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::mounts::{Loop, Mounted};
use crate::process::{Process, Program};
use crate::scratch::Scratch;

/// The volume `vol` of a daemon as a loop device. Dropped from top to bottom.
#[derive(Debug)]
pub struct Disk {
    device: Loop,
    _qemu: FuseFile,
}

/// An export as a file. Dropping it ends its server in good order: a killed one would leave a dead mount behind.
#[derive(Debug)]
struct FuseFile {
    server: Option<Process>,
    at: PathBuf,
    ends_unmounted: bool,
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        // Unmounted, nbdfuse ends by itself; told to end, it says that it was interrupted.
        if Program::new("umount").arg(&self.at).run().code() != Some(0) || !self.ends_unmounted {
            server.signal(Signal::TERM);
        }
        let finished = server.wait();
        let at = self.at.to_string_lossy();
        let left = std::fs::read_to_string("/proc/mounts").is_ok_and(|mounts| mounts.contains(at.as_ref()));
        if left {
            Program::new("umount").arg("-l").arg(&self.at).ok();
        }
        if !std::thread::panicking() {
            finished.exited(0);
            assert!(!left, "it left its mount behind");
        }
    }
}

impl Disk {
    /// Attaches it through `qemu-storage-daemon`; the volume has `size` bytes.
    #[must_use]
    pub fn of(scratch: &Scratch, daemon: &Daemon, size: u64) -> Self {
        Self::at(scratch.join("disk"), size, false, |file| {
            Program::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=nbd,node-name=disk,discard=unmap,server.type=unix,server.path={},export=vol,reconnect-delay=30",
                daemon.socket().display()
            ))
            .arg("--export")
            .arg(format!("type=fuse,id=export,node-name=disk,mountpoint={},writable=on", file.display()))
            .start()
        })
    }

    /// The same through `nbdfuse`.
    #[must_use]
    pub fn that_trims(scratch: &Scratch, daemon: &Daemon, size: u64) -> Self {
        Self::at(scratch.join("disk"), size, true, |file| {
            Program::new("nbdfuse").arg(file).arg(daemon.uri("vol")).start()
        })
    }

    fn at(file: PathBuf, size: u64, ends_unmounted: bool, serve: impl FnOnce(&Path) -> Process) -> Self {
        File::create(&file).expect("a file can be made");
        let qemu = serve(&file);
        let mut qemu = FuseFile { server: Some(qemu), at: file.clone(), ends_unmounted };
        let is_there = || std::fs::metadata(&file).is_ok_and(|found| found.len() == size);
        let server = qemu.server.as_mut().expect("it was just started");
        server.until(is_there);
        assert!(is_there(), "the FUSE file did not come: {}", server.stderr());
        Self { device: Loop::over(&file), _qemu: qemu }
    }

    /// Its device file.
    #[must_use]
    pub fn device(&self) -> &Path {
        self.device.device()
    }

    /// Makes an ext4 on it and mounts that.
    #[must_use]
    pub fn formatted(&self, at: &Path) -> Mounted {
        Program::new("mkfs.ext4").args(["-q", "-F"]).arg(self.device()).ok();
        Mounted::device(self.device(), at)
    }
}
