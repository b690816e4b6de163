//! Movers: processes of their own that copy a snapshot while the host goes on.
//!
//! A copy's bytes are judged the moment its mover takes them for T0's; a journal entry makes them captured, and only then are they released.
//! A mover that is killed, or whose daemon died, leaves an interrupted copy that a later one takes up with the same T0.

use std::rc::Rc;

use tzero_block::{Action, BlockDevice, ByteRange};
use tzero_engine::SnapshotState;
use tzero_io::Buffer;
use tzero_originals::{Entry, GrainIndex, OriginalsReader, Payload, ReconcileError, SnapshotRef};

use crate::disk::DiskHandle;
use crate::executor::{Process, die, fail, interleave, sleep, spawn_joined, yield_once};
use crate::oracle::Standing;
use crate::races::{Doing, Race};
use crate::scene::{Known, Scene};
use crate::snapshots;
use crate::storage::WordsHandle;

/// Where movers give way, beside the engine's points.
const PLACE: u32 = 63;

/// Publications that a mover can follow without looking at the whole map: see the map's format.
const RING: u64 = 4096;

/// A copy that is not finished.
pub struct Copy {
    /// Its snapshot.
    pub known: Known,
    /// What its journal says: captured.
    pub captured: Vec<ByteRange>,
    /// A mover is at work on it.
    active: bool,
}

type Reader = OriginalsReader<WordsHandle, DiskHandle>;

/// How a mover goes about its work.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Grains that it reads at a time.
    pub chunk: u64,
    /// Chunks between two journal entries.
    pub batch: u64,
    /// It is killed after so many chunks.
    pub dies_after: Option<u64>,
    /// How long it rests between chunks.
    pub rest_ns: u64,
}

/// Begins a copy, or takes up an interrupted one.
pub async fn backup(scene: &Rc<Scene>, who: &str, pace: Pace, keep: bool) {
    let Some(known) = take_up_or_begin(scene, who, keep).await else { return };
    let process = Process::start();
    let mover = Mover { scene: Rc::clone(scene), who: format!("{who}, mover"), process, pace };
    let (number, id) = (known.number, known.id);
    let good = spawn_joined(process, mover.who.clone(), async move { mover.run(&known).await }).await;
    if let Some(copy) = scene.copies.borrow_mut().iter_mut().find(|copy| copy.known.number == number) {
        copy.active = false;
    }
    match good {
        Some(Some(true)) => {
            scene.races.reach(Race::CopyGood);
            forget(scene, number);
            if let Some(known) = scene.standing(|known| known.id == id && known.number == number).pop() {
                snapshots::delete(scene, who, &known).await;
            }
        }
        Some(Some(false)) => {
            // It can never become good.
            forget(scene, number);
            scene.update(number, |known| known.private = false);
        }
        // Interrupted, by the daemon's death or its own.
        Some(None) => {}
        None => scene.races.reach(Race::MoverKilled),
    }
}

/// The snapshot of a copy that is now this mover's.
async fn take_up_or_begin(scene: &Rc<Scene>, who: &str, keep: bool) -> Option<Known> {
    let standing = |copy: &&mut Copy| !copy.active && scene.oracle.standing(copy.known.number) == Standing::Live;
    if let Some(copy) = scene.copies.borrow_mut().iter_mut().find(standing) {
        copy.active = true;
        scene.races.reach(Race::CopyResumed);
        return Some(copy.known.clone());
    }
    let known = snapshots::create(scene, who, !keep, true).await?;
    scene.copies.borrow_mut().push(Copy { known: known.clone(), captured: Vec::new(), active: true });
    Some(known)
}

fn forget(scene: &Scene, number: u32) {
    scene.copies.borrow_mut().retain(|copy| copy.known.number != number);
}

struct Mover {
    scene: Rc<Scene>,
    who: String,
    process: Process,
    pace: Pace,
}

