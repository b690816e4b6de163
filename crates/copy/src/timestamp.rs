//! Instants as RFC 3339 says them.
//!
//! Only UTC with nanoseconds is written, so that times compare as text; any offset and any precision up to nanoseconds
//! is read. Deliberately absent: local time, leap seconds (60 is refused), years before 1970.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const NANOS: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// Nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(pub u64);

/// A text is no time as RFC 3339 section 5.6 says it, or outside 1970 to 2554.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a time like 2026-01-31T12:00:00Z")]
pub struct InvalidTimestamp;

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date_of(day: u64) -> (u64, u64, u64) {
    // Counted from 1 March of the year 0, leap days come last in their year and in their era of 400 years.
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, date)
}

fn day_of(year: u64, month: u64, date: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year) = (year / 400, year % 400);
    let day = (153 * ((month + 9) % 12) + 2) / 5 + date - 1;
    era * 146_097 + year * 365 + year / 4 - year / 100 + day - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0 / NANOS, self.0 % NANOS);
        let (year, month, date) = date_of(seconds / DAY);
        let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}

/// Takes `len` digits off the front.
fn digits(text: &mut &str, len: usize) -> Option<u64> {
    let (head, tail) = text.split_at_checked(len)?;
    *text = tail;
    head.bytes().all(|byte| byte.is_ascii_digit()).then(|| head.parse().ok())?
}

fn literal(text: &mut &str, allowed: &[char]) -> Option<char> {
    let first = text.chars().next().filter(|first| allowed.contains(first))?;
    *text = &text[first.len_utf8()..];
    Some(first)
}

fn parse(mut text: &str) -> Option<Timestamp> {
    let text = &mut text;
    let year = digits(text, 4)?;
    literal(text, &['-'])?;
    let month = digits(text, 2)?;
    literal(text, &['-'])?;
    let date = digits(text, 2)?;
    literal(text, &['T', 't', ' '])?;
    let hour = digits(text, 2)?;
    literal(text, &[':'])?;
    let minute = digits(text, 2)?;
    literal(text, &[':'])?;
    let second = digits(text, 2)?;
    if !(1970..=2554).contains(&year)
        || !(1..=12).contains(&month)
        || date == 0
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let day = day_of(year, month, date);
    if date_of(day) != (year, month, date) {
        return None;
    }
    let mut nanos = 0;
    if literal(text, &['.']).is_some() {
        let len = text.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=9).contains(&len) {
            return None;
        }
        nanos = digits(text, len)? * 10_u64.pow(9 - len as u32);
    }
    let seconds = day * DAY + hour * 3600 + minute * 60 + second;
    let seconds = match literal(text, &['Z', 'z', '+', '-'])? {
        'Z' | 'z' => seconds,
        sign => {
            let hours = digits(text, 2)?;
            literal(text, &[':'])?;
            let minutes = digits(text, 2)?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            let ahead = hours * 3600 + minutes * 60;
            if sign == '+' { seconds.checked_sub(ahead)? } else { seconds + ahead }
        }
    };
    if !text.is_empty() {
        return None;
    }
    seconds.checked_mul(NANOS)?.checked_add(nanos).map(Timestamp)
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        parse(text).ok_or(InvalidTimestamp)
    }
}

impl TryFrom<String> for Timestamp {
    type Error = InvalidTimestamp;

    fn try_from(text: String) -> Result<Self, InvalidTimestamp> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400 * NANOS, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199 * NANOS + 999_999_999, "2024-02-29T23:59:59.999999999Z"),
            (4_107_542_400 * NANOS + 1, "2100-03-01T00:00:00.000000001Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(Timestamp(nanos).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(nanos)));
        }
    }

    #[test]
    fn every_day_there_and_back() {
        let mut before = (1969, 12, 31);
        for day in 0..213_000 {
            let date = date_of(day);
            assert!(date > before);
            assert_eq!(day_of(date.0, date.1, date.2), day);
            before = date;
        }
    }

    #[test]
    fn offsets_and_nonsense() {
        let noon = "2026-01-31T12:00:00Z".parse::<Timestamp>();
        assert_eq!("2026-01-31T14:30:00.0+02:30".parse(), noon);
        assert_eq!("2026-01-31 07:00:00-05:00".parse(), noon);
        for text in [
            "",
            "2026",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.0123456789Z",
            "2026-01-01T00:00:00ZZ",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "2026-01-0é",
            "+026-01-01T00:00:00Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(InvalidTimestamp), "{text}");
        }
    }
}
