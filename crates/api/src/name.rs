//! Names of volumes and snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes.
const LONGEST: usize = 64;
/// What the names of private snapshots start with; eight hexadecimal digits follow.
const PRIVATE: &str = "backup-";

/// The name of a volume, or a snapshot's name within its volume: letters, digits, `-`, `_`, `.`, up to 64. It is safe as a file's
/// name and in a URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a name cannot be empty")]
    Empty,
    /// Too many characters.
    #[error("the name {0:?} is longer than {LONGEST} characters")]
    TooLong(String),
    /// A character that no name has.
    #[error("the name {name:?} contains {character:?}; letters, digits, '-', '_' and '.' are allowed")]
    Character {
        /// The text.
        name: String,
        /// The first wrong one.
        character: char,
    },
    /// `.` or `..`.
    #[error("{0:?} is no name; it means a directory")]
    Directory(String),
    /// No `@` where one must be.
    #[error("{0:?} is not of the form VOLUME@SNAPSHOT")]
    NoSnapshot(String),
}

impl Name {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if let Some(character) = text.chars().find(|c| !allowed(*c)) {
            return Err(NameError::Character { name: text.into(), character });
        }
        if text.len() > LONGEST {
            return Err(NameError::TooLong(text.into()));
        }
        if matches!(text, "." | "..") {
            return Err(NameError::Directory(text.into()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `VOLUME@SNAPSHOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPath {
    /// The volume.
    pub volume: Name,
    /// The snapshot's name within it.
    pub snapshot: Name,
}

impl FromStr for SnapshotPath {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (volume, snapshot) = text.split_once('@').ok_or_else(|| NameError::NoSnapshot(text.into()))?;
        Ok(Self { volume: volume.parse()?, snapshot: snapshot.parse()? })
    }
}

impl fmt::Display for SnapshotPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

/// Whether `snapshot` is a name that private snapshots of backups have; users cannot take such names.
pub fn is_private(snapshot: &str) -> bool {
    snapshot.strip_prefix(PRIVATE).is_some_and(|rest| {
        rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
    })
}

/// The name of a private snapshot, of four random bytes.
pub fn private_name(random: [u8; 4]) -> Name {
    Name(format!("{PRIVATE}{:08x}", u32::from_be_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "db-1_x.Y", "...", &"n".repeat(64)] {
            assert_eq!(good.parse::<Name>().map(|name| name.to_string()), Ok(good.to_string()));
        }
        for bad in ["", ".", "..", "a/b", "a@b", "a b", "ä", "a\n", &"n".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn snapshot_paths_have_one_at() {
        let path: SnapshotPath = "vol@s1".parse().unwrap();
        assert_eq!((path.volume.as_str(), path.snapshot.as_str()), ("vol", "s1"));
        assert_eq!(path.to_string(), "vol@s1");
        for bad in ["vol", "vol@", "@s", "a@b@c", ""] {
            assert!(bad.parse::<SnapshotPath>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn private_names_are_recognised() {
        assert_eq!(private_name([0, 0xab, 1, 2]).as_str(), "backup-00ab0102");
        assert!(is_private("backup-00ab0102"));
        for other in ["backup-", "backup-00ab010", "backup-00ab01022", "backup-00AB0102", "Backup-00ab0102", "monday"] {
            assert!(!is_private(other), "{other}");
        }
    }
}
