//! One mover's conversation (`tzero_api::mover`), and the snapshot that it holds.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tzero_api::mover::{Begun, Destination, FailureCode, LONGEST_LINE, PROTOCOL, ReleasedPage, Reply, Request};
use tzero_api::{Name, SnapshotPath, is_private, quoted};
use tzero_block::ByteRange;
use tzero_engine::{MoverAtWork, SnapshotError, SnapshotInfo, SnapshotState};
use tzero_io::{Gauge, Watched, descriptors};
use tzero_originals::{Originals, SnapshotId};

use super::files::{Handed, open_for_mover};
use super::private::{Wanted, create, delete};
use super::shown::Shown;
use super::trouble::{Trouble, failed, refuse_broken, refused, serving, snapshot_trouble, stopped};
use crate::backups::Backups;
use crate::platform::Production;
use crate::service::Daemon;
use crate::volume::{Lease, Volume};

/// A snapshot in a mover's hands.
struct Held {
    lease: Lease,
    info: SnapshotInfo,
    /// There is a journal by which another mover can go on.
    resumable: bool,
    /// What it reads, where it can have nothing else.
    _view: Option<Shown>,
    /// Hosts may be slowed down as long as somebody makes space.
    _at_work: Option<MoverAtWork<Production>>,
    /// It looks at how long hosts' requests take.
    _watched: Option<Watched>,
}

impl Held {
    fn backups(&self) -> Backups {
        Backups::of(&self.lease.volume().directory)
    }
}

/// A connection of a mover.
pub(super) struct Session {
    daemon: Arc<Daemon>,
    stream: UnixStream,
    held: Option<Held>,
}

impl Session {
    pub(super) fn new(daemon: Arc<Daemon>, stream: UnixStream) -> Self {
        Self { daemon, stream, held: None }
    }

