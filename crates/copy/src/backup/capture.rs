//! Telling the daemon what is safe, without waiting for it.

use std::time::{Duration, Instant};

use tzero_block::ByteRange;
use tzero_io::{Task, blocking, spawn};

use crate::error::DaemonFault;
use crate::hurry::Hurry;
use crate::released::Released;
use crate::session::Session;

/// A report goes out once this many bytes are safe,
const BATCH: u64 = 32 << 20;
/// or this long after the last.
const PAUSE: Duration = Duration::from_millis(200);

type Reported = (Session, Result<bool, DaemonFault>);

/// How a batch is reported; `true` says that the cache is short of space.
pub(crate) type Report = fn(&mut Session, &[ByteRange]) -> Result<bool, DaemonFault>;

/// Collects captured ranges and reports them in batches, one report at a time.
pub(crate) struct Captures {
    idle: Option<Session>,
    running: Option<Task<Reported>>,
    report: Report,
    released: Released,
    hurry: Hurry,
    waiting: Vec<ByteRange>,
    bytes: u64,
    last: Instant,
}

impl Captures {
    pub(crate) fn new(session: Session, report: Report, released: Released, hurry: Hurry) -> Self {
        Self {
            idle: Some(session),
            running: None,
            report,
            released,
            hurry,
            waiting: Vec::new(),
            bytes: 0,
            last: Instant::now(),
        }
    }

    /// The range is safe in the destination beyond this process's death, and recorded in the journal.
    pub(crate) async fn add(&mut self, range: ByteRange) -> Result<(), DaemonFault> {
        match self.waiting.last_mut() {
            Some(last) if last.end() == range.start() => *last = ByteRange::between(last.start(), range.end()),
            _ => self.waiting.push(range),
        }
        self.bytes += range.len();
        if self.bytes < BATCH && self.last.elapsed() < PAUSE && !self.hurry.is_needed() {
            return Ok(());
        }
        self.report().await
    }

    async fn report(&mut self) -> Result<(), DaemonFault> {
        let mut session = self.settle().await?;
        let ranges = std::mem::take(&mut self.waiting);
        // Before it goes out: whether a report that is never answered arrived cannot be known.
        ranges.iter().for_each(|range| self.released.insert(*range));
        self.bytes = 0;
        self.last = Instant::now();
        let report = self.report;
        self.running = Some(spawn(blocking(move || {
            let result = report(&mut session, &ranges);
            (session, result)
        })));
        Ok(())
    }

    /// Waits until nothing is in flight.
    async fn settle(&mut self) -> Result<Session, DaemonFault> {
        if let Some(running) = self.running.take() {
            let (session, result) = running.await;
            self.idle = Some(session);
            self.hurry.set(result?);
        }
        // A session is missing only after its report failed, and then nothing is reported any more.
        self.idle.take().ok_or(DaemonFault::Silent)
    }

    /// Reports what is left and gives the session back.
    pub(crate) async fn finish(mut self) -> Result<Session, DaemonFault> {
        if !self.waiting.is_empty() {
            self.report().await?;
        }
        self.settle().await
    }

    /// Gives the session back without reporting. A report that was refused does not end it.
    pub(crate) async fn abort(mut self) -> Option<Session> {
        self.waiting.clear();
        match self.settle().await {
            Ok(session) => Some(session),
            Err(_) => self.idle.take(),
        }
    }
}
