//! A device over a file or a block device of the operating system.
//!
//! # Zeroing and discarding
//! Both are given to the operating system in slices of at most [`SLICE`], one after the other: it may hold its own locks on the file for as long as one
//! takes, and neither a partial write nor a flush is to wait for gigabytes.
//!
//! A block device zeroes and discards only whole [units](FileDevice::unit), and what is left at the two ends is written (or for a discard: left alone).
//! With the page cache the unit is a page: older kernels do not keep such a call apart from a write to the same page next to it, which may then
//! bring back what was there.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tzero_io::{Buffer, File, system};

use crate::medium::{Medium, SECTOR};
use crate::{Action, BlockDevice, ByteRange, Error, Extent, Fault, Geometry, Zeroes};

/// Zeroes are written in pieces of at most this many bytes where nothing faster works.
const ZERO_PIECE: u64 = 1 << 20;
/// Longest range that one call zeroes or discards, in bytes.
const SLICE: u64 = 32 << 20;
const PAGE: u64 = 4096;
/// Most extents that one call answers.
const MOST_EXTENTS: usize = 4096;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Past the page cache.
    pub direct: bool,
    /// For writing too.
    pub writable: bool,
}

/// A file or block device.
#[derive(Debug)]
pub struct FileDevice {
    medium: Medium,
    size: AtomicU64,
    is_device: bool,
}

impl FileDevice {
    /// Opens the file or block device at `path`. A block device is opened exclusively where it is writable: nobody has it mounted.
    ///
    /// # Errors
    /// When it cannot be opened, or is neither a file nor a block device (`InvalidInput`).
    pub fn open(path: &Path, mode: Mode) -> io::Result<Self> {
        let kind = fs::metadata(path)?.file_type();
        let mut flags = if mode.direct { system::DIRECT } else { 0 };
        if kind.is_block_device() && mode.writable {
            flags |= system::EXCLUSIVE;
        }
        let file = OpenOptions::new().read(true).write(mode.writable).custom_flags(flags).open(path)?;
        Self::from_file(file, mode.direct)
    }

    /// Takes over an open file or block device; `direct` says whether it was opened past the page cache.
    ///
    /// # Errors
    /// When it is neither, or direct I/O is not possible on it.
    pub fn from_file(file: fs::File, direct: bool) -> io::Result<Self> {
        Self::over(file, direct, File::new)
    }

