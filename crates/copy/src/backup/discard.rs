//! Giving up an unfinished copy.

use std::path::Path;

use tzero_api::StatePaths;
use tzero_api::mover::{FailureCode, PROTOCOL, Request};

use crate::error::{DaemonFault, FileAction};
use crate::patience::patiently;
use crate::session::Session;
use crate::site::Site;
use crate::{CopyId, Error, abandoned};

use super::destination;

/// Removes what an interrupted run left at the site, and its private snapshot. The snapshot goes first: should the
/// daemon not answer, the files still say what stands.
pub(crate) fn discard(site: &Site, state: &Path) -> Result<CopyId, Error> {
    let nothing = || Error::NothingUnfinished { path: site.unfinished().to_owned() };
    if !site.journal.exists() {
        return if site.device.is_none() && site.partial.exists() {
            discard_without_journal(site, state)?.ok_or_else(nothing)
        } else {
            Err(nothing())
        };
    }
    let claim = site.claim()?;
    let Some(left) = destination::load(&claim, site)? else {
        let given_up = discard_without_journal(site, state)?;
        claim.remove().map_err(Error::file(FileAction::Remove, &site.journal))?;
        return given_up.ok_or_else(nothing);
    };
    site.refuse_foreign(|| false)?;
    // A run that died between its last two renames did declare its copy: loading completes that, and only then are
    // names removed.
    let _ = site.load();
    let header = left.header;
    if let Some(snapshot) = header.snapshot.filter(|snapshot| snapshot.private) {
        let resume = Request::Resume {
            protocol: PROTOCOL,
            volume: header.volume.name.clone(),
            snapshot_id: snapshot.id,
            destination: None,
        };
        let socket = StatePaths::new(state).mover_socket();
        let is_held = |fault: &DaemonFault| matches!(fault, DaemonFault::Refused { code: FailureCode::Busy, .. });
        let opened = patiently(|| Session::open(&socket, &resume), is_held);
        match opened.and_then(|opened| opened.session.abandon()) {
            // A broken snapshot cannot be resumed; it is deleted by name, as any other.
            Ok(()) | Err(DaemonFault::Refused { code: FailureCode::Unknown | FailureCode::Broken, .. }) => {}
            Err(fault) => return Err(Error::Daemon { volume: header.volume.name, fault }),
        }
    }
    site.discard_partial()?;
    claim.remove().map_err(Error::file(FileAction::Remove, &site.journal))?;
    Ok(header.copy)
}

/// The same where no journal tells what it was: then the daemon must, and gives the copy's id if it knows of one.
fn discard_without_journal(site: &Site, state: &Path) -> Result<Option<CopyId>, Error> {
    let known = abandoned::known(site, state);
    site.refuse_foreign(|| !known.is_empty())?;
    let _ = site.load();
    for snapshot in &known {
        abandoned::give_up(snapshot, state)?;
    }
    site.discard_partial()?;
    let copies = known.iter().filter_map(|snapshot| snapshot.destination.as_ref()?.copy.as_ref());
    Ok(copies.filter_map(|copy| copy.parse().ok()).next())
}
