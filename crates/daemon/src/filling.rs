//! How fast a volume's original cache fills up, and when it will be full.
//!
//! A meter looks at a total once a second and remembers a minute. Its rate is what came in since the minute began, or since anything
//! came in at all: the idle time before that says nothing of what is going on now.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time between two looks.
pub(crate) const STEP: Duration = Duration::from_secs(1);
/// How far back a rate goes, in nanoseconds.
const WINDOW: u64 = 60_000_000_000;
/// Less time than this tells no rate, in nanoseconds.
const LEAST: u64 = 500_000_000;

/// How one volume's cache fills up.
#[derive(Default)]
pub(crate) struct Filling {
    /// Bytes of whole grains that the host has changed, ever.
    changed: AtomicU64,
    meters: Mutex<Meters>,
}

#[derive(Default)]
struct Meters {
    saved: Meter,
    changed: Meter,
    /// Bytes that were in use at the last look. What is there at the first did not just come.
    used: Option<u64>,
    /// Bytes of them that no change had asked for, ever, at the last look: they foretell nothing.
    ahead: u64,
    /// Bytes that came into use, ever.
    came: u64,
}

/// Bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Of originals. What is freed at the same time is taken off.
    pub(crate) saved: f64,
    /// Of whole grains that the host changes.
    pub(crate) changed: f64,
}

impl Filling {
    /// The host changes so many bytes of whole grains. For the hot path: one addition.
    pub(crate) fn count(&self, bytes: u64) {
        self.changed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Looks: so many bytes are in use now, and so many were saved ahead of any change, ever. To be called every [`STEP`].
    pub(crate) fn look(&self, now_ns: u64, used: u64, ahead: u64) {
        let changed = self.changed.load(Ordering::Relaxed);
        let mut meters = self.meters.lock().expect("nothing panics under this lock");
        meters.came = meters.came_with(used, ahead);
        (meters.used, meters.ahead) = (Some(used), ahead);
        let came = meters.came;
        meters.saved.note(now_ns, came);
        meters.changed.note(now_ns, changed);
    }

    /// The rates up to now.
    pub(crate) fn rates(&self, now_ns: u64, used: u64, ahead: u64) -> Rates {
        let changed = self.changed.load(Ordering::Relaxed);
        let meters = self.meters.lock().expect("nothing panics under this lock");
        let came = meters.came_with(used, ahead);
        Rates { saved: meters.saved.per_second(now_ns, came), changed: meters.changed.per_second(now_ns, changed) }
    }
}

impl Meters {
    /// What is freed, or saved ahead, since the last look is taken off what came since then, and off nothing else.
    fn came_with(&self, used: u64, ahead: u64) -> u64 {
        let more = used.saturating_sub(self.used.unwrap_or(used));
        self.came + more.saturating_sub(ahead.saturating_sub(self.ahead))
    }
}

/// Seconds until `room` bytes are filled; `None` where nothing comes in.
pub(crate) fn full_in(room: u64, bytes_per_second: f64) -> Option<u64> {
    (bytes_per_second > 0.0).then(|| (room as f64 / bytes_per_second) as u64)
}

/// Looks at a total that only grows: when, and what it was.
#[derive(Default)]
struct Meter(VecDeque<(u64, u64)>);

impl Meter {
    fn note(&mut self, now: u64, total: u64) {
        self.0.push_back((now, total));
        // The first look that stays is the last one before anything came in.
        while self.0.len() > 1 && (self.0[0].0 + WINDOW < now || self.0[0].1 == self.0[1].1) {
            self.0.pop_front();
        }
    }

    fn per_second(&self, now: u64, total: u64) -> f64 {
        let Some((since, before)) = self.0.front() else { return 0.0 };
        let span = now.saturating_sub(*since);
        if span < LEAST { 0.0 } else { total.saturating_sub(*before) as f64 * 1e9 / span as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Whether a forecast is within a quarter of what comes.
    fn assert_near(forecast: Option<u64>, comes: f64, when: u64) {
        let forecast = forecast.unwrap_or_else(|| panic!("none after {when}")) as f64;
        assert!((forecast / comes - 1.0).abs() <= 0.25, "{forecast} for {comes} after {when}");
    }

    #[test]
    fn a_steady_rate_is_known_soon_and_stays_known() {
        for (rate, idle) in [(3_000_000_u64, 0), (40_000, 90), (2_000_000_000, 300)] {
            let filling = Filling::default();
            let limit = rate * 1000;
            // The looks do not come on time, and what comes in comes in lumps of a tenth of a second.
            let used_at = |ns: u64| ns.saturating_sub(idle * SECOND) / (SECOND / 10) * (rate / 10);
            let mut now = 0;
            for tick in 0..idle + 500 {
                now += SECOND + (tick * 7919 % 100) * 1_000_000;
                filling.look(now, used_at(now), 0);
                let asked = now + 300_000_000;
                if asked < (idle + 5) * SECOND || used_at(asked) + rate >= limit {
                    continue;
                }
                let room = limit - used_at(asked);
                let forecast = full_in(room, filling.rates(asked, used_at(asked), 0).saved);
                assert_near(forecast, room as f64 / rate as f64, asked);
            }
        }
    }

    #[test]
    fn a_rate_that_changes_is_followed_within_a_minute() {
        let filling = Filling::default();
        let mut used = 0;
        for second in 0..200 {
            used += if second < 100 { 1000 } else { 5000 };
            filling.look(second * SECOND, used, 0);
        }
        assert_near(full_in(500_000, filling.rates(199 * SECOND, used, 0).saved), 100.0, 199);
        for second in 200..265 {
            filling.look(second * SECOND, used, 0);
        }
        assert_eq!(filling.rates(265 * SECOND, used, 0), Rates::default(), "nothing came in for a minute");
        assert_eq!(full_in(500_000, 0.0), None);
    }

    #[test]
    fn what_was_there_before_did_not_just_come() {
        let filling = Filling::default();
        for second in 0..10 {
            filling.look(second * SECOND, 1 << 40, 0);
        }
        assert_eq!(filling.rates(10 * SECOND, 1 << 40, 0), Rates::default());
    }

    #[test]
    fn what_is_freed_does_not_undo_what_came() {
        let filling = Filling::default();
        let mut used = 0;
        for second in 0..40 {
            used = if second == 20 { 0 } else { used + 1000 };
            filling.look(second * SECOND, used, 0);
        }
        let rates = filling.rates(39 * SECOND, used, 0);
        assert!((900.0..1100.0).contains(&rates.saved), "{rates:?}");
    }

    #[test]
    fn what_the_host_changes_is_known_without_a_snapshot() {
        let filling = Filling::default();
        for second in 0..10 {
            filling.look(second * SECOND, 0, 0);
            filling.count(8192);
        }
        assert_eq!(filling.rates(10 * SECOND, 0, 0), Rates { saved: 0.0, changed: 8192.0 });
    }

    #[test]
    fn what_is_saved_ahead_foretells_nothing_and_hides_nothing() {
        let filling = Filling::default();
        let (mut used, mut ahead) = (0, 0);
        for second in 0..20 {
            filling.look(second * SECOND, used, ahead);
            // As much is freed as is saved ahead: what is in use stays the same.
            ahead += 1 << 20;
        }
        assert_eq!(filling.rates(20 * SECOND, used, ahead).saved, 0.0);
        for second in 20..40 {
            filling.look(second * SECOND, used, ahead);
            (used, ahead) = (used + 1000 + 4096, ahead + 4096);
        }
        let saved = filling.rates(40 * SECOND, used, ahead).saved;
        assert!((900.0..=1000.0).contains(&saved), "{saved}");
    }
}
