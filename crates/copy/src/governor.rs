//! The host first: how much a mover may have in flight, by how long the host's requests take meanwhile.
//!
//! The daemon counts latencies in memory that the mover sees ([`Gauge`]). Every so often the mover is quiet for a moment: what the host's requests take then is
//! what they take by themselves. While it works they may take three times that, or what was asked for. Where they take longer, the window shrinks by a quarter;
//! else it grows. Where no host is at work it grows to the most that makes a difference.
//!
//! Deliberately absent: the disk's speed, which nobody has to know.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tzero_io::{Gauge, Latencies, sleep, spawn};

use crate::hurry::Hurry;
use crate::pace::Pace;

/// Time between two looks.
const STEP: Duration = Duration::from_millis(10);
/// Requests by which latencies are judged,
const ENOUGH: u64 = 16;
/// those of which one in a hundred is to be told,
const ENOUGH_FOR_ONE_IN_100: u64 = 100;
/// or as many as came in this time.
const LONGEST: Duration = Duration::from_millis(100);
/// A host that asked for nothing for so long is idle.
const IDLE: Duration = Duration::from_millis(20);
/// The mover is quiet every so often,
const QUIET_EVERY: Duration = Duration::from_secs(4);
/// and no longer than this at one time.
const LONGEST_QUIET: Duration = Duration::from_millis(50);
/// What it has in flight then may take this time to end.
const LONGEST_ENDING: Duration = Duration::from_millis(200);
/// Times that it was quiet, by which is judged.
const REMEMBERED: usize = 5;

/// Bytes in flight: the least, that with which it begins, and the most.
const LEAST: u64 = 256 << 10;
const FIRST: u64 = 512 << 10;
const MOST: u64 = 4 << 20;
/// What it grows by.
const MORE: u64 = 64 << 10;

/// The host's requests may take so many times what they take by themselves,
const TIMES: u64 = 3;
/// and that need not be less than this, in nanoseconds.
const SHORT: u64 = 300_000;
/// What they may take as long as it is not known what they take by themselves.
const UNKNOWN: u64 = 1_000_000;

/// How a mover is to be held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restraint {
    /// What 99 of 100 of the host's requests may take, instead of what is found out.
    pub host_p99: Option<Duration>,
    /// Most bytes of data a second that are read.
    pub rate: Option<u64>,
}

/// Adjusts `pace` from now on, as long as somebody uses it.
pub(crate) fn govern(pace: &Pace, hurry: Hurry, gauge: Gauge, host_p99: Option<Duration>) {
    let (pace, begun) = (Rc::downgrade(&pace.0), Instant::now());
    let mut law = Law::new(host_p99.map(|time| time.as_nanos() as u64), gauge.latencies());
    drop(spawn(async move {
        while let Some(state) = pace.upgrade() {
            let pace = Pace(state);
            let window = law.look(begun.elapsed(), &gauge.latencies(), pace.in_flight());
            // Where originals are short of room the host waits for the mover.
            pace.set_window(if hurry.is_needed() { MOST } else { window });
            drop(pace);
            sleep(STEP).await;
        }
    }));
}

/// What the mover is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Working,
    /// What was in flight may be so still.
    Ending,
    Quiet,
}

/// The rule. Times are since the mover began.
struct Law {
    asked: Option<u64>,
    window: u64,
    phase: Phase,
    /// When the phase, or the time that is judged in it, began, and what had been counted by then.
    since: Duration,
    mark: Latencies,
    /// When it was quiet last.
    was_quiet: Option<Duration>,
    /// What nine of ten of the host's requests took by themselves.
    alone: VecDeque<u64>,
}

impl Law {
    fn new(asked: Option<u64>, mark: Latencies) -> Self {
        Self {
            asked,
            window: FIRST,
            phase: Phase::Working,
            since: Duration::ZERO,
            mark,
            was_quiet: None,
            alone: VecDeque::new(),
        }
    }

    /// What the host's requests may take: nine of ten of them, or where it was asked for, all but one in a hundred.
    fn bound(&self) -> u64 {
        let mut alone: Vec<u64> = self.alone.iter().copied().collect();
        alone.sort_unstable();
        self.asked.unwrap_or_else(|| alone.get(alone.len() / 2).map_or(UNKNOWN, |usual| (usual * TIMES).max(SHORT)))
    }

    fn begin(&mut self, phase: Phase, now: Duration, seen: &Latencies) {
        (self.phase, self.since, self.mark) = (phase, now, seen.clone());
    }

    /// Says how much may be in flight from now on; `in_flight` is now.
    fn look(&mut self, now: Duration, seen: &Latencies, in_flight: u64) -> u64 {
        let (came, time) = (seen.since(&self.mark), now.saturating_sub(self.since));
        match self.phase {
            Phase::Working => self.work(now, seen, &came, time),
            Phase::Ending if in_flight == 0 || time >= LONGEST_ENDING => self.begin(Phase::Quiet, now, seen),
            Phase::Ending => {}
            Phase::Quiet if came.count() >= ENOUGH || time >= LONGEST_QUIET => {
                if let Some(usual) = came.percentile(90) {
                    self.alone.push_back(usual);
                    self.alone.drain(..self.alone.len().saturating_sub(REMEMBERED));
                }
                self.was_quiet = Some(now);
                self.begin(Phase::Working, now, seen);
            }
            Phase::Quiet => {}
        }
        if self.phase == Phase::Working { self.window } else { 0 }
    }

