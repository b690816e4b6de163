//! Which bytes of a read have arrived. Pure.
//!
//! A structured reply may bring data in any order, in any number of chunks; the protocol forbids that it brings a byte twice or
//! leaves one out, and both would hand old contents of a buffer to the reader.

use std::ops::Range;

use super::error::Breach;

/// Separate stretches that one reply may have at one time. Data in order is always one.
const MOST_STRETCHES: usize = 1024;

/// Stretches of a request, in order, none of which touch.
#[derive(Debug, Default)]
pub(crate) struct Coverage(Vec<Range<u64>>);

impl Coverage {
    /// Adds bytes that were not there.
    pub(crate) fn add(&mut self, range: Range<u64>) -> Result<(), Breach> {
        let next = self.0.partition_point(|stretch| stretch.start < range.start);
        let overlaps = range.is_empty()
            || next > 0 && self.0[next - 1].end > range.start
            || self.0.get(next).is_some_and(|stretch| stretch.start < range.end);
        if overlaps {
            return Err(Breach::Place);
        }
        let before = next > 0 && self.0[next - 1].end == range.start;
        let after = self.0.get(next).is_some_and(|stretch| stretch.start == range.end);
        match (before, after) {
            (true, true) => self.0[next - 1].end = self.0.remove(next).end,
            (true, false) => self.0[next - 1].end = range.end,
            (false, true) => self.0[next].start = range.start,
            (false, false) if self.0.len() >= MOST_STRETCHES => return Err(Breach::TooManyPieces),
            (false, false) => self.0.insert(next, range),
        }
        Ok(())
    }

    /// Whether it is exactly `range`.
    pub(crate) fn is(&self, range: Range<u64>) -> bool {
        self.0.as_slice() == [range]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_are_bounded() {
        let mut coverage = Coverage::default();
        for piece in 0..MOST_STRETCHES as u64 {
            coverage.add(2 * piece..2 * piece + 1).expect("apart");
        }
        assert_eq!(coverage.add(1 << 40..1 << 41), Err(Breach::TooManyPieces));
        assert_eq!(coverage.add(1..2), Ok(()));
        assert_eq!(coverage.add(9..9), Err(Breach::Place));
    }

    proptest! {
        /// Against a flag per byte.
        #[test]
        fn every_byte_comes_once(pieces in proptest::collection::vec((0u64..60, 1u64..12), 0..40)) {
            let (mut coverage, mut model) = (Coverage::default(), [false; 80]);
            for (start, len) in pieces {
                let bytes = &mut model[start as usize..(start + len) as usize];
                let fresh = bytes.iter().all(|byte| !byte);
                prop_assert_eq!(coverage.add(start..start + len).is_ok(), fresh);
                if fresh {
                    bytes.fill(true);
                }
                prop_assert_eq!(coverage.is(0..30), model.iter().enumerate().all(|(at, byte)| *byte == (at < 30)));
            }
        }
    }
}
