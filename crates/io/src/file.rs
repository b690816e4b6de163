//! A file or block device whose reads and writes do not block the thread for long.
//!
//! Buffered requests below [`INLINE`] are done at once where the page cache serves them; a thread hop would cost more than the
//! copy. Everything else goes to the ring; the copying of large buffered requests to the kernel's own workers.
//!
//! A device may hang, and what it was given then does not come back. The kernel's workers of a ring are shared by all files of the thread, so
//! each file has gates in front of them: [`MOST_WORKERS`] requests that are sure to take a worker, [`MOST_REQUESTS`] that take one only
//! where the device's own queue is full. The reactor allows so many workers that several hung files leave enough for the others
//! (`WORKERS` there). Where there is no ring, each file has threads of its own ([`mod@crate::blocking`]).

#![allow(unsafe_code)]

use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::{opcode, squeue, types};

use crate::blocking::Pool;
use crate::buffer::Buffer;
use crate::descriptor::{check, check_len};
use crate::gate::{Gate, Pass};
use crate::runtime::reactor;
use crate::system;

/// Buffered requests of fewer bytes are done on the spot.
const INLINE: usize = 64 << 10;
/// Requests of one file at one time, of all threads, that each keep a worker of the kernel busy.
const MOST_WORKERS: usize = 16;
/// Calls on ranges that may take long by themselves (zeroing, discarding), of one file at one time: the others find workers and threads.
const MOST_LONG: usize = 4;
/// All other requests of one file at one time that the ring is given.
const MOST_REQUESTS: usize = 256;

/// Reads leave no page behind that was not there before.
const RWF_DONTCACHE: i32 = 0x80;

/// A stretch of a file, in bytes; or of all of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    offset: u64,
    len: u64,
}

/// What reads leave in the page cache.
#[derive(Debug)]
enum Trace {
    /// What the kernel thinks will be wanted again.
    Kept,
    /// What was there before, no more: whoever else uses the file finds its pages as it left them.
    None {
        /// The kernel (before 6.14) or the file system has no reads that leave nothing.
        by_hand: AtomicBool,
    },
}

#[derive(Debug)]
struct Opened {
    file: fs::File,
    trace: Trace,
    pool: Pool,
    workers: Arc<Gate>,
    long: Arc<Gate>,
    requests: Arc<Gate>,
}

/// An open file or block device. Cheap to clone.
#[derive(Clone, Debug)]
pub struct File {
    opened: Arc<Opened>,
    direct: bool,
}

impl File {
    /// Takes over an open file; `direct` says whether it was opened with `O_DIRECT`.
    pub fn new(file: fs::File, direct: bool) -> Self {
        Self::with_trace(file, direct, Trace::Kept)
    }

    /// As [`File::new`], for reads that are to leave the page cache as it was: neither do they fill it, nor do they push out what others
    /// have there. Where the kernel cannot do it the pages of ranges of which none was there are dropped after they were read; where it
    /// cannot even tell, reads are as always.
    pub fn without_trace(file: fs::File, direct: bool) -> Self {
        Self::with_trace(file, direct, Trace::None { by_hand: AtomicBool::new(false) })
    }

    fn with_trace(file: fs::File, direct: bool, trace: Trace) -> Self {
        let opened = Opened {
            file,
            trace,
            pool: Pool::default(),
            workers: Gate::new(MOST_WORKERS),
            long: Gate::new(MOST_LONG),
            requests: Gate::new(MOST_REQUESTS),
        };
        Self { opened: Arc::new(opened), direct }
    }

    /// Whether the page cache is bypassed.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The file itself.
    pub fn get(&self) -> &fs::File {
        &self.opened.file
    }

