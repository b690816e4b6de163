//! Where originals go that are not in memory: a file, or an export.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::remote::Remote;

/// It, open and held.
#[derive(Debug)]
pub(crate) enum Store {
    File(File),
    Export(Remote),
}

impl Store {
    /// How far it reaches, in bytes.
    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Export(remote) => Ok(remote.size()),
        }
    }

    /// Fills `bytes` from `offset` on. Blocking.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, offset),
            Self::Export(remote) => {
                // Whole sectors, as the export may want them.
                let wide = bytes.len().next_multiple_of(512).min((remote.size() - offset) as usize);
                bytes.copy_from_slice(&remote.read(offset, wide)?[..bytes.len()]);
                Ok(())
            }
        }
    }

    /// Another hold of the same.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::File(file) => Self::File(file.try_clone()?),
            Self::Export(remote) => Self::Export(remote.clone()),
        })
    }
}
