//! Removing what a name stands for: a copy, the entry of one that is gone, or an unfinished one.

use std::io;
use std::path::Path;

use crate::backup::discard;
use crate::catalogue::is_path;
use crate::error::FileAction;
use crate::site::Site;
use crate::{Catalogue, CopyId, Error};

impl Catalogue {
    /// Finds a copy as [`Catalogue::find`] does and removes it. The entry of a copy whose manifest is gone is removed
    /// too. An unfinished copy is named by the path of its `.tzero-partial` or `.tzero-journal`; its private snapshot
    /// goes with it.
    ///
    /// # Errors
    /// As both.
    pub fn remove_named(&self, name: &str) -> Result<CopyId, Error> {
        if is_path(name) {
            let path = std::path::absolute(name).map_err(Error::file(FileAction::Open, Path::new(name)))?;
            if let Some(site) = Site::of_unfinished(&path, &self.state) {
                return discard(&site, &self.state);
            }
        }
        let entry = self.entry(name)?;
        match (self.find(name), entry) {
            (Ok(copy), _) => self.remove(&copy).map(|()| copy.id()),
            (Err(Error::NoCopy { .. } | Error::UnknownCopy { .. }), Some(entry)) => {
                self.forget(entry.id).map(|()| entry.id)
            }
            (Err(Error::File { source, .. }), Some(entry)) if source.kind() == io::ErrorKind::NotFound => {
                self.forget(entry.id).map(|()| entry.id)
            }
            (Err(error), _) => Err(error),
        }
    }
}