    /// Runs `call` on a thread that may block. The threads are the file's own: should it hang, no other file waits for one. A dropped
    /// future leaves the call running.
    ///
    /// # Panics
    /// If `call` panics.
    pub async fn blocking<T: Send + 'static>(&self, call: impl FnOnce(&fs::File) -> T + Send + 'static) -> T {
        let opened = Arc::clone(&self.opened);
        self.opened.pool.run(move || call(&opened.file)).await
    }

    /// The same for a call that may take long by itself: few of a file run at one time, so that short ones find a thread.
    ///
    /// # Panics
    /// If `call` panics.
    pub async fn blocking_long<T: Send + 'static>(&self, call: impl FnOnce(&fs::File) -> T + Send + 'static) -> T {
        let long = through(&self.opened.long).await;
        self.blocking(move |file| {
            let result = call(file);
            drop(long);
            result
        })
        .await
    }

    async fn pass(&self, takes_worker: bool) -> Pass {
        through(if takes_worker { &self.opened.workers } else { &self.opened.requests }).await
    }

    /// Submits `entry`, a request on this file that may refer to memory that `resource` owns. Gives `resource` back.
    ///
    /// # Safety
    /// Every address in `entry` stays valid as long as `resource` is not dropped, wherever it is moved. Its descriptor is this file's.
    unsafe fn submit<R: 'static>(
        &self,
        entry: squeue::Entry,
        resource: R,
        pass: Pass,
    ) -> impl Future<Output = (R, io::Result<usize>)> + use<R> {
        // SAFETY: the caller vouches for the memory; the descriptor is held by the `Arc` beside it.
        let submitted = unsafe { reactor().submit(entry, (resource, Arc::clone(&self.opened), pass)) };
        async move {
            let ((resource, ..), result) = submitted.await;
            (resource, outcome(result))
        }
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.get().as_raw_fd())
    }

    /// Reads until `buffer` is full or the file ends; gives the count.
    pub async fn read_at(&self, offset: u64, mut buffer: Buffer) -> (Buffer, io::Result<usize>) {
        if let (Trace::None { by_hand }, false) = (&self.opened.trace, self.direct) {
            if reactor().has_ring() && !by_hand.load(Ordering::Relaxed) {
                let (returned, result) = self.read_by_ring(offset, buffer, 0, RWF_DONTCACHE).await;
                match &result {
                    Err(error) if is_unsupported(error) => by_hand.store(true, Ordering::Relaxed),
                    _ => return (returned, result),
                }
                buffer = returned;
            }
            let (at, len) = (offset, buffer.len() as u64);
            let is_bare = system::cached_pages(self.get(), at, len).is_ok_and(|pages| pages == 0);
            let read = self.read_traced(offset, buffer).await;
            if is_bare {
                system::drop_cache(self.get(), at, len);
            }
            return read;
        }
        self.read_traced(offset, buffer).await
    }

    async fn read_traced(&self, offset: u64, mut buffer: Buffer) -> (Buffer, io::Result<usize>) {
        let mut filled = 0;
        if !self.direct && buffer.len() < INLINE {
            match self.read_cached(offset, &mut buffer) {
                Ok(count) if count == buffer.len() => return (buffer, Ok(count)),
                Ok(count) => filled = count,
                Err(_) => {}
            }
        }
        if !reactor().has_ring() {
            return self
                .blocking(move |file| {
                    let result = read_fully(file, offset, &mut buffer);
                    (buffer, result)
                })
                .await;
        }
        self.read_by_ring(offset, buffer, filled, 0).await
    }

    /// Goes on filling `buffer`, whose first byte is at `offset`, from byte `filled` on.
    async fn read_by_ring(
        &self,
        offset: u64,
        mut buffer: Buffer,
        mut filled: usize,
        rw_flags: i32,
    ) -> (Buffer, io::Result<usize>) {
        while filled < buffer.len() {
            let pass = self.pass(!self.flags(buffer.len()).is_empty()).await;
            let entry = opcode::Read::new(
                self.fd(),
                buffer[filled..].as_mut_ptr(),
                (buffer.len() - filled).min(1 << 30) as u32,
            )
            .offset(offset + filled as u64)
            .rw_flags(rw_flags)
            .build()
            .flags(self.flags(buffer.len()));
            // SAFETY: the buffer's memory does not move with it.
            let (returned, result) = unsafe { self.submit(entry, buffer, pass) }.await;
            buffer = returned;
            match result {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (buffer, Err(error)),
            }
        }
        (buffer, Ok(filled))
    }

    /// Writes all of `buffer`; with `durable` it is on the medium when this completes.
    pub async fn write_at(&self, offset: u64, mut buffer: Buffer, durable: bool) -> (Buffer, io::Result<()>) {
        if !self.direct && !durable && buffer.len() < INLINE {
            let result = self.get().write_all_at(&buffer, offset);
            return (buffer, result);
        }
        if !reactor().has_ring() {
            return self
                .blocking(move |file| {
                    let written = file.write_all_at(&buffer, offset);
                    let result = written.and_then(|()| if durable { file.sync_data() } else { Ok(()) });
                    (buffer, result)
                })
                .await;
        }
        let mut written = 0;
        while written < buffer.len() {
            // A buffered write that is to be durable waits for the medium: in a worker, or some file systems do it at once.
            let flags = if self.direct { squeue::Flags::empty() } else { squeue::Flags::ASYNC };
            let pass = self.pass(!self.direct).await;
            let mut write =
                opcode::Write::new(self.fd(), buffer[written..].as_ptr(), (buffer.len() - written).min(1 << 30) as u32)
                    .offset(offset + written as u64);
            if durable {
                write = write.rw_flags(libc::RWF_DSYNC);
            }
            let entry = write.build().flags(flags);
            // SAFETY: the buffer's memory does not move with it.
            let (returned, result) = unsafe { self.submit(entry, buffer, pass) }.await;
            buffer = returned;
            match result {
                Ok(0) => return (buffer, Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (buffer, Err(error)),
            }
        }
        (buffer, Ok(()))
    }

    /// Makes completed writes durable (data, and the metadata needed to find them).
    ///
    /// # Errors
    /// When the device says so.
    pub async fn sync_data(&self) -> io::Result<()> {
        if !reactor().has_ring() {
            return self.blocking(fs::File::sync_data).await;
        }
        let pass = self.pass(true).await;
        let entry = opcode::Fsync::new(self.fd()).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: the entry refers to no memory.
        let ((), result) = unsafe { self.submit(entry, (), pass) }.await;
        result.map(drop)
    }

    /// Makes the range read as zeroes without writing them; `punch` gives the space back, otherwise it stays allocated.
    /// The file's length does not change.
    ///
    /// # Errors
    /// `Unsupported` where the file system or device has no such call.
    pub async fn zero_range(&self, offset: u64, len: u64, punch: bool) -> io::Result<()> {
        let mode =
            libc::FALLOC_FL_KEEP_SIZE | if punch { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        let result = self.fallocate(mode, Place { offset, len }).await;
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            other => other,
        }
    }

    async fn fallocate(&self, mode: i32, place: Place) -> io::Result<()> {
        if !reactor().has_ring() {
            return self.blocking_long(move |file| fallocate(file, mode, place.offset, place.len)).await;
        }
        let long = through(&self.opened.long).await;
        let pass = self.pass(true).await;
        let entry = opcode::Fallocate::new(self.fd(), place.len).offset(place.offset).mode(mode).build();
        // SAFETY: the entry refers to no memory.
        let (_, result) = unsafe { self.submit(entry, long, pass) }.await;
        result.map(drop)
    }

    /// Where the next data at or after `offset` starts; `None` if there is none up to the end.
    ///
    /// # Errors
    /// When the file cannot tell.
    pub fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        system::next_data(self.get(), offset)
    }

    /// Where the next hole at or after `offset` starts; the end of the file counts as one. `None` past the end.
    ///
    /// # Errors
    /// When the file cannot tell.
    pub fn next_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        system::next_hole(self.get(), offset)
    }

    fn flags(&self, len: usize) -> squeue::Flags {
        if self.direct || len < INLINE { squeue::Flags::empty() } else { squeue::Flags::ASYNC }
    }

    fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: one vector over a buffer that is borrowed exclusively during the call.
        check_len(unsafe { libc::preadv2(self.get().as_raw_fd(), &vector, 1, offset, libc::RWF_NOWAIT) })
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get().as_fd()
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

async fn through(gate: &Arc<Gate>) -> Pass {
    match gate.try_enter() {
        Some(pass) => pass,
        None => gate.enter().await,
    }
}

fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

fn read_fully(file: &fs::File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// `fallocate(2)`, blocking.
pub(crate) fn fallocate(file: &fs::File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (offset, len) = (i64::try_from(offset).map_err(invalid)?, i64::try_from(len).map_err(invalid)?);
    loop {
        // SAFETY: plain system call on an open descriptor.
        match check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
