//! Writes while snapshots stand.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use crate::bench::content::{BLOCK, Content};
use crate::bench::load::{End, Link, Load, Places};
use crate::bench::peers::{Io, Server};
use crate::bench::rows::{E_32, F_1, F_32, L_1, L_32, N_1, N_32, QSD, S_BYTES, SPACE, TZERO};
use crate::bench::session::{VOLUME, carry_out, wrong};
use crate::bench::{Bench, failed};
use crate::demo::mixed;
use crate::ending::Ending;
use crate::nbd::Command;

/// QEMU's unit: no two writes go to the same, so that each is a first touch for both.
const CLUSTER: u64 = 64 << 10;
/// Most writes of a run, with one in flight.
const MOST_ALONE: usize = 16384;
/// First touches whose originals are counted.
const COUNTED: usize = 10_000;
/// Snapshots that stand together.
const TOGETHER: usize = 8;
/// Blocks of a snapshot that are compared.
const COMPARED: usize = 256;

/// A queue depth, and the measures that are taken at it.
struct Depth {
    depth: usize,
    none: &'static str,
    first: &'static str,
    later: &'static str,
    eight: Option<&'static str>,
}

const DEPTHS: [Depth; 2] = [
    Depth { depth: 1, none: N_1, first: F_1, later: L_1, eight: None },
    Depth { depth: 32, none: N_32, first: F_32, later: L_32, eight: Some(E_32) },
];

fn writes(places: &[u64], depth: usize, content: Content) -> Load<'_> {
    Load { command: Command::Write, len: BLOCK as u32, depth, places: Places::Each(places), end: End::All, content }
}

/// `count` of so many places, in an order that has no pattern.
fn shuffled(of: u64, count: usize, seed: u64) -> Vec<u64> {
    let mut places: Vec<u64> = (0..of).collect();
    places.sort_unstable_by_key(|place| mixed(place ^ seed << 40));
    places.truncate(count);
    places
}

impl Bench {
    /// A block in each of the clusters.
    fn places(&self, depth: usize) -> Vec<u64> {
        let most = if depth == 1 { MOST_ALONE } else { usize::MAX } / if self.quick { 2 } else { 1 };
        let blocks = CLUSTER / BLOCK as u64;
        let seed = u64::from(self.round) << 8 | depth as u64;
        shuffled(self.material.size / CLUSTER, most, seed)
            .into_iter()
            .map(|cluster| cluster * blocks + mixed(cluster ^ seed) % blocks)
            .collect()
    }

    pub(super) fn touches(&mut self) -> Result<(), Ending> {
        for depth in &DEPTHS {
            let measures: Vec<_> = [depth.none, depth.first, depth.later].into_iter().chain(depth.eight).collect();
            for subject in self.subjects(&[TZERO, QSD], &measures) {
                let places = self.places(depth.depth);
                self.material.cool().map_err(failed("emptying the page cache"))?;
                match subject {
                    TZERO => self.touch(depth, &places)?,
                    _ => self.touch_qemu(depth, &places)?,
                }
            }
        }
        Ok(())
    }

    fn touch(&mut self, depth: &Depth, places: &[u64]) -> Result<(), Ending> {
        self.begin(&self.material.path.clone(), true)?;
        let mut link = self.link(VOLUME)?;
        let mut run = |bench: &mut Self, measure| {
            let load = writes(places, depth.depth, bench.content());
            let taken = carry_out(&bench.stage, TZERO, &mut link, &load)?;
            bench.take((TZERO, measure), taken.rate());
            Ok::<_, Ending>(())
        };
        run(self, depth.none)?;
        if let Some(eight) = depth.eight.filter(|eight| self.wants((TZERO, eight))) {
            (0..TOGETHER).try_for_each(|number| self.snapshot(&format!("e{number}")).map(drop))?;
            run(self, eight)?;
            (0..TOGETHER).try_for_each(|number| self.delete(&format!("e{number}")))?;
        }
        let before = self.some_of(places, VOLUME)?;
        self.snapshot("s")?;
        run(self, depth.first)?;
        self.expect("s", &before, "what was at time zero")?;
        if self.wants((TZERO, depth.later)) {
            run(self, depth.later)?;
        }
        link.flush().map_err(failed("flushing"))?;
        let now = self.some_of(places, VOLUME)?;
        drop(link);
        // The snapshot, and what was flushed, outlive the daemon.
        self.stage.kill();
        self.stage.serve()?;
        self.expect("s", &before, "what was at time zero, after it was killed,")?;
        if self.some_of(places, VOLUME)? != now {
            return Err(Ending::failed("WRONG DATA: what was flushed is not there after tzero was killed"));
        }
        self.end()
    }

    /// Some blocks of an export, with their byte offsets.
    fn some_of(&self, places: &[u64], export: &str) -> Result<Vec<(u64, Vec<u8>)>, Ending> {
        let mut link = self.link(export)?;
        let step = (places.len() / COMPARED).max(1);
        let read = |place: &u64| {
            let offset = place * BLOCK as u64;
            Ok((offset, link.read(offset).map_err(failed("reading from tzero"))?))
        };
        places.iter().step_by(step).map(read).collect()
    }

    fn expect(&self, snapshot: &str, before: &[(u64, Vec<u8>)], what: &str) -> Result<(), Ending> {
        let mut view = self.link(&format!("{VOLUME}@{snapshot}"))?;
        for (offset, block) in before {
            if view.read(*offset).map_err(failed("reading a snapshot"))? != *block {
                return Err(wrong("tzero's snapshot", *offset, what));
            }
        }
        Ok(())
    }

    fn touch_qemu(&mut self, depth: &Depth, places: &[u64]) -> Result<(), Ending> {
        let temporary = self.stage.path("originals.img");
        let sized = File::create(&temporary).and_then(|file| file.set_len(self.material.size));
        sized.map_err(failed("making QEMU's file for originals"))?;
        let mut server = Server::qsd(&self.stage.path(""), &self.material.path, Io::Direct)?;
        self.commands.insert(server.command.clone());
        server.copy_before_write(&temporary)?;
        let mut link = Link::open(&server.socket, server.export).map_err(failed("connecting to QEMU"))?;
        let load = writes(places, depth.depth, self.content());
        let taken = carry_out(&self.stage, QSD, &mut link, &load)?;
        self.take((QSD, depth.first), taken.rate());
        Ok(())
    }

    /// How much room originals take.
    pub(super) fn space(&mut self) -> Result<(), Ending> {
        if !self.wants((TZERO, S_BYTES)) {
            return Ok(());
        }
        self.begin(&self.material.path.clone(), true)?;
        self.snapshot("s")?;
        let places = shuffled(self.material.size / BLOCK as u64, COUNTED, 77);
        let load = writes(&places, 4, self.content());
        let taken = carry_out(&self.stage, TZERO, &mut self.link(VOLUME)?, &load)?;
        let originals = self.stage.path(&format!("state/volumes/{VOLUME}/originals"));
        let blocks = originals.metadata().map_err(failed("looking at the original cache"))?.blocks();
        self.take((TZERO, S_BYTES), (blocks * 512) as f64);
        self.take((SPACE, S_BYTES), (taken.requests() * BLOCK) as f64);
        self.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_place_is_visited_twice() {
        let places = shuffled(1000, 600, 5);
        assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), 600);
        assert!(places.iter().all(|place| *place < 1000) && !places.is_sorted());
        assert_ne!(places, shuffled(1000, 600, 6));
    }
}
