//! What of a disk is durable, and what a loss of power leaves of the rest.
//!
//! A sector that is not here is durable as it is. One that is has images: the first is certain to be there at least, each later one is what
//! a request left in it.

use std::collections::{BTreeMap, BTreeSet};

use tzero_block::ByteRange;

use super::SECTOR;
use crate::executor::serial;
use crate::power::Cut;

/// A sector at one moment.
#[derive(Clone)]
pub(super) struct Image {
    pub(super) bytes: Vec<u8>,
    pub(super) allocated: bool,
}

struct Later {
    image: Image,
    request: u64,
    number: u64,
    /// A flush has failed since: no later one covers it.
    doubtful: bool,
}

struct Versions {
    floor: Image,
    later: Vec<Later>,
}

/// What a flush covers: what was complete when it began.
#[derive(Clone, Debug, Default)]
pub(super) struct Covered {
    before: u64,
    in_flight: BTreeSet<u64>,
}

#[derive(Default)]
pub(super) struct Platter {
    sectors: BTreeMap<usize, Versions>,
    /// Requests that change something and are not complete.
    in_flight: BTreeSet<u64>,
}

impl Platter {
    pub(super) fn begins(&mut self, request: u64) {
        self.in_flight.insert(request);
    }

    /// A request is complete; durable, with `fua`, in these sectors.
    pub(super) fn completes(&mut self, request: u64, fua: Option<std::ops::Range<usize>>) {
        self.in_flight.remove(&request);
        for sector in fua.into_iter().flatten() {
            self.raise(sector, |later| later.request == request);
        }
    }

    /// Whether the sector is not durable as it is.
    pub(super) fn knows(&self, sector: usize) -> bool {
        self.sectors.contains_key(&sector)
    }

    /// A request is about to change a sector, durable so far, that is like this now.
    pub(super) fn touch(&mut self, sector: usize, now: Image) {
        self.sectors.insert(sector, Versions { floor: now, later: Vec::new() });
    }

    /// A request has left a sector, which was touched before, like this.
    pub(super) fn log(&mut self, sector: usize, request: u64, image: Image) {
        let later = Later { image, request, number: serial(), doubtful: false };
        self.sectors.get_mut(&sector).expect("touched before").later.push(later);
    }

    pub(super) fn flush_begins(&self) -> Covered {
        Covered { before: serial(), in_flight: self.in_flight.clone() }
    }

    pub(super) fn flushed(&mut self, covered: &Covered) {
        let sectors: Vec<usize> = self.sectors.keys().copied().collect();
        for sector in sectors {
            self.raise(sector, |later| {
                later.number < covered.before && !later.doubtful && !covered.in_flight.contains(&later.request)
            });
        }
    }

    /// What a failed flush was to write is given up: it may never be written.
    pub(super) fn flush_failed(&mut self) {
        for later in self.sectors.values_mut().flat_map(|versions| &mut versions.later) {
            later.doubtful = true;
        }
    }

    /// The last image that `is_durable` says so of, and nothing before it, is certain from now on.
    fn raise(&mut self, sector: usize, is_durable: impl Fn(&Later) -> bool) {
        let Some(versions) = self.sectors.get_mut(&sector) else { return };
        if let Some(last) = versions.later.iter().rposition(is_durable) {
            versions.floor = versions.later.drain(..=last).next_back().expect("it was just found").image;
        }
        if versions.later.is_empty() {
            self.sectors.remove(&sector);
        }
    }

    /// These sectors are gone, durably.
    pub(super) fn forget(&mut self, sectors: impl Iterator<Item = usize>) {
        sectors.for_each(|sector| {
            self.sectors.remove(&sector);
        });
    }

    /// Numbers of what is logged.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.sectors.values().flat_map(|versions| versions.later.iter().map(|later| later.number))
    }

    /// The power is lost: what each sector that is not durable is like afterwards.
    pub(super) fn cut(&mut self, cut: &Cut) -> Vec<(usize, Image)> {
        self.in_flight.clear();
        let sectors = std::mem::take(&mut self.sectors);
        let image = |versions: Versions| {
            let numbers: Vec<u64> = versions.later.iter().map(|later| later.number).collect();
            match cut.prefix(&numbers).checked_sub(1) {
                None => versions.floor,
                Some(last) => versions.later.into_iter().nth(last).expect("a prefix of what there is").image,
            }
        };
        sectors.into_iter().map(|(sector, versions)| (sector, image(versions))).collect()
    }
}

/// The sectors that a range touches, each with its bytes.
pub(super) fn sectors_of(range: ByteRange) -> impl Iterator<Item = usize> {
    (range.start() / SECTOR) as usize..range.end().div_ceil(SECTOR) as usize
}
