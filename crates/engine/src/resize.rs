//! A volume that becomes longer while it is used.
//!
//! # Invariants
//! 1. A snapshot keeps the size that the volume had at its T0. Grains behind that are nobody's of before: nothing is saved of them for it, and
//!    nothing of them is shown.
//! 2. Bits first, then the size: whoever has heard of a grain finds its bit.
//! 3. The last grain may be short, and a growth makes it longer. What was saved of it before is all that the snapshots of then have there; what
//!    is saved of it afterwards is longer, and they are shown its beginning. One save is cut by one size, from reading to its entry. A snapshot
//!    that it serves is older than its change, so it has no more of the grain than the save.
//! 4. A session keeps the size that it was told. So does a request: it lies within that.
//!
//! Deliberately absent: a volume that becomes shorter. Nobody may use it then, so it is opened anew.

use std::sync::atomic::Ordering;

use tzero_block::BlockDevice;
use tzero_originals::Grains;

use crate::pending::NoMemory;
use crate::platform::Platform;
use crate::points::{Event, Planted};
use crate::snapshots::Snapshot;
use crate::volume::Volume;

impl<P: Platform> Volume<P> {
    /// Makes sure that [`Self::grow`] to this size finds the memory that it needs.
    ///
    /// # Errors
    /// Where there is none: then nothing has changed.
    pub fn prepare_to_grow(&self, size: u64) -> Result<(), NoMemory> {
        let _claims = self.lock();
        self.pending.reserve(self.cut.over(size).count())
    }

    /// Takes over what the base has become longer by, for sessions and snapshots that begin from now on; gives the size. The base must have it
    /// on whatever it is made of, and on record, for good.
    ///
    /// # Errors
    /// As [`Self::prepare_to_grow`].
    pub fn grow(&self) -> Result<u64, NoMemory> {
        let _claims = self.lock();
        let (was, size) = (self.size(), self.base.geometry().size);
        if size > was {
            self.pending.grow(self.cut.over(size).count())?;
            if self.platform.planted(Planted::GrownForAll) && self.snapshots.any_live() {
                self.pending.arm();
            }
            self.size.store(size, Ordering::SeqCst);
            self.platform.observe(Event::Grown { from: was, to: size });
        }
        Ok(size.max(was))
    }

    /// How the volume was cut at a snapshot's T0.
    pub(crate) fn grains_of(&self, snapshot: &Snapshot) -> Grains {
        self.cut.over(snapshot.size)
    }
}
