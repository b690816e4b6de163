//! What the control interface and the engine both know, in the other's words.

use tzero_api::{OnFull as Asked, control};
use tzero_engine::{Durability, OnFull};
use tzero_originals::Originals;

/// As the engine takes it.
pub(crate) fn on_full(asked: Asked) -> OnFull {
    match asked {
        Asked::Break => OnFull::Break,
        Asked::Wait(ms) => OnFull::Wait(ms),
        Asked::FailWrites => OnFull::FailWrites,
    }
}

/// As the interface shows it.
pub(crate) fn shown_on_full(on_full: OnFull) -> Asked {
    match on_full {
        OnFull::Break => Asked::Break,
        OnFull::Wait(ms) => Asked::Wait(ms),
        OnFull::FailWrites => Asked::FailWrites,
    }
}

/// As the engine takes it.
pub(crate) fn durability(asked: control::Durability) -> Durability {
    match asked {
        control::Durability::Process => Durability::Process,
        control::Durability::Power => Durability::Power,
    }
}

/// As the engine takes it.
pub(crate) fn originals(asked: control::Originals) -> Originals {
    match asked {
        control::Originals::Keep => Originals::Keep,
        control::Originals::Release => Originals::Release,
    }
}

/// As the interface shows it.
pub(crate) fn shown_originals(originals: Originals) -> control::Originals {
    match originals {
        Originals::Keep => control::Originals::Keep,
        Originals::Release => control::Originals::Release,
    }
}
