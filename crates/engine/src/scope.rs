//! Scopes: the part of a volume that a snapshot is of (R6, R11).
//!
//! Outside its scope a snapshot needs nothing and shows nothing. So the grains that a scope does not touch are, from the beginning, as if they
//! had been released; a grain that it touches in part is needed whole, and only the part in scope is shown.
//!
//! A scope is on record, in a file of its own, before the snapshot that has it stands.

use std::io;

use tzero_block::ByteRange;
use tzero_io::Storage;
use tzero_originals::{GrainIndex, Grains, RangeLog, RangeSet, SnapshotId};

/// What the names of the files begin with.
pub(crate) const PREFIX: &str = "scope-";

pub(crate) fn name(id: SnapshotId) -> String {
    format!("{PREFIX}{id}")
}

/// A scope that makes sense on a volume: not empty, within it.
pub(crate) fn checked(ranges: &[ByteRange], size: u64) -> Option<RangeSet> {
    let mut scope = RangeSet::default();
    for range in ranges {
        if range.is_empty() || range.end() > size {
            return None;
        }
        scope.insert(*range);
    }
    (!ranges.is_empty()).then_some(scope)
}

/// Puts a scope on record; durably, where that is relied on.
pub(crate) async fn store<S: Storage>(storage: &S, id: SnapshotId, scope: &RangeSet, durable: bool) -> io::Result<()> {
    let log = RangeLog::open_or_create(storage, &name(id))?;
    scope.iter().try_for_each(|range| log.append(range))?;
    if !durable {
        return Ok(());
    }
    log.durable().await?;
    storage.names_durable().await
}

/// The scope on record.
pub(crate) fn load<S: Storage>(storage: &S, id: SnapshotId) -> io::Result<RangeSet> {
    if !storage.exists(&name(id))? {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the scope is not on record"));
    }
    RangeLog::open_or_create(storage, &name(id))?.load()
}

/// The grains that a scope does not touch, as ranges of bytes.
pub(crate) fn outside(scope: &RangeSet, grains: Grains) -> RangeSet {
    let (mut outside, mut start) = (RangeSet::default(), 0);
    for touched in scope.iter().map(|range| grains.touched(range)) {
        if start < touched.start {
            outside.insert(grains.range_of(&(start..touched.start)));
        }
        start = touched.end;
    }
    if start < grains.count() {
        outside.insert(ByteRange::between(grains.range(GrainIndex(start)).start(), grains.size()));
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scope_leaves_out() {
        let grains = Grains::new(4096, 40_000).unwrap();
        let set = |ranges: &[(u64, u64)]| {
            let ranges: Vec<_> = ranges.iter().map(|(start, end)| ByteRange::between(*start, *end)).collect();
            checked(&ranges, 40_000).unwrap()
        };
        assert_eq!(outside(&set(&[(0, 40_000)]), grains), RangeSet::default());
        assert_eq!(outside(&set(&[(4097, 4098), (8191, 8193)]), grains), set(&[(0, 4096), (12_288, 40_000)]));
        assert_eq!(outside(&set(&[(39_999, 40_000)]), grains), set(&[(0, 36_864)]));
        assert!(checked(&[], 1).is_none() && checked(&[ByteRange::new(0, 2)], 1).is_none());
    }
}
