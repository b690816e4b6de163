//! Work that the daemon has a process of its own do, on a program's request (R45).

use serde::{Deserialize, Serialize};

use crate::control::Part;

/// Most ranges of one restore.
pub const MOST_RANGES: usize = 1024;
/// Longest name of a copy or target, in bytes.
pub const LONGEST_NAME: usize = 8192;

/// Asks for a restore: `tzero restore COPY --to TARGET …`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRestore {
    /// The copy: its id, a unique prefix of it, its path from the root, or its URI.
    pub copy: String,
    /// Where to: a path from the root, `volume:NAME`, or the URI of an export.
    pub target: String,
    /// What of it, at most [`MOST_RANGES`]; all of it where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Part>,
    /// Only what differs is written.
    #[serde(default)]
    pub differing: bool,
    /// What the target holds may be overwritten.
    #[serde(default)]
    pub force: bool,
}

/// Why a request for a restore makes no sense by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitRestore {
    /// Nothing is named, or something longer than any name.
    #[error("the name of a copy or target has from 1 to {LONGEST_NAME} bytes")]
    Name,
    /// A path whose meaning would depend on where the daemon was started.
    #[error("{0} is a relative path: give it from the root")]
    Relative(String),
    /// Neither an id nor a path from the root.
    #[error("{0} names no copy: give its id, or its path from the root")]
    NoCopy(String),
    /// More ranges than are taken at once.
    #[error("a restore takes {MOST_RANGES} ranges at once")]
    TooMany,
    /// A range without bytes, or that ends behind anything.
    #[error("the range {offset}+{length} cannot be: it has no bytes, or no volume is that large")]
    Range {
        /// Where it begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
}

impl StartRestore {
    /// Checks what can be checked without looking at anything.
    ///
    /// # Errors
    /// See [`UnfitRestore`].
    pub fn check(&self) -> Result<(), UnfitRestore> {
        let is_name = |text: &str| (1..=LONGEST_NAME).contains(&text.len()) && !text.contains('\0');
        if !is_name(&self.copy) || !is_name(&self.target) {
            return Err(UnfitRestore::Name);
        }
        let is_from_root = |text: &str| text.starts_with('/') || text.starts_with("image:/") || text.contains(":/");
        if !is_from_root(&self.target) && !self.target.starts_with("volume:") {
            return Err(UnfitRestore::Relative(self.target.clone()));
        }
        // Else it is an id, or the beginning of one.
        if !is_from_root(&self.copy) && !self.copy.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(UnfitRestore::NoCopy(self.copy.clone()));
        }
        if self.ranges.len() > MOST_RANGES {
            return Err(UnfitRestore::TooMany);
        }
        let is_bad = |part: &&Part| part.length == 0 || part.offset.checked_add(part.length).is_none();
        match self.ranges.iter().find(is_bad) {
            Some(&Part { offset, length }) => Err(UnfitRestore::Range { offset, length }),
            None => Ok(()),
        }
    }
}

/// How a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its process works.
    Running,
    /// It was told to stop, and does so in good order.
    Stopping,
    /// As asked.
    Done,
    /// Not done; asking again may help.
    Incomplete,
    /// Not done.
    Failed,
}

impl JobState {
    /// Whether nothing of it goes on any more.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Running | Self::Stopping)
    }
}

/// A restore that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Stable id, 32 hexadecimal digits.
    pub id: String,
    /// What was asked for.
    pub restore: StartRestore,
    /// How it is.
    pub state: JobState,
    /// When it began, nanoseconds since the Unix epoch.
    pub begun_ns: u64,
    /// When it ended.
    pub ended_ns: Option<u64>,
    /// Its process; none any more when it is over.
    pub pid: Option<u32>,
    /// What it is at.
    pub progress: Option<JobProgress>,
    /// What `tzero restore --json` says at its end: the member `restored`.
    pub result: Option<serde_json::Value>,
    /// Why it is not done, a sentence.
    pub error: Option<String>,
    /// The status that its process ended with.
    pub exit: Option<i32>,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    /// Part of the work, as in the events of `tzero restore --json`.
    pub phase: String,
    /// Bytes of it that are done.
    pub done: u64,
    /// Of so many.
    pub total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_by_itself() {
        let good = StartRestore {
            copy: "5a1f".into(),
            target: "volume:v".into(),
            ranges: vec![Part { offset: 0, length: 1 }],
            differing: false,
            force: false,
        };
        assert_eq!(good.check(), Ok(()));
        for target in ["/dev/x", "image:/x", "nbd+unix:///v?socket=/s", "volume:v"] {
            assert_eq!(StartRestore { target: target.into(), ..good.clone() }.check(), Ok(()), "{target}");
        }
        for target in ["x", "./x", "image:x", "dir/x"] {
            let bad = StartRestore { target: target.into(), ..good.clone() }.check();
            assert_eq!(bad, Err(UnfitRestore::Relative(target.into())));
        }
        let long = "x".repeat(LONGEST_NAME + 1);
        for copy in ["", "a\0b", &long] {
            assert_eq!(StartRestore { copy: copy.into(), ..good.clone() }.check(), Err(UnfitRestore::Name));
        }
        for copy in ["dir/c.img", "c.img.tzero.json", "disk"] {
            let bad = StartRestore { copy: copy.into(), ..good.clone() }.check();
            assert_eq!(bad, Err(UnfitRestore::NoCopy(copy.into())));
        }
        assert!(StartRestore { copy: "/dir/c.img".into(), ..good.clone() }.check().is_ok());
        for (offset, length) in [(0, 0), (u64::MAX, 1)] {
            let bad = StartRestore { ranges: vec![Part { offset, length }], ..good.clone() }.check();
            assert_eq!(bad, Err(UnfitRestore::Range { offset, length }));
        }
        let many = vec![Part { offset: 0, length: 1 }; MOST_RANGES + 1];
        assert_eq!(StartRestore { ranges: many, ..good }.check(), Err(UnfitRestore::TooMany));
    }
}
