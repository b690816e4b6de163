//! A device that fails when told to, for tests.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tzero_io::Buffer;

use crate::{Action, BlockDevice, ByteRange, Error, Extent, Fault, Geometry, Zeroes};

/// What happens to a matching request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// It fails with this error number and does nothing.
    Fail(i32),
    /// Only its first bytes are done, then it fails with `EIO`.
    Short(usize),
    /// The way to the device is broken ([`Fault::Link`]): it does nothing.
    Unreachable,
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    action: Action,
    range: ByteRange,
    injected: Injected,
    /// How many more matching requests it hits.
    left: u64,
    /// How many matching requests pass first.
    after: u64,
}

/// Wraps a device and injects faults by rule.
#[derive(Debug)]
pub struct Faulty<D> {
    device: D,
    rules: Mutex<Vec<Rule>>,
    zeroes_slowly: AtomicBool,
}

impl<D: BlockDevice> Faulty<D> {
    /// Wraps `device`; without rules it behaves like it.
    pub fn new(device: D) -> Self {
        Self { device, rules: Mutex::default(), zeroes_slowly: AtomicBool::new(false) }
    }

    /// From now on it writes zeroes out.
    pub fn zero_slowly(&self) {
        self.zeroes_slowly.store(true, Ordering::Relaxed);
    }

    /// The device inside.
    pub fn inner(&self) -> &D {
        &self.device
    }

    /// From the `after`-th on, the next `count` requests of `action` that touch `range` meet `injected`.
    ///
    /// # Panics
    /// If a thread panicked inside the device.
    pub fn inject(&self, action: Action, range: ByteRange, injected: Injected, after: u64, count: u64) {
        let rule = Rule { action, range, injected, left: count, after };
        self.rules.lock().expect("nothing panics under this lock").push(rule);
    }

    /// Forgets all rules.
    ///
    /// # Panics
    /// If a thread panicked inside the device.
    pub fn heal(&self) {
        self.rules.lock().expect("nothing panics under this lock").clear();
    }

    fn verdict(&self, action: Action, range: ByteRange) -> Option<Injected> {
        let mut rules = self.rules.lock().expect("nothing panics under this lock");
        let rule = rules.iter_mut().find(|rule| {
            rule.action == action && rule.left > 0 && (action == Action::Flush || rule.range.overlaps(range))
        })?;
        if rule.after > 0 {
            rule.after -= 1;
            return None;
        }
        rule.left -= 1;
        Some(rule.injected)
    }

    fn simple(&self, action: Action, range: ByteRange) -> Result<(), Error> {
        match self.verdict(action, range) {
            None => Ok(()),
            Some(Injected::Fail(code)) => Err(failure(action, range, code)),
            Some(Injected::Short(_)) => Err(failure(action, range, EIO)),
            Some(Injected::Unreachable) => Err(unreachable(action, range)),
        }
    }
}

const EIO: i32 = 5;

fn failure(action: Action, range: ByteRange, code: i32) -> Error {
    Error::system(action, range.start(), range.len(), io::Error::from_raw_os_error(code))
}

fn unreachable(action: Action, range: ByteRange) -> Error {
    Error::new(action, range.start(), range.len(), Fault::Link(io::ErrorKind::ConnectionReset.into()))
}

impl<D: BlockDevice> BlockDevice for Faulty<D> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        let range = ByteRange::new(offset, buffer.len() as u64);
        match self.simple(Action::Read, range) {
            Ok(()) => self.device.read(offset, buffer).await,
            Err(error) => (buffer, Err(error)),
        }
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        let range = ByteRange::new(offset, buffer.len() as u64);
        match self.verdict(Action::Write, range) {
            None => self.device.write(offset, buffer, fua).await,
            Some(Injected::Fail(code)) => (buffer, Err(failure(Action::Write, range, code))),
            Some(Injected::Unreachable) => (buffer, Err(unreachable(Action::Write, range))),
            Some(Injected::Short(len)) => {
                let part = Buffer::copy_of(&buffer[..len.min(buffer.len())]);
                let (_, result) = self.device.write(offset, part, fua).await;
                (buffer, result.and(Err(failure(Action::Write, range, EIO))))
            }
        }
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.simple(Action::WriteZeroes, range)?;
        if !self.can_zero_fast(range, zeroes) && zeroes.fast {
            return Err(Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported));
        }
        self.device.write_zeroes(range, zeroes).await
    }

    fn can_zero_fast(&self, range: ByteRange, zeroes: Zeroes) -> bool {
        !self.zeroes_slowly.load(Ordering::Relaxed) && self.device.can_zero_fast(range, zeroes)
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.simple(Action::Discard, range)?;
        self.device.discard(range).await
    }

    async fn flush(&self) -> Result<(), Error> {
        self.simple(Action::Flush, ByteRange::new(0, 0))?;
        self.device.flush().await
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.simple(Action::Extents, range)?;
        self.device.extents(range).await
    }

    async fn prefetch(&self, range: ByteRange) {
        self.device.prefetch(range).await;
    }
}
