//! Snapshots: what each stands for, and whether it must stand.

use std::ops::Range;

use tzero_block::ByteRange;

use super::history::Pin;
use super::{Model, Moment, Oracle, is_telling, seen};
use crate::contents::Version;
use crate::executor::fail;
use crate::story::happens;

/// What is known of whether a snapshot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// `create` was called and nobody was told of the result.
    Creating,
    /// It stands, and must.
    Live,
    /// `delete` was called and nobody was told of the result.
    Deleting,
    /// It is gone, or was never there.
    Gone,
}

pub(super) struct Snapshot {
    standing: Standing,
    /// It could not be made.
    never: bool,
    /// A deletion of it has failed.
    unwanted: bool,
    /// It was seen broken: it must stay so.
    broken: bool,
    /// Incarnation in which `create` was called.
    incarnation: u32,
    /// Epoch of the newest change that was over when `create` was called.
    finished_before: u64,
    /// Epoch of the newest snapshot that was there when `create` was called.
    created_before: u64,
    moment: Option<Moment>,
    /// Ranges whose release has begun, and whether it is acknowledged.
    released: Vec<(ByteRange, bool)>,
}

/// A read of a view that is under way.
#[derive(Debug)]
pub struct ViewToken {
    snapshot: u32,
    range: ByteRange,
    /// A byte of it had been released, for certain, when the read began.
    released: bool,
}

impl Oracle {
    /// `create` is about to be called for the snapshot that the schedule knows by this number.
    pub fn create_begins(&self, number: u32) {
        let mut model = self.model();
        model.tick();
        let snapshot = Snapshot {
            standing: Standing::Creating,
            never: false,
            unwanted: false,
            broken: false,
            incarnation: model.incarnation,
            finished_before: model.finished_epoch,
            created_before: model.created_epoch,
            moment: None,
            released: Vec::new(),
        };
        model.snapshots.insert(number, snapshot);
    }

    /// `create` has returned a snapshot of this epoch.
    pub fn created(&self, number: u32, epoch: u64) {
        let mut model = self.model();
        model.tick();
        if let Err(complaint) = model.place(number, epoch) {
            fail(complaint);
        }
        // The answer may come after a restart has found it, and after it was deleted then.
        if let Some(snapshot) = model.snapshots.get_mut(&number).filter(|s| s.standing == Standing::Creating) {
            snapshot.standing = Standing::Live;
        }
        model.created_epoch = model.created_epoch.max(epoch);
    }

    /// `create` has failed.
    pub fn create_failed(&self, number: u32) {
        self.set(number, Standing::Gone);
        if let Some(snapshot) = self.model().snapshots.get_mut(&number) {
            snapshot.never = true;
        }
    }

    fn was_never(&self, number: u32) -> bool {
        self.model().snapshots.get(&number).is_some_and(|snapshot| snapshot.never)
    }

    /// `delete` is about to be called.
    pub fn delete_begins(&self, number: u32) {
        self.set(number, Standing::Deleting);
    }

    /// `delete` has returned. The answer may come after a restart has found the snapshot again, where the power was lost.
    pub fn deleted(&self, number: u32) {
        if self.standing(number) == Standing::Deleting {
            self.set(number, Standing::Gone);
        }
    }

    /// `delete` has failed: the snapshot stays. With the power it may go, as was asked for.
    pub fn delete_failed(&self, number: u32) {
        if self.standing(number) == Standing::Deleting {
            self.set(number, Standing::Live);
        }
        if let Some(snapshot) = self.model().snapshots.get_mut(&number) {
            snapshot.unwanted = true;
        }
    }

    fn is_unwanted(&self, number: u32) -> bool {
        self.model().snapshots.get(&number).is_some_and(|snapshot| snapshot.unwanted)
    }

    /// Whether the snapshot must stand.
    pub fn standing(&self, number: u32) -> Standing {
        self.model().snapshots.get(&number).map_or(Standing::Gone, |snapshot| snapshot.standing)
    }

