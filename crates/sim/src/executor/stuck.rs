//! Why a run cannot go on.

use std::fmt;

/// What a task last said it waits for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Note {
    /// In a word or two.
    pub what: &'static str,
    /// Where, if that means something.
    pub at: u64,
    /// How long, if that means something.
    pub len: u64,
}

/// A task that waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its name.
    pub name: String,
    /// What for.
    pub note: Note,
    /// Whether it has to finish.
    pub required: bool,
}

/// A run that cannot go on.
#[derive(Clone, Debug)]
pub enum Stuck {
    /// Tasks wait, and nothing can happen that would wake them.
    Deadlock(Vec<Waiting>),
    /// Far more steps were taken than are needed.
    Livelock(Vec<Waiting>),
    /// The oracle objects.
    Violation(String),
    /// A task panicked.
    Panic {
        /// Which.
        task: String,
        /// With what, and where.
        message: String,
    },
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(complaint) => f.write_str(complaint),
            Self::Panic { task, message } => write!(f, "panic in {task}: {message}"),
            Self::Deadlock(waiting) | Self::Livelock(waiting) => {
                f.write_str(if matches!(self, Self::Deadlock(_)) { "deadlock" } else { "livelock" })?;
                waiting.iter().try_for_each(|task| write!(f, "\n    {task}"))
            }
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Note { what, at, len } = self.note;
        let required = if self.required { "" } else { " (need not finish)" };
        write!(f, "{}{required}: {what} {at}+{len}", self.name)
    }
}
