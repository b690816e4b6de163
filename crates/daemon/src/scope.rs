//! The parts of a volume that a snapshot is asked for (R6, R11).

use tzero_api::control::MOST_PARTS;
use tzero_block::ByteRange;

/// Why parts are no scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScopeError {
    #[error("a scope names one part of the volume at least: name one, or leave the scope out")]
    Nothing,
    #[error("a scope has {MOST_PARTS} parts at most, and {0} are asked for: join some")]
    TooMany(usize),
    #[error("the part {offset}+0 of the scope is empty: give it a length")]
    Empty { offset: u64 },
    #[error("the part {offset}+{length} of the scope reaches past the end of the volume, which is {size} bytes long")]
    Outside { offset: u64, length: u64, size: u64 },
}

/// The parts, offset and length in bytes, as ranges: ascending, and those that touch joined.
pub(crate) fn ranges(mut parts: Vec<(u64, u64)>, size: u64) -> Result<Vec<ByteRange>, ScopeError> {
    if parts.is_empty() {
        return Err(ScopeError::Nothing);
    }
    if parts.len() > MOST_PARTS {
        return Err(ScopeError::TooMany(parts.len()));
    }
    parts.sort_unstable();
    let mut ranges: Vec<ByteRange> = Vec::new();
    for (offset, length) in parts {
        if length == 0 {
            return Err(ScopeError::Empty { offset });
        }
        let outside = ScopeError::Outside { offset, length, size };
        let range = ByteRange::checked(offset, length).filter(|range| range.end() <= size).ok_or(outside)?;
        match ranges.last_mut().filter(|last| range.start() <= last.end()) {
            Some(last) => *last = ByteRange::between(last.start(), last.end().max(range.end())),
            None => ranges.push(range),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_any_order_become_ranges() {
        let parts = vec![(8192, 4096), (0, 512), (512, 1), (9000, 10), (12_287, 2), (99, 1)];
        let expected = [ByteRange::between(0, 513), ByteRange::between(8192, 12_289)];
        assert_eq!(ranges(parts, 1 << 20).unwrap(), expected);
        assert_eq!(ranges(vec![(0, 1 << 20)], 1 << 20).unwrap(), [ByteRange::new(0, 1 << 20)]);
        let most = (0..MOST_PARTS as u64).map(|index| (index * 2, 1)).collect();
        assert_eq!(ranges(most, 1 << 20).unwrap().len(), MOST_PARTS);
    }

    #[test]
    fn what_is_no_scope() {
        let size = 1 << 20;
        assert_eq!(ranges(vec![], size), Err(ScopeError::Nothing));
        assert_eq!(ranges(vec![(0, 1); MOST_PARTS + 1], size), Err(ScopeError::TooMany(MOST_PARTS + 1)));
        assert_eq!(ranges(vec![(0, 1), (5, 0)], size), Err(ScopeError::Empty { offset: 5 }));
        for (offset, length) in [(size, 1), (0, size + 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(ranges(vec![(offset, length)], size), Err(ScopeError::Outside { offset, length, size }));
        }
    }
}
