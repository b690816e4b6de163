//! What clients do with snapshots: take, read, release, delete them.

use std::rc::Rc;

use tzero_block::{Action, ByteRange, Export};
use tzero_engine::{OnFull, SnapshotError, SnapshotKind};
use tzero_io::Buffer;
use tzero_originals::Originals;

use crate::clients::check_cover;
use crate::executor::{cut_short, fail, spawn};
use crate::oracle::Standing;
use crate::platform::AHEAD;
use crate::races::{Doing, Race};
use crate::scene::{Known, Scene};

/// What a new snapshot is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// It releases.
    pub release: bool,
    /// It is a mover's.
    pub private: bool,
    /// What gives when the cache is full.
    pub on_full: OnFull,
    /// What it is of; empty: the whole volume.
    pub scope: Vec<ByteRange>,
}

impl Wanted {
    /// A mover's, of the whole volume.
    pub fn private(release: bool) -> Self {
        Self { release, private: true, on_full: OnFull::Break, scope: Vec::new() }
    }
}

/// Takes a snapshot; `None` if that failed, or nobody knows.
pub async fn create(scene: &Rc<Scene>, who: &str, wanted: Wanted) -> Option<Known> {
    let Wanted { release, private, on_full, scope } = wanted;
    let daemon = scene.daemon().await;
    let before = daemon.volume.size();
    let is_part = !scope.is_empty();
    let scope: Vec<ByteRange> = scope.iter().filter_map(|part| part.intersection(ByteRange::new(0, before))).collect();
    if is_part && scope.is_empty() {
        return None;
    }
    let number = scene.number_snapshot();
    let failures = scene.directory.failures();
    let doing = scene.races.begin(Doing::Create);
    scene.oracle.create_begins(number);
    scene.learn(Known {
        number,
        id: tzero_originals::SnapshotId([0; 16]),
        release,
        private,
        was_private: private,
        on_full,
        scope: scope.clone(),
        size: 0,
        ended: false,
        retained: false,
    });
    let volume = daemon.volume.clone();
    let originals = if release { Originals::Release } else { Originals::Keep };
    let kind = SnapshotKind { originals, private, on_full };
    let name = format!("s{number}");
    let result = scene
        .call_on(&daemon, who, async move {
            let scope = (!scope.is_empty()).then_some(&scope[..]);
            volume.create_snapshot_of(&name, kind, scope).await
        })
        .await;
    drop(doing);
    match result? {
        Ok(info) => {
            if !(before..=daemon.volume.size()).contains(&info.size) {
                fail(format!("{who}: snapshot {number} has {} bytes, and the volume had {before}", info.size));
            }
            scene.update(number, |known| (known.id, known.size) = (info.id, info.size));
            scene.oracle.created(number, info.epoch.0);
            scene.count_standing();
            scene.standing(|known| known.number == number).pop()
        }
        Err(error) => {
            if scene.directory.failures() == failures {
                fail(format!("{who}: snapshot {number} cannot be created: {error}"));
            }
            scene.oracle.create_failed(number);
            None
        }
    }
}

/// Deletes a snapshot.
pub async fn delete(scene: &Rc<Scene>, who: &str, known: &Known) {
    let daemon = scene.daemon().await;
    if scene.oracle.standing(known.number) != Standing::Live {
        return;
    }
    scene.oracle.delete_begins(known.number);
    let failures = scene.directory.failures();
    let doing = scene.races.begin(Doing::Delete(known.number));
    let (volume, id) = (daemon.volume.clone(), known.id);
    let result = scene.call_on(&daemon, who, async move { volume.delete_snapshot(id).await }).await;
    drop(doing);
    match result {
        None => {}
        Some(Ok(())) => {
            if daemon.volume.snapshot_by_id(known.id).is_some() {
                fail(format!("{who}: snapshot {} is there after it was deleted", known.number));
            }
            scene.oracle.deleted(known.number);
            scene.count_standing();
        }
        Some(Err(_)) if scene.directory.failures() != failures => scene.oracle.delete_failed(known.number),
        Some(Err(error)) => fail(format!("{who}: snapshot {} cannot be deleted: {error}", known.number)),
    }
}

/// Releases a range of a snapshot that nobody copies, as a mover that has captured it does.
pub async fn release_some(scene: &Rc<Scene>, who: &str, pick: u64, range: ByteRange) {
    let Some(known) = scene.pick(pick, |known| known.release && !known.private) else { return };
    let Some(range) = own(&known, range).and_then(|range| scene.covered(&known, range)) else { return };
    release(scene, who, &known, &[range]).await;
}

/// Releases ranges, which are whole grains; `true` if that is certain.
pub async fn release(scene: &Rc<Scene>, who: &str, known: &Known, ranges: &[ByteRange]) -> bool {
    let daemon = scene.daemon().await;
    let failures = scene.directory.failures();
    scene.oracle.release_begins(known.number, ranges);
    let doing: Vec<_> = ranges.iter().map(|range| scene.races.begin(Doing::Release(known.number, *range))).collect();
    let (volume, id, captured) = (daemon.volume.clone(), known.id, ranges.to_vec());
    let result = scene.call_on(&daemon, who, async move { volume.release(id, &captured).await }).await;
    drop(doing);
    match result {
        None => false,
        Some(Ok(())) => {
            if known.release {
                scene.oracle.released(known.number, ranges);
            }
            true
        }
        Some(Err(error)) => {
            let gone = matches!(error, SnapshotError::Unknown | SnapshotError::NotLive)
                && (scene.may_refuse(known, ranges[0], scene.cache.failures(Action::Read)));
            if !gone && scene.directory.failures() == failures {
                fail(format!("{who}: {ranges:?} of snapshot {} cannot be released: {error}", known.number));
            }
            false
        }
    }
}