impl Mover {
    /// `Some(true)`: the copy is good; `Some(false)`: it never will be; `None`: it is interrupted.
    async fn run(&self, known: &Known) -> Option<bool> {
        let (scene, Pace { chunk, batch, dies_after, rest_ns }) = (&self.scene, self.pace);
        let id = known.id;
        let info = scene
            .call(&self.who, |volume| async move {
                volume.settled(id).await;
                volume.snapshot_by_id(id)
            })
            .await?;
        let Some(info) = info else { return Some(false) };
        let snapshot = info.reference();
        let mut reader = self.reader()?;
        let base = scene.base.open(self.process);
        let journal = self.captured(known.number);
        if !journal.is_empty() && known.release {
            // It may have died before the daemon heard of them.
            snapshots::release(scene, &self.who, known, &journal).await;
        }
        let pieces = ByteRange::new(0, scene.plan.shape.cells.size).pieces(chunk * u64::from(scene.plan.shape.grain));
        let mut batched = Vec::new();
        let mut seen = scene.sequence();
        for (number, piece) in pieces.filter(|piece| !journal.contains(piece)).enumerate() {
            if dies_after == Some(number as u64) {
                die(self.process);
                yield_once().await;
            }
            if journal.iter().any(|captured| captured.overlaps(piece)) {
                // Another size of chunks was used before: what is left of the piece is copied grain by grain.
                for grain in piece.pieces(u64::from(scene.plan.shape.grain)) {
                    if !journal.iter().any(|captured| captured.contains(grain)) {
                        batched.push(self.copy(&base, &mut reader, known, &snapshot, grain).await?);
                    }
                }
            } else {
                batched.push(self.copy(&base, &mut reader, known, &snapshot, piece).await?);
            }
            if rest_ns > 0 {
                sleep(rest_ns).await;
            }
            let now = scene.sequence();
            if now.saturating_sub(std::mem::replace(&mut seen, now)) > RING {
                scene.races.reach(Race::FellBehind);
            }
            if batched.len() as u64 >= batch {
                self.capture(known, std::mem::take(&mut batched)).await?;
            }
        }
        interleave(PLACE).await;
        if let Err(error) = reader.check(&snapshot) {
            if let ReconcileError::Broken(_) = error {
                scene.oracle.state_seen(known.number, true);
            }
            let reason = scene.may_refuse(known, ByteRange::new(0, 1), scene.cache.failures(Action::Read));
            if !reason {
                fail(format!("{}: snapshot {} does not stand at the end of its copy", self.who, known.number));
            }
            return Some(false);
        }
        Some(true)
    }

    fn reader(&self) -> Option<Reader> {
        let scene = &self.scene;
        let storage = scene.directory.open(self.process);
        let (map, table) = (storage.attach("map")?, storage.attach("snapshots")?);
        match OriginalsReader::open(map, table, scene.cache.open(self.process), scene.plan.shape.cells.size) {
            Ok(reader) => Some(reader),
            Err(error) => {
                fail(format!("{}: the map cannot be opened: {error}", self.who));
                None
            }
        }
    }

    fn captured(&self, number: u32) -> Vec<ByteRange> {
        let copies = self.scene.copies.borrow();
        copies.iter().find(|copy| copy.known.number == number).map(|copy| copy.captured.clone()).unwrap_or_default()
    }

    /// Copies one piece; `None` when that fails.
    async fn copy(
        &self,
        base: &DiskHandle,
        reader: &mut Reader,
        known: &Known,
        snapshot: &SnapshotRef,
        piece: ByteRange,
    ) -> Option<ByteRange> {
        let scene = &self.scene;
        let cache_failures = scene.cache.failures(Action::Read);
        let token = scene.oracle.view_begins(known.number, piece);
        let doing = scene.races.begin(Doing::View(known.number, piece));
        let (mut bytes, read) = base.read(piece.start(), Buffer::zeroed(piece.len() as usize)).await;
        if read.is_err() {
            scene.races.reach(Race::SourceReadError);
            return None;
        }
        interleave(PLACE).await;
        let reconciled = reader.reconcile(snapshot, piece.start(), &mut bytes).await;
        drop(doing);
        if let Err(error) = reconciled {
            if let ReconcileError::Broken(_) = error {
                scene.oracle.state_seen(known.number, true);
            }
            if !scene.may_refuse(known, piece, cache_failures) {
                fail(format!("{}: {piece} of snapshot {}: {error}", self.who, known.number));
            }
            return None;
        }
        scene.oracle.view_ends(&token, &bytes, &self.who);
        Some(piece)
    }

