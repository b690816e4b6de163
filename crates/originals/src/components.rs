//! Where the components of a volume begin (R28): they lie in a row, and a place is a component and a place within it.
//!
//! ```text
//! bytes       0 ............ a ............ b ......... size
//! unit        ├───── 0 ──────┼───── 1 ──────┼──── 2 ────▶
//! ```
//!
//! # Invariants
//! 1. Every component but the last is a whole number of grains long, so a grain lies in one.
//!
//! Deliberately absent: where the last one ends. That is the volume's size.

use std::fmt;

/// Beginnings of components, in bytes of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Components {
    /// The first is 0; they ascend.
    starts: Vec<u64>,
}

/// Why lengths are no components of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentsError {
    /// There is none, or one of them is empty.
    Empty,
    /// There are more than [`Components::MOST`].
    TooMany,
    /// The length of this component, counted from 0, is no whole number of grains, and others follow it.
    Uneven(usize),
    /// Together they are longer than a number of bytes can say.
    TooLong,
}

impl fmt::Display for ComponentsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a volume has at least one component, and none of them is empty"),
            Self::TooMany => write!(f, "a volume has at most {} components", Components::MOST),
            Self::Uneven(component) => {
                write!(f, "the length of component {component} is no whole number of grains, and others follow it")
            }
            Self::TooLong => f.write_str("the components are too long together"),
        }
    }
}

impl std::error::Error for ComponentsError {}

impl Components {
    /// Most components of a volume.
    pub const MOST: usize = 64;

    /// One component, whatever its length.
    pub fn one() -> Self {
        Self { starts: vec![0] }
    }

    /// Components of these lengths in bytes, in this order.
    ///
    /// # Errors
    /// See [`ComponentsError`].
    pub fn new(lengths: &[u64], grain: u32) -> Result<Self, ComponentsError> {
        if lengths.is_empty() || lengths.contains(&0) {
            return Err(ComponentsError::Empty);
        }
        if lengths.len() > Self::MOST {
            return Err(ComponentsError::TooMany);
        }
        let (mut starts, mut end) = (Vec::with_capacity(lengths.len()), 0_u64);
        for (component, length) in lengths.iter().enumerate() {
            if component + 1 < lengths.len() && !length.is_multiple_of(u64::from(grain)) {
                return Err(ComponentsError::Uneven(component));
            }
            starts.push(end);
            end = end.checked_add(*length).ok_or(ComponentsError::TooLong)?;
        }
        Ok(Self { starts })
    }

    /// Components that begin here after the first one, which begins at 0; `None` where these are no beginnings.
    pub(crate) fn from_starts(further: impl Iterator<Item = u64>, grain: u32) -> Option<Self> {
        let starts: Vec<u64> = std::iter::once(0).chain(further).collect();
        let ascend = starts.is_sorted_by(|before, after| before < after);
        let even = starts.iter().all(|start| start.is_multiple_of(u64::from(grain)));
        (ascend && even && starts.len() <= Self::MOST).then_some(Self { starts })
    }

    /// Beginnings of the second and later ones, in bytes of the volume.
    pub(crate) fn further(&self) -> &[u64] {
        &self.starts[1..]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// Unit id of the component that holds the byte at `offset` of the volume, and where in the component it is. What lies past the end is
    /// the last one's.
    pub fn place(&self, offset: u64) -> (u32, u64) {
        let unit = self.starts.partition_point(|start| *start <= offset) - 1;
        (unit as u32, offset - self.starts[unit])
    }

    /// Where on the volume the byte at `within` of a component is; `None` where there is no such component or no such byte in it.
    pub fn offset(&self, unit: u32, within: u64) -> Option<u64> {
        let unit = usize::try_from(unit).ok()?;
        let offset = self.starts.get(unit)?.checked_add(within)?;
        self.starts.get(unit + 1).is_none_or(|next| offset < *next).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_component_and_a_place_within_it() {
        let components = Components::new(&[8192, 4096, 1000], 4096).unwrap();
        assert_eq!(components.count(), 3);
        for (offset, unit, within) in [(0, 0, 0), (8191, 0, 8191), (8192, 1, 0), (12_287, 1, 4095), (12_288, 2, 0)] {
            assert_eq!(components.place(offset), (unit, within));
            assert_eq!(components.offset(unit, within), Some(offset));
        }
        assert_eq!(components.offset(0, 8192), None, "that is the next one's");
        assert_eq!((components.offset(3, 0), components.offset(2, u64::MAX)), (None, None));
        assert_eq!(components.offset(2, 1 << 40), Some(12_288 + (1 << 40)), "the volume's size is not known here");
        assert_eq!(Components::from_starts(components.further().iter().copied(), 4096), Some(components));
    }

    #[test]
    fn what_is_no_row() {
        assert_eq!(Components::new(&[], 512), Err(ComponentsError::Empty));
        assert_eq!(Components::new(&[512, 0], 512), Err(ComponentsError::Empty));
        assert_eq!(Components::new(&[1024, 1536, 512], 1024), Err(ComponentsError::Uneven(1)));
        assert_eq!(Components::new(&[u64::MAX - 511, 512], 512), Err(ComponentsError::TooLong));
        assert_eq!(Components::new(&[512; Components::MOST + 1], 512), Err(ComponentsError::TooMany));
        assert_eq!(Components::new(&[777], 4096), Ok(Components::one()));
        for further in [&[512, 512][..], &[1024, 512], &[0], &[700], &[512; 64]] {
            assert_eq!(Components::from_starts(further.iter().copied(), 512), None, "{further:?}");
        }
    }
}
