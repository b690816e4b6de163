//! Writers that never rest, on connections of their own.
//!
//! Each owns every n-th region of the volume, so that a unit has one writer and its writes have an order. Regions are no
//! multiple of a grain: neighbours share grains, and parts of grains are written.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::History;
use crate::nbd::{Client, Failure};
use crate::random::Random;
use crate::stamps::{UNIT, identify, stamp};

/// Units of a region.
const REGION: u64 = 100;
/// Longest write in units.
const LONGEST: u64 = 40;

/// Writers at work. Dropping them stops them.
#[derive(Debug)]
pub struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<(), Failure>>>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    export: String,
    history: Arc<History>,
    stop: AtomicBool,
    finished: AtomicU64,
    progress: (Mutex<u64>, Condvar),
}

impl Writers {
    /// Lets `count` of them loose on an export.
    ///
    /// # Panics
    /// When one cannot connect.
    #[must_use]
    pub fn start(socket: &Path, export: &str, history: &Arc<History>, count: u64, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            socket: socket.to_path_buf(),
            export: export.to_owned(),
            history: Arc::clone(history),
            stop: AtomicBool::new(false),
            finished: AtomicU64::new(0),
            progress: Default::default(),
        });
        // All of them connect before the first writes: what it writes may be the end of the server.
        let connect = |index| {
            Client::connect(&shared.socket, &shared.export)
                .unwrap_or_else(|failure| panic!("writer {index} cannot connect: {failure}"))
        };
        let clients: Vec<Client> = (0..count).map(connect).collect();
        let threads = clients.into_iter().zip(0..).map(|(client, index)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let result = write(&shared, client, index, count, Random::new(seed ^ (index << 32)));
                shared.finished.fetch_add(1, Ordering::SeqCst);
                shared.progress.1.notify_all();
                result
            })
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Waits until `count` more writes were answered, or every writer has been cut off.
    ///
    /// # Panics
    /// When half a minute brings none.
    pub fn progress(&self, count: u64) {
        let mut answered = self.shared.progress.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = *answered + count;
        let all = self.threads.len() as u64;
        while *answered < wanted && self.shared.finished.load(Ordering::SeqCst) < all {
            let before = *answered;
            let waited = self.shared.progress.1.wait_timeout(answered, Duration::from_secs(30));
            let (guard, late) = waited.unwrap_or_else(PoisonError::into_inner);
            answered = guard;
            assert!(!late.timed_out() || *answered > before, "the writers stand still");
        }
    }

    /// Ends them; none may have been cut off.
    ///
    /// # Panics
    /// When one met an error.
    pub fn stop(mut self) {
        for result in self.end() {
            result.unwrap_or_else(|failure| panic!("a writer met an error: {failure}"));
        }
    }

    /// Ends them; they may have been cut off, but not refused.
    ///
    /// # Panics
    /// When one was refused.
    pub fn cut_off(mut self) {
        for result in self.end() {
            if let Err(failure @ Failure::Refused(_)) = result {
                panic!("a writer met an error: {failure}");
            }
        }
    }

    fn end(&mut self) -> Vec<Result<(), Failure>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).map(|thread| thread.join().expect("a writer does not panic")).collect()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.stop.store(true, Ordering::SeqCst);
        } else {
            drop(self.end());
        }
    }
}

fn write(shared: &Shared, mut client: Client, index: u64, count: u64, mut random: Random) -> Result<(), Failure> {
    let history = &shared.history;
    let regions = history.units().div_ceil(REGION);
    let own = (regions - index).div_ceil(count);
    while !shared.stop.load(Ordering::SeqCst) {
        let region = index + random.below(own) * count;
        let start = region * REGION;
        let end = (start + REGION).min(history.units());
        let first = start + random.below(end - start);
        let length = 1 + random.below(LONGEST.min(end - first));
        let id = history.sent(first, length);
        client.write(first * UNIT, &stamp(first, length, id))?;
        history.answered(id);
        if random.below(8) == 0 {
            let bytes = client.read(first * UNIT, (length * UNIT) as u32)?;
            for (unit, bytes) in (first..).zip(bytes.chunks_exact(UNIT as usize)) {
                let found = identify(unit, bytes);
                assert_eq!(found, Ok(id), "unit {unit} was just written and reads otherwise");
            }
        }
        *shared.progress.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        shared.progress.1.notify_all();
    }
    Ok(())
}
