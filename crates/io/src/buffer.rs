//! Page-aligned memory that an I/O request owns while it is in flight.
//!
//! A request takes its [`Buffer`] by value and gives it back with the result, so no borrow can end
//! while the kernel still uses the bytes. Buffers of common sizes are kept per thread and handed out
//! again; the pool is bounded, so a burst does not stay resident for ever.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer in bytes: enough for direct I/O on any device in use.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// Smallest and largest capacity that is kept for reuse, in bytes.
const POOLED: std::ops::RangeInclusive<usize> = BUFFER_ALIGNMENT..=(1 << 20);
/// How many bytes a thread keeps of each size class: enough for a connection's usual requests in flight.
const POOL_BYTES: usize = 4 << 20;
/// The same for capacities from [`MAPPED`] on.
const POOL_BYTES_MAPPED: usize = 16 << 20;
/// From this capacity on memory comes from the kernel page by page as it is used, so that a large length alone costs nothing.
const MAPPED: usize = 128 << 10;
const CLASSES: usize = 9;

thread_local! {
    static POOL: RefCell<[Vec<Memory>; CLASSES]> = RefCell::new(Default::default());
}

struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the allocation is owned by exactly one `Memory`; nothing in it is tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared access only ever reads the bytes.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BUFFER_ALIGNMENT).expect("a buffer's capacity fits a layout")
    }

    fn new(capacity: usize) -> Self {
        if capacity >= MAPPED {
            return Self::map(capacity);
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero, capacities are rounded up to the alignment.
        let start = unsafe { alloc_zeroed(layout) };
        Self { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), capacity }
    }
}

impl Memory {
    fn map(capacity: usize) -> Self {
        // SAFETY: a fresh anonymous range; nothing existing is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                capacity,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(memory) if start != libc::MAP_FAILED => Self { start: memory, capacity },
            _ => handle_alloc_error(Self::layout(capacity)),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.capacity >= MAPPED {
            // SAFETY: mapped in `map` with this length, unmapped once.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.capacity) };
            return;
        }
        // SAFETY: allocated in `new` with the same layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// Owned, page-aligned bytes. The length may be anything up to the capacity it was made with.
pub struct Buffer {
    memory: Option<Memory>,
    len: usize,
}

fn class_of(capacity: usize) -> Option<usize> {
    POOLED.contains(&capacity).then(|| (capacity / BUFFER_ALIGNMENT).trailing_zeros() as usize)
}

impl Buffer {
    /// A buffer of `len` bytes whose contents are initialised but arbitrary (an earlier use's).
    pub fn uncleared(len: usize) -> Self {
        let capacity = len.max(1).next_multiple_of(BUFFER_ALIGNMENT);
        let capacity = if capacity <= *POOLED.end() { capacity.next_power_of_two() } else { capacity };
        let pooled =
            class_of(capacity).and_then(|class| POOL.try_with(|pool| pool.borrow_mut()[class].pop()).ok().flatten());
        Self { memory: Some(pooled.unwrap_or_else(|| Memory::new(capacity))), len }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::uncleared(len);
        buffer.fill(0);
        buffer
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::uncleared(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// How many bytes the length may grow to without a new allocation.
    pub fn capacity(&self) -> usize {
        self.memory().capacity
    }

    /// Sets the length, which must not exceed the capacity.
    ///
    /// # Panics
    /// If `len` is larger than the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} exceeds the capacity {}", self.capacity());
        self.len = len;
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        is_zero(self)
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("memory is there until drop")
    }
}

/// Whether every byte of `bytes` is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory holds at least `len` initialised bytes and is borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.memory().start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory().start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let Some(class) = class_of(memory.capacity) else { return };
        let _ = POOL.try_with(|pool| {
            let kept = &mut pool.borrow_mut()[class];
            let most = if memory.capacity >= MAPPED { POOL_BYTES_MAPPED } else { POOL_BYTES };
            if kept.len() * memory.capacity < most {
                kept.push(memory);
            }
        });
    }
}

impl Default for Buffer {
    /// An empty buffer of one page.
    fn default() -> Self {
        Self::uncleared(0)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_reused() {
        let first = Buffer::copy_of(&[7; 5000]);
        assert_eq!(first.as_ptr() as usize % BUFFER_ALIGNMENT, 0);
        assert_eq!(first.capacity(), 8192);
        let place = first.as_ptr();
        drop(first);
        assert_eq!(Buffer::uncleared(8192).as_ptr(), place);
    }

    #[test]
    fn zero_is_noticed_at_every_place() {
        let mut bytes = vec![0; 777];
        assert!(is_zero(&bytes));
        for place in [0, 63, 64, 500, 776] {
            bytes[place] = 1;
            assert!(!is_zero(&bytes));
            bytes[place] = 0;
        }
        assert!(is_zero(&[]));
    }
}
