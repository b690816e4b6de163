//! What a refused request says.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a command ends, for programs that started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// As asked.
    AsAsked = 0,
    /// Failed, nothing usable was made.
    Failed = 1,
    /// Bad usage or configuration.
    Usage = 2,
    /// Good, but not what was asked for.
    NotAsAsked = 3,
    /// Incomplete, may be resumed.
    Incomplete = 4,
}

impl Exit {
    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Why the daemon refused, as a stable word for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request does not fit the interface.
    Invalid,
    /// No such volume or snapshot.
    Unknown,
    /// The name is taken.
    Taken,
    /// Something else uses it.
    Busy,
    /// The volume could not be opened.
    Unavailable,
    /// Anything else that went wrong.
    Failed,
}

impl Code {
    /// How a command that met this refusal ends.
    pub fn exit(self) -> Exit {
        match self {
            Self::Invalid => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}

/// A refusal, as the daemon's answer carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable word for programs.
    pub code: Code,
    /// One sentence for the operator: what, on what, why, what to do.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
