//! Types of the control interface, and its client.
//!
//! Two sockets lead to the daemon, both in the state directory ([`StatePaths`]): the control socket speaks HTTP with JSON
//! ([`route`], [`control`]), the mover socket speaks the lines of [`mover`]. Names and sizes are parsed here, once for all
//! programs: [`Name`], [`SnapshotPath`], [`Size`].
//!
//! Deliberately absent: what a program prints, and every decision of the daemon.

mod change;
mod client;
pub mod control;
mod failure;
pub mod jobs;
pub mod mover;
mod name;
mod on_full;
mod place;
pub mod restores;
pub mod route;
mod sentence;
mod shell;
mod size;
mod state;
mod unfit;

pub use change::{RebaseVolume, ResizeVolume};
pub use client::{Client, ClientError};
pub use failure::{Code, Exit, Failure};
pub use name::{Name, NameError, SnapshotPath, is_private, private_name};
pub use on_full::{LONGEST_WAIT, OnFull, OnFullError};
pub use place::Place;
pub use sentence::sentence;
pub use shell::quoted;
pub use size::{Rate, RateError, Size, SizeError};
pub use state::StatePaths;
pub use unfit::Unfit;