    /// The engine says that the snapshot is broken, or that it is not.
    pub fn state_seen(&self, number: u32, broken: bool) {
        let mut model = self.model();
        let Some(snapshot) = model.snapshots.get_mut(&number) else { return };
        if snapshot.broken && !broken {
            fail(format!("snapshot {number} was broken and is live again"));
        }
        snapshot.broken |= broken;
    }

    /// That the snapshot is broken was said before it was certain, and a loss of power has come between.
    pub fn stands_after_all(&self, number: u32) {
        if let Some(snapshot) = self.model().snapshots.get_mut(&number) {
            snapshot.broken = false;
        }
    }

    /// Whether the engine has said that the snapshot is broken.
    pub fn is_broken(&self, number: u32) -> bool {
        self.model().snapshots.get(&number).is_some_and(|snapshot| snapshot.broken)
    }

    /// After a start: the snapshots that the engine has found, by number, with epoch and whether they are broken. After a loss of power those
    /// that are gone may be back, broken: all, or with `durable` only those that could not be made. Some `may_be_lost` with the power. After any end those
    /// may be back, broken, that could not be made and whose records are `uncleared`.
    pub fn recovered(
        &self,
        found: &[(u32, u64, bool)],
        power_lost: bool,
        durable: bool,
        may_be_lost: impl Fn(u32) -> bool,
        uncleared: impl Fn(u32) -> bool,
    ) {
        happens(|| format!("found after a start: {found:?}; power lost: {power_lost}"));
        let numbers: Vec<u32> = self.model().snapshots.keys().copied().collect();
        for (number, ..) in found {
            if !numbers.contains(number) {
                fail(format!("a snapshot {number} was found that nobody made"));
            }
        }
        for number in numbers {
            let there = found.iter().find(|(other, ..)| *other == number);
            let standing = self.standing(number);
            match (standing, there) {
                (Standing::Live, None) if power_lost && (may_be_lost(number) || self.is_unwanted(number)) => {
                    self.set(number, Standing::Gone)
                }
                (Standing::Live, None) => fail(format!("snapshot {number} is lost after a restart")),
                (Standing::Gone, Some((.., true))) if power_lost && (!durable || self.was_never(number)) => {
                    self.set(number, Standing::Live);
                }
                (Standing::Gone, Some((.., true))) if self.was_never(number) && uncleared(number) => {
                    self.set(number, Standing::Live);
                }
                (Standing::Gone, Some(_)) => fail(format!("snapshot {number} was deleted and is back")),
                (_, None) => self.set(number, Standing::Gone),
                (_, Some((_, epoch, broken))) => {
                    let placed = self.model().place(number, *epoch);
                    if let Err(complaint) = placed {
                        fail(complaint);
                    }
                    self.state_seen(number, *broken);
                    self.set(number, Standing::Live);
                    let mut model = self.model();
                    model.created_epoch = model.created_epoch.max(*epoch);
                }
            }
        }
    }

    /// `release` is about to be called.
    pub fn release_begins(&self, number: u32, ranges: &[ByteRange]) {
        if let Some(snapshot) = self.model().snapshots.get_mut(&number) {
            snapshot.released.extend(ranges.iter().map(|range| (*range, false)));
        }
    }

    /// `release` has returned.
    pub fn released(&self, number: u32, ranges: &[ByteRange]) {
        if let Some(snapshot) = self.model().snapshots.get_mut(&number) {
            for (range, certain) in &mut snapshot.released {
                *certain |= ranges.contains(range);
            }
        }
    }

    /// A view, or a copy of the snapshot, is about to be read.
    pub fn view_begins(&self, number: u32, range: ByteRange) -> ViewToken {
        let model = self.model();
        let released = model
            .snapshots
            .get(&number)
            .is_some_and(|snapshot| snapshot.released.iter().any(|(gone, certain)| *certain && gone.overlaps(range)));
        ViewToken { snapshot: number, range, released }
    }

