//! The only place that talks to the kernel: a runtime per thread, files, sockets, mappings, locks, clocks.
//!
//! Everything above is written against [`Mapping`], [`Storage`] and the futures of this crate, and runs unchanged on the
//! simulator's virtual ones. All `unsafe` of the project's core is here, each block with its argument.
//!
//! Deliberately absent: what a volume is. This crate knows bytes, descriptors and time.

mod allocation;
mod blocking;
mod buffer;
mod channel;
mod connect;
mod descriptor;
mod directory;
mod file;
mod gate;
mod gauge;
mod lock;
mod mapped;
mod reactor;
mod ring;
mod runtime;
mod socket;
mod storage;
mod timers;
mod together;
mod yielding;

pub mod descriptors;
pub mod inode;
pub mod system;

pub use allocation::{allocate, is_in_memory, is_kept as allocation_is_kept};
pub use blocking::blocking;
pub use buffer::{BUFFER_ALIGNMENT, Buffer, is_zero};
pub use channel::{Listen, Notify, Receiver, Sender, channel};
pub use connect::resolve;
pub use directory::Directory;
pub use file::File;
pub use gauge::{Gauge, Latencies, Watched};
pub use lock::{LockError, RecordLock, lock_exclusive, record_lock};
pub use mapped::MappedFile;
pub use runtime::{Backend, Handle, Runtime, Task, spawn};
pub use socket::{Listener, Stream};
pub use storage::{Mapping, Storage};
pub use timers::{sleep, timeout};
pub use together::together;
pub use yielding::yield_now;
