//! The clients of a schedule: each takes its operations in order, several in flight where its depth allows.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tzero_block::{Action, ByteRange, Export, ExportError, Zeroes};
use tzero_engine::HostSession;
use tzero_io::{Buffer, Notify};

use crate::contents::Version;
use crate::disk::Injection;
use crate::executor::{Process, fail, note, sleep, spawn};
use crate::mover;
use crate::oracle::{ChangeId, Kind, Outcome, attributed};
use crate::outboard::{self, Pace};
use crate::plan::{Actor, FaultOp, Op, OpId};
use crate::platform::SimPlatform;
use crate::races::{Doing, Race};
use crate::scene::{Daemon, Scene};
use crate::snapshots::{self, Wanted};
use crate::storage::StorageFault;

/// A client.
pub struct Client {
    /// The stage.
    pub scene: Rc<Scene>,
    /// For people.
    pub name: String,
    session: RefCell<Option<(Process, Rc<HostSession<SimPlatform>>)>>,
    /// How many failed flushes of the daemon's own the session has been told of, and how many of its flushes are in flight.
    told: Cell<u64>,
    flushing: Cell<usize>,
    in_flight: Cell<usize>,
    news: Notify,
}

/// Starts the client of an actor.
pub fn start(scene: &Rc<Scene>, number: usize, actor: &Actor) {
    let client = Rc::new(Client {
        scene: Rc::clone(scene),
        name: format!("{} {number}", actor.name),
        session: RefCell::default(),
        told: Cell::new(0),
        flushing: Cell::new(0),
        in_flight: Cell::new(0),
        news: Notify::default(),
    });
    let actor = actor.clone();
    spawn(Process::WORLD, client.name.clone(), true, async move {
        for (id, op) in actor.ops {
            client.room(actor.depth).await;
            client.in_flight.set(client.in_flight.get() + 1);
            let one = Rc::clone(&client);
            spawn(Process::WORLD, format!("{}: {id:?} {op:?}", client.name), true, async move {
                one.run(id, op).await;
                one.scene.ops_done.set(one.scene.ops_done.get() + 1);
                one.in_flight.set(one.in_flight.get() - 1);
                one.news.notify_all();
            });
        }
    });
}

impl Client {
    async fn room(&self, depth: usize) {
        loop {
            let news = self.news.listen();
            if self.in_flight.get() < depth {
                return;
            }
            note("room among its operations", 0, 0);
            news.await;
        }
    }

    async fn run(&self, id: OpId, op: Op) {
        let who = format!("{} {id:?}", self.name);
        let scene = &self.scene;
        match op {
            Op::Write { range, fua } => {
                self.change(&who, Kind::Write, range, Zeroes { fua, ..Zeroes::default() }).await
            }
            Op::Zeroes { range, zeroes } => self.change(&who, Kind::Zeroes, range, zeroes).await,
            Op::Trim { range } => self.change(&who, Kind::Trim, range, Zeroes::default()).await,
            Op::Flush => self.flush(&who).await,
            Op::Read { range } => self.read(&who, range).await,
            Op::Status { range } => self.status(&who, range).await,
            Op::Reconnect => *self.session.borrow_mut() = None,
            Op::Create { release, on_full, scope } => {
                snapshots::create(scene, &who, Wanted { release, private: false, on_full, scope }).await;
            }
            Op::Delete { pick } => {
                if let Some(known) = scene.pick(pick, |known| !known.private) {
                    snapshots::delete(scene, &who, &known).await;
                }
            }
            Op::Release { pick, range } => snapshots::release_some(scene, &who, pick, range).await,
            Op::View { pick, ranges, stall, consumes } => {
                snapshots::view(scene, &who, pick, &ranges, stall, consumes).await;
            }
            Op::Ahead { range } => snapshots::ahead(scene, &who, range).await,
            Op::ViewStatus { pick, range } => snapshots::view_status(scene, &who, pick, range).await,
            Op::Backup { chunk, batch, dies_after, keep, rest_ns } => {
                let pace = mover::Pace { chunk, batch, dies_after, rest_ns };
                mover::backup(scene, &who, pace, keep).await;
            }
            Op::Outboard { chunk, boundary, pause_ns } => {
                outboard::copy(scene, &who, Pace { chunk, boundary, pause_ns }).await;
            }
            Op::Grow { size } => scene.grow(&who, size).await,
            Op::Fault(fault) => self.arm(fault),
            Op::Pause { ns } => sleep(ns).await,
        }
    }

