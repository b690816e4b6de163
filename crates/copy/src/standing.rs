//! A copy that stands where something is to be restored.
//!
//! Its manifest would go on to call the restored bytes that copy, damaged; and an unfinished copy on a device would go
//! on over them and call the mixture good. So the first is un-declared before anything of it is overwritten, and the
//! second is not overwritten at all.

use std::path::Path;

use crate::error::Refusal;
use crate::journal::Claim;
use crate::site::Site;
use crate::{Catalogue, Error, FileAction};

/// The target of a restore as a place of copies. While it lives nobody else makes or removes a copy there.
pub(crate) struct Standing {
    site: Site,
    catalogue: Catalogue,
    /// Held only where there is something of a copy.
    claim: Option<Claim>,
}

impl Standing {
    /// Looks at `path`, a file that may be missing or a block device.
    ///
    /// # Errors
    /// When a copy stands there and `force` is not set, an unfinished one on a device or export, or one that is being made.
    pub(crate) fn at(path: &Path, state: &Path, force: bool) -> Result<Self, Error> {
        Self::of(Site::of_image(path, state)?, path, state, force)
    }

    /// The same of a place that is known already.
    pub(crate) fn of(site: Site, path: &Path, state: &Path, force: bool) -> Result<Self, Error> {
        let mut standing = Self { site, catalogue: Catalogue::new(state), claim: None };
        let site = &standing.site;
        site.refuse_foreign_manifest()?;
        let (declared, begun) = (site.has_manifest(), site.journal.exists());
        if declared && !force {
            return Err(Error::refused(path, Refusal::Declared));
        }
        if declared || begun {
            site.prepare()?;
            let claim = site.claim()?;
            let left = claim.load().map_err(Error::file(FileAction::Read, &site.journal))?;
            if left.is_some() && site.device.is_some() {
                return Err(Error::Unfinished { path: path.to_owned(), unfinished: site.journal.clone() });
            }
            standing.claim = Some(claim);
        }
        Ok(standing)
    }

    /// Un-declares it durably, here and in the catalogue.
    pub(crate) fn retire(&self) -> Result<(), Error> {
        if self.claim.is_some() { self.catalogue.retire(&self.site) } else { Ok(()) }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        // What an unfinished copy at the same place has recorded is not to be removed.
        if let Some(claim) = self.claim.take()
            && matches!(claim.load(), Ok(None))
        {
            let _ = claim.remove();
        }
    }
}
