//! Reads and writes without a snapshot.

use crate::bench::content::BLOCK;
use crate::bench::load::{End, Link, Load, Places};
use crate::bench::peers::{Io, Server};
use crate::bench::rows::{B_R1M, B_R32, B_W1, B_W1M, B_W32, D_R32, D_W1, D_W32, NBDKIT, QSD, TZERO};
use crate::bench::session::{VOLUME, carry_out, wrong};
use crate::bench::{Bench, failed};
use crate::ending::Ending;
use crate::nbd::Command;

/// Bytes of the volume that buffered loads use: so much is in the page cache.
const CACHED: u64 = 1 << 30;
const LARGE: u32 = 1 << 20;

/// A row's load.
struct Plain {
    measure: &'static str,
    command: Command,
    len: u32,
    depth: usize,
}

const fn plain(measure: &'static str, command: Command, len: u32, depth: usize) -> Plain {
    Plain { measure, command, len, depth }
}

const SMALL_BUFFERED: &[Plain] = &[
    plain(B_W1, Command::Write, BLOCK as u32, 1),
    plain(B_W32, Command::Write, BLOCK as u32, 32),
    plain(B_R32, Command::Read, BLOCK as u32, 32),
];
const LARGE_BUFFERED: &[Plain] = &[plain(B_W1M, Command::Write, LARGE, 8), plain(B_R1M, Command::Read, LARGE, 8)];
const DIRECT: &[Plain] = &[
    plain(D_W1, Command::Write, BLOCK as u32, 1),
    plain(D_W32, Command::Write, BLOCK as u32, 32),
    plain(D_R32, Command::Read, BLOCK as u32, 32),
];

impl Bench {
    pub(super) fn buffered(&mut self) -> Result<(), Ending> {
        self.compare(SMALL_BUFFERED, &[TZERO, NBDKIT, QSD], Io::Writeback)
    }

    /// After the small ones: what it leaves in the page cache makes those slow.
    pub(super) fn buffered_large(&mut self) -> Result<(), Ending> {
        self.compare(LARGE_BUFFERED, &[TZERO, NBDKIT], Io::Writeback)
    }

    pub(super) fn direct(&mut self) -> Result<(), Ending> {
        self.compare(DIRECT, &[TZERO, QSD], Io::Direct)
    }

    fn compare(&mut self, loads: &[Plain], subjects: &[&'static str], io: Io) -> Result<(), Ending> {
        let measures: Vec<_> = loads.iter().map(|load| load.measure).collect();
        for subject in self.subjects(subjects, &measures) {
            let loads: Vec<_> = loads.iter().filter(|load| self.wants((subject, load.measure))).collect();
            let span = match io {
                Io::Direct => {
                    self.material.cool().map_err(failed("emptying the page cache"))?;
                    self.material.size
                }
                Io::Writeback => {
                    let span = CACHED.min(self.material.size);
                    self.material.warm(span).map_err(failed("filling the page cache"))?;
                    span
                }
            };
            match subject {
                TZERO => {
                    self.begin(&self.material.path.clone(), io == Io::Direct)?;
                    let mut link = self.link(VOLUME)?;
                    let written = self.measure(subject, &mut link, &loads, span)?;
                    link.flush().map_err(failed("flushing"))?;
                    drop(link);
                    // What was flushed outlives the daemon.
                    self.end()?;
                    for (offset, content) in written {
                        let block = self.material.read(offset).map_err(failed("reading the file"))?;
                        if !content.is(&block, offset) {
                            return Err(wrong(subject, offset, "what was flushed before it was killed"));
                        }
                    }
                }
                _ => {
                    let directory = self.stage.path("");
                    let server = match subject {
                        NBDKIT => Server::nbdkit(&directory, &self.material.path)?,
                        _ => Server::qsd(&directory, &self.material.path, io)?,
                    };
                    self.commands.insert(server.command.clone());
                    let mut link = Link::open(&server.socket, server.export)
                        .map_err(failed(&format!("connecting to {subject}")))?;
                    self.measure(subject, &mut link, &loads, span)?;
                }
            }
        }
        Ok(())
    }

    /// Gives some of what was written last, and is there still.
    fn measure(
        &mut self,
        subject: &'static str,
        link: &mut Link,
        loads: &[&Plain],
        span: u64,
    ) -> Result<Vec<(u64, crate::bench::content::Content)>, Ending> {
        let mut written = Vec::new();
        for load in loads {
            let blocks = span / u64::from(load.len);
            let large = load.len == LARGE;
            let load = (
                load.measure,
                Load {
                    command: load.command,
                    len: load.len,
                    depth: load.depth,
                    places: if large { Places::Sequential(blocks) } else { Places::Random(blocks) },
                    end: End::After(self.time),
                    content: self.content(),
                },
            );
            let taken = carry_out(&self.stage, subject, link, &load.1)?;
            self.take((subject, load.0), taken.rate());
            if load.1.command == Command::Write {
                written = taken.sample.iter().map(|offset| (*offset, load.1.content)).collect();
            }
        }
        Ok(written)
    }
}