    /// The read has succeeded.
    pub fn view_ends(&self, token: &ViewToken, bytes: &[u8], who: &str) {
        let ViewToken { snapshot: number, range, released } = *token;
        if released {
            fail(format!("{who}: {range} of snapshot {number} was served after it was released"));
        }
        let mut model = self.model();
        model.tick();
        let broken = model.snapshots.get(&number).is_none_or(|snapshot| snapshot.moment.is_none());
        if broken {
            return fail(format!("{who}: snapshot {number} was read before it was there"));
        }
        let now = model.now;
        for (index, cell) in model.cells.split(range, bytes) {
            let count = model.count_at(number, index);
            let candidates = model.candidates(index, count, u64::MAX, None);
            let Some(seen) = seen(&candidates, index, cell) else {
                let who = format!("{who}: snapshot {number} after {count} changes");
                return fail(model.complaint(&who, index, cell, &candidates));
            };
            if is_telling(cell) {
                model.by_cell[index].pin(Pin { count, version: seen, at: now });
            }
        }
    }

    /// A client was told that `range` is a hole of the view.
    pub fn view_hole(&self, number: u32, range: ByteRange, who: &str) {
        let mut model = self.model();
        model.tick();
        let now = model.now;
        for index in model.cells_within(range) {
            let count = model.count_at(number, index);
            let candidates = model.candidates(index, count, u64::MAX, None);
            if !candidates.contains(&Version::ZERO) {
                let who = format!("{who}: snapshot {number} after {count} changes");
                return fail(model.complaint(&who, index, &[], &candidates));
            }
            model.by_cell[index].pin(Pin { count, version: Version::ZERO, at: now });
        }
    }

    /// Whether some byte of the range may have been released.
    pub fn may_be_released(&self, number: u32, range: ByteRange) -> bool {
        let model = self.model();
        let snapshot = model.snapshots.get(&number);
        snapshot.is_some_and(|snapshot| snapshot.released.iter().any(|(gone, _)| gone.overlaps(range)))
    }

    /// How many of the cells of `range` no change has touched since the snapshot's T0.
    pub fn untouched(&self, number: u32, range: ByteRange) -> usize {
        let model = self.model();
        let cells: Range<usize> = model.cells_within(range);
        cells.filter(|index| model.count_at(number, *index) == model.by_cell[*index].history.len()).count()
    }

    fn set(&self, number: u32, standing: Standing) {
        happens(|| format!("snapshot {number} is {standing:?}"));
        let mut model = self.model();
        model.tick();
        if let Some(snapshot) = model.snapshots.get_mut(&number) {
            snapshot.standing = standing;
        }
    }
}

impl Model {
    /// Puts a snapshot into time, or checks that it is where it was.
    fn place(&mut self, number: u32, epoch: u64) -> Result<(), String> {
        let Some(snapshot) = self.snapshots.get_mut(&number) else {
            return Err(format!("a snapshot {number} was found that nobody made"));
        };
        if let Some(known) = snapshot.moment {
            let same = known.epoch == epoch;
            return if same {
                Ok(())
            } else {
                Err(format!("snapshot {number} went from epoch {} to {epoch}", known.epoch))
            };
        }
        snapshot.moment = Some(Moment { incarnation: snapshot.incarnation, epoch });
        if epoch <= snapshot.finished_before {
            let before = snapshot.finished_before;
            return Err(format!("snapshot {number} has epoch {epoch}, a change that was over before it had {before}"));
        }
        if epoch <= snapshot.created_before {
            let before = snapshot.created_before;
            return Err(format!("snapshot {number} has epoch {epoch}, an older snapshot has {before}"));
        }
        Ok(())
    }

    /// How many changes of a cell lie before a snapshot's T0.
    fn count_at(&self, number: u32, index: usize) -> usize {
        let moment = self.snapshots.get(&number).and_then(|snapshot| snapshot.moment);
        let before = |id: &super::ChangeId| self.changes[id.0 as usize - 1].admitted < moment;
        self.by_cell[index].history.partition_point(before)
    }
}
