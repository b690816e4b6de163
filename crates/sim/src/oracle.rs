//! What clients may see: the judge of every answer.
//!
//! # The model
//! The device is looked at in cells. Each cell has a *history*: the changes of it in the order of their admission, each with
//! the epoch that the engine gave it. A snapshot of epoch e stands for the value of each cell after all changes of epochs
//! below e, and none other (one decision for a whole request: T0 never splits it). The engine reports each admission, so it is
//! known, not guessed, what a T0 contains; that the report is true to what clients saw is checked as well:
//! - epochs never go back in order of admission, and nothing lands that was not admitted;
//! - a change acknowledged before `create` was called lies before it, one submitted after it returned lies after;
//! - so of two dependent changes (the second submitted after the first was acknowledged) no snapshot has only the second.
//!
//! The value after the first n changes of a cell is one of its *candidates*: those of the n that were not, for certain,
//! overwritten by another of them (one submitted after they were over, that succeeded). Failed changes, and those in flight when the daemon died,
//! may or may not have landed; a trim leaves the bytes or zeroes them.
//!
//! # Pins
//! Whoever has read the value after n changes, through a view, a copy, or the host export while nothing was in flight,
//! has *pinned* it: every later read of the same n, by anyone, over crashes too, must be the same, and candidates of larger n
//! start from it. At the end every pin is checked again against what became known after it.
//!
//! # Loss of power
//! is one more entry in the history of every cell, after which the cell may hold: what it held when the last flush that succeeded began, or any
//! change since, acknowledged or not. A change with FUA is as if it had been flushed. What snapshots from before it stand for does not change.
//!
//! Deliberately absent: how the engine does it. The oracle knows no grain, entry, bit or slot.

use std::cell::Cell as StdCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tzero_block::ByteRange;

use crate::contents::{Cells, Version, describe, holds};
use crate::executor::fail;
use crate::story::happens;

mod history;
mod snapshots;

use history::{Cell, Pin};
pub use history::{Change, Kind, Outcome};
use snapshots::Snapshot;
pub use snapshots::{Standing, ViewToken};

/// A change of the host, from its submission on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeId(pub u32);

/// A host read that is under way.
#[derive(Debug)]
pub struct ReadToken {
    range: ByteRange,
    started: u64,
}

/// A flush that is under way.
#[derive(Debug)]
pub struct FlushToken {
    began: u64,
    incarnation: u32,
}

/// When an epoch was: in which incarnation of the daemon, and its number there. Ordered by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Incarnations are counted from 0.
    pub incarnation: u32,
    /// The engine's epoch.
    pub epoch: u64,
}

pub(crate) struct Model {
    cells: Cells,
    now: u64,
    incarnation: u32,
    /// Change n has id n + 1, so that no change has the version of zeroes.
    changes: Vec<Change>,
    by_cell: Vec<Cell>,
    snapshots: BTreeMap<u32, Snapshot>,
    /// The largest epoch of an admission in this incarnation.
    admitted_epoch: u64,
    /// The largest epoch of a change that is over, in this incarnation.
    finished_epoch: u64,
    /// The largest epoch of a snapshot whose creation was acknowledged.
    created_epoch: u64,
    /// When the last flush of the host's began that has succeeded.
    flushed: u64,
}

/// The judge. Clones share one model.
#[derive(Clone)]
pub struct Oracle(Arc<Mutex<Model>>);

thread_local! {
    static CURRENT: StdCell<Option<ChangeId>> = const { StdCell::new(None) };
}

/// Runs `request` so that what the engine reports while it is polled is known to be about `change`.
pub async fn attributed<F: Future>(change: ChangeId, request: F) -> F::Output {
    /// What was current before. Whoever dies may unwind: the next schedule of the thread must not find it.
    struct Before(Option<ChangeId>);

    impl Drop for Before {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }

    let mut request = pin!(request);
    poll_fn(|cx| {
        let _before = Before(CURRENT.replace(Some(change)));
        request.as_mut().poll(cx)
    })
    .await
}

/// The change whose request is being polled now.
pub fn current_change() -> Option<ChangeId> {
    CURRENT.get()
}

