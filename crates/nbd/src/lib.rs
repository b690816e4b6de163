//! The NBD protocol: a server for any set of [exports](tzero_block::Exports), and a [`client`].
//!
//! Protocol: `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>. Fixed newstyle, simple and structured
//! replies, `base:allocation`.
//!
//! In the server a request passes `inbox` (bytes) → `request` (a command that is safe to carry out) → `connection` → `budget` → `slots`
//! → `execute` (the export) → `reply` (bytes) → `outbox` (the socket). Before that, `handshake` and `options` agree on
//! the export.
//!
//! # Invariants
//! 1. No number from outside is trusted before it was held against a bound: `request::check`, `options`, `handshake`.
//! 2. A client can harm its own connection only: what it may hold is bounded by [`Limits`], and nobody waits for it; `memory` says how.
//! 3. A read-only export is never asked for a change (R24).
//!
//! Deliberately absent: listening and threads (the daemon's), TLS, what an export is (the engine's), the protocol's experimental
//! extensions, logging.

mod any;
mod budget;
pub mod client;
mod connection;
mod contexts;
mod error;
mod execute;
mod handshake;
mod inbox;
mod memory;
mod options;
mod outbox;
mod reply;
mod request;
mod server;
mod slots;
mod stop;
mod wire;

pub use any::AnyDevice;
pub use client::{ClientError, ClientOptions, NbdDevice, Reconnect, Uri, UriError};
pub use error::{End, Error, Violation};
pub use server::{Limits, Server};
