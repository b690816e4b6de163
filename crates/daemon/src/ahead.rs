//! Originals are saved ahead of the host's changes (R14): a change that comes later waits for nothing.
//!
//! ```text
//!  a snapshot stands ──▶ piece by piece from the start ──▶ all gone through ──▶ idle until a younger one stands
//!                               │ cache half full ──▶ waits for space
//! ```
//!
//! The host comes first, as before a mover: a piece is small, since a change of the same grains waits for it; after each piece it rests for as
//! long as that took at least, and as long as the rate asks for. The half of the cache that it never takes is for the host's changes.

use std::sync::Mutex;
use std::time::Duration;

use tzero_api::Rate;
use tzero_api::control::{AheadState, SaveAhead};
use tzero_block::ByteRange;
use tzero_engine::{SnapshotInfo, SnapshotState};
use tzero_io::{system, yield_now};
use tzero_originals::Epoch;

use crate::platform::Engine;

/// Bytes that are saved without a rest.
const PIECE: u64 = 256 << 10;
/// How often to look for a younger snapshot, and for space.
const LOOK: Duration = Duration::from_millis(500);

/// How far a volume's originals are saved ahead.
#[derive(Default)]
pub(crate) struct Ahead(Mutex<(AheadState, u64)>);

impl Ahead {
    /// Saves ahead for as long as it is polled.
    pub(crate) async fn save(&self, engine: &Engine, rate: Rate) {
        let mut done = None;
        loop {
            let newest = newest(engine);
            if newest.is_none() || newest == done {
                self.is(AheadState::Idle, if newest.is_none() { 0 } else { engine.size() });
            } else if self.go_through(engine, rate, newest).await {
                done = newest;
                continue;
            }
            tzero_io::sleep(LOOK).await;
        }
    }

    /// Saves what the snapshots need up to the newest; `false` if there is another newest meanwhile.
    async fn go_through(&self, engine: &Engine, rate: Rate, newest_then: Option<Epoch>) -> bool {
        let mut looked = system::monotonic_ns();
        let mut at = 0;
        while let Some(piece) = ByteRange::new(0, engine.size()).intersection(ByteRange::new(at, PIECE)) {
            let (begun, before) = (system::monotonic_ns(), engine.saved_ahead().bytes());
            at = engine.save_ahead(piece).await;
            let (took, saved) = (system::monotonic_ns() - begun, engine.saved_ahead().bytes() - before);
            if at < piece.end() {
                self.is(AheadState::WaitsForSpace, at);
                tzero_io::sleep(LOOK).await;
            } else if saved > 0 {
                self.is(AheadState::Saving, at);
                tzero_io::sleep(rest(took, saved, rate)).await;
            } else {
                yield_now().await;
            }
            if system::monotonic_ns() - looked > LOOK.as_nanos() as u64 {
                looked = system::monotonic_ns();
                if newest(engine) != newest_then {
                    return false;
                }
            }
        }
        true
    }

    fn is(&self, state: AheadState, reached: u64) {
        *self.0.lock().expect("nothing panics under this lock") = (state, reached);
    }

    /// As the control interface describes it.
    pub(crate) fn describe(&self, rate: Rate, engine: &Engine) -> SaveAhead {
        let (state, reached) = *self.0.lock().expect("nothing panics under this lock");
        SaveAhead { rate: rate.0, saved: engine.saved_ahead().bytes(), reached, state }
    }
}

/// The epoch of the youngest snapshot that originals are saved for.
fn newest(engine: &Engine) -> Option<Epoch> {
    let live = |info: &SnapshotInfo| info.state == SnapshotState::Live;
    engine.snapshots().iter().filter(|info| live(info)).map(|info| info.epoch).max()
}

/// The rest after a piece.
fn rest(took: u64, saved: u64, rate: Rate) -> Duration {
    let due = u128::from(saved) * 1_000_000_000 / u128::from(rate.0.max(1));
    Duration::from_nanos(took.max(u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(took)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_as_long_as_it_works_and_as_the_rate_asks() {
        assert_eq!(rest(1_000, 4096, Rate(1 << 40)), Duration::from_nanos(1_000));
        assert_eq!(rest(1_000_000, 1 << 20, Rate(1 << 20)), Duration::from_nanos(999_000_000));
        assert!(rest(0, u64::MAX, Rate(1)) > Duration::from_secs(1 << 30));
    }
}
