//! A client: an export of any NBD server as a [`BlockDevice`](tzero_block::BlockDevice).
//!
//! A request passes `device` (any sector) → `remote` (commands that the server knows, of a size that it takes) → `lane` → `table` → `sender` (bytes) → the
//! socket → `receiver` → `table` → its caller. The `driver` moves the bytes and reconnects; `handshake` and `agreed` come before.
//!
//! # When the connection breaks
//! 1. Requests without an answer are sent again on the next connection. They are changes to fixed places, so doing one twice is doing it once.
//! 2. A request fails when it is not done within [`Reconnect::within`] after its first break. Then the device is not given up: a later
//!    request tries to connect once, and fails at once where that does.
//! 3. Changes that the server had *acknowledged* and that were not flushed may be gone, if it crashed. So the next flush fails, once: every
//!    flush that had begun before the caller was told. What was acknowledged before must then be taken to be lost. A caller who shares the device
//!    among several users has to tell them all.
//!    [`ClientOptions::keeps_acknowledged`] switches this off.
//! 4. An export of another length, or that can do less than before, is not the same: every request fails from then on.
//!
//! A server that still works on a write of the broken connection while the next connection has newer ones may undo them. It takes a server that goes on
//! without its client, and the protocol has no means against it; [`ClientOptions::request`] should not provoke it.
//!
//! # Invariants
//! 1. No number of the server is trusted before it was held against a bound: `agreed`, `handshake`, `receiver`.
//! 2. A buffer is never written to after it was given back, nor after its request's future was dropped and its connection forgotten.
//! 3. A reply is taken for a request only if it is complete: each byte once, none left out.
//!
//! Deliberately absent: threads, TLS, logging, write-back of any kind, the protocol's experimental extensions.

mod agreed;
mod command;
mod connection;
mod coverage;
mod device;
mod driver;
mod error;
mod extents;
mod handshake;
mod lane;
mod marks;
mod options;
mod receiver;
mod remote;
mod sender;
mod table;
mod uri;

pub use device::NbdDevice;
pub use error::{Breach, Changed, ClientError, Refused, Unusable};
pub use options::{ClientOptions, Reconnect};
pub use uri::{Uri, UriError};
