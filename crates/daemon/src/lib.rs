//! The daemon: state directory, recovery, configuration, and the servers for NBD clients, commands and movers.
//!
//! It forwards and saves originals; it moves no bulk data. A request of a host never leaves the data thread (`threads`) that its
//! connection was given to: `listener` → `tzero_nbd` → `exports` → `tzero_engine`. Commands (`control`) and movers
//! (`movers`) come in on threads of their own and hand work to the data threads.
//!
//! Deliberately absent: standard output, arguments and the terminal, which are the binary's; and copies, which are the mover's.

mod address;
mod ahead;
mod attempts;
mod backups;
mod base;
mod breaks;
mod cache_device;
mod cache_file;
mod claim;
mod config;
mod control;
mod daemon;
mod description;
mod device_name;
mod directory;
mod dormant;
mod exports;
mod file_identity;
mod filling;
mod held;
mod identity;
mod inspection;
mod jobs;
mod listener;
mod loops;
mod maintenance;
mod memory;
mod movers;
mod notify;
mod opening;
mod platform;
mod put_by;
mod readiness;
mod rebase;
mod record;
mod refusal;
mod registration;
mod remote;
mod resize;
mod restores;
mod salvage;
mod scope;
mod service;
mod set_aside;
mod shrinking;
mod signals;
mod store;
mod stores;
mod threads;
mod tiers;
mod unsettled;
mod volume;
mod volumes;
mod watch;
mod words;

const _: () = assert!(tzero_api::control::MOST_COMPONENTS == tzero_originals::Components::MOST);

pub use address::{Address, AddressError};
pub use config::{Config, ConfigError, VolumeConfig};
pub use daemon::{ServeError, ServeOptions, serve};
pub use directory::StateError;
pub use listener::ListenError;
pub use platform::{CrashPlanError, WithoutError};
pub use volumes::LiesOn;
