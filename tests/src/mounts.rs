//! File systems and loop devices of a test's own. All of it needs root, and goes with its guard.

use std::path::{Path, PathBuf};

use crate::process::Program;

/// A mounted file system. Dropping it unmounts it.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// A file system in memory, of a fixed size.
    #[must_use]
    pub fn memory(at: &Path, size: u64) -> Self {
        make_dir(at);
        mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"], at)
    }

    /// What a device or image holds.
    #[must_use]
    pub fn device(device: &Path, at: &Path) -> Self {
        make_dir(at);
        let device = device.to_string_lossy();
        mount(&[&device], at)
    }

    /// A new ext4 in a new image of `size` bytes at `image`.
    #[must_use]
    pub fn ext4(image: &Path, size: u64, at: &Path) -> Self {
        let made = std::fs::File::create(image).and_then(|file| file.set_len(size));
        made.unwrap_or_else(|error| panic!("cannot make {}: {error}", image.display()));
        Program::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image).ok();
        make_dir(at);
        let image = image.to_string_lossy();
        mount(&["-o", "loop", &image], at)
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let plain = Program::new("umount").arg(&self.at).run();
        if plain.code() != Some(0) {
            let lazy = Program::new("umount").arg("-l").arg(&self.at).run();
            if !std::thread::panicking() {
                panic!("cannot unmount {}\n{plain}\n{lazy}", self.at.display());
            }
        }
    }
}

/// A loop device over a file. Dropping it detaches it.
#[derive(Debug)]
pub struct Loop {
    device: PathBuf,
}

impl Loop {
    /// Attaches one.
    #[must_use]
    pub fn over(file: &Path) -> Self {
        Self::with(&[], file)
    }

    /// Attaches one with options of `losetup`.
    #[must_use]
    pub fn with(options: &[&str], file: &Path) -> Self {
        let device = Program::new("losetup").args(options).args(["--find", "--show"]).arg(file).ok();
        Self { device: PathBuf::from(device.trim()) }
    }

    /// Its device file.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Program::new("losetup").arg("--detach").arg(&self.device).run();
        if !std::thread::panicking() {
            detached.exited(0);
        }
    }
}

fn mount(options: &[&str], at: &Path) -> Mounted {
    Program::new("mount").args(options).arg(at).ok();
    Mounted { at: at.to_path_buf() }
}

fn make_dir(at: &Path) {
    std::fs::create_dir_all(at).unwrap_or_else(|error| panic!("cannot make {}: {error}", at.display()));
}
