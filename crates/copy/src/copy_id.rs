//! Names of copies.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tzero_io::system;

use crate::hex;

/// Stable name of one copy: 16 random bytes, written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CopyId([u8; 16]);

/// A text is not 32 lower-case hex digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the id of a copy is 32 hex digits")]
pub struct InvalidCopyId;

impl CopyId {
    /// A name that nothing else has.
    pub fn random() -> Self {
        Self(system::random_id())
    }

    /// The bytes that the digits stand for.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for CopyId {
    type Err = InvalidCopyId;

    fn from_str(text: &str) -> Result<Self, InvalidCopyId> {
        hex::decode(text).map(Self).ok_or(InvalidCopyId)
    }
}

impl TryFrom<String> for CopyId {
    type Error = InvalidCopyId;

    fn try_from(text: String) -> Result<Self, InvalidCopyId> {
        text.parse()
    }
}

impl From<CopyId> for String {
    fn from(id: CopyId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let id = CopyId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("00".repeat(15).parse::<CopyId>(), Err(InvalidCopyId));
        assert_eq!("zz".repeat(16).parse::<CopyId>(), Err(InvalidCopyId));
    }
}
