//! Giving up an unfinished copy.

use std::path::Path;

use tzero_api::mover::{FailureCode, Request};

use super::destination;
use crate::error::{DaemonFault, FileAction, ResumeFault};
use crate::session::Session;
use crate::site::Site;
use crate::{CopyId, Error};

/// Removes what an interrupted run left at the site, and its private snapshot. The snapshot goes first: should the
/// daemon not answer, the files still say what stands.
pub(crate) fn discard(site: &Site, mover_socket: &Path) -> Result<CopyId, Error> {
    let nothing = || Error::Resume { path: site.image.clone(), fault: ResumeFault::Nothing };
    if !site.journal.exists() {
        return Err(nothing());
    }
    let claim = destination::claim(site)?;
    let left = destination::load(&claim, site)?;
    // A run that died between its last two renames did declare its copy: loading completes that, and only then are
    // names removed.
    let _ = site.load();
    let Some(left) = left else {
        site.discard_partial()?;
        claim.remove().map_err(Error::file(FileAction::Remove, &site.journal))?;
        return Err(nothing());
    };
    let header = left.header;
    if let Some(snapshot) = header.snapshot.filter(|snapshot| snapshot.private) {
        let resume = Request::Resume { volume: header.volume.name.clone(), snapshot_id: snapshot.id };
        match Session::open(mover_socket, &resume).and_then(|opened| opened.session.abandon()) {
            // A broken snapshot cannot be resumed; it is deleted by name, as any other.
            Ok(()) | Err(DaemonFault::Refused { code: FailureCode::Unknown | FailureCode::Broken, .. }) => {}
            Err(fault) => return Err(Error::Daemon { volume: header.volume.name, fault }),
        }
    }
    site.discard_partial()?;
    claim.remove().map_err(Error::file(FileAction::Remove, &site.journal))?;
    Ok(header.copy)
}