    /// The daemon of the moment and this client's session there.
    async fn connect(&self) -> (Daemon, Rc<HostSession<SimPlatform>>) {
        let daemon = self.scene.daemon().await;
        let mut session = self.session.borrow_mut();
        match &*session {
            Some((process, session)) if *process == daemon.process => (daemon, Rc::clone(session)),
            _ => {
                let fresh = Rc::new(daemon.volume.session());
                *session = Some((daemon.process, Rc::clone(&fresh)));
                self.told.set(self.scene.races.own_failures().1);
                (daemon, fresh)
            }
        }
    }

    async fn change(&self, who: &str, kind: Kind, range: ByteRange, zeroes: Zeroes) {
        let scene = &self.scene;
        let (daemon, session) = self.connect().await;
        // What the volume has become longer by is not the session's.
        let Some(range) = known_to(&session, range) else { return };
        let id = scene.oracle.submit(kind, range, zeroes.fua && kind != Kind::Trim);
        let failures = || {
            let failed = |action| scene.base.failures(action);
            let of_base = failed(Action::Write) + failed(Action::WriteZeroes) + failed(Action::Discard);
            // One of the daemon's own flushes may be heard of later than it has failed.
            of_base + failed(Action::Flush) + scene.races.any_own_failures()
        };
        if kind == Kind::Zeroes && !scene.standing(|_| true).is_empty() {
            scene.races.reach(Race::ZeroesOverSnapshot);
        }
        let (before, doing) = (failures(), scene.races.begin(Doing::Change(range)));
        daemon.busy.set(daemon.busy.get() + 1);
        let result =
            scene.call_on(&daemon, who, attributed(id, request(session, id, kind, range, zeroes, scene))).await;
        drop(doing);
        scene.races.over(id);
        let Some(result) = result else { return };
        daemon.busy.set(daemon.busy.get() - 1);
        scene.announce();
        match result {
            Ok(()) => scene.oracle.finished(id, Outcome::Done),
            // Not done at all, and said so.
            Err(ExportError::Unsupported) if zeroes.fast => scene.oracle.finished(id, Outcome::Failed),
            // A snapshot was made to have it so.
            Err(ExportError::NoSpace) if scene.may_fail_writes() => scene.oracle.finished(id, Outcome::Failed),
            Err(error) => {
                if failures() == before {
                    fail(format!("{who}: {kind:?} of {range} failed without a fault of the base: {error}"));
                }
                scene.oracle.finished(id, Outcome::Failed);
            }
        }
    }

    async fn flush(&self, who: &str) {
        let (daemon, session) = self.connect().await;
        let token = self.scene.oracle.flush_begins();
        let failures = self.scene.base.failures(Action::Flush);
        let (own, mine) = (self.scene.races.own_failures().0, Rc::clone(&session));
        self.flushing.set(self.flushing.get() + 1);
        let alone = self.flushing.get() == 1;
        let result = self.scene.call_on(&daemon, who, async move { session.flush().await }).await;
        self.flushing.set(self.flushing.get() - 1);
        let same = matches!(&*self.session.borrow(), Some((_, now)) if Rc::ptr_eq(now, &mine));
        match &result {
            Some(Ok(())) if same && alone && self.flushing.get() == 0 && own > self.told.get() => {
                fail(format!(
                    "{who}: the flush succeeded, and nobody has told that one of the daemon's own had failed"
                ));
            }
            Some(Err(_)) if same => self.told.set(self.scene.races.own_failures().0),
            _ => {}
        }
        match result {
            None => {}
            // What a flush that failed was to write may never be there, whatever flushes succeed later.
            Some(Ok(())) if self.scene.base.failures(Action::Flush) == 0 => self.scene.oracle.flushed(&token),
            Some(Ok(())) => {}
            Some(Err(_))
                if self.scene.base.failures(Action::Flush) > failures || self.scene.races.any_own_failures() > 0 => {}
            Some(Err(error)) => fail(format!("{who}: the flush failed: {error}")),
        }
    }

