//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// A number of bytes: `4096`, `4K`, `64M`, `1G` (powers of two).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

const SUFFIXES: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not digits and at most one suffix.
    #[error("{0:?} is not a size; write bytes, or a number with K, M, G, T or P")]
    Malformed(String),
    /// Does not fit 64 bits.
    #[error("the size {0} is too large")]
    TooLarge(String),
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let malformed = || SizeError::Malformed(text.into());
        let last = text.chars().last().ok_or_else(malformed)?;
        let suffix = SUFFIXES.iter().find(|(letter, _)| last.eq_ignore_ascii_case(letter));
        let (digits, shift) = match suffix {
            Some((_, shift)) => (&text[..text.len() - 1], *shift),
            None => (text, 0),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge(text.into()))?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(|| SizeError::TooLarge(text.into()))
    }
}

impl fmt::Display for Size {
    /// The shortest exact form: `64M`, `4097`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let largest = SUFFIXES.iter().rev().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match largest {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    /// A number of bytes or a text as above.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, |bytes| Ok(Self(bytes)))
    }
}

/// A number, made into what it is by `numbered`, or a text that is parsed.
fn number_or_text<'de, D: Deserializer<'de>, T: FromStr<Err = E>, E: fmt::Display>(
    deserializer: D,
    numbered: impl FnOnce(u64) -> Result<T, E>,
) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => numbered(number),
        Either::Text(text) => text.parse(),
    }
    .map_err(serde::de::Error::custom)
}

/// Bytes a second: `50M/s`, or `50M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Rate(pub u64);

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// What comes before `/s` is no size.
    #[error("{0:?} is not a rate; write bytes a second, as in 50M/s")]
    Malformed(String),
    /// Nothing would ever be done.
    #[error("a rate of nothing gets nowhere; leave it out instead")]
    Zero,
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let size = text.strip_suffix("/s").unwrap_or(text).parse::<Size>();
        Self::of(size.map_err(|_| RateError::Malformed(text.into()))?.0)
    }
}

impl Rate {
    fn of(bytes: u64) -> Result<Self, RateError> {
        if bytes == 0 { Err(RateError::Zero) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Rate {
    /// The shortest exact form: `64M/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}

impl<'de> Deserialize<'de> for Rate {
    /// A number of bytes a second or a text as above.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, Self::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_as_powers_of_two() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("4K", 4096), ("4k", 4096), ("64M", 64 << 20), ("1G", 1 << 30), ("3T", 3 << 40)]
        {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "K", "-1", "+1", "1.5G", "4KiB", "4 K", "0x10", "99999999999999999999", "16777216T"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_of_a_second() {
        for (text, rate) in [("50M/s", 50 << 20), ("50M", 50 << 20), ("1/s", 1)] {
            assert_eq!(text.parse::<Rate>(), Ok(Rate(rate)), "{text}");
        }
        assert_eq!(Rate(50 << 20).to_string(), "50M/s");
        assert_eq!("0/s".parse::<Rate>(), Err(RateError::Zero));
        for bad in ["", "/s", "50M/h", "50M/s/s", "-1/s"] {
            assert!(matches!(bad.parse::<Rate>(), Err(RateError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn shown_so_that_it_parses_to_itself() {
        for bytes in [0, 1, 512, 4096, 4097, 1 << 20, 3 << 30, u64::MAX] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(1 << 20).to_string(), "1M");
    }
}
