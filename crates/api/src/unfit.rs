//! What no volume can be asked for, whoever asks: a command, the configuration, or a program.

use std::path::PathBuf;

use crate::Size;
use crate::control::{AddVolume, DEFAULT_GRAIN, LARGEST_GRAIN, SMALLEST_GRAIN};

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
        match std::iter::once(&self.base).chain(&self.cache_dir).find(|path| path.is_relative()) {
            Some(relative) => Err(Unfit::Relative(relative.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_by_itself() {
        let good = AddVolume {
            name: "v".parse().unwrap(),
            base: "/base".into(),
            grain: None,
            cache_dir: Some("/fast".into()),
            cache_limit: Some(Size(4096)),
            direct: false,
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
        assert_eq!(AddVolume { base: "base".into(), ..good.clone() }.check(), Err(Unfit::Relative("base".into())));
        assert_eq!(AddVolume { cache_dir: Some("".into()), ..good }.check(), Err(Unfit::Relative("".into())));
    }
}
