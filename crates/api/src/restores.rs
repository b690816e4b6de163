//! Restores that overwrite their target in place and are not declared: what is on record of them.
//!
//! `STATE/restores/ID.json`, see `docs/formats/state-directory.md`. The process that restores holds a lock on its record, so that
//! one that nobody holds is of a restore that was interrupted. Whoever moves the bytes writes it; whoever can read the state tells of it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::Part;
use crate::quoted;

/// Version of the record.
pub const RECORD_VERSION: u32 = 1;
/// Longest record that is read, in bytes.
pub const LONGEST_RECORD: u64 = 256 << 10;
/// Most records that are told of at once.
pub const MOST_RECORDS: usize = 256;

/// A restore that has begun to overwrite its target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Stable id, 32 hexadecimal digits.
    pub id: String,
    /// The copy's id.
    pub copy: String,
    /// What names the copy: its image's path or URI, or its id where that cannot be written down.
    pub source: String,
    /// What is overwritten, as `--to` takes it.
    pub target: String,
    /// The volume's stable id, where the target is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<String>,
    /// What of the copy; all of it where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Part>,
    /// Only what differs is written.
    pub differing: bool,
    /// What the target held was to be overwritten.
    pub force: bool,
    /// When it began, RFC 3339.
    pub begun: String,
    /// Who restores.
    pub by: Restorer,
    /// How far it came.
    pub state: RestoreState,
    /// Why it stopped, where it could still say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Who restores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restorer {
    /// The user's number.
    pub uid: u32,
    /// The process's.
    pub pid: u32,
    /// The daemon's job that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

/// How far a restore came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreState {
    /// Bytes are being written, or were when the process died.
    Writing,
    /// It gave up in good order.
    Stopped,
}

impl RestoreRecord {
    /// The command that goes on with it.
    pub fn again(&self) -> String {
        let mut words = format!("tzero restore {} --to {}", quoted(&self.source), quoted(&self.target));
        for Part { offset, length } in &self.ranges {
            words += &format!(" --range {offset}+{length}");
        }
        for (flag, is_set) in [(" --differing", self.differing), (" --force", self.force)] {
            words += if is_set { flag } else { "" };
        }
        words
    }

    /// The command that forgets it, given the state directory.
    pub fn dismissal(&self, state: &Path) -> String {
        format!("tzero copy remove {}", quoted(&place(state, &self.id).to_string_lossy()))
    }

    /// Whether it is the same restore: of the same copy, to the same place, of the same ranges.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |record: &Self| (record.copy.clone(), record.ranges.clone());
        self.is_at(other) && key(self) == key(other)
    }

    /// Whether the two are to the same place.
    pub fn is_at(&self, other: &Self) -> bool {
        (&self.target, &self.volume_id) == (&other.target, &other.volume_id)
    }
}

/// Where the records of a state directory are.
pub fn directory(state: &Path) -> PathBuf {
    state.join("restores")
}

/// Where one of them is.
pub fn place(state: &Path, id: &str) -> PathBuf {
    directory(state).join(format!("{id}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> RestoreRecord {
        RestoreRecord {
            version: RECORD_VERSION,
            id: "1a".repeat(16),
            copy: "2b".repeat(16),
            source: "/my copies/c.img".into(),
            target: "volume:vm".into(),
            volume_id: Some("3c".repeat(16)),
            ranges: vec![Part { offset: 0, length: 512 }, Part { offset: 4096, length: 1 }],
            differing: true,
            force: true,
            begun: "2026-01-31T12:00:00.000000000Z".into(),
            by: Restorer { uid: 0, pid: 77, job: None },
            state: RestoreState::Writing,
            reason: None,
        }
    }

    #[test]
    fn commands_can_be_pasted() {
        let record = example();
        assert_eq!(
            record.again(),
            "tzero restore '/my copies/c.img' --to volume:vm --range 0+512 --range 4096+1 --differing --force"
        );
        let gone = record.dismissal(Path::new("/s t"));
        assert_eq!(gone, format!("tzero copy remove '/s t/restores/{}.json'", record.id));
    }

    #[test]
    fn written_and_read_back() {
        let record = example();
        let text = serde_json::to_string(&record).expect("it can be said");
        assert_eq!(serde_json::from_str::<RestoreRecord>(&text).expect("it can be read"), record);
        let plain = RestoreRecord { volume_id: None, ranges: Vec::new(), ..record };
        let text = serde_json::to_string(&plain).expect("it can be said");
        assert!(!text.contains("ranges") && !text.contains("volume_id"), "{text}");
        assert_eq!(serde_json::from_str::<RestoreRecord>(&text).expect("it can be read"), plain);
    }
}
