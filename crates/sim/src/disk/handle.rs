//! A process's use of a disk: the block device that the engine sees.

use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};

use tzero_block::{Action, BlockDevice, ByteRange, Error, Extent, Fault, Geometry, Zeroes};
use tzero_io::Buffer;

use super::platter::Covered;
use super::request::{Request, Work};
use super::{Disk, name_of};
use crate::executor::{Crash, Process, moment, note};

/// A process's open handle of a [`Disk`].
pub struct DiskHandle {
    disk: Disk,
    alignment: u32,
    process: Process,
}

/// Marks the request as abandoned when its future is dropped before it completed.
struct InFlight<'a> {
    disk: &'a Disk,
    id: u64,
    over: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.disk.state();
        let done = state.requests.get(&self.id).is_some_and(|request| request.done);
        if done {
            state.requests.remove(&self.id);
        } else if let Some(request) = state.requests.get_mut(&self.id) {
            request.abandoned = true;
            request.waker = None;
        }
    }
}

impl DiskHandle {
    pub(super) fn new(disk: Disk, alignment: u32, process: Process) -> Self {
        Self { disk, alignment, process }
    }

    /// The disk behind it.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Runs one request to its end.
    async fn run(&self, range: ByteRange, work: Work, fua: bool) -> Request {
        let action = work.action();
        if moment(self.process, Crash::Submit) {
            return std::future::pending().await;
        }
        let (id, delay) = self.disk.state().submit(self.process, range, work, fua);
        let mut in_flight = InFlight { disk: &self.disk, id, over: false };
        self.disk.schedule(id, delay);
        moment(self.process, Crash::Submit);
        note(name_of(action), range.start(), range.len());
        let request = poll_fn(|cx| {
            let mut state = self.disk.state();
            let Some(request) = state.requests.get_mut(&id) else { return Poll::Pending };
            if request.done {
                return Poll::Ready(state.requests.remove(&id).expect("it was just seen"));
            }
            let waker: &Waker = cx.waker();
            if !request.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                request.waker = Some(waker.clone());
            }
            Poll::Pending
        })
        .await;
        in_flight.over = true;
        request
    }

    fn result(request: &Request) -> Result<(), Error> {
        request.result.map_err(|code| {
            let source = io::Error::from_raw_os_error(code);
            Error::system(request.action(), request.range.start(), request.range.len(), source)
        })
    }
}

impl BlockDevice for DiskHandle {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.disk.size(), alignment: self.alignment }
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry().check(Action::Read, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        let mut request = self.run(range, Work::Read(buffer), false).await;
        (request.take_buffer(), Self::result(&request))
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry().check(Action::Write, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        let mut request = self.run(range, Work::Write(buffer), fua).await;
        (request.take_buffer(), Self::result(&request))
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        let range = self.geometry().check(Action::WriteZeroes, range.start(), range.len())?;
        if zeroes.fast && !self.disk.state().options.fast_zeroes {
            return Err(Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported));
        }
        Self::result(&self.run(range, Work::Zero { unmap: zeroes.may_unmap }, zeroes.fua).await)
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        let range = self.geometry().check(Action::Discard, range.start(), range.len())?;
        Self::result(&self.run(range, Work::Discard, false).await)
    }

    async fn flush(&self) -> Result<(), Error> {
        Self::result(&self.run(ByteRange::new(0, 0), Work::Flush(Covered::default()), false).await)
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        let range = self.geometry().check(Action::Extents, range.start(), range.len())?;
        let mut request = self.run(range, Work::Extents(Vec::new()), false).await;
        Self::result(&request).map(|()| request.take_extents())
    }
}
