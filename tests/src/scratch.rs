//! A test's own directory, and comparing files byte for byte.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::random::Random;

/// A directory that goes with the test. Its path is short: sockets live in it.
#[derive(Debug)]
pub struct Scratch {
    dir: Option<TempDir>,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            discard_memory(dir.path(), 4);
        }
        let closed = self.dir.take().map(TempDir::close);
        if let Some(Err(error)) = closed
            && !std::thread::panicking()
        {
            panic!("something is still in the test's directory: {error}");
        }
    }
}

/// Removes the files in memory of the volumes whose records are in a directory: a daemon that was killed has left them.
fn discard_memory(directory: &Path, depth: u32) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            discard_memory(&path, depth - 1);
        } else if entry.file_name() == "volume.json" {
            let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            if let Some(file) = record.as_ref().and_then(|record| record["memory"]["path"].as_str()) {
                let _ = fs::remove_file(file);
            }
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// Makes one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        // Others may pass through: PostgreSQL runs as its own user.
        let open = Permissions::from_mode(0o711);
        let dir = tempfile::Builder::new().prefix("tz-").permissions(open).tempdir();
        Self { dir: Some(dir.unwrap_or_else(|error| panic!("cannot make a temporary directory: {error}"))) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.as_ref().expect("it goes last").path()
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// A new file of zeroes without space behind them.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn sparse(&self, name: &str, size: u64) -> PathBuf {
        let path = self.join(name);
        let made = File::create(&path).and_then(|file| file.set_len(size));
        made.unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        path
    }

    /// A new file of random bytes.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn random(&self, name: &str, size: u64, seed: u64) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, bytes(size as usize, seed))
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        path
    }

    /// A new file of stamped units.
    #[must_use]
    pub fn stamped(&self, name: &str, size: u64) -> PathBuf {
        let path = self.join(name);
        crate::stamps::file(&path, size);
        path
    }
}

/// Random bytes.
#[must_use]
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.draw().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A whole file.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Part of a file.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn read_at(path: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, offset));
    read.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    bytes
}

/// Copies a file.
///
/// # Panics
/// When it cannot be copied.
pub fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
}

/// Bytes that a file takes on disk.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn allocated(path: &Path) -> u64 {
    let found = fs::metadata(path).unwrap_or_else(|error| panic!("cannot look at {}: {error}", path.display()));
    found.blocks() * 512
}

/// Bytes that the files below a directory take on disk; what vanishes meanwhile does not count.
#[must_use]
pub fn allocated_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => allocated_below(&entry.path()),
            Ok(found) if found.is_file() => found.blocks() * 512,
            _ => 0,
        })
        .sum()
}

/// Names in a directory, sorted.
///
/// # Panics
/// When it cannot be listed.
#[must_use]
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Expects two files to be the same, byte for byte.
///
/// # Panics
/// When they are not; the message names the first byte that differs.
pub fn assert_same(left: &Path, right: &Path) {
    if let Some(offset) = first_difference(left, right) {
        panic!("{} and {} differ at byte {offset}", left.display(), right.display());
    }
}

/// Expects two files to differ.
///
/// # Panics
/// When they do not.
pub fn assert_differ(left: &Path, right: &Path) {
    assert!(first_difference(left, right).is_some(), "{} and {} are the same", left.display(), right.display());
}

fn first_difference(left: &Path, right: &Path) -> Option<u64> {
    let (mut left, mut right) = (Chunks::of(left), Chunks::of(right));
    let mut offset = 0;
    loop {
        let (one, other) = (left.next(), right.next());
        if one.is_empty() && other.is_empty() {
            return None;
        }
        if one != other {
            let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
            return Some(offset + same as u64);
        }
        offset += one.len() as u64;
    }
}

/// A file, a mebibyte at a time.
struct Chunks {
    file: File,
    chunk: Vec<u8>,
}

impl Chunks {
    fn of(path: &Path) -> Self {
        let file = File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
        Self { file, chunk: Vec::new() }
    }

    /// The next one: shorter at the end, then empty.
    fn next(&mut self) -> &[u8] {
        self.chunk.clear();
        Read::by_ref(&mut self.file).take(1 << 20).read_to_end(&mut self.chunk).expect("a file can be read");
        &self.chunk
    }
}