    /// Records pieces as captured, then tells the daemon.
    async fn capture(&self, known: &Known, pieces: Vec<ByteRange>) -> Option<()> {
        interleave(PLACE).await;
        if let Some(copy) = self.scene.copies.borrow_mut().iter_mut().find(|copy| copy.known.number == known.number) {
            copy.captured.extend(&pieces);
        }
        interleave(PLACE).await;
        if known.release && !snapshots::release(&self.scene, &self.who, known, &pieces).await {
            return None;
        }
        Some(())
    }
}

/// Copies the whole base without regard to anything, ends the snapshot, and later lays over the originals that it retained (R33 b).
pub async fn outboard(scene: &Rc<Scene>, who: &str, chunk: u64, pause_ns: u64) {
    let Some(known) = snapshots::create(scene, who, false, true).await else { return };
    let process = Process::start();
    let task = {
        let (scene, who, known) = (Rc::clone(scene), format!("{who}, outboard"), known.clone());
        async move { outboard_copy(&scene, &who, process, &known, chunk, pause_ns).await }
    };
    if spawn_joined(process, format!("{who}, outboard"), task).await.flatten().is_some() {
        scene.races.reach(Race::OutboardGood);
    }
    snapshots::delete(scene, who, &known).await;
}

async fn outboard_copy(
    scene: &Rc<Scene>,
    who: &str,
    process: Process,
    known: &Known,
    chunk: u64,
    pause_ns: u64,
) -> Option<()> {
    let (id, size) = (known.id, scene.plan.shape.cells.size);
    let grain = u64::from(scene.plan.shape.grain);
    scene.call(who, |volume| async move { volume.settled(id).await }).await?;
    let base = scene.base.open(process);
    let mut copy = Vec::with_capacity(size as usize);
    for piece in ByteRange::new(0, size).pieces(chunk * grain) {
        let (bytes, read) = base.read(piece.start(), Buffer::zeroed(piece.len() as usize)).await;
        read.ok()?;
        copy.extend_from_slice(&bytes);
        interleave(PLACE).await;
    }
    let doing = scene.races.begin(Doing::End(known.number));
    scene.update(known.number, |known| known.ended = true);
    let ended = scene.call(who, |volume| async move { volume.end_snapshot(id).await }).await?;
    drop(doing);
    if let Err(error) = ended {
        if !scene.may_refuse(known, ByteRange::new(0, size), 0) {
            fail(format!("{who}: snapshot {} cannot be ended: {error}", known.number));
        }
        return None;
    }
    sleep(pause_ns).await;
    let cache = scene.cache.open(process);
    for number in 0..size.div_ceil(grain) {
        let retained = scene.call(who, |volume| async move { volume.retained(id, GrainIndex(number)) }).await?;
        let range = scene.touched(ByteRange::new(number * grain, 1));
        match retained {
            Ok(None) => {}
            Ok(Some(entry)) => {
                let bytes = original(scene, known, &cache, &entry).await?;
                copy[range.start() as usize..range.end() as usize].copy_from_slice(&bytes);
            }
            Err(_) => return None,
        }
    }
    let token = scene.oracle.view_begins(known.number, ByteRange::new(0, size));
    scene.oracle.view_ends(&token, &copy, who);
    Some(())
}

/// The bytes of a retained original; `None` if they cannot be had.
async fn original(scene: &Scene, known: &Known, cache: &DiskHandle, entry: &Entry) -> Option<Buffer> {
    let len = entry.len as usize;
    match entry.payload {
        Payload::Zero => Some(Buffer::zeroed(len)),
        Payload::Bad => None,
        Payload::Stored { offset, checksum } => {
            let (bytes, read) = cache.read(offset, Buffer::zeroed(len)).await;
            read.ok()?;
            if crc32c::crc32c(&bytes) != checksum {
                // A set that is retained no more, because the machine stopped meanwhile, has given its slots to others.
                if scene.corrupted.get() || scene.state_of(known) != Some(SnapshotState::Ended) {
                    return None;
                }
                fail(format!("the retained original of {} does not match its checksum", entry.offset));
            }
            Some(bytes)
        }
    }
}
