//! Whose the files beside a copy's place are.
//!
//! Their names tell nothing: anybody may have a file called `disk.img.tzero`. So what is to be overwritten or removed there
//! must prove that it is ours, or hold nothing; anything else is left alone, and the copy or restore is refused.
//!
//! | file | is ours when |
//! |---|---|
//! | manifests | they begin as every manifest does; their seal may be broken |
//! | journal | it begins with its magic (see `journal`) |
//! | unfinished image | the journal beside it names its inode, or is damaged, so that it might; or it is the declared image by a second name; or the daemon knows an interrupted backup to this place |
//! | file that a restore fills | see `restore::beside` |

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::Error;
use crate::journal::{self, Journal};
use crate::manifest::MAGIC;
use crate::opening;
use crate::site::{Site, read_manifest};

impl Site {
    /// Refuses a place where a file that is not ours would be overwritten or removed. `awaited` is asked where nothing else
    /// tells: whether the daemon knows an interrupted backup to this place.
    pub(crate) fn refuse_foreign(&self, awaited: impl FnOnce() -> bool) -> Result<(), Error> {
        self.refuse_foreign_manifest()?;
        if self.device.is_none() && !self.is_our_partial() && !awaited() {
            return Err(Error::foreign(&self.image, &self.partial));
        }
        Ok(())
    }

    /// The same for manifests alone.
    pub(crate) fn refuse_foreign_manifest(&self) -> Result<(), Error> {
        match [self.fresh(), self.manifest.clone()].iter().find(|manifest| !is_our_manifest(manifest)) {
            Some(foreign) => Err(Error::foreign(&self.image, foreign)),
            None => Ok(()),
        }
    }

    fn is_our_partial(&self) -> bool {
        let Ok(partial) = fs::symlink_metadata(&self.partial) else { return true };
        if !partial.is_file() {
            return false;
        }
        let is_partial = |inode: Option<u64>| inode == Some(partial.ino());
        let manifests = [self.fresh(), self.manifest.clone()];
        let declared = || manifests.iter().filter_map(|manifest| read_manifest(manifest).ok().flatten()?.image);
        partial.blocks() == 0
            || match Journal::peek(&self.journal) {
                Some(header) => is_partial(header.inode),
                None => journal::is_one(&self.journal),
            }
            || fs::metadata(&self.image).is_ok_and(|image| (image.dev(), image.ino()) == (partial.dev(), partial.ino()))
            || declared().any(|image| is_partial(Some(image.inode)))
    }
}

/// Whether a manifest may be replaced or removed: it is one, or the beginning of one, or not there.
fn is_our_manifest(path: &Path) -> bool {
    let look = || {
        if !fs::symlink_metadata(path)?.is_file() {
            return Ok(false);
        }
        let mut head = Vec::new();
        opening::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut head)?;
        Ok(MAGIC.as_bytes().starts_with(&head))
    };
    match look() {
        Err(error) => io::Error::kind(&error) == io::ErrorKind::NotFound,
        Ok(ours) => ours,
    }
}
