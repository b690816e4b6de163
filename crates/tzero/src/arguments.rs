//! What single arguments may be, so that what cannot be meant is refused before anything is asked or done.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tzero_api::control::{Durability, LARGEST_GRAIN, SMALLEST_GRAIN};
use tzero_api::{Name, NameError, ResizeVolume, Size, SizeError, SnapshotPath, Unfit, is_private};
use tzero_block::ByteRange;
use tzero_daemon::{Address, AddressError};

use crate::sockets::{self, TooLong};

/// Why a text is not what its argument wants.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("it is empty: name what is meant")]
    Empty,
    #[error("archives on standard input are not in this version: name an image")]
    Stream,
    #[error("it is not a power of two from 512 to 1M")]
    Grain,
    #[error("it is neither `process` nor `power`")]
    Durability,
    #[error("it is no time from 10us to 10s: write a number with us, ms or s, as in 2ms")]
    Latency,
    #[error("it leaves no room for originals: give at least one grain")]
    NoRoom,
    #[error("it is not OFFSET+LENGTH, as 64M+4K is")]
    Range,
    #[error("it has no bytes: give it a length")]
    NoBytes,
    #[error("it ends behind anything that can be: no volume is that large")]
    RangeEnd,
    #[error("it is not VOLUME:OFFSET+LENGTH with a length of at least 1")]
    Part,
    #[error("snapshot names like it belong to backups: choose another")]
    Reserved,
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("{0}")]
    Size(#[from] SizeError),
    #[error("{0}")]
    Unfit(#[from] Unfit),
    #[error("{0}")]
    Address(#[from] AddressError),
    #[error("{0}")]
    Socket(#[from] TooLong),
}

/// Anything but nothing.
pub(crate) fn something(text: OsString) -> Result<OsString, ArgumentError> {
    if text.is_empty() { Err(ArgumentError::Empty) } else { Ok(text) }
}

/// What names a copy: an id, the beginning of one, or a path.
pub(crate) fn copy(text: OsString) -> Result<OsString, ArgumentError> {
    if text == "-" { Err(ArgumentError::Stream) } else { something(text) }
}

/// The size of a volume's grain.
pub(crate) fn grain(text: &str) -> Result<Size, ArgumentError> {
    let size: Size = text.parse()?;
    let fits = size.0.is_power_of_two() && (SMALLEST_GRAIN..=LARGEST_GRAIN).contains(&size.0);
    if fits { Ok(size) } else { Err(ArgumentError::Grain) }
}

/// The size of a volume.
pub(crate) fn size(text: &str) -> Result<Size, ArgumentError> {
    let size = text.parse()?;
    ResizeVolume { size }.check()?;
    Ok(size)
}

/// How long a host's request may take.
pub(crate) fn latency(text: &str) -> Result<Duration, ArgumentError> {
    const UNITS: [(&str, u64); 3] = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
    let parsed =
        UNITS.iter().find_map(|(unit, micros)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*micros));
    let fits = |micros: &u64| (10..=10_000_000).contains(micros);
    parsed.filter(fits).map(Duration::from_micros).ok_or(ArgumentError::Latency)
}

/// What snapshots survive.
pub(crate) fn durability(text: &str) -> Result<Durability, ArgumentError> {
    match text {
        "process" => Ok(Durability::Process),
        "power" => Ok(Durability::Power),
        _ => Err(ArgumentError::Durability),
    }
}

/// Most bytes of originals. Whether it is a grain at least is known only with the grain.
pub(crate) fn limit(text: &str) -> Result<Size, ArgumentError> {
    let size: Size = text.parse()?;
    if size.0 < SMALLEST_GRAIN { Err(ArgumentError::NoRoom) } else { Ok(size) }
}

/// A part of a volume: `OFFSET+LENGTH`.
pub(crate) fn range(text: &str) -> Result<ByteRange, ArgumentError> {
    let (offset, length) = text.split_once('+').ok_or(ArgumentError::Range)?;
    let (Size(offset), Size(length)) = (offset.parse()?, length.parse()?);
    match ByteRange::checked(offset, length) {
        Some(range) if !range.is_empty() => Ok(range),
        Some(_) => Err(ArgumentError::NoBytes),
        None => Err(ArgumentError::RangeEnd),
    }
}

/// A name for a new snapshot.
pub(crate) fn new_snapshot(text: &str) -> Result<Name, ArgumentError> {
    if is_private(text) { Err(ArgumentError::Reserved) } else { Ok(text.parse()?) }
}

/// Where NBD clients connect.
pub(crate) fn address(text: &str) -> Result<Address, ArgumentError> {
    let address = text.parse()?;
    if let Address::Unix(path) = &address {
        sockets::check(path)?;
    }
    Ok(address)
}

/// A snapshot that is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deleted {
    /// Of a volume.
    Path(SnapshotPath),
    /// Of the one volume that has one of this name.
    Name(Name),
}

impl FromStr for Deleted {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains('@') { text.parse().map(Self::Path) } else { text.parse().map(Self::Name) }
    }
}

