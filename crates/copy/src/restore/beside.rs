//! The file beside a target that a restore fills, before it takes the target's name.
//!
//! It is `TARGET.tzero-restore`, and a run that was killed leaves it to the next one. A file of that name may as well be
//! somebody else's, so ours says what it is until it is complete: it is longer than the image by a mark.
//!
//! ```text
//!   0            size          size + 32
//!   │ the image   │ mark         │        made empty ▶ mark ▶ filled, compared ▶ flushed ▶ cut to size ▶ flushed ▶ renamed
//! ```
//! A file that is found there is taken over if it has the mark, if it holds nothing, or if it is the very copy, complete:
//! then its run was killed between the last two steps.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tzero_io::{LockError, is_zero};

use crate::digests::{ChunkDigest, chunk_range};
use crate::error::{FileAction, Refusal};
use crate::opening::{self, lock_patiently};
use crate::{Error, Manifest, durable};

const MARK: &[u8; 32] = b"TZERO: an image to be restored\r\n";

/// A file that only this run writes.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) file: File,
    path: PathBuf,
    size: u64,
}

impl Beside {
    /// Makes it for a copy, or takes over what a dead run left.
    ///
    /// # Errors
    /// When another run writes it, or it is somebody else's.
    pub(super) fn claim(target: &Path, manifest: &Manifest) -> Result<Self, Error> {
        let path = durable::with_suffix(target, ".tzero-restore");
        let failed = |action| Error::file(action, &path);
        let file = match opening::open_or_create(&path, durable::PRIVATE) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(Error::foreign(target, &path)),
            other => other.map_err(failed(FileAction::Create))?,
        };
        match lock_patiently(&file) {
            Ok(()) => {}
            Err(LockError::Held) => return Err(Error::refused(target, Refusal::Busy)),
            Err(LockError::Failed(source)) => return Err(failed(FileAction::Lock)(source)),
        }
        let (there, here) = (fs::metadata(&path), file.metadata().map_err(failed(FileAction::Open))?);
        if !there.is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())) {
            return Err(Error::refused(target, Refusal::Busy));
        }
        if !is_ours(&file, manifest).map_err(failed(FileAction::Read))? {
            return Err(Error::foreign(target, &path));
        }
        let size = manifest.size();
        let empty = || {
            file.set_len(0)?;
            file.write_all_at(MARK, size)
        };
        empty().map_err(failed(FileAction::Write))?;
        Ok(Self { file, path, size })
    }

    /// Gives the filled file the target's name, durably. `last` is done before nothing can be taken back any more.
    pub(super) fn declare(&self, target: &Path, last: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let complete = || {
            self.file.sync_all()?;
            self.file.set_len(self.size)?;
            self.file.sync_all()
        };
        complete().map_err(Error::file(FileAction::Flush, &self.path))?;
        last()?;
        durable::rename(&self.path, target).map_err(Error::file(FileAction::Rename, target))
    }

    /// Removes it.
    pub(super) fn remove(&self) {
        // What is left is no more than a marked file, which the next restore takes over.
        let _ = durable::remove(&self.path);
    }
}

fn is_ours(file: &File, manifest: &Manifest) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let len = metadata.len();
    if metadata.blocks() == 0 || len == 0 {
        return Ok(true);
    }
    if let Some(at) = len.checked_sub(MARK.len() as u64) {
        let mut end = [0; MARK.len()];
        file.read_exact_at(&mut end, at)?;
        if end == *MARK {
            return Ok(true);
        }
    }
    if len != manifest.size() {
        return Ok(false);
    }
    let mut bytes = vec![0; manifest.chunk.min(len) as usize];
    for (index, expected) in (0..).zip(manifest.digests.iter()) {
        let range = chunk_range(index, manifest.chunk, len);
        let bytes = &mut bytes[..range.len() as usize];
        file.read_exact_at(bytes, range.start())?;
        let is_good = match expected {
            ChunkDigest::Zero => is_zero(bytes),
            ChunkDigest::Data(digest) => *blake3::hash(bytes).as_bytes() == digest,
        };
        if !is_good {
            return Ok(false);
        }
    }
    Ok(true)
}
