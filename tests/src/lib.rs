//! What the end-to-end tests are made of: a daemon to test, clients to test it with, and proofs.
//!
//! 1. The binary under test is the release build; nothing of the product's own code is linked in, but for names.
//! 2. Every child process leads its own process group, dies with the thread that started it, has a time limit, and is
//!    reaped.
//! 3. A daemon that logs a warning or an error that its test did not announce fails that test.
//! 4. Waiting is for a line, an exit or a condition, always up to a limit; never for a time.
//! 5. What a test needs and does not find is a failure that names it.

pub mod control;
pub mod daemon;
pub mod disk;
pub mod history;
pub mod mounts;
pub mod nbd;
pub mod process;
pub mod random;
pub mod scratch;
pub mod sockets;
pub mod stamps;
pub mod tzero;
pub mod waiting;
pub mod writers;

pub use daemon::Daemon;
pub use history::{History, Instant};
pub use process::{Finished, Process, Program};
pub use scratch::Scratch;
pub use tzero::Tzero;
pub use writers::Writers;

/// A mebibyte in bytes.
pub const MIB: u64 = 1 << 20;
