//! Locks on open files.
//!
//! The lock belongs to the open file description: requests that a killed process left in the kernel hold the description, so
//! the next process gets the lock only when they have ended.

#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::descriptor::check;

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Someone else holds it.
    Held,
    /// It cannot be asked for.
    Failed(io::Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("locked by another process"),
            Self::Failed(source) => write!(f, "cannot be locked: {source}"),
        }
    }
}

impl std::error::Error for LockError {}

/// Locks the open file exclusively against other tzero processes, without waiting. Released when the last user of this
/// open file is gone.
///
/// # Errors
/// [`LockError::Held`] when another open of the file has it.
pub fn lock_exclusive(file: &File) -> Result<(), LockError> {
    // SAFETY: plain system call on an open descriptor.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(LockError::Held),
        Err(error) => Err(LockError::Failed(error)),
    }
}
