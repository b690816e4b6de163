//! Why a mover's request fails, as a sentence and a word.

use std::io;

use tzero_api::mover::{FailureCode, Reply};
use tzero_api::{SnapshotPath, sentence};
use tzero_engine::{SnapshotError, SnapshotInfo};

use crate::volume::{Serving, Volume, broken};

/// Why a mover's request fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{message}")]
    Refused { code: FailureCode, message: String },
    #[error("the connection broke: {0}")]
    Lost(#[from] io::Error),
}

pub(super) fn refused(code: FailureCode, message: impl std::fmt::Display) -> Trouble {
    Trouble::Refused { code, message: sentence(message) }
}

pub(super) fn serving(volume: &Volume) -> Result<&Serving, Trouble> {
    volume.serving().map_err(|error| refused(FailureCode::Failed, error))
}

pub(super) fn refuse_broken(path: &SnapshotPath, info: &SnapshotInfo) -> Result<(), Trouble> {
    match broken(&info.state) {
        None => Ok(()),
        Some(reason) => {
            let sentence = match info.private {
                true => format!("the instant that this backup copies is lost: {reason}; begin it anew"),
                false => format!("the snapshot {path} is broken: {reason}; delete it and take another"),
            };
            Err(refused(FailureCode::Broken, sentence))
        }
    }
}

pub(super) fn snapshot_trouble(path: &SnapshotPath, error: &SnapshotError) -> Trouble {
    match error {
        SnapshotError::Unknown => {
            refused(FailureCode::Unknown, format!("the snapshot {path} is gone: it was deleted meanwhile"))
        }
        other => refused(FailureCode::Failed, format!("the snapshot {path} cannot be made or changed: {other}")),
    }
}

pub(super) fn stopped() -> Trouble {
    refused(FailureCode::Failed, "the daemon is stopping: go on when it runs again")
}

pub(super) fn failed(trouble: Trouble) -> Reply {
    match trouble {
        Trouble::Refused { code, message } => Reply::Failed { code, message },
        Trouble::Lost(error) => Reply::Failed { code: FailureCode::Failed, message: error.to_string() },
    }
}