/// A part of a volume, as VOLUME:OFFSET+LENGTH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumePart {
    /// Of which.
    pub(crate) volume: Name,
    /// Where it begins, in bytes.
    pub(crate) offset: u64,
    /// Its length in bytes.
    pub(crate) length: u64,
}

/// See [`VolumePart`].
pub(crate) fn part(text: &str) -> Result<VolumePart, ArgumentError> {
    let (volume, range) = text.split_once(':').ok_or(ArgumentError::Part)?;
    let (offset, length) = range.split_once('+').ok_or(ArgumentError::Part)?;
    let (Size(offset), Size(length)) = (offset.parse()?, length.parse()?);
    let ends = offset.checked_add(length).is_some();
    let part = VolumePart { volume: volume.parse()?, offset, length };
    if ends && length > 0 { Ok(part) } else { Err(ArgumentError::Part) }
}

/// A path that may have any bytes.
pub(crate) fn path(text: OsString) -> Result<PathBuf, ArgumentError> {
    something(text).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant() {
        for bad in ["0", "1", "256", "3K", "2M", "4KiB"] {
            assert!(grain(bad).is_err(), "{bad}");
        }
        assert_eq!(grain("512").unwrap(), Size(512));
        assert_eq!(grain("1M").unwrap(), Size(1 << 20));
        assert!(limit("0").is_err() && limit("511").is_err() && limit("1M").is_ok());
        assert!(new_snapshot("backup-0badcafe").is_err() && new_snapshot("backup").is_ok());
        assert!(address(&format!("unix:/{}", "x".repeat(107))).is_err());
        assert!(address(&format!("unix:/{}", "x".repeat(106))).is_ok());
        for bad in ["", "5", "+", "1+", "+1", "1+0", "-1+4", "1+2+3", "1-2", "16777215P+1", "18446744073709551615+1"] {
            assert!(range(bad).is_err(), "{bad}");
        }
        assert_eq!(range("1M+4K").unwrap(), ByteRange::new(1 << 20, 4096));
        assert!(something("".into()).is_err() && copy("-".into()).is_err() && copy("--".into()).is_ok());
    }

    #[test]
    fn parts_of_volumes() {
        let volume = || "v".parse().unwrap();
        assert_eq!(part("v:4K+1M").unwrap(), VolumePart { volume: volume(), offset: 4096, length: 1 << 20 });
        assert_eq!(part("v:0+1").unwrap(), VolumePart { volume: volume(), offset: 0, length: 1 });
        let end = format!("v:{}+1", u64::MAX);
        for bad in
            ["", "v", "v:", "v:0", "v:0+", "v:+1", "v:0+0", "v:1+1+1", "v@s:0+1", ":0+1", "v:-1+1", "v:0+x", &end]
        {
            assert!(part(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn snapshots_with_and_without_their_volume() {
        assert_eq!("v@s".parse(), Ok(Deleted::Path("v@s".parse().unwrap())));
        assert_eq!("s".parse(), Ok(Deleted::Name("s".parse().unwrap())));
        for bad in ["", "v@", "v@s@t", "a/b"] {
            assert!(bad.parse::<Deleted>().is_err(), "{bad}");
        }
    }
}
