//! [`Mapping`] over a real file.
//!
//! # Invariants
//! 1. No byte is mapped that is not allocated: `fallocate` comes first, growth included. SIGBUS never.
//! 2. Where the file system does not promise that a later store into allocated space needs no more of it (see [`crate::allocation`]),
//!    stores go through `pwrite` and the mapping is only read.
//! 3. The mapping never moves: address space is reserved once, growth maps more of it. Readers need no lock.
//!
//! Both ways of storing end in the same page cache, so other processes that map the file see either.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::allocation;
use crate::file::fallocate;
use crate::storage::Mapping;

/// Address space reserved for a file to grow into, in bytes; smaller tries follow.
const RESERVE: [u64; 3] = [64 << 30, 4 << 30, 256 << 20];
const PAGE: u64 = 4096;
/// Words that one call writes.
const AT_ONCE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadOnly,
    /// Stores go straight to the mapping.
    Memory,
    /// Stores go through `pwrite`.
    Write,
}

/// A file of words, mapped shared.
pub struct MappedFile {
    file: crate::file::File,
    access: Access,
    base: *mut u8,
    reserved: u64,
    len: AtomicU64,
    growing: Mutex<()>,
}

// SAFETY: the address range is owned by this value until drop; all access to it is through atomics.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps an open file from start to end. With `writable` it must be open for writing, and its space is made sure of first.
    ///
    /// # Errors
    /// When the file cannot be allocated or mapped, or its length is not a multiple of 8.
    pub fn from_file(file: File, writable: bool) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if !len.is_multiple_of(8) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the length is not a multiple of 8"));
        }
        let access = match (writable, allocation::is_kept(&file)?) {
            (false, _) => Access::ReadOnly,
            (true, true) => Access::Memory,
            (true, false) => Access::Write,
        };
        match access {
            Access::Memory if len > 0 => fallocate(&file, 0, 0, len)?,
            Access::Write if len > 0 => allocation::make_own(&file, len)?,
            _ => {}
        }
        let (base, reserved) = reserve(len)?;
        let file = crate::file::File::new(file, false);
        let mapped = Self { file, access, base, reserved, len: AtomicU64::new(0), growing: Mutex::new(()) };
        mapped.map_up_to(len)?;
        Ok(mapped)
    }

    fn map_up_to(&self, len: u64) -> io::Result<()> {
        let mapped = self.len.load(Ordering::Acquire).next_multiple_of(PAGE);
        if len > self.reserved {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if len > mapped {
            let protection =
                if self.access == Access::Memory { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
            // SAFETY: the fixed range lies within the reservation owned by `self`, beyond what is in use.
            let address = unsafe {
                libc::mmap(
                    self.base.add(mapped as usize).cast(),
                    (len - mapped) as usize,
                    protection,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    self.file.get().as_raw_fd(),
                    mapped as i64,
                )
            };
            if address == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        let len = self.len.load(Ordering::Acquire);
        assert!(
            offset.is_multiple_of(8) && offset < len && len - offset >= 8,
            "word {offset} of a mapping of {len} bytes"
        );
        // SAFETY: checked to be aligned and inside what is mapped; the mapping lives as long as `self`.
        unsafe { &*self.base.add(offset as usize).cast::<AtomicU64>() }
    }

    /// Adds one to the word at byte `offset`, where stores go to memory; elsewhere nothing happens.
    pub(crate) fn increment(&self, offset: u64) {
        let place = self.word(offset);
        if self.access == Access::Memory {
            let more = |word: u64| Some(u64::from_le(word).wrapping_add(1).to_le());
            let _ = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
    }

    fn put(&self, offset: u64, word: u64, order: Ordering) -> io::Result<()> {
        let place = self.word(offset);
        match self.access {
            Access::Memory => place.store(word.to_le(), order),
            Access::Write => self.file.get().write_all_at(&word.to_le_bytes(), offset)?,
            Access::ReadOnly => return Err(io::ErrorKind::PermissionDenied.into()),
        }
        Ok(())
    }
}

impl Mapping for MappedFile {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn load(&self, offset: u64) -> u64 {
        u64::from_le(self.word(offset).load(Ordering::Acquire))
    }

    fn store(&self, offset: u64, word: u64) -> io::Result<()> {
        self.put(offset, word, Ordering::Relaxed)
    }

    fn store_all(&self, offset: u64, words: &[u64]) -> io::Result<()> {
        if self.access != Access::Write || words.is_empty() {
            return (offset..).step_by(8).zip(words).try_for_each(|(offset, word)| self.store(offset, *word));
        }
        // Both ends checked: all of it lies inside.
        self.word(offset);
        self.word(offset + 8 * (words.len() as u64 - 1));
        for (words, offset) in words.chunks(AT_ONCE).zip((offset..).step_by(8 * AT_ONCE)) {
            let mut bytes = [0; 8 * AT_ONCE];
            for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *place = word.to_le_bytes();
            }
            self.file.get().write_all_at(&bytes[..8 * words.len()], offset)?;
        }
        Ok(())
    }

    fn publish(&self, offset: u64, word: u64) -> io::Result<()> {
        self.put(offset, word, Ordering::Release)
    }

    /// On a read-only mapping this takes in what the writer has added, and fails if the file is shorter.
    fn grow(&self, len: u64) -> io::Result<()> {
        let _growing = self.growing.lock().expect("nothing panics under this lock");
        let now = self.len();
        if len <= now {
            return Ok(());
        }
        let len = len.next_multiple_of(8);
        if len > self.reserved {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match self.access {
            Access::ReadOnly if self.file.get().metadata()?.len() < len => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Access::ReadOnly => {}
            Access::Memory | Access::Write => fallocate(self.file.get(), 0, now, len - now)?,
        }
        self.map_up_to(len)
    }

    fn sync(&self) -> io::Result<()> {
        // Dirty pages of a shared mapping are the file's own: one call covers both.
        self.file.get().sync_all()
    }

    async fn durable(&self) -> io::Result<()> {
        self.file.sync_data().await
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: the whole reservation is owned by `self`, and no reference into it outlives it.
        unsafe { libc::munmap(self.base.cast(), self.reserved as usize) };
    }
}

fn reserve(len: u64) -> io::Result<(*mut u8, u64)> {
    let mut last = io::Error::from(io::ErrorKind::OutOfMemory);
    for reserve in RESERVE {
        let reserve = reserve.max(len.next_multiple_of(PAGE));
        // SAFETY: a fresh range of addresses without access; nothing existing is touched.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserve as usize,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address != libc::MAP_FAILED {
            return Ok((address.cast(), reserve));
        }
        last = io::Error::last_os_error();
    }
    Err(last)
}
