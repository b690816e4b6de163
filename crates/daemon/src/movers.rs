//! The mover socket: control of backups, and the descriptors that they read through (R27, R31).
//!
//! A thread a session. What a session has begun is a lease that ends with its connection; a private snapshot stands on, so that the
//! backup can be resumed with the same T0.
//!
//! | | release | delete (by command) | close |
//! |---|---|---|---|
//! | **session's request** | one mover a snapshot | the engine refuses one of the two | volume's gate |

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tzero_api::mover::{Begun, Descriptors, FailureCode, LONGEST_LINE, Reply, Request};
use tzero_api::{Name, SnapshotPath, is_private, private_name, sentence};
use tzero_block::ByteRange;
use tzero_engine::{MAP_NAME, SnapshotError, SnapshotInfo, SnapshotKind, TABLE_NAME};
use tzero_io::{descriptors, system};
use tzero_originals::{Originals, SnapshotId};

use crate::daemon::Daemon;
use crate::volume::{Lease, Serving, Volume, broken};

/// How long a mover may take to take in an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long to rest when the process has no descriptor left for a mover.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Why a mover's request fails.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{message}")]
    Refused { code: FailureCode, message: String },
    #[error("the connection broke: {0}")]
    Lost(#[from] io::Error),
}

fn refused(code: FailureCode, message: impl std::fmt::Display) -> Trouble {
    Trouble::Refused { code, message: sentence(message) }
}

/// Listens for movers and serves them until the process ends.
pub(crate) fn serve(daemon: Arc<Daemon>) -> io::Result<()> {
    let socket = daemon.paths.mover_socket();
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    thread::Builder::new().name("movers".into()).spawn(move || accept(&listener, &daemon))?;
    Ok(())
}

fn accept(listener: &UnixListener, daemon: &Arc<Daemon>) {
    for stream in listener.incoming() {
        let daemon = Arc::clone(daemon);
        let started = stream.and_then(|stream| {
            stream.set_write_timeout(Some(ANSWER))?;
            thread::Builder::new().name("mover".into()).spawn(move || Session::new(daemon, stream).serve())
        });
        if let Err(error) = started {
            tracing::warn!("a mover cannot be served: {error}");
            thread::sleep(EXHAUSTED);
        }
    }
}

/// A snapshot in a mover's hands.
struct Held {
    lease: Lease,
    info: SnapshotInfo,
}

struct Session {
    daemon: Arc<Daemon>,
    stream: UnixStream,
    held: Option<Held>,
}

impl Session {
    fn new(daemon: Arc<Daemon>, stream: UnixStream) -> Self {
        Self { daemon, stream, held: None }
    }

    fn serve(mut self) {
        if let Err(error) = self.converse() {
            tracing::info!("a mover's session was ended: {error}");
        }
        if let Some(held) = self.held.filter(|held| held.info.private) {
            let volume = &held.lease.volume().name;
            tracing::warn!(snapshot = %format!("{volume}@{}", held.info.name), "a backup was interrupted; its snapshot stands, so that it can be resumed");
        }
    }

