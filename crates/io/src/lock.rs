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

/// A lock that somebody else has on a file by `fcntl`, as a process or as an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLock {
    /// First byte.
    pub start: u64,
    /// Length in bytes; 0: to the end of the file, wherever that is.
    pub len: u64,
}

/// One of the locks that others have on parts of the file, or on all of it. Takes none.
///
/// # Errors
/// Where the file system has no such locks.
pub fn record_lock(file: &File) -> io::Result<Option<RecordLock>> {
    // SAFETY: an all-zero `flock` is a valid value: the whole file, and no process, as locks of open files need.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: an open descriptor and a writable struct. Asking for a write lock needs no right to write.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) })?;
    if lock.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    Ok(Some(RecordLock { start: lock.l_start.unsigned_abs(), len: lock.l_len.unsigned_abs() }))
}