    fn work(&mut self, now: Duration, seen: &Latencies, came: &Latencies, time: Duration) {
        if came.count() == 0 {
            if seen.in_flight == 0 && time >= IDLE {
                self.window = (self.window * 2).min(MOST);
                self.begin(Phase::Working, now, seen);
            } else if seen.in_flight > 0 && time >= LONGEST {
                // Slower than anything that is told apart.
                self.window = (self.window * 3 / 4).max(LEAST);
                self.begin(Phase::Working, now, seen);
            }
            return;
        }
        let (enough, percent) = if self.asked.is_some() { (ENOUGH_FOR_ONE_IN_100, 99) } else { (ENOUGH, 90) };
        if came.count() < enough && time < LONGEST {
            return;
        }
        let is_due = self.was_quiet.is_none_or(|last| now.saturating_sub(last) >= QUIET_EVERY);
        if self.asked.is_none() && is_due {
            return self.begin(Phase::Ending, now, seen);
        }
        let (took, bound) = (came.percentile(percent).unwrap_or(0), self.bound());
        self.window = if took > bound {
            (self.window * 3 / 4).max(LEAST)
        } else if took < bound / 2 {
            (self.window * 5 / 4).min(MOST)
        } else {
            (self.window + MORE).min(MOST)
        };
        self.begin(Phase::Working, now, seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of so many requests a second on a disk where each takes `alone` ns and, for each byte that the mover has in flight, a nanosecond more.
    struct Bench {
        law: Law,
        seen: Latencies,
        now: Duration,
        window: u64,
    }

    impl Bench {
        fn new(asked: Option<u64>) -> Self {
            let seen = Latencies::default();
            Self { law: Law::new(asked, seen.clone()), seen, now: Duration::ZERO, window: FIRST }
        }

        /// Gives the windows of the time, quiet ones left out, and how much of it was quiet.
        fn run(&mut self, time: Duration, a_second: u64, alone: u64) -> (Vec<u64>, Duration) {
            let (end, mut quiet, mut windows) = (self.now + time, Duration::ZERO, Vec::new());
            while self.now < end {
                self.now += STEP;
                for _ in 0..a_second * STEP.as_millis() as u64 / 1000 {
                    self.seen.add(alone + self.window);
                }
                self.window = self.law.look(self.now, &self.seen, 0);
                if self.window == 0 {
                    quiet += STEP;
                } else {
                    windows.push(self.window);
                }
            }
            (windows, quiet)
        }
    }

    #[test]
    fn with_an_idle_host_it_goes_to_the_most_at_once_and_is_never_quiet() {
        let mut bench = Bench::new(None);
        let (windows, quiet) = bench.run(Duration::from_millis(200), 0, 0);
        assert_eq!((windows.last(), quiet), (Some(&MOST), Duration::ZERO));
    }

    #[test]
    fn a_host_gets_three_times_what_it_takes_alone() {
        for alone in [150_000, 400_000] {
            let mut bench = Bench::new(None);
            bench.run(Duration::from_secs(2), 2000, alone);
            let (windows, quiet) = bench.run(Duration::from_secs(10), 2000, alone);
            let bound = (alone * TIMES).max(SHORT) * 5 / 4;
            let mean = windows.iter().sum::<u64>() / windows.len() as u64;
            assert!(mean + alone < bound && mean > LEAST, "{mean} of {bound}");
            assert!(quiet < Duration::from_millis(400), "{quiet:?} of ten seconds");
        }
    }

    #[test]
    fn it_never_stops_for_a_host_that_is_slow_by_itself() {
        let mut bench = Bench::new(Some(1000));
        let (windows, quiet) = bench.run(Duration::from_secs(5), 2000, 5_000_000);
        assert_eq!((windows.last(), quiet), (Some(&LEAST), Duration::ZERO));
        let (windows, _) = bench.run(Duration::from_secs(1), 0, 0);
        assert_eq!(windows.last(), Some(&MOST));
    }

    #[test]
    fn a_host_whose_one_request_takes_long_is_not_idle() {
        let mut bench = Bench::new(None);
        bench.seen.in_flight = 1;
        let (windows, _) = bench.run(Duration::from_secs(3), 0, 0);
        assert_eq!(windows.last(), Some(&LEAST));
    }

    #[test]
    fn what_is_asked_for_is_held_where_it_can_be() {
        let mut bench = Bench::new(Some(1_000_000));
        bench.run(Duration::from_secs(2), 2000, 100_000);
        let (windows, _) = bench.run(Duration::from_secs(5), 2000, 100_000);
        let over = windows.iter().filter(|window| *window + 100_000 > 1_250_000).count();
        assert!(over * 20 < windows.len(), "{over} of {}", windows.len());
    }
}