    fn over(file: fs::File, direct: bool, opened: fn(fs::File, bool) -> File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device"));
        }
        let block = match (direct, is_device) {
            (false, _) => 1,
            (true, true) => system::device_block(&file)?,
            (true, false) => system::direct_alignment(&file)?,
        };
        let size = AtomicU64::new(whole(size_of(&file)?, block)?);
        Ok(Self { medium: Medium::new(opened(file, direct), block), size, is_device })
    }

    /// Looks how long the file is by now, and is so long from then on, though never shorter than it was. Gives its length in bytes. Blocking.
    ///
    /// # Errors
    /// When it cannot be looked at, or its length is none that direct I/O can have: then nothing has changed.
    pub fn grow(&self) -> io::Result<u64> {
        let size = whole(size_of(self.file().get())?, self.medium.block() as u32)?;
        Ok(self.size.fetch_max(size, Ordering::SeqCst).max(size))
    }

    /// Takes over a file that is read in passing, once: what others have in the page cache is neither pushed out nor added to. See
    /// [`File::without_trace`].
    ///
    /// # Errors
    /// As [`FileDevice::from_file`].
    pub fn in_passing(file: fs::File, direct: bool) -> io::Result<Self> {
        Self::over(file, direct, File::without_trace)
    }

    /// The same file as a device of `size` bytes whatever its length now: writing makes it longer. What lies behind its end is a hole that
    /// cannot be read. For caches.
    pub fn growing_to(self, size: u64) -> Self {
        Self { size: AtomicU64::new(size), ..self }
    }

    /// Its first `size` bytes, a multiple of what direct I/O needs; all of it where it has no more.
    pub fn cut_to(self, size: u64) -> Self {
        Self { size: AtomicU64::new(self.size.into_inner().min(size)), ..self }
    }

    /// What its size is a multiple of, in bytes.
    pub fn block(&self) -> u64 {
        self.medium.block()
    }

    /// The file underneath.
    pub fn file(&self) -> &File {
        self.medium.file()
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// What a block device zeroes and discards whole multiples of, in bytes. A file does any range.
    fn unit(&self) -> u64 {
        match (self.is_device, self.file().is_direct()) {
            (false, _) => 1,
            (true, false) => self.medium.block().max(PAGE),
            (true, true) => self.medium.block(),
        }
    }

    /// The whole units of `range`, and what is left before and after them.
    fn units(&self, range: ByteRange) -> (ByteRange, [ByteRange; 2]) {
        let unit = self.unit();
        let start = range.start().next_multiple_of(unit).min(range.end());
        let end = (range.end() / unit * unit).max(start);
        (
            ByteRange::between(start, end),
            [ByteRange::between(range.start(), start), ByteRange::between(end, range.end())],
        )
    }

    async fn write_out_zeroes(&self, range: ByteRange) -> Result<(), Error> {
        for piece in range.pieces(ZERO_PIECE) {
            let (_, result) = self.medium.write(piece, Buffer::zeroed(piece.len() as usize), false).await;
            result.map_err(|source| failed(Action::WriteZeroes, piece, source))?;
        }
        Ok(())
    }

    async fn zero(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        let (whole, ends) = self.units(range);
        if zeroes.fast && whole.is_empty() {
            return Err(Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported));
        }
        for slice in whole.pieces(SLICE) {
            match self.zero_slice(slice, zeroes).await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Unsupported && zeroes.fast => {
                    return Err(Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported));
                }
                Err(error)
                    if error.kind() == io::ErrorKind::Unsupported
                        || error.kind() == io::ErrorKind::InvalidInput && !zeroes.fast =>
                {
                    self.write_out_zeroes(ByteRange::between(slice.start(), whole.end())).await?;
                    break;
                }
                Err(source) => return Err(failed(Action::WriteZeroes, slice, source)),
            }
        }
        for end in ends {
            self.write_out_zeroes(end).await?;
        }
        Ok(())
    }

    async fn zero_slice(&self, range: ByteRange, zeroes: Zeroes) -> io::Result<()> {
        let _passing = self.medium.pass().await;
        let file = self.file();
        if self.is_device {
            // A block device zeroes by its own command through the page cache's owner, so cached pages are dropped by the kernel.
            return if zeroes.may_unmap {
                // Punching a hole asks for a command that guarantees zeroes.
                file.zero_range(range.start(), range.len(), true).await
            } else if zeroes.fast {
                Err(io::ErrorKind::Unsupported.into())
            } else {
                file.blocking_long(move |file| system::device_zero(file, range.start(), range.len())).await
            };
        }
        if zeroes.may_unmap {
            match file.zero_range(range.start(), range.len(), true).await {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                other => return other,
            }
        }
        file.zero_range(range.start(), range.len(), false).await
    }

    async fn discard_slice(&self, range: ByteRange) -> io::Result<()> {
        let _passing = self.medium.pass().await;
        if self.is_device {
            self.file().blocking_long(move |file| system::device_discard(file, range.start(), range.len())).await
        } else {
            self.file().zero_range(range.start(), range.len(), true).await
        }
    }
}

/// Bytes of an open file or block device.
fn size_of(file: &fs::File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() { system::device_size(file) } else { Ok(metadata.len()) }
}

