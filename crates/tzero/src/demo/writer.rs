//! Writers: each has a connection and blocks of its own, and remembers when every write was sent and acknowledged.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::demo::stamp::{BLOCK, Stamp, mixed};
use crate::nbd::Connection;

/// Writers at work.
pub(crate) const WRITERS: u32 = 4;
/// Writes that one writer has in flight.
const DEPTH: usize = 8;

/// One write, as its writer saw it. Times are nanoseconds since the story began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) block: u64,
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
}

/// All writes of one writer; the place in the list is the sequence of the stamp.
pub(crate) type Log = Vec<Written>;

/// The one writer of a block.
pub(crate) fn owner(block: u64) -> u32 {
    (block % u64::from(WRITERS)) as u32
}

/// When a writer is to do what.
pub(crate) struct Schedule {
    pub(crate) begun: Instant,
    /// Passed when every block has its first stamp.
    pub(crate) filled: Barrier,
    pub(crate) stop: AtomicBool,
}

impl Schedule {
    pub(crate) fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

struct Writer<'a> {
    connection: Connection,
    number: u32,
    blocks: u64,
    schedule: &'a Schedule,
    log: Log,
    /// Sequence of the write in flight, by its block: two writes of one block are never in flight together.
    in_flight: BTreeMap<u64, u32>,
    buffer: Vec<u8>,
}

/// Stamps every block of the writer once, meets the others, then overwrites blocks at random until told to stop.
pub(crate) fn run(socket: &Path, export: &str, number: u32, blocks: u64, schedule: &Schedule) -> io::Result<Log> {
    let opened = Connection::open(socket, export);
    let mut writer = match opened {
        Ok(connection) => Writer {
            connection,
            number,
            blocks,
            schedule,
            log: Log::new(),
            in_flight: BTreeMap::new(),
            buffer: vec![0; BLOCK],
        },
        Err(error) => {
            // Nobody may wait for this one.
            schedule.stop.store(true, Ordering::Release);
            schedule.filled.wait();
            return Err(error);
        }
    };
    let filled = writer.fill();
    if filled.is_err() {
        schedule.stop.store(true, Ordering::Release);
    }
    schedule.filled.wait();
    filled?;
    writer.overwrite()?;
    writer.connection.close()?;
    Ok(writer.log)
}

impl Writer<'_> {
    fn fill(&mut self) -> io::Result<()> {
        let mut block = u64::from(self.number);
        while block < self.blocks && !self.schedule.stopped() {
            self.write(block)?;
            block += u64::from(WRITERS);
        }
        self.drain()
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let own = self.blocks.saturating_sub(u64::from(self.number)).div_ceil(u64::from(WRITERS));
        let mut random = u64::from(self.number);
        while own > 0 && !self.schedule.stopped() {
            random = mixed(random);
            let block = u64::from(self.number) + (random % own) * u64::from(WRITERS);
            if self.in_flight.contains_key(&block) {
                self.receive()?;
            } else {
                self.write(block)?;
            }
        }
        self.drain()
    }

    fn write(&mut self, block: u64) -> io::Result<()> {
        while self.in_flight.len() >= DEPTH {
            self.receive()?;
        }
        let sequence = self.log.len() as u32;
        Stamp { writer: self.number, sequence, block }.write(&mut self.buffer);
        self.log.push(Written { block, sent: self.schedule.now(), acknowledged: u64::MAX });
        self.in_flight.insert(block, sequence);
        self.connection.send_write(block, block * BLOCK as u64, &self.buffer)
    }

    fn receive(&mut self) -> io::Result<()> {
        let block = self.connection.receive_reply()?;
        let sequence = self.in_flight.remove(&block).ok_or(io::ErrorKind::InvalidData)?;
        self.log[sequence as usize].acknowledged = self.schedule.now();
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        while !self.in_flight.is_empty() {
            self.receive()?;
        }
        Ok(())
    }
}
