//! The product from outside: the release binary, and clients that know nothing of it.
//!
//! An area a module. What takes longer than a minute lives in a module `lane` of its area; `cargo xtask lane` runs those.

mod ahead;
mod backup;
mod badinput;
mod bases;
mod bench;
mod clients;
mod commands;
mod demo;
mod destinations;
mod devices;
mod early;
mod exports;
mod failed;
mod full;
mod hangs;
mod harness;
mod jobs;
mod kill;
mod ladder;
mod libnbd;
mod load;
mod lost_state;
mod modes;
mod mover;
mod moverlife;
mod orders;
mod postgres;
mod power;
mod rebase;
mod reconnect;
mod resize;
mod restores;
mod snapshots;
mod soak;
mod sources;
mod stall;
mod tiers;
mod trims;
