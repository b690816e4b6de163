//! Types of the control interface, and its client.
//!
//! Two sockets lead to the daemon, both in the state directory ([`StatePaths`]): the control socket speaks HTTP with JSON
//! ([`route`], [`control`]), the mover socket speaks the lines of [`mover`]. Names and sizes are parsed here, once for all
//! programs: [`Name`], [`SnapshotPath`], [`Size`].
//!
//! Deliberately absent: what a program prints, and every decision of the daemon.

mod client;
pub mod control;
mod failure;
pub mod mover;
mod name;
pub mod route;
mod sentence;
mod size;
mod state;

pub use client::{Client, ClientError};
pub use failure::{Code, Exit, Failure};
pub use name::{Name, NameError, SnapshotPath, is_private, private_name};
pub use sentence::sentence;
pub use size::{Size, SizeError};
pub use state::StatePaths;