impl Oracle {
    /// A device whose cells hold [`Version::FIRST`] where `filled` says so, zeroes elsewhere.
    pub fn new(cells: Cells, filled: impl Fn(usize) -> bool) -> Self {
        let first = |index| if filled(index) { Version::FIRST } else { Version::ZERO };
        Self(Arc::new(Mutex::new(Model {
            cells,
            now: 1,
            incarnation: 0,
            changes: Vec::new(),
            by_cell: (0..cells.count()).map(|index| Cell::new(first(index))).collect(),
            snapshots: BTreeMap::new(),
            admitted_epoch: 0,
            finished_epoch: 0,
            created_epoch: 0,
            flushed: 0,
        })))
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.0.lock().expect("nothing panics while it holds the model")
    }

    /// How the device is cut.
    pub fn cells(&self) -> Cells {
        self.model().cells
    }

    /// A client is about to submit a change.
    pub fn submit(&self, kind: Kind, range: ByteRange, fua: bool) -> ChangeId {
        let mut model = self.model();
        let submitted = model.tick();
        let cells = model.cells.of(range);
        let epoch_before = model.created_epoch;
        model.changes.push(Change { fua, ..Change::new(kind, cells, submitted, epoch_before) });
        ChangeId(model.changes.len() as u32)
    }

    /// The engine admits the change whose request is being polled.
    pub fn admitted(&self, id: ChangeId, epoch: u64) {
        let mut model = self.model();
        model.tick();
        let moment = Moment { incarnation: model.incarnation, epoch };
        if epoch < model.admitted_epoch {
            fail(format!(
                "epoch went back: change {} was admitted in {epoch} after one in {}",
                id.0, model.admitted_epoch
            ));
        }
        model.admitted_epoch = epoch;
        happens(|| format!("change {} is admitted in epoch {epoch}", id.0));
        let (now, change) = (model.now, &mut model.changes[id.0 as usize - 1]);
        if let Some(before) = change.admitted.replace(moment) {
            fail(format!("change {} was admitted twice, in epochs {} and {epoch}", id.0, before.epoch));
            return;
        }
        if epoch < change.epoch_before {
            let before = change.epoch_before;
            fail(format!("change {} came after the snapshot of epoch {before} and was admitted in {epoch}", id.0));
        }
        for index in change.cells.clone() {
            model.by_cell[index].admit(id, now);
        }
    }

    /// The client was told how its change ended.
    pub fn finished(&self, id: ChangeId, outcome: Outcome) {
        let mut model = self.model();
        let now = model.tick();
        let change = &mut model.changes[id.0 as usize - 1];
        if change.over.is_some() {
            // The answer was on its way when the daemon died.
            return;
        }
        change.finish(outcome, now);
        let (kind, admitted, cells) = (change.kind, change.admitted, change.cells.clone());
        let Some(moment) = admitted else {
            if outcome == Outcome::Done && kind != Kind::Trim {
                fail(format!("change {} succeeded without having been admitted", id.0));
            }
            return;
        };
        model.finished_epoch = model.finished_epoch.max(moment.epoch);
        for index in cells {
            model.by_cell[index].settle(now);
            if outcome == Outcome::Done
                && let Some(complaint) = model.hindsight(index, now)
            {
                return fail(complaint);
            }
        }
    }

    /// A flush is about to be asked for.
    pub fn flush_begins(&self) -> FlushToken {
        let mut model = self.model();
        FlushToken { began: model.tick(), incarnation: model.incarnation }
    }

    /// It has succeeded.
    pub fn flushed(&self, token: &FlushToken) {
        let mut model = self.model();
        model.tick();
        // An answer that was on its way when the machine died says nothing of what came back.
        if token.incarnation == model.incarnation {
            model.flushed = model.flushed.max(token.began);
        }
    }

    /// The machine has lost its power; the daemon's death is known already.
    pub fn lost_power(&self) {
        let mut model = self.model();
        let now = model.tick();
        let cells = 0..model.by_cell.len();
        let moment = Moment { incarnation: model.incarnation - 1, epoch: u64::MAX };
        let mut loss = Change::new(Kind::Loss, cells.clone(), now, 0);
        loss.admitted = Some(moment);
        loss.finish(Outcome::Unknown, now);
        model.changes.push(loss);
        let id = ChangeId(model.changes.len() as u32);
        for index in cells {
            let may_hold = model.left_by_loss(index);
            model.by_cell[index].lose(id, may_hold, now);
        }
        model.flushed = now;
    }

