//! Paths of unix sockets, which the system keeps short.

use std::path::{Path, PathBuf};

/// Longest path of a unix socket in bytes, which the system fixes.
const LONGEST: usize = 107;

/// No socket can have this path.
#[derive(Debug, thiserror::Error)]
#[error("the path {} has {} bytes and a socket's at most {LONGEST}: choose a shorter one", .0.display(), .0.as_os_str().len())]
pub(crate) struct TooLong(PathBuf);

/// Refuses a path that no socket can have.
pub(crate) fn check(path: &Path) -> Result<(), TooLong> {
    if path.as_os_str().len() > LONGEST { Err(TooLong(path.into())) } else { Ok(()) }
}
