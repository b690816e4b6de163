//! What may be changed of a volume that is there: its base, its size.

use serde::{Deserialize, Serialize};

use crate::unfit::{Unfit, fit_place, fit_size};
use crate::{Place, Size};

/// Asks for another base: from then on it is what the host has (R46).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebaseVolume {
    /// File or block device (absolute path), or export, as long as the volume.
    pub base: Place,
}

impl RebaseVolume {
    /// Checks what can be checked without looking at anything.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn check(&self) -> Result<(), Unfit> {
        fit_place(&self.base)
    }
}

/// Asks for another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// In bytes: a multiple of 512.
    pub size: Size,
}

impl ResizeVolume {
    /// Checks what can be checked without looking at anything.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn check(&self) -> Result<(), Unfit> {
        fit_size(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_by_itself() {
        assert_eq!(RebaseVolume { base: "b".into() }.check(), Err(Unfit::Relative("b".into())));
        assert_eq!(RebaseVolume { base: "nbd://h/e".into() }.check(), Ok(()));
        for size in [0, 1, 511, 513] {
            assert_eq!(ResizeVolume { size: Size(size) }.check(), Err(Unfit::Size(Size(size))));
        }
        assert_eq!(ResizeVolume { size: Size(512) }.check(), Ok(()));
    }
}
