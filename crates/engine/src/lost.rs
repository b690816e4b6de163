//! Originals whose payload was lost while nobody served the volume: a tier of the cache is not there any more, or not all of it is (R53).
//!
//! Whoever resolves to one breaks, on record and before anything else is decided; the others stand. An original that nobody needs may go
//! unnoticed.

use std::collections::{BTreeMap, BTreeSet};

use tzero_block::ByteRange;
use tzero_originals::{Entry, Epoch, GrainIndex, Grains, Payload};

use crate::snapshots::{Snapshot, Snapshots};

/// The snapshots that resolve to an original in one of the `lost` stretches of the cache, each with the grain of one.
pub(crate) fn losers(
    entries: &[(u32, Entry)],
    lost: &[ByteRange],
    grains: Grains,
    snapshots: &Snapshots,
) -> Vec<(std::sync::Arc<Snapshot>, GrainIndex)> {
    let is_lost = |entry: &Entry| match entry.payload {
        Payload::Stored { offset, .. } => {
            let payload = ByteRange::new(offset, entry.len.into());
            lost.iter().any(|range| range.overlaps(payload))
        }
        Payload::Zero | Payload::Bad => false,
    };
    let missing: Vec<&Entry> = entries.iter().map(|(_, entry)| entry).filter(|entry| is_lost(entry)).collect();
    let touched: BTreeSet<GrainIndex> = missing.iter().map(|entry| grains.at(entry.offset)).collect();
    let mut tags: BTreeMap<GrainIndex, BTreeSet<Epoch>> = BTreeMap::new();
    for (_, entry) in entries.iter().filter(|(_, entry)| touched.contains(&grains.at(entry.offset))) {
        tags.entry(grains.at(entry.offset)).or_default().insert(entry.tag);
    }
    let mut losers = BTreeMap::new();
    for entry in missing {
        let grain = grains.at(entry.offset);
        let before = tags[&grain].range(..entry.tag).next_back().copied();
        for snapshot in snapshots.resolving(grains, grain, before, entry.tag, entry.sequence) {
            losers.entry(snapshot.epoch).or_insert((snapshot, grain));
        }
    }
    losers.into_values().collect()
}