    pub(super) fn serve(mut self) {
        if let Err(error) = self.converse() {
            tracing::info!("a mover's session was ended: {error}");
        }
        let Some(held) = self.held.take().filter(|held| held.info.private) else { return };
        let path = format!("{}@{}", held.lease.volume().name, held.info.name);
        if held.resumable {
            tracing::warn!(snapshot = %path, "a backup was interrupted; its snapshot stands, so that it can be resumed");
        } else {
            match drop_private(&self.daemon, &held) {
                Ok(()) => tracing::info!(snapshot = %path, "deleted: its backup ended before it had begun"),
                // The next start deletes it.
                Err(error) => tracing::info!(snapshot = %path, "left to the next start: {error}"),
            }
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
            Request::Begin { protocol, .. } | Request::Resume { protocol, .. } if protocol != PROTOCOL => {
                let sentence = format!(
                    "the backup speaks version {protocol} of the mover protocol and the daemon {PROTOCOL}: use one version of tzero for both"
                );
                Err(refused(FailureCode::Invalid, sentence))
            }
            Request::Begin {
                volume, snapshot: Some(snapshot), scope: None, on_full: None, originals: None, ..
            } => self.begin(&volume, &snapshot),
            Request::Begin { snapshot: Some(_), .. } => {
                let sentence = "a scope, and what gives when the cache is full, are a new snapshot's: leave them out";
                Err(refused(FailureCode::Invalid, sentence))
            }
            Request::Begin { volume, snapshot: None, scope, on_full, originals, destination, .. } => {
                self.begin_private(&volume, Wanted { scope, on_full, originals, destination })
            }
            Request::Resume { volume, snapshot_id, destination, .. } => self.resume(&volume, &snapshot_id, destination),
            Request::Recorded => self.recorded(),
            Request::ReleasedFrom { start } => self.released_from(start),
            Request::Captured { ranges } => self.captured(&ranges),
            Request::Delivered { ranges } => self.delivered(&ranges),
            Request::Marker => self.marker(),
            Request::Terminate => self.terminate(),
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
        volume.look_at_base();
        volume.whole().map_err(|error| refused(FailureCode::Failed, error))?;
        Ok(volume)
    }

    fn begin(&mut self, volume: &str, name: &str) -> Result<(), Trouble> {
        let volume = self.volume(volume)?;
        let name: Name = name.parse().map_err(|error| refused(FailureCode::Invalid, error))?;
        let path = SnapshotPath { volume: volume.name.clone(), snapshot: name };
        if is_private(path.snapshot.as_str()) {
            let known = Backups::of(&volume.directory).destination(path.snapshot.as_str());
            let way = match known {
                Some(to) => format!("`tzero backup {} --to {} --resume`", volume.name, quoted(&to.path)),
                None => "the command that began it and --resume".into(),
            };
            return Err(refused(FailureCode::Invalid, format!("{path} belongs to a backup: go on with it by {way}")));
        }
        let info = volume.snapshot(&path.snapshot).map_err(|error| refused(FailureCode::Unknown, error))?;
        if volume.unsettled.has(&info.name) {
            let sentence =
                format!("the snapshot {path} is being taken: wait until the command that takes it has answered");
            return Err(refused(FailureCode::Failed, sentence));
        }
        if matches!(info.state, SnapshotState::Ended { .. }) {
            let sentence = format!(
                "the copy-on-write of {path} has ended, and only the backup that ended it can use what it retains"
            );
            return Err(refused(FailureCode::Failed, sentence));
        }
        self.hand_over(volume, info, true)
    }

    fn begin_private(&mut self, volume: &str, wanted: Wanted) -> Result<(), Trouble> {
        let volume = self.volume(volume)?;
        let (path, info) = create(&self.daemon, &volume, wanted)?;
        let id = info.id;
        let handed = self.hand_over(Arc::clone(&volume), info, false);
        if handed.is_err() {
            // The mover knows nothing of it, so nobody would ever resume it.
            self.held = None;
            if let Err(error) = delete(&self.daemon, &volume, &path, id) {
                tracing::warn!(snapshot = %path, "left to the next start: {error}");
            }
        }
        handed
    }

    fn resume(&mut self, volume: &str, snapshot_id: &str, destination: Option<Destination>) -> Result<(), Trouble> {
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
        let (private, name) = (info.private, info.name.clone());
        let backups = Backups::of(&volume.directory);
        self.hand_over(volume, info, true)?;
        if let Some(destination) = destination.filter(|_| private)
            && let Err(error) = backups.go_on(&name, destination)
        {
            tracing::warn!(snapshot = %name, "where its backup goes now cannot be noted: {error}");
        }
        Ok(())
    }

    /// Waits until the base may be read for the snapshot, and sends what a mover needs.
    fn hand_over(&mut self, volume: Arc<Volume>, info: SnapshotInfo, resumable: bool) -> Result<(), Trouble> {
        let path = path_of(&volume, &info)?;
        refuse_broken(&path, &info)?;
        let busy = || {
            let sentence = format!("another backup is copying {path}, or a client reads it: wait for its end");
            refused(FailureCode::Busy, sentence)
        };
        let alone = info.originals == Originals::Release;
        let lease = volume.moved(info.id, alone).ok_or_else(busy)?;
        let (engine, id) = (Arc::clone(&serving(&volume)?.engine), info.id);
        let settled = self.daemon.threads.run(move || async move { engine.settled(id).await });
        settled.blocking_recv().map_err(|_| stopped())?;

        let record = volume.record().ok_or_else(stopped)?;
        let Handed { files, components, tiers, needs_view, gauge } = open_for_mover(&volume, record.direct, info.size)
            .map_err(|error| {
                refused(
                    FailureCode::Failed,
                    format!("the files of volume {} cannot be opened for a mover: {error}", volume.name),
                )
            })?;
        let view = needs_view.then(|| Shown::to(&self.daemon, &volume, info.id));
        let begun = Begun {
            protocol: PROTOCOL,
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
            ended: match info.state {
                SnapshotState::Ended { up_to } => Some(up_to.0),
                _ => None,
            },
            durability: record.durability,
            direct: record.direct,
            components,
            tiers,
            gauge,
            view: view.as_ref().and_then(|view| view.uri(&self.daemon)),
            // Under the lease: nobody else releases, and what an earlier mover asked for is over.
            released: Some(released_page(&volume, info.id, 0)?),
            scope: info.scope.as_ref().map(|scope| scope.iter().map(|part| (part.start(), part.len())).collect()),
        };
        // One that copies what is kept makes none.
        let releases = info.originals == Originals::Release;
        let at_work = if releases { Some(serving(&volume)?.engine.mover_at_work()) } else { None };
        let watched = serving(&volume)?.engine.platform().gauge.as_ref().map(Gauge::watch);
        self.held = Some(Held { lease, info, resumable, _view: view, _at_work: at_work, _watched: watched });
        let line = line_of(&Reply::Begun(Box::new(begun)));
        let sent = descriptors::send(&self.stream, &line, &files.iter().map(File::as_fd).collect::<Vec<_>>())?;
        Ok(self.stream.write_all(&line[sent..])?)
    }

    fn held(&self) -> Result<&Held, Trouble> {
        self.held.as_ref().ok_or_else(|| refused(FailureCode::Invalid, "nothing was begun in this session"))
    }

    fn released_from(&mut self, start: u64) -> Result<(), Trouble> {
        let held = self.held()?;
        let page = released_page(held.lease.volume(), held.info.id, start)?;
        self.answer(&Reply::ReleasedRanges(page))
    }

    fn recorded(&mut self) -> Result<(), Trouble> {
        self.held()?;
        self.make_resumable()?;
        self.answer(&Reply::Recorded)
    }

    /// The mover has a journal.
    fn make_resumable(&mut self) -> Result<(), Trouble> {
        let Some(held) = self.held.as_mut().filter(|held| !held.resumable) else { return Ok(()) };
        held.backups().note(&held.info.name).map_err(|error| {
            let sentence = format!("the backup cannot be noted, so a restart would take its snapshot: {error}");
            refused(FailureCode::Failed, sentence)
        })?;
        held.resumable = true;
        Ok(())
    }

    fn captured(&mut self, ranges: &[(u64, u64)]) -> Result<(), Trouble> {
        // What was captured is in a journal.
        self.make_resumable()?;
        let held = self.held()?;
        let volume = Arc::clone(held.lease.volume());
        let path = path_of(&volume, &held.info)?;
        let ranges = ranges_of(ranges, &held.info, &path)?;
        let (engine, id) = (Arc::clone(&serving(&volume)?.engine), held.info.id);
        let _gate = volume.enter_blocking().map_err(|error| refused(FailureCode::Failed, error))?;
        // A mover that goes on reports again what may not have arrived. It needs no second record.
        let known = engine.released(id).unwrap_or_default();
        let ranges: Vec<ByteRange> = ranges.into_iter().flat_map(|range| known.missing(range)).collect();
        let released = self.daemon.threads.run(move || async move { engine.release(id, &ranges).await });
        match released.blocking_recv().map_err(|_| stopped())? {
            Ok(()) => self.answer_released(&volume),
            Err(SnapshotError::State(error)) => {
                // What is not on record stays needed: that costs saves and space, not bytes, and is no reason to fail a backup.
                tracing::warn!(snapshot = %path, "what was captured cannot be recorded and is not released: {error}");
                self.answer_released(&volume)
            }
            Err(SnapshotError::NotLive) => Err(self.lost(&volume, &path, id)),
            Err(error) => Err(snapshot_trouble(&path, &error)),
        }
    }

    fn delivered(&mut self, ranges: &[(u64, u64)]) -> Result<(), Trouble> {
        self.make_resumable()?;
        let held = self.held()?;
        let volume = Arc::clone(held.lease.volume());
        let path = path_of(&volume, &held.info)?;
        let ranges = ranges_of(ranges, &held.info, &path)?;
        let (engine, id) = (Arc::clone(&serving(&volume)?.engine), held.info.id);
        let _gate = volume.enter_blocking().map_err(|error| refused(FailureCode::Failed, error))?;
        match engine.mark_read(id, &ranges) {
            Ok(()) => self.answer_released(&volume),
            Err(SnapshotError::State(error)) => {
                tracing::warn!(snapshot = %path, "what was delivered cannot be marked, and its slots stay: {error}");
                self.answer_released(&volume)
            }
            Err(SnapshotError::NotLive) => Err(self.lost(&volume, &path, id)),
            Err(error) => Err(snapshot_trouble(&path, &error)),
        }
    }

    fn marker(&mut self) -> Result<(), Trouble> {
        let engine = &serving(self.held()?.lease.volume())?.engine;
        let up_to = engine.marker().0;
        self.answer(&Reply::Boundary { up_to })
    }

    /// Nobody but its mover ends a snapshot: the base that goes with what it retains is in the mover's copy.
    fn terminate(&mut self) -> Result<(), Trouble> {
        let held = self.held()?;
        let volume = Arc::clone(held.lease.volume());
        let path = path_of(&volume, &held.info)?;
        if held.info.originals == Originals::Release {
            let sentence = format!("{path} releases its originals, and only one that keeps them can be ended");
            return Err(refused(FailureCode::Invalid, sentence));
        }
        let (engine, id) = (Arc::clone(&serving(&volume)?.engine), held.info.id);
        let _gate = volume.enter_blocking().map_err(|error| refused(FailureCode::Failed, error))?;
        let ending = self.daemon.threads.run(move || async move { engine.end_snapshot(id).await });
        match ending.blocking_recv().map_err(|_| stopped())? {
            Ok(up_to) => {
                volume.copy_snapshots();
                tracing::info!(snapshot = %path, "its copy-on-write has ended");
                self.answer(&Reply::Boundary { up_to: up_to.0 })
            }
            Err(SnapshotError::NotLive) => Err(self.lost(&volume, &path, id)),
            Err(error) => Err(snapshot_trouble(&path, &error)),
        }
    }

    fn answer_released(&mut self, volume: &Volume) -> Result<(), Trouble> {
        let hurry = serving(volume)?.engine.pressure().nearly_full;
        self.answer(&Reply::Released { hurry })
    }

    fn check(&mut self) -> Result<(), Trouble> {
        let held = self.held()?;
        let volume = held.lease.volume();
        let path = path_of(volume, &held.info)?;
        volume.look_at_base();
        let whole = volume.whole().map_err(|error| refused(FailureCode::Failed, error))?;
        match whole.engine.snapshot_by_id(held.info.id) {
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
        if held.info.private {
            drop_private(&self.daemon, held)?;
        }
        self.held = None;
        self.answer(&Reply::Finished)
    }
}

/// Deletes a backup's own snapshot, under its mover's lease.
fn drop_private(daemon: &Daemon, held: &Held) -> Result<(), Trouble> {
    let volume = held.lease.volume();
    delete(daemon, volume, &path_of(volume, &held.info)?, held.info.id)
}

/// Ranges as a mover names them, all within the snapshot.
fn ranges_of(ranges: &[(u64, u64)], info: &SnapshotInfo, path: &SnapshotPath) -> Result<Vec<ByteRange>, Trouble> {
    let ranges: Option<Vec<_>> = ranges.iter().map(|(offset, len)| ByteRange::checked(*offset, *len)).collect();
    ranges
        .filter(|ranges| ranges.iter().all(|range| range.end() <= info.size))
        .ok_or_else(|| refused(FailureCode::Invalid, format!("a captured range reaches past the end of {path}")))
}

/// Part of what a snapshot has released.
fn released_page(volume: &Volume, id: SnapshotId, start: u64) -> Result<ReleasedPage, Trouble> {
    let released = serving(volume)?.engine.released(id).unwrap_or_default();
    Ok(ReleasedPage::of(released.iter().map(|range| (range.start(), range.len())), start))
}

pub(super) fn path_of(volume: &Volume, info: &SnapshotInfo) -> Result<SnapshotPath, Trouble> {
    let snapshot = info.name.parse().map_err(|error| refused(FailureCode::Failed, error))?;
    Ok(SnapshotPath { volume: volume.name.clone(), snapshot })
}

fn line_of(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).expect("a reply has text for keys");
    line.push(b'\n');
    line
}
