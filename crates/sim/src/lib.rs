//! The deterministic simulator of the engine, and the oracle that judges it (development only).
//!
//! The engine and the format crates run unmodified on a virtual disk, virtual state files, a virtual clock and a seeded executor.
//! A *schedule* is drawn from a seed: clients, snapshots, movers, faults, and deaths of the daemon at any store, request or named
//! point. The oracle knows what every client may see, and objects to anything else.
//!
//! ```text
//! plan ──▶ schedule ──▶ clients, snapshots, mover ──▶ scene ──▶ engine (unmodified) ──▶ platform ──▶ disk, storage
//!                              └──▶ oracle ◀── admissions ───────────────┘                             └──▶ executor
//! ```
//!
//! A death may be the machine's: then what was not flushed is there or not, on every device ([`power`]).
//!
//! Deliberately absent: threads, and every protocol.

pub mod clients;
pub mod contents;
pub mod disk;
pub mod executor;
pub mod mover;
pub mod oracle;
pub mod outboard;
pub mod plan;
pub mod platform;
pub mod power;
pub mod quiet;
pub mod races;
pub mod random;
pub mod runner;
pub mod savings;
pub mod scene;
pub mod schedule;
pub mod shrink;
pub mod snapshots;
pub mod storage;
pub mod story;
