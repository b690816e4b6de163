//! What the engine stands on: real in the daemon, virtual in the simulator.

use std::future::{Future, ready};
use std::time::Duration;

use tzero_block::BlockDevice;
use tzero_io::Storage;

use crate::ladder::Rung;
use crate::points::{Event, Planted, Point};

/// Devices, state, clocks and hooks of one volume.
pub trait Platform: Send + Sync + 'static {
    /// The host's bytes.
    type Base: BlockDevice;
    /// Payloads of originals.
    type Cache: BlockDevice;
    /// Map, snapshot table, released sets.
    type Storage: Storage;

    /// Nanoseconds on a clock that never goes back.
    fn monotonic_ns(&self) -> u64;

    /// Nanoseconds since the Unix epoch.
    fn wall_ns(&self) -> u64;

    /// A fresh id.
    fn random_id(&self) -> [u8; 16];

    /// Waits for so many nanoseconds.
    fn sleep(&self, ns: u64) -> impl Future<Output = ()> {
        tzero_io::sleep(Duration::from_nanos(ns))
    }

    /// Longest time in nanoseconds that a host change waits for one write to the cache. A cache that takes longer hangs: its snapshots break,
    /// the host goes on.
    fn longest_save(&self) -> u64 {
        10_000_000_000
    }

    /// Bytes of an increment of a change that is longer, where it may have to wait for its originals.
    fn increment(&self) -> u64 {
        1 << 20
    }

    /// A moment at which others may run.
    fn point(&self, _point: Point) -> impl Future<Output = ()> {
        ready(())
    }

    /// Whether the ladder for a full cache has this rung. Only tests take one out.
    fn has_rung(&self, _rung: Rung) -> bool {
        true
    }

    /// Whether a fault is planted.
    fn planted(&self, _fault: Planted) -> bool {
        false
    }

    /// Whether somebody wants to know how long hosts' requests take.
    fn is_watched(&self) -> bool {
        false
    }

    /// A request of a host has begun, of which [`Self::answered`] will tell.
    fn begun(&self) {}

    /// A request of a host took so many nanoseconds; `None`: it waited for something that a mover would have to do.
    fn answered(&self, _ns: Option<u64>) {}

    /// Something has happened.
    fn observe(&self, _event: Event) {}
}
