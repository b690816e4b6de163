//! Whether something may be overwritten unasked: what is not blank may be somebody's.

use tzero_block::ByteRange;

use crate::medium::Medium;

/// How much of the start and end must be zero for a range to be blank.
const ENDS: u64 = 1 << 20;
/// How many places between them are looked at.
const SAMPLES: u64 = 64;
/// Bytes of such a place.
const SAMPLE: u64 = 4096;

/// Whether a range looks as if it held nothing: its start, its end, and samples in between are zero.
pub(crate) async fn is_blank(medium: &Medium, range: ByteRange) -> Result<bool, tzero_block::Error> {
    let ends = ENDS.min(range.len());
    let places = [range.start(), range.end() - ends].map(|start| ByteRange::new(start, ends));
    let sample = SAMPLE.min(range.len());
    let between = (1..SAMPLES).map(|index| {
        let at = (range.len() / SAMPLES * index).min(range.len() - sample);
        ByteRange::new(range.start() + at, sample)
    });
    for place in places.into_iter().chain(between) {
        if !medium.read(place).await?.is_zero() {
            return Ok(false);
        }
    }
    Ok(true)
}
