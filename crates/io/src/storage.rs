//! Small files of state that outlive the process, word by word.
//!
//! The contract of a [`Mapping`] is what the crash arguments of every format rest on:
//!
//! 1. A store that has returned survives the death of the process (not of the machine).
//! 2. Stores become visible to other openers of the file, and after a death, in program order where the
//!    later one is [`Mapping::publish`]; plain stores before it may be seen in any order among themselves.
//! 3. A word (8 aligned bytes) is never torn.
//! 4. No store needs space: every byte was allocated by `open` or `grow`, which fail cleanly with
//!    `ENOSPC`. (SIGBUS never.)
//! 5. Power loss is another matter: only [`Mapping::sync`] is durable against it.

use std::future::Future;
use std::io;

/// A file of 64-bit little-endian words. Offsets are in bytes and multiples of 8.
///
/// # Panics
/// All methods panic on an offset that is unaligned or past the end: that is a bug, not input.
/// Lengths that come from a file must be checked against [`Mapping::len`] first.
pub trait Mapping: Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One word, with acquire ordering.
    fn load(&self, offset: u64) -> u64;

    /// A word that nobody reads before something else is published.
    ///
    /// # Errors
    /// Only where the file is written by `pwrite` (see `MappedFile`).
    fn store(&self, offset: u64, word: u64) -> io::Result<()>;

    /// Consecutive words from `offset` on, each as by [`Mapping::store`]; one system call where a store costs one.
    ///
    /// # Errors
    /// As [`Mapping::store`]; any of the words may then be stored.
    fn store_all(&self, offset: u64, words: &[u64]) -> io::Result<()> {
        (offset..).step_by(8).zip(words).try_for_each(|(offset, word)| self.store(offset, *word))
    }

    /// A word whose value makes earlier stores meaningful, with release ordering.
    ///
    /// # Errors
    /// As [`Mapping::store`].
    fn publish(&self, offset: u64, word: u64) -> io::Result<()>;

    /// Makes the file at least `len` bytes long, allocated and zero beyond the old end.
    ///
    /// # Errors
    /// When the space cannot be had; the mapping is then as it was.
    fn grow(&self, len: u64) -> io::Result<()>;

    /// Makes what is stored durable against power loss. Blocking.
    ///
    /// # Errors
    /// When the device says so; nothing may then be concluded about any store since the last sync.
    fn sync(&self) -> io::Result<()>;

    /// As [`Mapping::sync`], for whoever must not block the thread: what was stored when this is first polled is durable when it completes.
    fn durable(&self) -> impl Future<Output = io::Result<()>>;
}

/// A place with named [`Mapping`]s: one directory, real or virtual.
pub trait Storage: Send + Sync + 'static {
    /// What the place holds.
    type Mapping: Mapping;

    /// Opens the mapping `name`, making it `len` zero bytes long (allocated) if it was not there; an existing one keeps
    /// its length. Creation is atomic: after a crash, of the process or the machine, the file is there in full length or not at all.
    ///
    /// # Errors
    /// When the place cannot be read or has no space.
    fn open(&self, name: &str, len: u64) -> io::Result<Self::Mapping>;

    /// Whether `name` exists.
    ///
    /// # Errors
    /// When the place cannot be read.
    fn exists(&self, name: &str) -> io::Result<bool>;

    /// Removes `name`; fine if it was not there. Open mappings of it stay usable.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// All names, in no order.
    ///
    /// # Errors
    /// When the place cannot be read.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Makes the creation and removal of names durable against power loss. Blocking.
    ///
    /// # Errors
    /// When the device says so.
    fn sync(&self) -> io::Result<()>;

    /// As [`Storage::sync`], for whoever must not block the thread.
    fn names_durable(&self) -> impl Future<Output = io::Result<()>>;
}
