//! Telling the daemon what is safe, without waiting for it.
//!
//! Where originals outlive a loss of power, or the destination is another machine's, *safe* is what was flushed: image first, then journal, then the
//! report. The daemon gives up for good what it hears of, so none of it may be lost any more.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tzero_block::ByteRange;
use tzero_io::{Task, blocking, spawn};

use crate::Error;
use crate::error::{DaemonFault, FileAction};
use crate::hurry::Hurry;
use crate::medium::Medium;
use crate::released::Released;
use crate::session::Session;

/// A report goes out once this many bytes are safe,
const BATCH: u64 = 32 << 20;
/// or this long after the last.
const PAUSE: Duration = Duration::from_millis(200);

type Reported = (Session, Result<bool, Error>);

/// How a batch is reported; `true` says that the cache is short of space.
pub(crate) type Report = fn(&mut Session, &[ByteRange]) -> Result<bool, DaemonFault>;

/// What is made durable before anything of it is reported: first the bytes, then what says that they are there.
#[derive(Clone)]
pub(crate) struct Durably {
    pub(crate) medium: Medium,
    pub(crate) image: PathBuf,
    pub(crate) journal: Arc<File>,
    pub(crate) journal_path: PathBuf,
}

impl Durably {
    async fn flush(self) -> Result<(), Error> {
        self.medium.flush().await.map_err(Error::unflushed(&self.image))?;
        let Self { journal, journal_path, .. } = self;
        blocking(move || journal.sync_data().map_err(Error::file(FileAction::Flush, &journal_path))).await
    }
}

/// Collects captured ranges and reports them in batches, one report at a time.
pub(crate) struct Captures {
    idle: Option<Session>,
    running: Option<Task<Reported>>,
    report: Report,
    source_name: String,
    durably: Option<Durably>,
    released: Released,
    hurry: Hurry,
    waiting: Vec<ByteRange>,
    bytes: u64,
    last: Instant,
}

impl Captures {
    pub(crate) fn new(
        session: Session,
        report: Report,
        source_name: &str,
        durably: Option<Durably>,
        (released, hurry): (Released, Hurry),
    ) -> Self {
        Self {
            idle: Some(session),
            running: None,
            report,
            source_name: source_name.to_owned(),
            durably,
            released,
            hurry,
            waiting: Vec::new(),
            bytes: 0,
            last: Instant::now(),
        }
    }

    /// The range is in the destination beyond this process's death, and recorded in the journal.
    ///
    /// # Errors
    /// Of what was reported before: that may not be durable, or the daemon refused it.
    pub(crate) async fn add(&mut self, range: ByteRange) -> Result<(), Error> {
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

    async fn report(&mut self) -> Result<(), Error> {
        let mut session = self.settle().await?;
        let ranges = std::mem::take(&mut self.waiting);
        // Before it goes out: whether a report that is never answered arrived cannot be known.
        ranges.iter().for_each(|range| self.released.insert(*range));
        self.bytes = 0;
        self.last = Instant::now();
        let (report, durably, source_name) = (self.report, self.durably.clone(), self.source_name.clone());
        self.running = Some(spawn(async move {
            if let Some(durably) = durably
                && let Err(error) = durably.flush().await
            {
                return (session, Err(error));
            }
            blocking(move || {
                let result = report(&mut session, &ranges).map_err(Error::daemon(&source_name));
                (session, result)
            })
            .await
        }));
        Ok(())
    }

    /// Waits until nothing is in flight.
    async fn settle(&mut self) -> Result<Session, Error> {
        if let Some(running) = self.running.take() {
            let (session, result) = running.await;
            self.idle = Some(session);
            self.hurry.set(result?);
        }
        // A session is missing only after its report failed, and then nothing is reported any more.
        self.idle.take().ok_or_else(|| Error::daemon(&self.source_name)(DaemonFault::Silent))
    }

    /// Reports what is left and gives the session back.
    pub(crate) async fn finish(mut self) -> Result<Session, Error> {
        if !self.waiting.is_empty() {
            self.report().await?;
        }
        self.settle().await
    }

    /// Gives the session back without reporting, and what came of the last report. One that was refused does not end the session.
    pub(crate) async fn abort(mut self) -> (Option<Session>, Result<(), Error>) {
        self.waiting.clear();
        match self.settle().await {
            Ok(session) => (Some(session), Ok(())),
            Err(error) => (self.idle.take(), Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;

    use tzero_io::{Backend, Runtime};
    use tzero_originals::RangeSet;

    use super::*;
    use crate::durable::{Step, steps};

    const RANGE: ByteRange = ByteRange::new(0, BATCH);

    fn captures(directory: &std::path::Path, session: Session) -> Captures {
        let (image, journal_path) = (directory.join("image"), directory.join("journal"));
        let medium = Medium::over(File::create_new(&image).unwrap()).unwrap();
        let journal = Arc::new(File::create_new(&journal_path).unwrap());
        let durably = Durably { medium, image, journal, journal_path };
        let known = (Released::new(RangeSet::default(), false), Hurry::default());
        Captures::new(session, Session::captured, "vm", Some(durably), known)
    }

    #[test]
    fn what_is_to_outlive_a_loss_of_power_is_flushed_before_it_is_reported() {
        for fails in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let (ours, daemon) = UnixStream::pair().unwrap();
            let answering = std::thread::spawn(move || {
                let mut line = String::new();
                let mut lines = BufReader::new(daemon);
                lines.read_line(&mut line).unwrap();
                if !line.is_empty() {
                    lines.get_mut().write_all(b"{\"reply\":\"released\",\"hurry\":false}\n").unwrap();
                    assert_eq!(lines.read(&mut [0]).map_err(|error| error.kind()), Ok::<_, ErrorKind>(0));
                }
                line
            });
            let heard = Runtime::new(Backend::Auto).unwrap().block_on(async {
                // One flush succeeds and a second one fails, so that it can be told that there was one.
                steps::fail_after(Step::Flush, if fails { 0 } else { 1 }, ErrorKind::Other);
                let mut captures = captures(directory.path(), Session::over(ours));
                captures.add(RANGE).await.unwrap();
                let (session, reported) = captures.abort().await;
                assert_eq!(reported.is_err_and(|error| error.casts_doubt()), fails);
                drop(session);
                answering.join().unwrap()
            });
            assert_eq!(heard.contains("captured"), !fails, "{heard}");
            if !fails {
                assert!(durable_once_more(), "it was flushed once");
            }
        }
    }

    /// Whether the next flush is the one that was to fail.
    fn durable_once_more() -> bool {
        crate::durable::flushes().is_err() && steps::failed()
    }
}
