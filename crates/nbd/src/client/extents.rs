//! What a server says of allocation, as extents. Pure.
//!
//! A stretch is a hole if it reads as zeroes: that is what its users rely on. One that is not allocated but may read as anything is data.

use tzero_block::{ByteRange, Extent};

use crate::contexts::Descriptor;
use crate::wire::allocation;

/// Collects extents from the start of a range on.
pub(crate) struct Extents {
    range: ByteRange,
    block: u64,
    found: Vec<Extent>,
    at: u64,
}

impl Extents {
    /// For `range`, whose ends are multiples of `block`.
    pub(crate) fn new(range: ByteRange, block: u32) -> Self {
        Self { range, block: block.into(), found: Vec::new(), at: range.start() }
    }

    /// What nothing is known of yet.
    pub(crate) fn rest(&self) -> ByteRange {
        ByteRange::between(self.at, self.range.end())
    }

    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    /// Takes in an answer about the start of the rest; it may reach beyond it, or end early. A block that is only partly a hole is data, whatever
    /// else the server says of it, so every answer brings the rest at least a block further.
    pub(crate) fn add(&mut self, descriptors: &[Descriptor]) {
        let start = self.at;
        let mut end = start;
        for descriptor in descriptors {
            let from = end;
            end = end.saturating_add(u64::from(descriptor.len)).min(self.range.end());
            if descriptor.status & allocation::ZERO != 0 {
                let whole = from.next_multiple_of(self.block)..end / self.block * self.block;
                if whole.start < whole.end {
                    self.push(whole.start, false);
                    self.push(whole.end, true);
                }
            }
        }
        // The last block is asked about again if it was told in part: the next answer may begin with the rest of a hole.
        let known = (end / self.block * self.block).max(start + self.block).min(self.range.end());
        self.push(known.max(self.at), false);
    }

    /// Nothing more is asked: the rest is data.
    pub(crate) fn finish(mut self) -> Vec<Extent> {
        self.push(self.range.end(), false);
        if self.found.is_empty() {
            self.found.push(Extent { range: self.range, hole: false });
        }
        self.found
    }

    fn push(&mut self, end: u64, hole: bool) {
        if end <= self.at {
            return;
        }
        match self.found.last_mut() {
            Some(last) if last.hole == hole => last.range = ByteRange::between(last.range.start(), end),
            _ => self.found.push(Extent { range: ByteRange::between(self.at, end), hole }),
        }
        self.at = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a flag per byte: a hole is only said where every byte is one, every block that is all hole within one answer is said.
        #[test]
        fn holes_are_whole_blocks(
            answers in proptest::collection::vec(proptest::collection::vec((1u32..40, 0u32..4), 1..6), 1..6),
            start in 0u64..20,
        ) {
            let range = ByteRange::new(start * 8, 160);
            let mut extents = Extents::new(range, 8);
            let mut zero = vec![false; 500];
            for answer in &answers {
                let rest = extents.rest();
                if rest.is_empty() {
                    break;
                }
                let mut at = rest.start();
                for (len, status) in answer {
                    let end = (at + u64::from(*len)).min(range.end());
                    zero[at as usize..end as usize].fill(status & 2 != 0);
                    at = end;
                }
                let descriptors: Vec<_> = answer.iter().map(|(len, status)| Descriptor { len: *len, status: *status }).collect();
                extents.add(&descriptors);
                prop_assert!(extents.rest().len() + 8 <= rest.len());
                prop_assert!(extents.rest().start() <= at.max(rest.start() + 8));
                prop_assert!(extents.rest().start().is_multiple_of(8));
            }
            let found = extents.finish();
            let mut at = range.start();
            for extent in &found {
                prop_assert_eq!(extent.range.start(), at);
                at = extent.range.end();
                let bytes = &zero[extent.range.start() as usize..at as usize];
                prop_assert!(!extent.hole || bytes.iter().all(|zero| *zero));
            }
            prop_assert_eq!(at, range.end());
            prop_assert!(found.windows(2).all(|pair| pair[0].hole != pair[1].hole));
        }
    }

    #[test]
    fn only_what_reads_as_zeroes_is_a_hole() {
        let descriptor = |len, status| Descriptor { len, status };
        let mut extents = Extents::new(ByteRange::new(0, 4096), 512);
        extents.add(&[
            descriptor(512, 3),
            descriptor(512, 2),
            descriptor(512, 1),
            descriptor(512, 0),
            descriptor(1 << 30, 3),
        ]);
        let told: Vec<_> = extents.finish().iter().map(|extent| (extent.range.end(), extent.hole)).collect();
        assert_eq!(told, [(1024, true), (2048, false), (4096, true)]);
    }
}