    /// While nobody served it, the device was cut, durably: what was there is zeroes when it is longer again.
    pub fn cut(&self, range: ByteRange) {
        let mut model = self.model();
        let now = model.tick();
        let cells = model.cells_within(range);
        let mut cut = Change { fua: true, ..Change::new(Kind::Zeroes, cells.clone(), now, 0) };
        cut.admitted = Some(Moment { incarnation: model.incarnation - 1, epoch: u64::MAX });
        cut.finish(Outcome::Done, now);
        model.changes.push(cut);
        let id = ChangeId(model.changes.len() as u32);
        for index in cells {
            model.by_cell[index].admit(id, now);
            model.by_cell[index].settle(now);
        }
    }

    /// A client is about to read from the host export.
    pub fn read_begins(&self, range: ByteRange) -> ReadToken {
        ReadToken { range, started: self.model().tick() }
    }

    /// A client has read from the host export.
    pub fn read_ends(&self, token: &ReadToken, bytes: &[u8], who: &str) {
        let mut model = self.model();
        let now = model.tick();
        for (index, cell) in model.cells.split(token.range, bytes) {
            let count = model.count_for(index, token);
            let candidates = model.candidates(index, count, token.started, None);
            let Some(seen) = seen(&candidates, index, cell) else {
                return fail(model.complaint(who, index, cell, &candidates));
            };
            if model.by_cell[index].is_settled_since(token.started) && is_telling(cell) {
                model.by_cell[index].pin(Pin { count, version: seen, at: now });
            }
        }
    }

    /// A client was told that `range` is a hole of the host export.
    pub fn hole_seen(&self, token: &ReadToken, range: ByteRange, who: &str) {
        let mut model = self.model();
        model.tick();
        for index in model.cells_within(range) {
            let count = model.count_for(index, token);
            let candidates = model.candidates(index, count, token.started, None);
            if !candidates.contains(&Version::ZERO) {
                return fail(model.complaint(who, index, &[], &candidates));
            }
        }
    }

    /// The daemon has died, and whatever was in flight has landed or not.
    pub fn crashed(&self) {
        let mut model = self.model();
        let now = model.tick();
        for at in 0..model.changes.len() {
            let change = &mut model.changes[at];
            if change.over.is_some() {
                continue;
            }
            change.finish(Outcome::Unknown, now);
            if change.admitted.is_some() {
                let cells = change.cells.clone();
                cells.for_each(|index| model.by_cell[index].settle(now));
            }
        }
        model.incarnation += 1;
        model.admitted_epoch = 0;
        model.finished_epoch = 0;
    }

    /// The daemon was stopped and starts again.
    pub fn restarted(&self) {
        self.crashed();
    }

    /// Nothing is in flight: what the base holds, and every pin, against everything that is known.
    pub fn quiesced(&self, base: &[u8]) {
        let mut model = self.model();
        model.tick();
        let (now, all) = (model.now, ByteRange::new(0, model.cells.size));
        for (index, cell) in model.cells.split(all, base) {
            let count = model.by_cell[index].history.len();
            let candidates = model.candidates(index, count, now, None);
            let Some(seen) = seen(&candidates, index, cell) else {
                return fail(model.complaint("the base at the end", index, cell, &candidates));
            };
            if is_telling(cell) {
                model.by_cell[index].pin(Pin { count, version: seen, at: now });
            }
            if let Some(complaint) = model.hindsight(index, now) {
                return fail(complaint);
            }
        }
    }

    /// How many changes were submitted.
    pub fn changes(&self) -> usize {
        self.model().changes.len()
    }
}

/// What is known when it is asked what a cell may hold.
struct Knowledge {
    as_of: u64,
    below: Option<usize>,
    /// Whether a change had certainly replaced what was there.
    of: fn(&Change, u64) -> bool,
}

fn seen(candidates: &[Version], index: usize, cell: &[u8]) -> Option<Version> {
    candidates.iter().copied().find(|version| holds(*version, index, cell))
}

