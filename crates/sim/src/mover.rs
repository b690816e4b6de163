//! Movers: processes of their own that copy a snapshot while the host goes on.
//!
//! A copy's bytes are judged the moment its mover takes them for T0's; a journal entry makes them captured, and only then are they released.
//! A mover that is killed, or whose daemon died, leaves an interrupted copy that a later one takes up with the same T0.

use std::rc::Rc;

use tzero_block::{Action, BlockDevice, ByteRange};
use tzero_engine::{Planted, SnapshotState};
use tzero_io::Buffer;
use tzero_originals::{OriginalsReader, ReconcileError, Scan, SnapshotRef};

use crate::disk::RowHandle;
use crate::executor::{Process, die, fail, interleave, sleep, spawn_joined, yield_once};
use crate::oracle::Standing;
use crate::races::{Doing, Race};
use crate::scene::{Known, Scene};
use crate::snapshots::{self, Wanted};
use crate::storage::WordsHandle;

/// Where movers give way, beside the engine's points.
pub const PLACE: u32 = 63;

/// A copy that is not finished.
pub struct Copy {
    /// Its snapshot.
    pub known: Known,
    /// What its journal says: captured.
    pub captured: Vec<ByteRange>,
    /// A mover is at work on it.
    active: bool,
}

/// See [`reader`].
pub type Reader = OriginalsReader<WordsHandle, RowHandle>;

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
    let process = scene.start_mover();
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
    let known = snapshots::create(scene, who, Wanted::private(!keep)).await?;
    scene.copies.borrow_mut().push(Copy { known: known.clone(), captured: Vec::new(), active: true });
    Some(known)
}

fn forget(scene: &Scene, number: u32) {
    scene.copies.borrow_mut().retain(|copy| copy.known.number != number);
}

/// How movers go through the map.
pub fn scan(scene: &Scene) -> Scan {
    Scan {
        at_once: scene.plan.shape.scan_at_once,
        give_way: || Box::pin(interleave(PLACE)),
        beyond_head: scene.planted == Some(Planted::ScanTakesNewer),
        beyond_end: scene.planted == Some(Planted::EndedTakesLaterEntry),
        blind_to_units: scene.planted == Some(Planted::UnitIgnored),
        once: false,
    }
}

/// A mover's own look at the daemon's files.
pub fn reader(scene: &Scene, who: &str, process: Process, known: &Known) -> Option<Reader> {
    let storage = scene.directory.open(process);
    let (map, table) = (storage.attach("map")?, storage.attach("snapshots")?);
    match OriginalsReader::open(map, table, scene.cache.open(process), known.size) {
        Ok(mut reader) => {
            reader.set_scan(scan(scene));
            Some(reader)
        }
        Err(error) => {
            fail(format!("{who}: the map cannot be opened: {error}"));
            None
        }
    }
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
        // Until it ends, or the daemon does.
        let _at_work = scene.call(&self.who, |volume| async move { volume.mover_at_work() }).await?;
        let mut reader = reader(scene, &self.who, self.process, known)?;
        let base = scene.base.open(self.process);
        let journal = self.captured(known.number);
        if !journal.is_empty() && known.release {
            // It may have died before the daemon heard of them.
            snapshots::release(scene, &self.who, known, &journal).await;
        }
        let pieces = ByteRange::new(0, known.size).pieces(chunk * u64::from(scene.plan.shape.grain));
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
            if now.saturating_sub(std::mem::replace(&mut seen, now)) > scene.plan.shape.map.ring_words {
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
        // The daemon has the last word: it knows of a break that could not be put on record.
        let broke = scene.races.mark_lost(id) && scene.races.is_broken(id);
        let stands = scene.call(&self.who, |volume| async move { volume.snapshot_by_id(id) }).await?;
        let stands = stands.is_some_and(|info| info.state == SnapshotState::Live);
        if stands && broke {
            fail(format!("{}: the daemon calls snapshot {} live, and it broke", self.who, known.number));
        }
        Some(stands)
    }

    fn captured(&self, number: u32) -> Vec<ByteRange> {
        let copies = self.scene.copies.borrow();
        copies.iter().find(|copy| copy.known.number == number).map(|copy| copy.captured.clone()).unwrap_or_default()
    }

    /// Copies one piece; `None` when that fails.
    async fn copy(
        &self,
        base: &RowHandle,
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
        // The table does not say that it is broken; the daemon will, before the copy is declared.
        if !scene.races.mark_lost(known.id) {
            scene.oracle.view_ends(&token, &bytes, &self.who);
        }
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
