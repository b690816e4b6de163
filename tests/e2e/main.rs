//! The product from outside: the release binary, and clients that know nothing of it.
//!
//! An area a module. What takes longer than a minute lives in a module `lane` of its area; `cargo xtask lane` runs those.

mod backup;
mod badinput;
mod bases;
mod clients;
mod demo;
mod harness;
mod kill;
mod libnbd;
mod load;
mod mover;
mod postgres;
mod reconnect;
mod snapshots;
mod soak;
mod stall;
