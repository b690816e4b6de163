//! A base that becomes shorter while it is served: somebody has cut it behind the daemon's back.
//!
//! What lay behind the cut is lost, to the host and to every snapshot, and a base that gets its size back does not get that back. So from
//! the moment that it is noticed until the next start the volume says so: it takes no new client, no snapshot and no mover. Clients that are
//! there stay; the system gives them errors for what is lost. It is on record at once, and however the daemon ends, the next start
//! refuses the base or breaks the snapshots.

use tzero_api::Place;

use crate::identity::{CleanStop, size_of};
use crate::refusal::Refusal;
use crate::volume::{Serving, Volume};

/// A component that lost its end.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    place: Place,
    /// How long it is, and was, in bytes.
    size: u64,
    was: u64,
}

impl Volume {
    /// What is open, of a volume that has all its bytes.
    pub(crate) fn whole(&self) -> Result<&Serving, Refusal> {
        let serving = self.serving()?;
        let Some(Cut { place, size, was }) = serving.lost.get().cloned() else { return Ok(serving) };
        Err(Refusal::BaseShrank { volume: self.name.clone(), place, size, was })
    }

    /// Looks whether every component of the base still has its size, and puts on record if one has not; not while the volume is being changed,
    /// or after its end. Blocking.
    pub(crate) fn look_at_base(&self) {
        if let Ok(_gate) = self.enter() {
            self.look_closely_at_base();
        }
    }

    /// [`Self::look_at_base`] with the gate held.
    pub(crate) fn look_closely_at_base(&self) {
        let Ok(serving) = self.whole() else { return };
        let cut = serving.base.components.iter().find_map(|component| {
            let was = component.size();
            // An export that is cut is another one: every request to it fails.
            let (_, file) = component.local()?;
            let size = size_of(file).ok().filter(|size| *size < was)?;
            Some(Cut { place: component.place.clone(), size, was })
        });
        let Some(cut) = cut else { return };
        if serving.lost.set(cut).is_err() {
            return;
        }
        if let Err(shrank) = self.whole() {
            tracing::error!("{shrank}");
        }
        if let Err(error) = self.directory.record_clean_stop(Some(&CleanStop::of_loss())) {
            tracing::error!(volume = %self.name, "that the base was cut cannot be recorded: {error}");
        }
    }
}
