//! What part of a volume a copy is of (R6, R11).
//!
//! Outside its scope a copy has nothing: no byte there is read, digested other than as zero, written or restored. A file's
//! image is a hole there; a device keeps what it has.

use serde::{Deserialize, Serialize};
use tzero_api::control::{MOST_PARTS, Part};
use tzero_block::ByteRange;
use tzero_originals::RangeSet;

/// The part; by default all of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Option<Vec<Part>>", into = "Option<Vec<Part>>")]
pub struct Scope(Option<RangeSet>);

/// Parts that are no scope: none, too many, an empty one, or not ascending and apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scope is a list of ascending parts that do not touch, from 1 to {MOST_PARTS}")]
pub struct InvalidScope;

impl Scope {
    /// Of ranges that ascend and do not touch.
    ///
    /// # Errors
    /// When they are none such.
    pub fn of(ranges: impl IntoIterator<Item = ByteRange>) -> Result<Self, InvalidScope> {
        let mut set = RangeSet::default();
        let (mut last, mut count) = (None, 0);
        for range in ranges {
            count += 1;
            if range.is_empty() || last.is_some_and(|end| range.start() <= end) || count > MOST_PARTS {
                return Err(InvalidScope);
            }
            last = Some(range.end());
            set.insert(range);
        }
        if count == 0 { Err(InvalidScope) } else { Ok(Self(Some(set))) }
    }

    /// Whether it is the whole volume.
    pub fn is_whole(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it is what these parts are together.
    pub(crate) fn is_of(&self, parts: &[Part]) -> bool {
        let mut set = RangeSet::default();
        for part in parts {
            let Some(end) = part.offset.checked_add(part.length) else { return false };
            set.insert(ByteRange::between(part.offset, end));
        }
        self.0.as_ref() == Some(&set)
    }

    /// Whether it lies within a volume of `size` bytes.
    pub(crate) fn fits(&self, size: u64) -> bool {
        self.0.as_ref().is_none_or(|set| set.iter().all(|range| range.end() <= size))
    }

    /// What of `range` is in it.
    pub fn within(&self, range: ByteRange) -> Vec<ByteRange> {
        self.cut(range).into_iter().filter_map(|(part, inside)| inside.then_some(part)).collect()
    }

    /// `range` in pieces, each all in it (`true`) or all outside.
    pub fn cut(&self, range: ByteRange) -> Vec<(ByteRange, bool)> {
        let Some(set) = &self.0 else { return vec![(range, true)] };
        let (mut pieces, mut at) = (Vec::new(), range.start());
        for outside in set.missing(range) {
            if at < outside.start() {
                pieces.push((ByteRange::between(at, outside.start()), true));
            }
            pieces.push((outside, false));
            at = outside.end();
        }
        if at < range.end() {
            pieces.push((ByteRange::between(at, range.end()), true));
        }
        pieces
    }

    /// Bytes of a volume of `size` bytes that are in it.
    pub fn bytes(&self, size: u64) -> u64 {
        self.0.as_ref().map_or(size, RangeSet::bytes)
    }
}

impl TryFrom<Option<Vec<Part>>> for Scope {
    type Error = InvalidScope;

    fn try_from(parts: Option<Vec<Part>>) -> Result<Self, InvalidScope> {
        let Some(parts) = parts else { return Ok(Self::default()) };
        let ranges: Option<Vec<_>> = parts.iter().map(|part| ByteRange::checked(part.offset, part.length)).collect();
        Self::of(ranges.ok_or(InvalidScope)?)
    }
}

impl From<Scope> for Option<Vec<Part>> {
    fn from(scope: Scope) -> Self {
        let part = |range: ByteRange| Part { offset: range.start(), length: range.len() };
        scope.0.map(|set| set.iter().map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(ranges: &[(u64, u64)]) -> Vec<ByteRange> {
        ranges.iter().map(|(start, end)| ByteRange::between(*start, *end)).collect()
    }

    #[test]
    fn ranges_are_cut_where_it_ends() {
        let scope = Scope::of(ranges(&[(10, 20), (30, 40)])).unwrap();
        let cut = |start, end| {
            let cut = scope.cut(ByteRange::between(start, end));
            cut.iter().map(|(part, inside)| (part.start(), part.end(), *inside)).collect::<Vec<_>>()
        };
        assert_eq!(cut(0, 50), [(0, 10, false), (10, 20, true), (20, 30, false), (30, 40, true), (40, 50, false)]);
        assert_eq!(cut(12, 15), [(12, 15, true)]);
        assert_eq!(cut(15, 35), [(15, 20, true), (20, 30, false), (30, 35, true)]);
        assert_eq!(cut(40, 41), [(40, 41, false)]);
        assert_eq!((scope.bytes(100), scope.fits(40), scope.fits(39)), (20, true, false));
        assert_eq!(scope.within(ByteRange::between(0, 35)), ranges(&[(10, 20), (30, 35)]));
        let whole = Scope::default();
        assert_eq!(whole.cut(ByteRange::between(3, 9)), [(ByteRange::between(3, 9), true)]);
        assert_eq!(whole.bytes(100), 100);
    }

    #[test]
    fn in_text() {
        let scope = Scope::of(ranges(&[(0, 512), (4096, 8192)])).unwrap();
        let text = serde_json::to_string(&scope).unwrap();
        assert_eq!(text, r#"[{"offset":0,"length":512},{"offset":4096,"length":4096}]"#);
        assert_eq!(serde_json::from_str::<Scope>(&text).unwrap(), scope);
        assert_eq!(serde_json::from_str::<Scope>("null").unwrap(), Scope::default());
        for bad in [
            "[]",
            r#"[{"offset":0,"length":0}]"#,
            r#"[{"offset":18446744073709551615,"length":2}]"#,
            r#"[{"offset":4096,"length":1},{"offset":0,"length":1}]"#,
            r#"[{"offset":0,"length":2},{"offset":2,"length":1}]"#,
        ] {
            assert!(serde_json::from_str::<Scope>(bad).is_err(), "{bad}");
        }
    }
}
