//! Changes, and the history of each cell.

use std::fmt;
use std::ops::Range;

use super::{ChangeId, Moment};
use crate::contents::Version;

/// What a change does to its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Fills them with its own pattern.
    Write,
    /// Zeroes them.
    Zeroes,
    /// Zeroes each of them, or does not.
    Trim,
    /// A loss of power: of what was not durable each cell has something or has not.
    Loss,
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// It failed: each cell is old or new.
    Failed,
    /// Nobody was told: the daemon died, or the client went away.
    Unknown,
}

/// One request of the host that changes bytes.
#[derive(Clone, Debug)]
pub struct Change {
    /// What it does.
    pub kind: Kind,
    pub(super) cells: Range<usize>,
    pub(super) submitted: u64,
    /// The epoch of the newest snapshot that was known to exist when it was submitted.
    pub(super) epoch_before: u64,
    pub(super) admitted: Option<Moment>,
    pub(super) over: Option<(Outcome, u64)>,
    /// It is durable when it is over.
    pub(super) fua: bool,
}

impl Change {
    pub(super) fn new(kind: Kind, cells: Range<usize>, submitted: u64, epoch_before: u64) -> Self {
        Self { kind, cells, submitted, epoch_before, admitted: None, over: None, fua: false }
    }

    pub(super) fn finish(&mut self, outcome: Outcome, now: u64) {
        assert!(self.over.is_none(), "a change ends once");
        self.over = Some((outcome, now));
    }

    /// Whether it had certainly replaced what was there, at `as_of`.
    pub(super) fn overwrites(&self, as_of: u64) -> bool {
        matches!(self.kind, Kind::Write | Kind::Zeroes)
            && self.over.is_some_and(|(outcome, at)| outcome == Outcome::Done && at <= as_of)
    }

    /// Whether it had, and power could be lost, if the last flush that succeeded had begun at `flushed`.
    pub(super) fn overwrites_durably(&self, flushed: u64) -> bool {
        self.overwrites(if self.fua { u64::MAX } else { flushed })
    }

    /// What it leaves in a cell.
    pub(super) fn leaves(&self, id: ChangeId) -> Version {
        if self.kind == Kind::Write { Version(id.0) } else { Version::ZERO }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Write => "write",
            Kind::Zeroes => "zeroes",
            Kind::Trim => "trim",
            Kind::Loss => "loss of power",
        };
        let over = match self.over {
            None => "in flight".into(),
            Some((outcome, at)) => format!("{outcome:?} at {at}"),
        };
        match self.admitted {
            None => write!(f, "{kind} from {} {over}", self.submitted),
            Some(Moment { incarnation, epoch }) => {
                write!(f, "{kind} from {} in epoch {incarnation}/{epoch} {over}", self.submitted)
            }
        }
    }
}

/// The value after `count` changes, once read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pin {
    pub(super) count: usize,
    pub(super) version: Version,
    /// When it was read.
    pub(super) at: u64,
}

pub(super) struct Cell {
    pub(super) first: Version,
    /// In order of admission.
    pub(super) history: Vec<ChangeId>,
    /// By ascending count, one each.
    pub(super) pins: Vec<Pin>,
    /// Losses of power: how many entries of the history there are up to each, and what the cell may have held after it. Ascending.
    pub(super) losses: Vec<(usize, Vec<Version>)>,
    in_flight: u32,
    last_event: u64,
}

impl Cell {
    pub(super) fn new(first: Version) -> Self {
        Self { first, history: Vec::new(), pins: Vec::new(), losses: Vec::new(), in_flight: 0, last_event: 0 }
    }

    pub(super) fn admit(&mut self, id: ChangeId, now: u64) {
        self.history.push(id);
        self.in_flight += 1;
        self.last_event = now;
    }

    pub(super) fn settle(&mut self, now: u64) {
        self.in_flight -= 1;
        self.last_event = now;
    }

    /// The power was lost: what the cell may hold from now on.
    pub(super) fn lose(&mut self, id: ChangeId, may_hold: Vec<Version>, now: u64) {
        self.history.push(id);
        self.losses.push((self.history.len(), may_hold));
        self.last_event = now;
    }

    /// The last loss of power among the first `count` entries.
    pub(super) fn loss_before(&self, count: usize) -> Option<&(usize, Vec<Version>)> {
        self.losses.iter().rev().find(|(at, _)| *at <= count)
    }

    /// Whether no change was in flight at any time since `since`.
    pub(super) fn is_settled_since(&self, since: u64) -> bool {
        self.in_flight == 0 && self.last_event < since
    }

    pub(super) fn pin(&mut self, pin: Pin) {
        let place = self.pins.partition_point(|other| other.count < pin.count);
        if self.pins.get(place).is_none_or(|other| other.count != pin.count) {
            self.pins.insert(place, pin);
        }
    }
}