/// Reads a view. With `stall` its client stops after so many polls of each read: goes away, or stalls for ever.
/// One that `consumes` says of a snapshot that releases what was delivered.
pub async fn view(
    scene: &Rc<Scene>,
    who: &str,
    pick: u64,
    ranges: &[ByteRange],
    stall: Option<(u64, bool)>,
    consumes: bool,
) {
    let Some(known) = scene.pick(pick, |known| !known.ended) else { return };
    for range in ranges.iter().filter_map(|range| own(&known, *range)) {
        if !read_view(scene, who, &known, range, stall).await {
            return;
        }
        if consumes && stall.is_none() && known.release && !known.private {
            deliver(scene, who, &known, range).await;
        }
    }
}

/// What of a range a snapshot has.
fn own(known: &Known, range: ByteRange) -> Option<ByteRange> {
    range.intersection(ByteRange::new(0, known.size))
}

/// Says that a range was delivered to the snapshot's one consumer: from now on it may be released, whenever space is wanted.
async fn deliver(scene: &Rc<Scene>, who: &str, known: &Known, range: ByteRange) {
    let Some(range) = scene.covered(known, range) else { return };
    let daemon = scene.daemon().await;
    let failures = scene.directory.failures();
    scene.oracle.release_begins(known.number, &[range]);
    let (volume, id) = (daemon.volume.clone(), known.id);
    if let Some(Err(error)) = scene.call_on(&daemon, who, async move { volume.mark_read(id, &[range]) }).await {
        let gone = matches!(error, SnapshotError::Unknown | SnapshotError::NotLive);
        if !gone && scene.directory.failures() == failures {
            fail(format!("{who}: {range} of snapshot {} cannot be marked read: {error}", known.number));
        }
    }
}

/// Reads a range of a view and has it judged; `false` if there are no bytes.
pub async fn read_view(
    scene: &Rc<Scene>,
    who: &str,
    known: &Known,
    range: ByteRange,
    stall: Option<(u64, bool)>,
) -> bool {
    let daemon = scene.daemon().await;
    let cache_failures = scene.cache.failures(Action::Read);
    let in_scope = known.has_in_scope(range);
    let refused = |what: &str| {
        if in_scope && !scene.may_refuse(known, range, cache_failures) {
            fail(format!("{who}: {what} of {range} of snapshot {} without a reason", known.number));
        }
        if scene.oracle.may_be_released(known.number, range) {
            scene.races.reach(Race::ViewOfReleased);
        }
        false
    };
    let view = match daemon.volume.view(&format!("s{}", known.number)) {
        Ok(view) => view,
        Err(_) => return refused("no view"),
    };
    let token = scene.oracle.view_begins(known.number, range);
    let doing = scene.races.begin(Doing::View(known.number, range));
    let read = async move { view.read(range.start(), Buffer::zeroed(range.len() as usize)).await };
    if let Some((polls, for_ever)) = stall {
        let daemon_task = async move {
            cut_short(polls, for_ever, read).await;
            drop(doing);
        };
        if scene.serving().is_some_and(|serving| serving.process == daemon.process) {
            scene.races.reach(Race::ViewStalled);
            spawn(daemon.process, format!("daemon: {who}, which stalls"), false, daemon_task);
        }
        return true;
    }
    let answer = scene.call_on(&daemon, who, read).await;
    drop(doing);
    match answer {
        None => false,
        Some((_, Ok(()))) if !in_scope => {
            fail(format!("{who}: {range} of snapshot {} was served outside its scope", known.number));
            false
        }
        Some((bytes, Ok(()))) => {
            scene.oracle.view_ends(&token, &bytes, who);
            true
        }
        Some((_, Err(_))) => refused("an error"),
    }
}

/// Asks a view for its holes.
pub async fn view_status(scene: &Rc<Scene>, who: &str, pick: u64, range: ByteRange) {
    let Some(known) = scene.pick(pick, |known| !known.ended) else { return };
    let Some(range) = own(&known, range) else { return };
    let daemon = scene.daemon().await;
    let cache_failures = scene.cache.failures(Action::Read);
    let Ok(view) = daemon.volume.view(&format!("s{}", known.number)) else {
        if !scene.may_refuse(&known, range, cache_failures) {
            fail(format!("{who}: no view of snapshot {}", known.number));
        }
        return;
    };
    match scene.call_on(&daemon, who, async move { view.block_status(range).await }).await {
        None => {}
        Some(Ok(extents)) => {
            check_cover(who, range, extents.iter().map(|extent| extent.range));
            for extent in extents.iter().filter(|extent| extent.hole) {
                scene.oracle.view_hole(known.number, extent.range, who);
            }
        }
        Some(Err(_)) if !known.has_in_scope(range) || scene.may_refuse(&known, range, cache_failures) => {}
        Some(Err(error)) => fail(format!("{who}: no status of {range} of snapshot {}: {error}", known.number)),
    }
}

/// Saves originals ahead of any change. Nothing may break by it.
pub async fn ahead(scene: &Rc<Scene>, who: &str, range: ByteRange) {
    let daemon = scene.daemon().await;
    let Some(range) = range.intersection(ByteRange::new(0, daemon.volume.size())) else { return };
    scene.races.reach(Race::Ahead);
    let volume = daemon.volume.clone();
    // The daemon ends it before it closes the volume.
    daemon.busy.set(daemon.busy.get() + 1);
    scene.call_on(&daemon, &format!("{who}{AHEAD}"), async move { volume.save_ahead(range).await }).await;
    daemon.busy.set(daemon.busy.get() - 1);
    scene.announce();
}