/// Whether a cell is long enough for its bytes to be of one version only.
fn is_telling(cell: &[u8]) -> bool {
    cell.len() >= 4
}

impl Model {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Cells that lie wholly within `range`.
    fn cells_within(&self, range: ByteRange) -> std::ops::Range<usize> {
        let first = range.start().div_ceil(self.cells.cell) as usize;
        let last =
            if range.end() == self.cells.size { self.cells.count() } else { (range.end() / self.cells.cell) as usize };
        first..last.max(first)
    }

    /// How many changes of a cell a read may have seen. An answer that was on its way when the power was lost says nothing of what came back.
    fn count_for(&self, index: usize, token: &ReadToken) -> usize {
        let cell = &self.by_cell[index];
        let mut lost = cell.losses.iter().map(|(count, _)| count - 1);
        let submitted = |at: usize| self.changes[cell.history[at].0 as usize - 1].submitted;
        lost.find(|at| submitted(*at) > token.started).unwrap_or(cell.history.len())
    }

    /// What a cell may hold after its first `count` changes, for a reader who knows what was over at `as_of`. With `below`, pins of that
    /// many changes and more are not used.
    fn candidates(&self, index: usize, count: usize, as_of: u64, below: Option<usize>) -> Vec<Version> {
        self.left(index, count, Knowledge { as_of, below, of: Change::overwrites })
    }

    /// What a cell may hold after a loss of power.
    fn left_by_loss(&self, index: usize) -> Vec<Version> {
        let count = self.by_cell[index].history.len();
        self.left(index, count, Knowledge { as_of: self.flushed, below: None, of: Change::overwrites_durably })
    }

    fn left(&self, index: usize, count: usize, knowledge: Knowledge) -> Vec<Version> {
        let Knowledge { as_of, below, of } = knowledge;
        let cell = &self.by_cell[index];
        let since = cell.loss_before(count);
        let pin = cell.pins.iter().rev().find(|pin| {
            pin.count <= count
                && pin.at <= as_of
                && below.is_none_or(|below| pin.count < below)
                && since.is_none_or(|(lost, _)| pin.count >= *lost)
        });
        let (start, first) = match (pin, since) {
            (Some(pin), _) => (pin.count, vec![pin.version]),
            (None, Some((lost, may_hold))) => (*lost, may_hold.clone()),
            (None, None) => (0, vec![cell.first]),
        };
        let entries = &cell.history[start..count];
        let change = |id: &ChangeId| &self.changes[id.0 as usize - 1];
        let newest = entries.iter().map(change).filter(|change| of(change, as_of)).map(|change| change.submitted).max();
        let mut candidates = if newest.is_none() { first } else { Vec::with_capacity(entries.len()) };
        for id in entries {
            let overwritten = newest.is_some_and(|newest| change(id).over.is_some_and(|over| over.1 < newest));
            if !overwritten {
                candidates.push(change(id).leaves(*id));
            }
        }
        candidates
    }

    /// Checks every pin of a cell against what became known after it.
    fn hindsight(&self, index: usize, now: u64) -> Option<String> {
        self.by_cell[index].pins.iter().find_map(|pin| {
            let candidates = self.candidates(index, pin.count, now, Some(pin.count));
            let who = || format!("a read of write {} after {} changes, in hindsight", pin.version.0, pin.count);
            (!candidates.contains(&pin.version)).then(|| self.complaint(&who(), index, &[], &candidates))
        })
    }

    fn complaint(&self, who: &str, index: usize, cell: &[u8], candidates: &[Version]) -> String {
        let range = self.cells.range(index);
        let history: Vec<String> = self.by_cell[index]
            .history
            .iter()
            .map(|id| format!("{}:{}", id.0, self.changes[id.0 as usize - 1]))
            .collect();
        let allowed: Vec<u32> = candidates.iter().map(|version| version.0).collect();
        let holds = if cell.is_empty() { "a hole or an older value".into() } else { describe(index, cell) };
        let pins = &self.by_cell[index].pins;
        format!(
            "{who}: bytes {range} hold {holds}, allowed are {allowed:?}; changes there: {history:?}; pins: {pins:?}"
        )
    }
}

#[cfg(test)]
mod tests;
