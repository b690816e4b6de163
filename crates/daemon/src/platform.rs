//! What the engine stands on in the daemon: real files, real clocks, and the places where a test may kill the process.

use std::future::{Future, ready};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tzero_block::Concat;
use tzero_engine::{Platform, Point, Rung};
use tzero_io::{Directory, Gauge, system};
use tzero_nbd::AnyDevice;
use tzero_originals::SnapshotId;

use crate::cache_device::CacheDevice;

/// Environment variable of crash tests: `POINT:N` kills the daemon, as `kill -9` does, when it passes the point for the Nth time.
const CRASH: &str = "TZERO_TEST_CRASH";

/// Environment variable of tests of a loss of power: the id that the running boot is taken to have, 32 hexadecimal digits.
const BOOT: &str = "TZERO_TEST_BOOT";

/// Id of the running boot.
pub(crate) fn boot() -> io::Result<[u8; 16]> {
    let Ok(text) = std::env::var(BOOT) else { return system::boot_id() };
    let id = SnapshotId::parse(&text).map(|id| id.0);
    id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{BOOT} is not 32 hexadecimal digits")))
}

/// Moments outside the engine, between two steps whose order matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A volume that gets another base is closed; the old one is on record.
    RebaseClosed,
    /// The new base is on record; nothing is open.
    RebaseRecorded,
    /// That a base is to have another size is on record; it has the old one.
    ResizeIntended,
    /// It has the new one; the record allows both.
    ResizeDone,
    /// The new size is on record; nobody has heard of it.
    ResizeRecorded,
}

impl Moment {
    pub(crate) const ALL: &[(&str, Self)] = &[
        ("rebase-closed", Self::RebaseClosed),
        ("rebase-recorded", Self::RebaseRecorded),
        ("resize-intended", Self::ResizeIntended),
        ("resize-done", Self::ResizeDone),
        ("resize-recorded", Self::ResizeRecorded),
    ];
}

/// A moment of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Engine(Point),
    Daemon(Moment),
}

impl When {
    fn parse(name: &str) -> Option<Self> {
        let engine = Point::ALL.iter().find(|point| point.name() == name).map(|point| Self::Engine(*point));
        engine.or_else(|| Moment::ALL.iter().find(|(other, _)| *other == name).map(|(_, it)| Self::Daemon(*it)))
    }
}

/// Where a crash test wants the process to die.
#[derive(Debug)]
pub(crate) struct CrashPlan {
    when: When,
    left: AtomicU64,
}

/// Why a crash plan is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{CRASH}={0:?} is not POINT:N with a point of the engine or the daemon and a number from 1")]
pub struct CrashPlanError(String);

impl CrashPlan {
    /// The plan of the environment, if there is one.
    pub(crate) fn from_environment() -> Result<Option<Arc<Self>>, CrashPlanError> {
        match std::env::var(CRASH) {
            Ok(text) if !text.is_empty() => Self::parse(&text).map(|plan| Some(Arc::new(plan))),
            _ => Ok(None),
        }
    }

    fn parse(text: &str) -> Result<Self, CrashPlanError> {
        let bad = || CrashPlanError(text.into());
        let (name, count) = text.rsplit_once(':').ok_or_else(bad)?;
        let when = When::parse(name).ok_or_else(bad)?;
        let left = count.parse().ok().filter(|count| *count > 0).ok_or_else(bad)?;
        Ok(Self { when, left: AtomicU64::new(left) })
    }

    /// The daemon is at this moment.
    pub(crate) fn pass_moment(&self, moment: Moment) {
        self.pass(When::Daemon(moment));
    }

    fn pass(&self, when: When) {
        if when == self.when && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            system::kill_self();
        }
    }
}

/// Environment variable of tests of the ladder: the names of rungs that it is to do without, with commas between them.
const WITHOUT: &str = "TZERO_TEST_WITHOUT";

/// Rungs that a test takes out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Without(Arc<[Rung]>);

/// Why rungs are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{WITHOUT}={0:?} is not a list of rungs: hurry, reuse, slow-down, wait, break-largest, with commas")]
pub struct WithoutError(String);

impl Without {
    /// Those of the environment.
    pub(crate) fn from_environment() -> Result<Self, WithoutError> {
        Self::parse(&std::env::var(WITHOUT).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self, WithoutError> {
        // To hurry is the mover's.
        let words = text.split(',').filter(|word| !word.is_empty() && *word != "hurry");
        let rungs = words.map(|word| Rung::ALL.iter().find(|(name, _)| *name == word).map(|(_, rung)| *rung));
        Ok(Self(rungs.collect::<Option<_>>().ok_or_else(|| WithoutError(text.into()))?))
    }
}

/// The engine of one volume.
pub(crate) type Engine = tzero_engine::Volume<Production>;

/// The real platform.
pub(crate) struct Production {
    pub(crate) crash: Option<Arc<CrashPlan>>,
    pub(crate) without: Without,
    /// How long hosts' requests take; none where the system has no memory for it.
    pub(crate) gauge: Option<Arc<Gauge>>,
}

impl Platform for Production {
    type Base = Concat<AnyDevice>;
    type Cache = CacheDevice;
    type Storage = Directory;

    fn monotonic_ns(&self) -> u64 {
        system::monotonic_ns()
    }

    fn wall_ns(&self) -> u64 {
        system::wall_ns()
    }

    fn random_id(&self) -> [u8; 16] {
        system::random_id()
    }

    fn has_rung(&self, rung: Rung) -> bool {
        !self.without.0.contains(&rung)
    }

    fn is_watched(&self) -> bool {
        self.gauge.as_ref().is_some_and(|gauge| gauge.is_watched())
    }

    fn begun(&self) {
        if let Some(gauge) = &self.gauge {
            gauge.begin();
        }
    }

    fn answered(&self, ns: Option<u64>) {
        match (&self.gauge, ns) {
            (Some(gauge), Some(ns)) => gauge.count(ns),
            (Some(gauge), None) => gauge.excuse(),
            (None, _) => {}
        }
    }

    fn point(&self, point: Point) -> impl Future<Output = ()> {
        if let Some(crash) = &self.crash {
            crash.pass(When::Engine(point));
        }
        ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_have_names() {
        let without = Without::parse("wait,hurry,reuse").unwrap();
        assert_eq!(*without.0, [Rung::Wait, Rung::Reuse]);
        assert!(Without::parse("").unwrap().0.is_empty());
        assert!(Without::parse("wait,nothing").is_err() && Without::parse("wait ").is_err());
    }

    #[test]
    fn plans_name_a_point_and_a_count() {
        for point in Point::ALL {
            let plan = CrashPlan::parse(&format!("{}:3", point.name())).unwrap();
            assert_eq!((plan.when, plan.left.into_inner()), (When::Engine(*point), 3));
        }
        for (name, moment) in Moment::ALL {
            assert_eq!(CrashPlan::parse(&format!("{name}:1")).unwrap().when, When::Daemon(*moment));
        }
        for bad in ["", "entry", "entry:0", "entry:x", "nowhere:1", ":1"] {
            assert!(CrashPlan::parse(bad).is_err(), "{bad}");
        }
    }
}
