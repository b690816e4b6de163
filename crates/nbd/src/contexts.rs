//! Metadata contexts: which are there, what a query selects, and the extents of `base:allocation` as descriptors.
//!
//! Deliberately absent: any namespace but `base`. Queries of other namespaces are ignored, as the protocol wants.

use tzero_block::{ByteRange, Extent};

use crate::wire::allocation;

/// The one context that there is.
pub(crate) const ALLOCATION: &str = "base:allocation";
/// The id that stands for it in replies.
pub(crate) const ALLOCATION_ID: u32 = 1;
/// Bytes that one request about allocation looks at; the client asks again for the rest. Bounds what a reply costs.
pub(crate) const STATUS_WINDOW: u64 = 1 << 30;
/// Descriptors in one reply.
const MOST_DESCRIPTORS: usize = 8192;
/// `HOLE` and `ZERO`, or nothing.
const STATUS_OF_HOLE: u32 = allocation::HOLE | allocation::ZERO;

/// Whether `SET_META_CONTEXT` with these queries selects the context.
pub(crate) fn selects(queries: &[&str]) -> bool {
    queries.contains(&ALLOCATION)
}

/// Whether `LIST_META_CONTEXT` with these queries lists the context: no query, its name, or the wildcard of its namespace.
pub(crate) fn lists(queries: &[&str]) -> bool {
    queries.is_empty() || queries.iter().any(|query| matches!(*query, ALLOCATION | "base:"))
}

/// A stretch of one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// In bytes, never zero.
    pub(crate) len: u32,
    pub(crate) status: u32,
}

/// Consecutive descriptors from the start of `range`, neighbours of one status merged; just the first with `one`.
///
/// Extents that are not as [`tzero_block::Export::block_status`] promises (a gap, a step back, past the end) end the list:
/// what is said is always true for data, and a hole is only said where the export said it.
pub(crate) fn descriptors(range: ByteRange, extents: &[Extent], one: bool) -> Vec<Descriptor> {
    let most = if one { 1 } else { MOST_DESCRIPTORS };
    let mut found: Vec<Descriptor> = Vec::new();
    let mut at = range.start();
    for extent in extents {
        if extent.range.start() != at || extent.range.end() > range.end() {
            break;
        }
        at = extent.range.end();
        let Some(len) = u32::try_from(extent.range.len()).ok().filter(|len| *len > 0) else { continue };
        let status = if extent.hole { STATUS_OF_HOLE } else { 0 };
        if let Some(last) = found.last_mut().filter(|last| last.status == status) {
            last.len += len;
        } else if found.len() < most {
            found.push(Descriptor { len, status });
        } else {
            break;
        }
    }
    if found.is_empty() {
        found.push(Descriptor { len: u32::try_from(range.len()).unwrap_or(u32::MAX), status: 0 });
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(start: u64, len: u64, hole: bool) -> Extent {
        Extent { range: ByteRange::new(start, len), hole }
    }

    #[test]
    fn queries() {
        assert!(selects(&["x:y", "base:allocation"]));
        assert!(!selects(&[]));
        assert!(!selects(&["base:"]));
        assert!(lists(&[]));
        assert!(lists(&["base:"]));
        assert!(!lists(&["qemu:allocation-depth", "base"]));
    }

    #[test]
    fn neighbours_are_merged() {
        let extents = [extent(8, 4, true), extent(12, 4, true), extent(16, 2, false)];
        let all = [Descriptor { len: 8, status: 3 }, Descriptor { len: 2, status: 0 }];
        assert_eq!(descriptors(ByteRange::new(8, 10), &extents, false), all);
        assert_eq!(descriptors(ByteRange::new(8, 10), &extents, true), all[..1]);
    }

    #[test]
    fn broken_promises_say_data() {
        let range = ByteRange::new(8, 10);
        let data = [Descriptor { len: 10, status: 0 }];
        assert_eq!(descriptors(range, &[], false), data);
        assert_eq!(descriptors(range, &[extent(0, 18, true)], false), data);
        assert_eq!(descriptors(range, &[extent(8, 11, true)], false), data);
        assert_eq!(
            descriptors(range, &[extent(8, 2, true), extent(11, 7, true)], false),
            [Descriptor { len: 2, status: 3 }]
        );
    }

    #[test]
    fn a_reply_is_bounded() {
        let extents: Vec<_> = (0..20_000).map(|index| extent(index, 1, index % 2 == 0)).collect();
        assert_eq!(descriptors(ByteRange::new(0, 20_000), &extents, false).len(), MOST_DESCRIPTORS);
    }

    proptest! {
        /// Against a model with one flag per byte.
        #[test]
        fn descriptors_say_what_extents_say(pieces in proptest::collection::vec((1u64..50, any::<bool>()), 1..30), start in 0u64..1000) {
            let mut extents = Vec::new();
            let mut model = Vec::new();
            let mut at = start;
            for (len, hole) in pieces {
                extents.push(extent(at, len, hole));
                model.resize(model.len() + len as usize, if hole { 3u32 } else { 0 });
                at += len;
            }
            let found = descriptors(ByteRange::between(start, at), &extents, false);
            let told: Vec<u32> = found.iter().flat_map(|d| vec![d.status; d.len as usize]).collect();
            prop_assert_eq!(told, model);
            prop_assert!(found.windows(2).all(|pair| pair[0].status != pair[1].status));
        }
    }
}