/// A size that whole blocks make up.
fn whole(size: u64, block: u32) -> io::Result<u64> {
    let refused = || {
        let text = "the size is not a multiple of the block that direct I/O needs";
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    size.is_multiple_of(block.into()).then_some(size).ok_or_else(refused)
}

fn failed(action: Action, range: ByteRange, source: io::Error) -> Error {
    Error::system(action, range.start(), range.len(), source)
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        let alignment = self.medium.block().min(SECTOR.into()) as u32;
        Geometry { size: self.size.load(Ordering::Acquire), alignment }
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry().check(Action::Read, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        let (buffer, result) = self.medium.read(range, buffer).await;
        (buffer, result.map_err(|source| failed(Action::Read, range, source)))
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry().check(Action::Write, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        let (buffer, result) = self.medium.write(range, buffer, fua).await;
        (buffer, result.map_err(|source| failed(Action::Write, range, source)))
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.geometry().check(Action::WriteZeroes, range.start(), range.len())?;
        if range.is_empty() {
            return Ok(());
        }
        self.zero(range, zeroes).await?;
        if zeroes.fua { self.flush().await } else { Ok(()) }
    }

    fn can_zero_fast(&self, range: ByteRange, zeroes: Zeroes) -> bool {
        !self.units(range).0.is_empty() && (!self.is_device || zeroes.may_unmap)
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.geometry().check(Action::Discard, range.start(), range.len())?;
        for slice in self.units(range).0.pieces(SLICE) {
            match self.discard_slice(slice).await {
                Ok(()) => {}
                // Advice that cannot be taken is no failure.
                Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => break,
                Err(source) => return Err(failed(Action::Discard, slice, source)),
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), Error> {
        self.file().sync_data().await.map_err(|source| Error::system(Action::Flush, 0, 0, source))
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.geometry().check(Action::Extents, range.start(), range.len())?;
        let data = vec![Extent { range, hole: false }];
        if self.is_device || range.is_empty() {
            return Ok(data);
        }
        let mut extents = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            if extents.len() >= MOST_EXTENTS {
                extents.push(Extent { range: ByteRange::between(at, range.end()), hole: false });
                break;
            }
            let Ok(next_data) = self.file().next_data(at) else { return Ok(data) };
            let start = next_data.unwrap_or(range.end()).clamp(at, range.end());
            if start > at {
                extents.push(Extent { range: ByteRange::between(at, start), hole: true });
                at = start;
                continue;
            }
            let Ok(next_hole) = self.file().next_hole(at) else { return Ok(data) };
            let end = next_hole.unwrap_or(range.end()).clamp(at, range.end());
            if end == at {
                // Between the two questions the data went away.
                continue;
            }
            extents.push(Extent { range: ByteRange::between(at, end), hole: false });
            at = end;
        }
        Ok(extents)
    }

    async fn prefetch(&self, range: ByteRange) {
        if !self.file().is_direct() && self.geometry().check(Action::Read, range.start(), range.len()).is_ok() {
            self.file().blocking(move |file| system::read_ahead(file, range.start(), range.len())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tzero_io::{Backend, Runtime, spawn, yield_now};

    use super::*;

    /// On a file, as if direct I/O wanted blocks of 4096 bytes.
    fn with_large_blocks() -> Rc<FileDevice> {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("a length");
        let device = FileDevice::from_file(file, false).expect("a device");
        Rc::new(FileDevice { medium: Medium::new(device.file().clone(), 4096), ..device })
    }

    #[test]
    fn nothing_changes_while_a_partial_write_is_under_way() {
        let zeroes = |may_unmap| Zeroes { may_unmap, ..Zeroes::default() };
        for backend in [Backend::Ring, Backend::Threads] {
            Runtime::new(backend).expect("a runtime").block_on(async {
                for change in 0..4 {
                    let device = with_large_blocks();
                    device.write(0, Buffer::copy_of(&[7; 8192]), true).await.1.expect("written");
                    let held = device.medium.hold_edges().await;
                    let done = Rc::new(Cell::new(false));
                    let (theirs, seen) = (Rc::clone(&device), Rc::clone(&done));
                    let task = spawn(async move {
                        match change {
                            0 => theirs.write_zeroes(ByteRange::new(0, 8192), zeroes(true)).await,
                            1 => theirs.write_zeroes(ByteRange::new(0, 8192), zeroes(false)).await,
                            2 => theirs.discard(ByteRange::new(0, 8192)).await,
                            _ => theirs.write(0, Buffer::zeroed(8192), true).await.1,
                        }
                        .expect("zeroed");
                        seen.set(true);
                    });
                    tzero_io::sleep(std::time::Duration::from_millis(20)).await;
                    yield_now().await;
                    let (bytes, _) = device.read(0, Buffer::uncleared(8192)).await;
                    assert!(!done.get() && bytes.iter().all(|byte| *byte == 7), "change {change} has passed");
                    drop(held);
                    task.await;
                    assert!(device.read(0, Buffer::uncleared(8192)).await.0.is_zero());
                }
            });
        }
    }

    #[test]
    fn a_partial_write_that_is_given_up_still_ends() {
        Runtime::new(Backend::Auto).expect("a runtime").block_on(async {
            let device = with_large_blocks();
            let held = device.medium.hold_edges().await;
            let write = device.write(512, Buffer::copy_of(&[7; 512]), false);
            assert!(tzero_io::timeout(std::time::Duration::from_millis(1), write).await.is_none());
            drop(held);
            // Whoever comes next waits for it.
            device.write(4096, Buffer::copy_of(&[8; 4096]), false).await.1.expect("written");
            let (bytes, _) = device.read(512, Buffer::uncleared(512)).await;
            assert!(bytes.iter().all(|byte| *byte == 7));
        });
    }
}
