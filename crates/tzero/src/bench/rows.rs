//! What is measured, against whom, and what it should be.

use std::collections::BTreeMap;

/// A figure of one subject. Subjects are tzero, servers of others, and ways of copying.
pub(super) type Key = (&'static str, &'static str);

pub(super) const TZERO: &str = "tzero";
pub(super) const NBDKIT: &str = "nbdkit";
pub(super) const QSD: &str = "qemu-storage-daemon";
pub(super) const RAW: &str = "raw copy";
/// What is no other program's.
const SELF: &str = "tzero itself";

/// What a row's ratio, or where it has none its value, should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    pub(super) fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(bar) => figure >= bar,
            Self::AtMost(bar) => figure <= bar,
        }
    }

    pub(super) fn number(self) -> f64 {
        match self {
            Self::AtLeast(bar) | Self::AtMost(bar) => bar,
        }
    }

    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::AtLeast(_) => "≥",
            Self::AtMost(_) => "≤",
        }
    }
}

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    /// Measured by `--quick` too.
    pub(super) quick: bool,
    pub(super) ours: Key,
    /// What it is held against; none where the value itself is.
    pub(super) theirs: Option<Key>,
    pub(super) bar: Bar,
}

impl Row {
    /// The name of what it is held against.
    pub(super) fn peer(&self) -> Option<&'static str> {
        self.theirs.map(|(subject, _)| if subject == TZERO { SELF } else { subject })
    }

    pub(super) fn needs(&self, key: Key) -> bool {
        self.ours == key || self.theirs == Some(key)
    }
}

const fn row(
    name: &'static str,
    unit: &'static str,
    quick: bool,
    measure: &'static str,
    theirs: Option<Key>,
    bar: Bar,
) -> Row {
    Row { name, unit, quick, ours: (TZERO, measure), theirs, bar }
}

use Bar::{AtLeast, AtMost};

/// All of them, in the order of the table.
pub(super) const ROWS: &[Row] = &[
    row("buffered-write-4k-qd1", "1/s", true, B_W1, Some((NBDKIT, B_W1)), AtLeast(1.0)),
    row("buffered-write-4k-qd32", "1/s", true, B_W32, Some((NBDKIT, B_W32)), AtLeast(1.0)),
    row("buffered-read-4k-qd32", "1/s", true, B_R32, Some((NBDKIT, B_R32)), AtLeast(1.0)),
    row("buffered-write-4k-qd1-qemu", "1/s", false, B_W1, Some((QSD, B_W1)), AtLeast(1.5)),
    row("buffered-write-4k-qd32-qemu", "1/s", false, B_W32, Some((QSD, B_W32)), AtLeast(1.8)),
    row("buffered-read-4k-qd32-qemu", "1/s", false, B_R32, Some((QSD, B_R32)), AtLeast(1.8)),
    row("buffered-write-1m-qd8", "1/s", false, B_W1M, Some((NBDKIT, B_W1M)), AtLeast(1.0)),
    row("buffered-read-1m-qd8", "1/s", false, B_R1M, Some((NBDKIT, B_R1M)), AtLeast(1.0)),
    row("direct-write-4k-qd1", "1/s", true, D_W1, Some((QSD, D_W1)), AtLeast(1.05)),
    row("direct-write-4k-qd32", "1/s", true, D_W32, Some((QSD, D_W32)), AtLeast(1.05)),
    row("direct-read-4k-qd32", "1/s", true, D_R32, Some((QSD, D_R32)), AtLeast(1.8)),
    row("first-touch-4k-qd1", "1/s", true, F_1, Some((QSD, F_1)), AtLeast(2.0)),
    row("first-touch-4k-qd32", "1/s", true, F_32, Some((QSD, F_32)), AtLeast(2.5)),
    row("first-touch-4k-qd1-cost", "1/s", false, F_1, Some((TZERO, N_1)), AtLeast(0.6)),
    row("first-touch-4k-qd32-cost", "1/s", false, F_32, Some((TZERO, N_32)), AtLeast(0.6)),
    row("later-touch-4k-qd1-cost", "1/s", false, L_1, Some((TZERO, N_1)), AtLeast(0.95)),
    row("later-touch-4k-qd32-cost", "1/s", false, L_32, Some((TZERO, N_32)), AtLeast(0.95)),
    row("eight-snapshots-4k-qd32-cost", "1/s", false, E_32, Some((TZERO, F_32)), AtLeast(0.95)),
    row("backup-idle", "MB/s", true, C_IDLE, Some((RAW, C_IDLE)), AtLeast(0.9)),
    row("backup-idle-cpu", "s/GiB", false, C_CPU, Some((QSD, C_CPU)), AtMost(1.5)),
    row("backup-offered-2000-host", "1/s", true, O_RATE, None, AtLeast(1990.0)),
    row("backup-offered-2000-host-p99", "µs", true, O_P99, Some((QSD, O_P99)), AtMost(0.5)),
    row("backup-offered-2000", "MB/s", true, O_COPY, Some((QSD, O_COPY)), AtLeast(0.9)),
    row("backup-flat-out-host", "1/s", false, M_RATE, Some((QSD, M_RATE)), AtLeast(1.5)),
    row("backup-flat-out", "MB/s", false, M_COPY, Some((QSD, M_COPY)), AtLeast(1.0)),
    row("originals-10000-4k", "B", true, S_BYTES, Some((SPACE, S_BYTES)), AtMost(1.1)),
    row("snapshot-pause-1g-p99", "µs", false, T_PAUSE_1G, None, AtMost(5000.0)),
    row("snapshot-pause-1t-p99", "µs", false, T_PAUSE_1T, None, AtMost(5000.0)),
    row("snapshot-after-1g-p99.9", "µs", false, T_AFTER_1G, Some((TZERO, T_BEFORE_1G)), AtMost(3.0)),
    row("snapshot-after-1t-p99.9", "µs", false, T_AFTER_1T, Some((TZERO, T_BEFORE_1T)), AtMost(3.0)),
];

