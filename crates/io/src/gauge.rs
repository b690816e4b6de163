//! How long a host's requests take, counted in memory that two processes share: one counts, others look.
//!
//! 81 counters: of what took less than 16 µs, then four for each doubling, the last with all that took longer than 17 s. They only grow. Whoever
//! looks takes the difference of two looks.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::descriptor::check;
use crate::mapped::MappedFile;
use crate::storage::Mapping;

/// Nanoseconds below which nothing is told apart, as a power of two.
const SHORTEST: u32 = 14;
const DOUBLINGS: usize = 20;
const PER_DOUBLING: usize = 4;
const COUNTERS: usize = DOUBLINGS * PER_DOUBLING + 1;
/// Where requests are counted as they begin, and those that end without a latency.
const BEGUN: u64 = 8 * COUNTERS as u64;
const EXCUSED: u64 = BEGUN + 8;
const BYTES: u64 = 4096;

/// Counters of latencies.
pub struct Gauge {
    file: File,
    counters: MappedFile,
    watchers: AtomicUsize,
}

impl Gauge {
    /// A new one, all zero, in memory that goes with its last user.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call with a C string; the descriptor is new and owned here.
        let file = unsafe {
            File::from_raw_fd(check(libc::memfd_create(
                c"tzero-gauge".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            ))?)
        };
        file.set_len(BYTES)?;
        // Whoever has it can open it anew, for writing too: it stays as long as it is, or the next count would end this process.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: plain system call on an open descriptor.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
        Self::over(file, true)
    }

    /// Another process's, for looking.
    ///
    /// # Errors
    /// When it is none.
    pub fn look_at(file: File) -> io::Result<Self> {
        if file.metadata()?.len() != BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::over(file, false)
    }

    fn over(file: File, writable: bool) -> io::Result<Self> {
        let counters = MappedFile::from_file(file.try_clone()?, writable)?;
        Ok(Self { file, counters, watchers: AtomicUsize::new(0) })
    }

    /// What another process gets.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Somebody looks as long as this lives.
    pub fn watch(self: &Arc<Self>) -> Watched {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watched(Arc::clone(self))
    }

    /// Whether it is worth counting.
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// A request has begun, which [`Self::count`] or [`Self::excuse`] will end.
    pub fn begin(&self) {
        self.counters.increment(BEGUN);
    }

    /// A request has ended, and how long it took says nothing.
    pub fn excuse(&self) {
        self.counters.increment(EXCUSED);
    }

    /// A request took so many nanoseconds. Nothing happens where it is another's.
    pub fn count(&self, ns: u64) {
        self.counters.increment(8 * counter_of(ns) as u64);
    }

    /// What was counted up to now.
    pub fn latencies(&self) -> Latencies {
        // First: so none that has ended is taken for one that is under way.
        let begun = self.counters.load(BEGUN);
        let counts: [u64; COUNTERS] = std::array::from_fn(|index| self.counters.load(8 * index as u64));
        let ended = counts.iter().sum::<u64>() + self.counters.load(EXCUSED);
        Latencies { counts, in_flight: begun.saturating_sub(ended) }
    }
}

/// See [`Gauge::watch`].
pub struct Watched(Arc<Gauge>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which counter a latency belongs to.
fn counter_of(ns: u64) -> usize {
    let Some(doubling) = ns.checked_ilog2().and_then(|log| log.checked_sub(SHORTEST)) else { return 0 };
    let part = (ns >> (doubling + SHORTEST - 2)) as usize & (PER_DOUBLING - 1);
    (1 + doubling as usize * PER_DOUBLING + part).min(COUNTERS - 1)
}

/// Nanoseconds that nothing of a counter exceeds, but for the last.
fn end_of(counter: usize) -> u64 {
    let (doubling, part) = (counter / PER_DOUBLING, counter % PER_DOUBLING);
    (1 << (doubling as u32 + SHORTEST)) / PER_DOUBLING as u64 * (PER_DOUBLING + part) as u64
}

/// Counted latencies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    counts: [u64; COUNTERS],
    /// Requests that had begun and not ended.
    pub in_flight: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [0; COUNTERS], in_flight: 0 }
    }
}

impl Latencies {
    /// One more took so many nanoseconds.
    pub fn add(&mut self, ns: u64) {
        self.counts[counter_of(ns)] += 1;
    }

    /// What came since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = std::array::from_fn(|index| self.counts[index].wrapping_sub(earlier.counts[index]));
        Self { counts, in_flight: self.in_flight }
    }

    /// How many requests.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Nanoseconds that so many of a hundred did not exceed, to a quarter; `None` where there was none.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let wanted = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let counter = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(end_of(counter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_within_a_quarter_of_what_is_said() {
        for ns in (14..34).flat_map(|log| [1u64 << log, (1 << log) + 1, (1 << log) * 5 / 4, (2 << log) - 1]) {
            let end = end_of(counter_of(ns));
            assert!(ns <= end && end as f64 <= ns as f64 * 1.26, "{ns} {end}");
        }
        assert_eq!((counter_of(0), counter_of(16383), counter_of(u64::MAX)), (0, 0, COUNTERS - 1));
        assert!((0..COUNTERS - 1).all(|counter| end_of(counter) < end_of(counter + 1)));
    }

    #[test]
    fn another_process_sees_what_was_counted() {
        let gauge = Arc::new(Gauge::new().unwrap());
        let path = format!("/proc/self/fd/{}", gauge.file().as_raw_fd());
        let other = Gauge::look_at(File::open(path).unwrap()).unwrap();
        let before = other.latencies();
        (0..102).for_each(|_| gauge.begin());
        gauge.excuse();
        (0..90).for_each(|_| gauge.count(100_000));
        (0..10).for_each(|_| gauge.count(9_000_000));
        // It is not the other's to count.
        other.count(1);
        let seen = other.latencies().since(&before);
        assert_eq!((seen.count(), seen.in_flight), (100, 1));
        assert!(gauge.file().set_len(0).is_err(), "nobody makes it shorter");
        assert_eq!((seen.percentile(50), seen.percentile(90)), (Some(114_688), Some(114_688)));
        assert!(seen.percentile(99).unwrap() > 9_000_000);
        assert_eq!(other.latencies().since(&other.latencies()).percentile(50), None);
    }

    #[test]
    fn it_is_watched_as_long_as_somebody_looks() {
        let gauge = Arc::new(Gauge::new().unwrap());
        let (one, two) = (gauge.watch(), gauge.watch());
        drop(one);
        assert!(gauge.is_watched());
        drop(two);
        assert!(!gauge.is_watched());
    }
}
