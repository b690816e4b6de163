//! How long a snapshot holds the host up, whatever the size of the volume.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::bench::content::BLOCK;
use crate::bench::load::{End, Load, Places};
use crate::bench::rows::{T_AFTER_1G, T_AFTER_1T, T_BEFORE_1G, T_BEFORE_1T, T_PAUSE_1G, T_PAUSE_1T, TZERO, median};
use crate::bench::session::{VOLUME, carry_out, look_again};
use crate::bench::{Bench, failed};
use crate::ending::Ending;
use crate::nbd::Command;

/// Snapshots that are taken of each volume.
const TAKEN: usize = 10;
/// Time before and after each that is looked at.
const LOOKED_AT: Duration = Duration::from_secs(1);
/// Writes that are spread over the volume first.
const SPREAD: Duration = Duration::from_secs(1);
/// Writes a second while snapshots are taken, and how many are in flight.
const OFFERED: u32 = 2000;
const OFFERED_DEPTH: usize = 4;

struct Size {
    bytes: u64,
    pause: &'static str,
    before: &'static str,
    after: &'static str,
}

const SIZES: [Size; 2] = [
    Size { bytes: 1 << 30, pause: T_PAUSE_1G, before: T_BEFORE_1G, after: T_AFTER_1G },
    Size { bytes: 1 << 40, pause: T_PAUSE_1T, before: T_BEFORE_1T, after: T_AFTER_1T },
];

impl Bench {
    pub(super) fn pauses(&mut self) -> Result<(), Ending> {
        for size in &SIZES {
            if self.wants_any(TZERO, &[size.pause, size.before, size.after]) {
                self.pauses_of(size)?;
            }
        }
        Ok(())
    }

    fn pauses_of(&mut self, size: &Size) -> Result<(), Ending> {
        let base = self.stage.path("sparse.img");
        File::create(&base).and_then(|file| file.set_len(size.bytes)).map_err(failed("making a sparse file"))?;
        self.begin(&base, false)?;
        let mut link = self.link(VOLUME)?;
        let mut load = Load {
            command: Command::Write,
            len: BLOCK as u32,
            depth: OFFERED_DEPTH,
            places: Places::Random(size.bytes / BLOCK as u64),
            end: End::After(SPREAD),
            content: self.content(),
        };
        carry_out(&self.stage, TZERO, &mut link, &load)?;
        let stop = AtomicBool::new(false);
        load.end = End::When(&stop);
        let (taken, pauses, moments) = thread::scope(|scope| {
            let begun = Instant::now();
            let writing = scope.spawn(|| link.pace(&load, OFFERED, &stop));
            let (mut pauses, mut moments) = (Vec::new(), Vec::new());
            let mut snapshots = || -> Result<(), Ending> {
                for _ in 0..TAKEN {
                    thread::sleep(LOOKED_AT);
                    let before = begun.elapsed().as_secs_f64();
                    let snapshot = self.snapshot("s")?;
                    moments.push((before, begun.elapsed().as_secs_f64()));
                    pauses.push(snapshot["snapshot"]["pause_us"].as_f64().unwrap_or(f64::NAN));
                    thread::sleep(LOOKED_AT);
                    self.delete("s")?;
                }
                Ok(())
            };
            let done = snapshots();
            stop.store(true, Ordering::Release);
            let taken = writing.join().expect("a host does not panic").map_err(failed("the load"))?;
            done.map(|()| (taken, pauses, moments))
        })?;
        look_again(TZERO, &mut link, &load, &taken)?;
        let second = LOOKED_AT.as_secs_f64();
        let of = |figures: Vec<f64>| median(figures).unwrap_or(f64::NAN);
        let before = moments.iter().map(|(from, _)| taken.between(from - second, *from).percentile(99.9)).collect();
        // The snapshot was taken at some time in between.
        let after = moments.iter().map(|(from, to)| taken.between(*from, to + second).percentile(99.9)).collect();
        self.take((TZERO, size.pause), pauses.into_iter().fold(0.0, f64::max));
        self.take((TZERO, size.before), of(before));
        self.take((TZERO, size.after), of(after));
        drop(link);
        self.end()
    }
}
