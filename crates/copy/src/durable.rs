//! Small files that are there whole or not at all, power loss included.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use steps::step;

/// What a copy does to its medium, as far as its order matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A small file, or the name of one.
    Name,
    /// An image's bytes are made durable.
    Flush,
}

/// Mode of every file that this crate makes.
pub(crate) const PRIVATE: u32 = 0o600;

/// `path` with `suffix` after its file name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The directory that `path` is an entry of.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes entries of the directory that holds `path` durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    step(Step::Name)?;
    File::open(parent(path))?.sync_all()
}

/// Makes `path` a file with these bytes, durable on return. Not atomic: a crash may leave part of it, so the
/// bytes must be able to tell.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    step(Step::Name)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    sync_parent(path)
}

/// Makes `path` a file with these bytes, atomically; durable on return.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = with_suffix(path, ".new");
    write(&beside, bytes)?;
    rename(&beside, path)
}

/// Renames durably, over whatever is there.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step(Step::Name)?;
    fs::rename(from, to)?;
    sync_parent(to)
}

/// An image's bytes are about to be made durable.
pub(crate) fn flushes() -> io::Result<()> {
    step(Step::Flush)
}

/// Gives a file another name, where there is none of it. Not durable by itself.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    step(Step::Name)?;
    fs::hard_link(from, to)
}

/// Removes durably; fine if it was not there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    step(Step::Name)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_parent(path),
    }
}

/// Makes a directory for the owner alone, and its parents.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Where tests make a step fail.
#[cfg(test)]
pub(crate) mod steps {
    use std::cell::Cell;
    use std::io;

    use super::Step;

    thread_local! {
        static LEFT: Cell<Option<(Step, u64, io::ErrorKind)>> = const { Cell::new(None) };
    }

    /// So many steps of a kind succeed on this thread, and the one after them fails, once.
    pub(crate) fn fail_after(step: Step, count: u64, how: io::ErrorKind) {
        LEFT.set(Some((step, count, how)));
    }

    /// Lets all succeed again; whether the step that was to fail has failed.
    pub(crate) fn failed() -> bool {
        LEFT.take().is_none()
    }

    pub(super) fn step(step: Step) -> io::Result<()> {
        match LEFT.get() {
            Some((kind, 0, how)) if kind == step => {
                LEFT.set(None);
                Err(how.into())
            }
            Some((kind, left, how)) if kind == step => {
                LEFT.set(Some((kind, left - 1, how)));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(not(test))]
mod steps {
    pub(super) fn step(_: super::Step) -> std::io::Result<()> {
        Ok(())
    }
}