    fn converse(&mut self) -> Result<(), Trouble> {
        let mut lines = BufReader::new(self.stream.try_clone()?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = LONGEST_LINE as u64;
            if (&mut lines).take(limit).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                return self.answer(&failed(refused(FailureCode::Invalid, "the request is longer than a line may be")));
            }
            let request: Request = match serde_json::from_slice(&line) {
                Ok(request) => request,
                Err(error) => {
                    let sentence =
                        format!("the request is malformed ({error}): use one version of tzero for daemon and backup");
                    self.answer(&failed(refused(FailureCode::Invalid, sentence)))?;
                    continue;
                }
            };
            let end = matches!(request, Request::Finish | Request::Abandon);
            match self.carry_out(request) {
                Ok(()) if end => return Ok(()),
                Ok(()) => {}
                Err(Trouble::Lost(error)) => return Err(error.into()),
                Err(trouble) => self.answer(&failed(trouble))?,
            }
        }
    }

    fn answer(&mut self, reply: &Reply) -> Result<(), Trouble> {
        Ok(self.stream.write_all(&line_of(reply))?)
    }

    fn carry_out(&mut self, request: Request) -> Result<(), Trouble> {
        if self.daemon.volumes.stopping.load(Ordering::Acquire) {
            return Err(refused(FailureCode::Failed, "the daemon is stopping: go on when it runs again"));
        }
        match request {
            Request::Begin { volume, snapshot } => self.begin(&volume, snapshot.as_deref()),
            Request::Resume { volume, snapshot_id } => self.resume(&volume, &snapshot_id),
            Request::Captured { ranges } => self.captured(&ranges),
            Request::Check => self.check(),
            Request::Finish | Request::Abandon => self.end(),
        }
    }

    fn volume(&self, name: &str) -> Result<Arc<Volume>, Trouble> {
        if self.held.is_some() {
            return Err(refused(FailureCode::Invalid, "a session copies one snapshot"));
        }
        let name: Name = name.parse().map_err(|error| refused(FailureCode::Invalid, error))?;
        let volume = self.daemon.volumes.get(&name).map_err(|error| refused(FailureCode::Unknown, error))?;
        volume.serving().map_err(|error| refused(FailureCode::Failed, error))?;
        Ok(volume)
    }

    fn begin(&mut self, volume: &str, snapshot: Option<&str>) -> Result<(), Trouble> {
        let volume = self.volume(volume)?;
        let Some(name) = snapshot else { return self.begin_private(volume) };
        let name: Name = name.parse().map_err(|error| refused(FailureCode::Invalid, error))?;
        let path = SnapshotPath { volume: volume.name.clone(), snapshot: name };
        if is_private(path.snapshot.as_str()) {
            let sentence = format!(
                "{path} belongs to a backup: go on with it by `tzero backup {} --to DEST --resume`",
                volume.name
            );
            return Err(refused(FailureCode::Invalid, sentence));
        }
        let info = volume.snapshot(&path.snapshot).map_err(|error| refused(FailureCode::Unknown, error))?;
        self.hand_over(volume, info)
    }

    fn begin_private(&mut self, volume: Arc<Volume>) -> Result<(), Trouble> {
        let engine = Arc::clone(&serving(&volume)?.engine);
        let random = system::random_id();
        let name = private_name([random[0], random[1], random[2], random[3]]);
        let created = {
            let _gate = volume.gate.blocking_read();
            let name = name.clone();
            self.daemon
                .threads
                .run(move || async move { engine.create_snapshot(name.as_str(), SnapshotKind::PRIVATE).await })
                .blocking_recv()
        };
        let path = SnapshotPath { volume: volume.name.clone(), snapshot: name };
        let info = created.map_err(|_| stopped())?.map_err(|error| snapshot_trouble(&path, &error))?;
        tracing::info!(snapshot = %path, pause_us = info.pause_ns / 1000, "created for a backup");
        let id = info.id;
        let handed = self.hand_over(Arc::clone(&volume), info);
        if handed.is_err() {
            // The mover knows nothing of it, so nobody would ever resume it.
            self.held = None;
            if let Err(error) = self.delete(&volume, id) {
                tracing::warn!(snapshot = %path, "left behind: {error}");
            }
        }
        handed
    }

    fn resume(&mut self, volume: &str, snapshot_id: &str) -> Result<(), Trouble> {
        let volume = self.volume(volume)?;
        let found = SnapshotId::parse(snapshot_id)
            .and_then(|id| serving(&volume).ok().and_then(|serving| serving.engine.snapshot_by_id(id)));
        let info = found.ok_or_else(|| {
            let sentence = format!(
                "the snapshot {snapshot_id} of volume {} is gone, so its copy cannot be finished: start over without --resume",
                volume.name
            );
            refused(FailureCode::Unknown, sentence)
        })?;
        self.hand_over(volume, info)
    }

    /// Waits until the base may be read for the snapshot, and sends what a mover needs.
    fn hand_over(&mut self, volume: Arc<Volume>, info: SnapshotInfo) -> Result<(), Trouble> {
        let path = path_of(&volume, &info)?;
        refuse_broken(&path, &info)?;
        let busy = || refused(FailureCode::Busy, format!("another backup is copying {path}: wait for its end"));
        let lease = volume.moved(info.id).ok_or_else(busy)?;
        let (engine, id) = (Arc::clone(&serving(&volume)?.engine), info.id);
        let settled = self.daemon.threads.run(move || async move { engine.settled(id).await });
        settled.blocking_recv().map_err(|_| stopped())?;

        let record = volume.record.as_ref().ok_or_else(stopped)?;
        let files = open_for_mover(&volume, record.direct).map_err(|error| {
            refused(
                FailureCode::Failed,
                format!("the files of volume {} cannot be opened for a mover: {error}", volume.name),
            )
        })?;
        let begun = Begun {
            volume: volume.name.to_string(),
            volume_id: record.id.clone(),
            generation: record.generation,
            size: info.size,
            grain: record.grain,
            snapshot: info.name.clone(),
            snapshot_id: info.id.to_string(),
            slot: info.slot,
            epoch: info.epoch.0,
            t0_ns: info.created_ns,
            pause_us: info.pause_ns.div_ceil(1000),
            keep: info.originals == Originals::Keep,
            private: info.private,
            direct: record.direct,
            base_path: record.base.display().to_string(),
        };
        self.held = Some(Held { lease, info });
        let line = line_of(&Reply::Begun(Box::new(begun)));
        let sent = descriptors::send(&self.stream, &line, &files.each_ref().map(File::as_fd))?;
        Ok(self.stream.write_all(&line[sent..])?)
    }

    fn held(&self) -> Result<&Held, Trouble> {
        self.held.as_ref().ok_or_else(|| refused(FailureCode::Invalid, "nothing was begun in this session"))
    }

    fn captured(&mut self, ranges: &[(u64, u64)]) -> Result<(), Trouble> {
        let held = self.held()?;
        let volume = Arc::clone(held.lease.volume());
        let path = path_of(&volume, &held.info)?;
        let ranges: Option<Vec<ByteRange>> =
            ranges.iter().map(|(offset, len)| ByteRange::checked(*offset, *len)).collect();
        let ranges = ranges
            .filter(|ranges| ranges.iter().all(|range| range.end() <= held.info.size))
            .ok_or_else(|| refused(FailureCode::Invalid, format!("a captured range reaches past the end of {path}")))?;
        let (engine, id) = (Arc::clone(&serving(&volume)?.engine), held.info.id);
        let _gate = volume.gate.blocking_read();
        let released = self.daemon.threads.run(move || async move { engine.release(id, &ranges).await });
        match released.blocking_recv().map_err(|_| stopped())? {
            Ok(()) => self.answer(&Reply::Released),
            Err(SnapshotError::State(error)) => {
                // What is not on record stays needed: that costs saves and space, not bytes, and is no reason to fail a backup.
                tracing::warn!(snapshot = %path, "what was captured cannot be recorded and is not released: {error}");
                self.answer(&Reply::Released)
            }
            Err(SnapshotError::NotLive) => Err(self.lost(&volume, &path, id)),
            Err(error) => Err(snapshot_trouble(&path, &error)),
        }
    }

    fn check(&mut self) -> Result<(), Trouble> {
        let held = self.held()?;
        let volume = held.lease.volume();
        let path = path_of(volume, &held.info)?;
        match serving(volume)?.engine.snapshot_by_id(held.info.id) {
            None => Err(snapshot_trouble(&path, &SnapshotError::Unknown)),
            Some(info) => {
                refuse_broken(&path, &info)?;
                self.answer(&Reply::Good)
            }
        }
    }

    /// What to say of a snapshot that does not stand any more.
    fn lost(&self, volume: &Volume, path: &SnapshotPath, id: SnapshotId) -> Trouble {
        let info = serving(volume).ok().and_then(|serving| serving.engine.snapshot_by_id(id));
        let broken = info.and_then(|info| refuse_broken(path, &info).err());
        broken.unwrap_or_else(|| snapshot_trouble(path, &SnapshotError::Unknown))
    }

    fn end(&mut self) -> Result<(), Trouble> {
        let held = self.held()?;
        let (volume, id, private) = (Arc::clone(held.lease.volume()), held.info.id, held.info.private);
        if private {
            self.delete(&volume, id)?;
        }
        self.held = None;
        self.answer(&Reply::Finished)
    }

    fn delete(&self, volume: &Volume, id: SnapshotId) -> Result<(), Trouble> {
        let engine = Arc::clone(&serving(volume)?.engine);
        let _gate = volume.gate.blocking_read();
        let deleted = self.daemon.threads.run(move || async move { engine.delete_snapshot(id).await });
        match deleted.blocking_recv().map_err(|_| stopped())? {
            Ok(()) | Err(SnapshotError::Unknown) => Ok(()),
            Err(error) => Err(refused(
                FailureCode::Failed,
                format!("the backup's snapshot of volume {} cannot be deleted: {error}", volume.name),
            )),
        }
    }
}

