//! The only place that talks to the kernel: a runtime per thread, files, sockets, mappings, locks, clocks.
//!
//! Everything above is written against [`Mapping`], [`Storage`] and the futures of this crate, and runs unchanged on the
//! simulator's virtual ones. All `unsafe` of the project's core is here, each block with its argument.
//!
//! Deliberately absent: what a volume is. This crate knows bytes, descriptors and time.

mod blocking;
mod buffer;
mod channel;
mod descriptor;
mod directory;
mod file;
mod lock;
mod mapped;
mod reactor;
mod runtime;
mod socket;
mod storage;

pub mod descriptors;
pub mod system;

pub use blocking::blocking;
pub use buffer::{BUFFER_ALIGNMENT, Buffer, is_zero};
pub use channel::{Listen, Notify, Receiver, Sender, channel};
pub use directory::Directory;
pub use file::File;
pub use lock::{LockError, lock_exclusive};
pub use mapped::MappedFile;
pub use runtime::{Backend, Handle, Runtime, Task, sleep, spawn, timeout};
pub use socket::{Listener, Stream};
pub use storage::{Mapping, Storage};
