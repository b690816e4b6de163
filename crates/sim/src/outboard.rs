//! Outboard copies: the whole base with no regard to anything, then the originals up to a boundary (R31, R33).

use std::rc::Rc;

use tzero_block::{Action, BlockDevice, ByteRange};
use tzero_engine::Planted;
use tzero_io::Buffer;
use tzero_originals::{ReconcileError, Scan, Sequence};

use crate::executor::{Process, fail, interleave, sleep, spawn_joined};
use crate::mover::{PLACE, reader, scan};
use crate::plan::Boundary;
use crate::races::{Doing, Race};
use crate::scene::{Known, Scene};
use crate::snapshots::{self, Wanted};

/// How an outboard copy is made.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Grains that are read at a time.
    pub chunk: u64,
    /// Which originals it takes.
    pub boundary: Boundary,
    /// How long the originals wait to be copied.
    pub pause_ns: u64,
}

/// Makes one, by a process of its own.
pub async fn copy(scene: &Rc<Scene>, who: &str, pace: Pace) {
    let Some(known) = snapshots::create(scene, who, Wanted::private(false)).await else { return };
    let process = scene.start_mover();
    let task = {
        let (scene, who, known) = (Rc::clone(scene), format!("{who}, outboard"), known.clone());
        async move { run(&scene, &who, process, &known, pace).await }
    };
    if spawn_joined(process, format!("{who}, outboard"), task).await.flatten().is_some() {
        scene.races.reach(match pace.boundary {
            Boundary::Terminate => Race::OutboardGood,
            Boundary::Marker => Race::OutboardToMarker,
            Boundary::All => Race::OutboardToAll,
        });
    }
    snapshots::delete(scene, who, &known).await;
}

async fn run(scene: &Rc<Scene>, who: &str, process: Process, known: &Known, pace: Pace) -> Option<()> {
    let (id, size) = (known.id, known.size);
    let piece = pace.chunk * u64::from(scene.plan.shape.grain);
    let info = scene
        .call(who, |volume| async move {
            volume.settled(id).await;
            volume.snapshot_by_id(id)
        })
        .await??;
    let snapshot = info.reference();
    let early = scene.call(who, |volume| async move { volume.marker() }).await?;
    let mut reader = reader(scene, who, process, known)?;
    if scene.planted == Some(Planted::OverlayNotCaughtUp) {
        reader.set_scan(Scan { once: true, ..scan(scene) });
        reader.catch_up().await.ok()?;
    }
    let base = scene.base.open(process);
    let mut copy = Vec::with_capacity(size as usize);
    for piece in ByteRange::new(0, size).pieces(piece) {
        let (bytes, read) = base.read(piece.start(), Buffer::zeroed(piece.len() as usize)).await;
        read.ok()?;
        copy.extend_from_slice(&bytes);
        interleave(PLACE).await;
    }
    let up_to = match pace.boundary {
        Boundary::Terminate => {
            end(scene, who, known).await?;
            Sequence(u64::MAX)
        }
        _ if scene.planted == Some(Planted::MarkerTooEarly) => early,
        Boundary::Marker => scene.call(who, |volume| async move { volume.marker() }).await?,
        Boundary::All => Sequence(u64::MAX),
    };
    sleep(pace.pause_ns).await;
    for piece in ByteRange::new(0, size).pieces(piece) {
        let place = piece.start() as usize..piece.end() as usize;
        let cache_failures = scene.cache.failures(Action::Read);
        let mut bytes = Buffer::copy_of(&copy[place.clone()]);
        let laid = match reader.catch_up().await {
            Ok(caught_up) => caught_up.lay_retained(&snapshot, up_to, piece.start(), &mut bytes).await,
            Err(error) => Err(error),
        };
        if let Err(error) = laid {
            if let ReconcileError::Broken(_) = error {
                scene.oracle.state_seen(known.number, true);
            }
            if !scene.may_refuse(known, piece, cache_failures) {
                fail(format!("{who}: originals of {piece} of snapshot {}: {error}", known.number));
            }
            return None;
        }
        copy[place].copy_from_slice(&bytes);
        interleave(PLACE).await;
    }
    if scene.races.mark_lost(id) {
        return None;
    }
    let token = scene.oracle.view_begins(known.number, ByteRange::new(0, size));
    scene.oracle.view_ends(&token, &copy, who);
    Some(())
}

/// Ends the snapshot's copy-on-write.
async fn end(scene: &Rc<Scene>, who: &str, known: &Known) -> Option<()> {
    let id = known.id;
    let failures = scene.directory.failures();
    let doing = scene.races.begin(Doing::End(known.number));
    scene.update(known.number, |known| known.ended = true);
    let ended = scene.call(who, |volume| async move { volume.end_snapshot(id).await }).await?;
    drop(doing);
    if let Err(error) = ended {
        let whole = ByteRange::new(0, known.size);
        if scene.directory.failures() == failures && !scene.may_refuse(known, whole, 0) {
            fail(format!("{who}: snapshot {} cannot be ended: {error}", known.number));
        }
        return None;
    }
    scene.update(known.number, |known| known.retained = true);
    Some(())
}