/// What was written, for the row that compares with that.
pub(super) const SPACE: &str = "bytes written";

pub(super) const B_W1: &str = "buffered write 4k qd1";
pub(super) const B_W32: &str = "buffered write 4k qd32";
pub(super) const B_R32: &str = "buffered read 4k qd32";
pub(super) const B_W1M: &str = "buffered write 1m qd8";
pub(super) const B_R1M: &str = "buffered read 1m qd8";
pub(super) const D_W1: &str = "direct write 4k qd1";
pub(super) const D_W32: &str = "direct write 4k qd32";
pub(super) const D_R32: &str = "direct read 4k qd32";
pub(super) const N_1: &str = "no snapshot qd1";
pub(super) const N_32: &str = "no snapshot qd32";
pub(super) const F_1: &str = "first touch qd1";
pub(super) const F_32: &str = "first touch qd32";
pub(super) const L_1: &str = "later touch qd1";
pub(super) const L_32: &str = "later touch qd32";
pub(super) const E_32: &str = "eight snapshots qd32";
pub(super) const C_IDLE: &str = "copy, idle";
pub(super) const C_CPU: &str = "copy, idle, processor";
pub(super) const O_RATE: &str = "copy, 2000 offered, host";
pub(super) const O_P99: &str = "copy, 2000 offered, host p99";
pub(super) const O_COPY: &str = "copy, 2000 offered";
pub(super) const M_RATE: &str = "copy, flat out, host";
pub(super) const M_COPY: &str = "copy, flat out";
pub(super) const S_BYTES: &str = "bytes of originals";
pub(super) const T_PAUSE_1G: &str = "pause 1g";
pub(super) const T_PAUSE_1T: &str = "pause 1t";
pub(super) const T_BEFORE_1G: &str = "before 1g";
pub(super) const T_BEFORE_1T: &str = "before 1t";
pub(super) const T_AFTER_1G: &str = "after 1g";
pub(super) const T_AFTER_1T: &str = "after 1t";

/// What was measured, round by round.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<Key, Vec<f64>>);

impl Figures {
    pub(super) fn add(&mut self, key: Key, figure: f64) {
        self.0.entry(key).or_default().push(figure);
    }

    /// The median of a key's rounds.
    pub(super) fn of(&self, key: Key) -> Option<f64> {
        median(self.0.get(&key)?.clone())
    }

    /// The median of the rounds' ratios: what drifts from round to round is in both.
    pub(super) fn ratio(&self, ours: Key, theirs: Key) -> Option<f64> {
        median(self.0.get(&ours)?.iter().zip(self.0.get(&theirs)?).map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// The one in the middle; of an even number the mean of the two.
pub(super) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let last = figures.len().checked_sub(1)?;
    Some(f64::midpoint(figures[last / 2], figures[last.div_ceil(2)]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        assert_eq!(ROWS.iter().map(|row| row.name).collect::<BTreeSet<_>>().len(), ROWS.len());
    }

    #[test]
    fn a_ratio_is_of_each_round() {
        let (ours, theirs) = ((TZERO, B_W1), (NBDKIT, B_W1));
        let mut figures = Figures::default();
        for (mine, yours) in [(10.0, 5.0), (30.0, 10.0), (100.0, 25.0)] {
            figures.add(ours, mine);
            figures.add(theirs, yours);
        }
        assert_eq!((figures.of(ours), figures.ratio(ours, theirs)), (Some(30.0), Some(3.0)));
        assert_eq!(figures.ratio(ours, (QSD, B_W1)), None);
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert!(AtLeast(1.0).is_met(1.0) && AtMost(1.0).is_met(1.0) && !AtMost(1.0).is_met(f64::NAN));
    }
}
