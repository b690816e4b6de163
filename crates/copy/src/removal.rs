//! Removing what a name stands for: a copy, the entry of one that is gone, an unfinished one, or the note of an interrupted restore.

use std::io;
use std::path::Path;

use crate::backup::discard;
use crate::catalogue::is_path;
use crate::error::FileAction;
use crate::location::Location;
use crate::restore::dismiss;
use crate::site::Site;
use crate::{Catalogue, CopyId, Error};

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A copy, or what there was of one.
    Copy(CopyId),
    /// The note of an interrupted restore, by its id. Its target stays as it is.
    Restore(String),
}

impl Catalogue {
    /// Finds a copy as [`Catalogue::find`] does and removes it. The entry of a copy whose manifest is gone is removed
    /// too. An unfinished copy is named by the path of its `.tzero-partial` or `.tzero-journal`; its private snapshot
    /// goes with it. An interrupted restore is named by the path of its note.
    ///
    /// # Errors
    /// As both; when the restore is running.
    pub fn remove_named(&self, name: &str) -> Result<Removed, Error> {
        if let Some(path) = Location::of(Path::new(name))?.path().filter(|_| is_path(name)) {
            let path = std::path::absolute(path).map_err(Error::file(FileAction::Open, path))?;
            if let Some(id) = dismiss(&path, &self.state)? {
                return Ok(Removed::Restore(id));
            }
            if let Some(site) = Site::of_unfinished(&path, &self.state) {
                return discard(&site, &self.state).map(Removed::Copy);
            }
        }
        let entry = self.entry(name)?;
        let removed = match (self.find(name), entry) {
            (Ok(copy), _) => self.remove(&copy).map(|()| copy.id()),
            (Err(Error::NoCopy { .. } | Error::UnknownCopy { .. }), Some(entry)) => {
                self.forget(entry.id).map(|()| entry.id)
            }
            (Err(Error::File { source, .. }), Some(entry)) if source.kind() == io::ErrorKind::NotFound => {
                self.forget(entry.id).map(|()| entry.id)
            }
            (Err(error), _) => Err(error),
        };
        removed.map(Removed::Copy)
    }
}
