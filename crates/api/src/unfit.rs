//! What no volume can be asked for, whoever asks: a command, the configuration, or a program.

use std::path::PathBuf;

use crate::control::{AddVolume, DEFAULT_GRAIN, Durability, LARGEST_GRAIN, MOST_COMPONENTS, SMALLEST_GRAIN};
use crate::{Place, Size};

/// Volumes are made of whole sectors of this many bytes.
const SECTOR: u64 = 512;
/// What a cache has for records of its originals at least, beside what rounding to grains costs.
const RECORDS: u64 = 8192;

/// Why a request for a volume makes no sense by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The grain.
    #[error("the grain {0} is not a power of two from 512 to 1M")]
    Grain(Size),
    /// No original has room.
    #[error("the cache limit {limit} leaves no room for originals: give at least one grain ({grain})")]
    NoRoom {
        /// What was asked for.
        limit: Size,
        /// What one original takes.
        grain: Size,
    },
    /// A path whose meaning would depend on where the daemon was started.
    #[error("the path {} is relative: give it from the root", .0.display())]
    Relative(PathBuf),
    /// Nothing to stand on, or too much.
    #[error("a volume stands on 1 to {MOST_COMPONENTS} bases, and {0} are named")]
    Bases(usize),
    /// One size for several.
    #[error("a size belongs to a single base, and {0} are named: make them before, or leave the size out")]
    SizeOfSeveral(usize),
    /// No device has it.
    #[error("the size {0} is no multiple of 512 bytes, or is 0: choose one that a disk can have")]
    Size(Size),
    /// No original has room in memory.
    #[error("the memory limit {limit} leaves no room for originals: give at least one grain ({grain})")]
    NoMemory {
        /// What was asked for.
        limit: Size,
        /// What one original takes.
        grain: Size,
    },
    /// Memory does not survive what the snapshots are to survive.
    #[error("originals in memory do not survive a loss of power: leave the memory limit out, or the durability")]
    PowerInMemory,
    /// Not even one original with what is recorded of it.
    #[error("the cache limit {limit} leaves no room for originals that outlive a loss of power: give at least {least}")]
    NoRoomForRecords {
        /// The limit.
        limit: Size,
        /// The least that it can be.
        least: Size,
    },
}

impl AddVolume {
    /// Checks what can be checked without looking at anything.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn check(&self) -> Result<(), Unfit> {
        let grain = self.grain.unwrap_or(Size(DEFAULT_GRAIN.into()));
        if !grain.0.is_power_of_two() || !(SMALLEST_GRAIN..=LARGEST_GRAIN).contains(&grain.0) {
            return Err(Unfit::Grain(grain));
        }
        if let Some(limit) = self.cache_limit.filter(|limit| *limit < grain) {
            return Err(Unfit::NoRoom { limit, grain });
        }
        if self.bases.is_empty() || self.bases.len() > MOST_COMPONENTS {
            return Err(Unfit::Bases(self.bases.len()));
        }
        if let Some(size) = self.size {
            if self.bases.len() > 1 {
                return Err(Unfit::SizeOfSeveral(self.bases.len()));
            }
            fit_size(size)?;
        }
        if let Some(limit) = self.memory_limit.filter(|limit| *limit < grain) {
            return Err(Unfit::NoMemory { limit, grain });
        }
        if self.durability == Durability::Power {
            let least = Size(2 * grain.0 + RECORDS);
            if self.memory_limit.is_some() {
                return Err(Unfit::PowerInMemory);
            }
            if let Some(limit) = self.cache_limit.filter(|limit| *limit < least) {
                return Err(Unfit::NoRoomForRecords { limit, least });
            }
        }
        self.bases.iter().chain(&self.cache_dir).try_for_each(fit_place)
    }
}

/// A place that means the same whoever looks.
pub(crate) fn fit_place(place: &Place) -> Result<(), Unfit> {
    match place {
        Place::Path(path) if path.is_relative() => Err(Unfit::Relative(path.clone())),
        Place::Path(_) | Place::Export(_) => Ok(()),
    }
}

/// A size that a volume can have.
pub(crate) fn fit_size(size: Size) -> Result<(), Unfit> {
    if size.0 == 0 || !size.0.is_multiple_of(SECTOR) { Err(Unfit::Size(size)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_by_itself() {
        let good = AddVolume {
            cache_dir: Some("/fast".into()),
            cache_limit: Some(Size(4096)),
            ..AddVolume::new("v".parse().unwrap(), "/base".into())
        };
        assert_eq!(good.check(), Ok(()));
        for grain in [0, 256, 3072, 2 << 20] {
            let bad = AddVolume { grain: Some(Size(grain)), ..good.clone() };
            assert_eq!(bad.check(), Err(Unfit::Grain(Size(grain))));
        }
        for (limit, grain) in [(0, None), (1, None), (4095, None), (4096, Some(Size(8192)))] {
            let bad = AddVolume { grain, cache_limit: Some(Size(limit)), ..good.clone() };
            assert!(matches!(bad.check(), Err(Unfit::NoRoom { .. })), "{limit}");
        }
        let based =
            |bases: &[&str]| AddVolume { bases: bases.iter().map(|base| (*base).into()).collect(), ..good.clone() };
        assert_eq!(based(&["/a", "base"]).check(), Err(Unfit::Relative("base".into())));
        assert_eq!(based(&[]).check(), Err(Unfit::Bases(0)));
        assert_eq!(based(&["/a"; MOST_COMPONENTS + 1]).check(), Err(Unfit::Bases(MOST_COMPONENTS + 1)));
        assert_eq!(AddVolume { cache_dir: Some("".into()), ..good.clone() }.check(), Err(Unfit::Relative("".into())));
        let remembering = |limit| AddVolume { memory_limit: Some(Size(limit)), ..good.clone() };
        assert!(matches!(remembering(4095).check(), Err(Unfit::NoMemory { .. })));
        assert_eq!(remembering(1 << 20).check(), Ok(()));
        let power = AddVolume { durability: Durability::Power, ..remembering(1 << 20) };
        assert_eq!(power.check(), Err(Unfit::PowerInMemory));
        let sized = |bases, size| AddVolume { size: Some(Size(size)), ..based(bases) }.check();
        assert_eq!(sized(&["/a", "/b"], 512), Err(Unfit::SizeOfSeveral(2)));
        assert_eq!(
            [0, 100, 513].map(|size| sized(&["/a"], size)),
            [0, 100, 513].map(|size| Err(Unfit::Size(Size(size))))
        );
        assert_eq!(sized(&["/a"], 1 << 20), Ok(()));
    }
}