    async fn read(&self, who: &str, range: ByteRange) {
        let scene = &self.scene;
        let (daemon, session) = self.connect().await;
        let Some(range) = known_to(&session, range) else { return };
        let (failures, token) = (scene.base.failures(Action::Read), scene.oracle.read_begins(range));
        let read = async move { session.read(range.start(), Buffer::zeroed(range.len() as usize)).await };
        match scene.call_on(&daemon, who, read).await {
            None => {}
            Some((bytes, Ok(()))) => scene.oracle.read_ends(&token, &bytes, who),
            Some((_, Err(_))) if scene.base.failures(Action::Read) != failures => {}
            Some((_, Err(error))) => {
                fail(format!("{who}: the read of {range} failed without a fault of the base: {error}"));
            }
        }
    }

    async fn status(&self, who: &str, range: ByteRange) {
        let scene = &self.scene;
        let (daemon, session) = self.connect().await;
        let Some(range) = known_to(&session, range) else { return };
        let token = scene.oracle.read_begins(range);
        match scene.call_on(&daemon, who, async move { session.block_status(range).await }).await {
            None => {}
            Some(Ok(extents)) => {
                check_cover(who, range, extents.iter().map(|extent| extent.range));
                for extent in extents.iter().filter(|extent| extent.hole) {
                    scene.oracle.hole_seen(&token, extent.range, who);
                }
            }
            Some(Err(error)) => fail(format!("{who}: the status of {range} failed: {error}")),
        }
    }

    fn arm(&self, fault: FaultOp) {
        let injection = |action, times, effect| Injection { action, skip: 0, times, effect };
        match fault {
            FaultOp::Base(action, times, effect) => self.scene.base.inject(injection(action, times, effect)),
            FaultOp::Cache(action, times, effect) => self.scene.cache.inject(injection(action, times, effect)),
            FaultOp::Corrupt(pick) => {
                if self.scene.cache.corrupt(pick) {
                    self.scene.corrupted.set(true);
                    self.scene.races.reach(Race::Corrupted);
                }
            }
            FaultOp::State(call, times) => self.scene.directory.inject(StorageFault { call, skip: 0, times }),
        }
    }
}

/// What of a range a session knows.
fn known_to(session: &HostSession<SimPlatform>, range: ByteRange) -> Option<ByteRange> {
    range.intersection(ByteRange::new(0, session.info().size))
}

/// The request of a change.
fn request(
    session: Rc<HostSession<SimPlatform>>,
    id: ChangeId,
    kind: Kind,
    range: ByteRange,
    zeroes: Zeroes,
    scene: &Scene,
) -> impl Future<Output = Result<(), ExportError>> + 'static {
    let cells = scene.plan.shape.cells;
    async move {
        match kind {
            Kind::Write => {
                let mut bytes = Buffer::zeroed(range.len() as usize);
                cells.fill(Version(id.0), range, &mut bytes);
                session.write(range.start(), bytes, zeroes.fua).await.1
            }
            Kind::Zeroes => session.write_zeroes(range, zeroes).await,
            Kind::Trim => session.trim(range, zeroes.fua).await,
            Kind::Loss => unreachable!("no client loses the machine's power"),
        }
    }
}

/// Extents are consecutive from the range's start and do not pass its end.
pub fn check_cover(who: &str, range: ByteRange, extents: impl Iterator<Item = ByteRange>) {
    let mut at = range.start();
    for extent in extents {
        if extent.start() != at || extent.is_empty() || extent.end() > range.end() {
            return fail(format!("{who}: extent {extent} does not follow {at} within {range}"));
        }
        at = extent.end();
    }
    if at == range.start() {
        fail(format!("{who}: no extent of {range}"));
    }
}
