//! How a run ends that did not declare its copy: for good, or until it is resumed.

use crate::Error;
use crate::error::StopCause;

/// Why a run stopped.
pub(crate) enum Stop {
    /// It can never be the copy: nothing is left of it.
    Final(Error),
    /// Everything is left for a run that goes on.
    Resumable(StopCause),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            // Of a flush too: what the run after this one finds is then compared, see `Journal::doubt`.
            error if error.is_full() => Self::Resumable(StopCause::Full),
            error if error.is_link() => Self::Resumable(StopCause::Link(Box::new(error))),
            Error::Daemon { fault, .. } if fault.is_passing() => Self::Resumable(StopCause::Daemon(fault)),
            error => Self::Final(error),
        }
    }
}

impl Stop {
    /// The one to tell of when two things went wrong at once: what ends a copy for good counts more.
    pub(crate) fn or_worse(self, other: Self) -> Self {
        if matches!(self, Self::Resumable(_)) { other } else { self }
    }
}