fn serving(volume: &Volume) -> Result<&Serving, Trouble> {
    volume.serving().map_err(|error| refused(FailureCode::Failed, error))
}

fn path_of(volume: &Volume, info: &SnapshotInfo) -> Result<SnapshotPath, Trouble> {
    let snapshot = info.name.parse().map_err(|error| refused(FailureCode::Failed, error))?;
    Ok(SnapshotPath { volume: volume.name.clone(), snapshot })
}

fn refuse_broken(path: &SnapshotPath, info: &SnapshotInfo) -> Result<(), Trouble> {
    match broken(&info.state) {
        None => Ok(()),
        Some(reason) => {
            let sentence = format!("the snapshot {path} is broken: {reason}; delete it and take another");
            Err(refused(FailureCode::Broken, sentence))
        }
    }
}

fn snapshot_trouble(path: &SnapshotPath, error: &SnapshotError) -> Trouble {
    match error {
        SnapshotError::Unknown => {
            refused(FailureCode::Unknown, format!("the snapshot {path} is gone: it was deleted meanwhile"))
        }
        other => refused(FailureCode::Failed, format!("the snapshot {path} cannot be made or changed: {other}")),
    }
}

fn stopped() -> Trouble {
    refused(FailureCode::Failed, "the daemon is stopping: go on when it runs again")
}

fn failed(trouble: Trouble) -> Reply {
    match trouble {
        Trouble::Refused { code, message } => Reply::Failed { code, message },
        Trouble::Lost(error) => Reply::Failed { code: FailureCode::Failed, message: error.to_string() },
    }
}

fn line_of(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).expect("a reply has text for keys");
    line.push(b'\n');
    line
}

/// Separate opens, read-only and in the daemon's own mode, in the order of [`Descriptors`].
fn open_for_mover(volume: &Volume, direct: bool) -> io::Result<[File; Descriptors::COUNT]> {
    let serving = volume.serving().map_err(io::Error::other)?;
    let engine = volume.directory.engine();
    // The base by its open file: its path may lead elsewhere by now.
    let base = format!("/proc/self/fd/{}", serving.base.as_raw_fd());
    Ok([
        open(Path::new(&base), direct)?,
        open(&serving.cache, false)?,
        open(&engine.join(MAP_NAME), false)?,
        open(&engine.join(TABLE_NAME), false)?,
    ])
}

fn open(path: &Path, direct: bool) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(if direct { system::DIRECT } else { 0 }).open(path)
}
