//! What gives when the original cache is full, as people write it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest time that hosts may be asked to wait for space, in milliseconds: an hour.
pub const LONGEST_WAIT: u32 = 60 * 60 * 1000;

/// `break`, `wait:DURATION` or `fail-writes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OnFull {
    /// The snapshot breaks and the host goes on.
    #[default]
    Break,
    /// The host waits for space, up to so many milliseconds, while a mover is at work; then the snapshot breaks.
    Wait(u32),
    /// The host's writes fail, with no space left.
    FailWrites,
}

/// Why a text says nothing about a full cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OnFullError {
    /// None of the three words.
    #[error("{0:?} does not say what gives when the cache is full: write break, wait:DURATION or fail-writes")]
    Malformed(String),
    /// No number with a unit.
    #[error("{0:?} is no duration: write a number with ms, s, m or h, as in wait:500ms or wait:10s")]
    Duration(String),
    /// Nothing, or too long.
    #[error("a host can be asked to wait from 1ms to 1h, and {0:?} is not between them")]
    Bounds(String),
}

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

fn milliseconds(text: &str) -> Result<u32, OnFullError> {
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let (_, factor) = UNITS
        .iter()
        .find(|(unit, _)| *unit == &text[number.len()..])
        .filter(|_| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or_else(|| OnFullError::Duration(text.into()))?;
    let count = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
    count
        .and_then(|count| u32::try_from(count).ok())
        .filter(|count| (1..=LONGEST_WAIT).contains(count))
        .ok_or_else(|| OnFullError::Bounds(text.into()))
}

impl FromStr for OnFull {
    type Err = OnFullError;

    fn from_str(text: &str) -> Result<Self, OnFullError> {
        match (text, text.strip_prefix("wait:")) {
            ("break", _) => Ok(Self::Break),
            ("fail-writes", _) => Ok(Self::FailWrites),
            (_, Some(duration)) => milliseconds(duration).map(Self::Wait),
            _ => Err(OnFullError::Malformed(text.into())),
        }
    }
}

impl TryFrom<String> for OnFull {
    type Error = OnFullError;

    fn try_from(text: String) -> Result<Self, OnFullError> {
        text.parse()
    }
}

impl From<OnFull> for String {
    fn from(on_full: OnFull) -> Self {
        on_full.to_string()
    }
}

impl fmt::Display for OnFull {
    /// The shortest exact form: `wait:2m`, `wait:1500ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = match self {
            Self::Break => return f.write_str("break"),
            Self::FailWrites => return f.write_str("fail-writes"),
            Self::Wait(ms) => u64::from(*ms),
        };
        let (unit, factor) = UNITS.iter().rev().find(|(_, factor)| ms.is_multiple_of(*factor)).unwrap_or(&UNITS[0]);
        write!(f, "wait:{}{unit}", ms / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_durations() {
        for (text, meant) in [
            ("break", OnFull::Break),
            ("fail-writes", OnFull::FailWrites),
            ("wait:10s", OnFull::Wait(10_000)),
            ("wait:500ms", OnFull::Wait(500)),
            ("wait:1500ms", OnFull::Wait(1500)),
            ("wait:2m", OnFull::Wait(120_000)),
            ("wait:1h", OnFull::Wait(LONGEST_WAIT)),
        ] {
            assert_eq!(text.parse(), Ok(meant), "{text}");
            assert_eq!(meant.to_string(), text);
            assert_eq!(serde_json::to_string(&meant).unwrap(), format!("{text:?}"));
        }
        assert_eq!("wait:60s".parse::<OnFull>().unwrap().to_string(), "wait:1m");
        for (bad, why) in [
            ("", "write break"),
            ("Break", "write break"),
            ("wait", "write break"),
            ("wait:", "no duration"),
            ("wait:10", "no duration"),
            ("wait:s", "no duration"),
            ("wait:1.5s", "no duration"),
            ("wait:-1s", "no duration"),
            ("wait:10 s", "no duration"),
            ("wait:10ß", "no duration"),
            ("wait:0s", "not between"),
            ("wait:61m", "not between"),
            ("wait:99999999999999999999h", "not between"),
        ] {
            let error = bad.parse::<OnFull>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
            assert!(serde_json::from_str::<OnFull>(&format!("{bad:?}")).is_err());
        }
    }
}
