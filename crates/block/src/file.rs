//! A device over a file or a block device of the operating system.
//!
//! Direct I/O on a device with blocks of more than 512 bytes still takes requests of 512: what is narrower than a block is widened.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use tzero_io::{Buffer, File, blocking, system};

use crate::edges::Edges;
use crate::{Action, BlockDevice, ByteRange, Error, Extent, Fault, Geometry, Zeroes};

/// Zeroes are written in pieces of at most this many bytes where nothing faster works.
const ZERO_PIECE: u64 = 1 << 20;
/// Requests of this alignment are served whatever the device's blocks, in bytes.
const SECTOR: u32 = 512;
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
    file: File,
    geometry: Geometry,
    /// What the operating system wants offsets and lengths to be multiples of, in bytes.
    block: u64,
    edges: Edges,
    is_device: bool,
    grows: bool,
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
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let size = if is_device {
            system::device_size(&file)?
        } else if metadata.is_file() {
            metadata.len()
        } else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device"));
        };
        let block = match (direct, is_device) {
            (false, _) => 1,
            (true, true) => system::device_block(&file)?,
            (true, false) => system::direct_alignment(&file)?,
        };
        if !size.is_multiple_of(u64::from(block)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the size is not a multiple of the block that direct I/O needs",
            ));
        }
        let geometry = Geometry { size, alignment: block.min(SECTOR) };
        let file = File::new(file, direct);
        Ok(Self { file, geometry, block: block.into(), edges: Edges::default(), is_device, grows: false })
    }

    /// The same file as a device of `size` bytes whatever its length now: writing makes it longer. For caches.
    pub fn growing_to(self, size: u64) -> Self {
        Self { geometry: Geometry { size, ..self.geometry }, grows: true, ..self }
    }

    /// The file underneath.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    async fn write_out_zeroes(&self, range: ByteRange, fua: bool) -> Result<(), Error> {
        for piece in range.pieces(ZERO_PIECE) {
            let (_, result) = self.write_any(piece, Buffer::zeroed(piece.len() as usize), fua).await;
            result.map_err(|source| failed(Action::WriteZeroes, piece, source))?;
        }
        Ok(())
    }

    fn is_whole(&self, range: ByteRange) -> bool {
        (range.start() | range.len()).is_multiple_of(self.block)
    }

    /// The blocks that `range` touches.
    fn widened(&self, range: ByteRange) -> ByteRange {
        ByteRange::between(range.start() / self.block * self.block, range.end().next_multiple_of(self.block))
    }

    async fn read_whole(&self, offset: u64, buffer: Buffer) -> (Buffer, io::Result<()>) {
        let (buffer, result) = self.file.read_at(offset, buffer).await;
        let result = match result {
            Ok(count) if count == buffer.len() => Ok(()),
            // The file is shorter than the device was when opened.
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(source) => Err(source),
        };
        (buffer, result)
    }

    async fn read_any(&self, range: ByteRange, mut buffer: Buffer) -> (Buffer, io::Result<()>) {
        if self.is_whole(range) {
            return self.read_whole(range.start(), buffer).await;
        }
        let wide = self.widened(range);
        let (blocks, result) = self.read_whole(wide.start(), Buffer::uncleared(wide.len() as usize)).await;
        if result.is_ok() {
            let skip = (range.start() - wide.start()) as usize;
            let len = buffer.len();
            buffer.copy_from_slice(&blocks[skip..skip + len]);
        }
        (buffer, result)
    }

    async fn write_any(&self, range: ByteRange, buffer: Buffer, fua: bool) -> (Buffer, io::Result<()>) {
        if self.block <= u64::from(SECTOR) {
            return self.file.write_at(range.start(), buffer, fua).await;
        }
        let whole = self.is_whole(range);
        let entered = self.edges.enter(!whole).await;
        if whole {
            let written = self.file.write_at(range.start(), buffer, fua).await;
            drop(entered);
            return written;
        }
        let wide = self.widened(range);
        let (mut blocks, mut result) = self.read_whole(wide.start(), Buffer::uncleared(wide.len() as usize)).await;
        if result.is_ok() {
            let skip = (range.start() - wide.start()) as usize;
            blocks[skip..skip + buffer.len()].copy_from_slice(&buffer);
            result = self.file.write_at(wide.start(), blocks, fua).await.1;
        }
        drop(entered);
        (buffer, result)
    }

    async fn zero_fast(&self, range: ByteRange, zeroes: Zeroes) -> io::Result<()> {
        if self.is_device {
            // A block device zeroes by its own command through the page cache's owner, so cached pages are dropped by the kernel.
            let file = self.file.clone();
            return if zeroes.may_unmap {
                // Punching a hole asks for a command that guarantees zeroes.
                self.file.zero_range(range.start(), range.len(), true).await
            } else if zeroes.fast {
                Err(io::ErrorKind::Unsupported.into())
            } else {
                blocking(move || system::device_zero(file.get(), range.start(), range.len())).await
            };
        }
        if zeroes.may_unmap {
            match self.file.zero_range(range.start(), range.len(), true).await {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                other => return other,
            }
        }
        self.file.zero_range(range.start(), range.len(), false).await
    }
}

fn failed(action: Action, range: ByteRange, source: io::Error) -> Error {
    Error::system(action, range.start(), range.len(), source)
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry.check(Action::Read, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        let (buffer, result) = self.read_any(range, buffer).await;
        (buffer, result.map_err(|source| failed(Action::Read, range, source)))
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry.check(Action::Write, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        let (buffer, result) = self.write_any(range, buffer, fua).await;
        (buffer, result.map_err(|source| failed(Action::Write, range, source)))
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.geometry.check(Action::WriteZeroes, range.start(), range.len())?;
        if range.is_empty() {
            return Ok(());
        }
        match self.zero_fast(range, zeroes).await {
            Ok(()) if zeroes.fua => self.flush().await,
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Unsupported && zeroes.fast => {
                Err(Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported))
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.write_out_zeroes(range, zeroes.fua).await,
            // A range that is not a multiple of the device's block, on a device: by hand.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && !zeroes.fast => {
                self.write_out_zeroes(range, zeroes.fua).await
            }
            Err(source) => Err(failed(Action::WriteZeroes, range, source)),
        }
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.geometry.check(Action::Discard, range.start(), range.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let result = if self.is_device {
            let file = self.file.clone();
            blocking(move || system::device_discard(file.get(), range.start(), range.len())).await
        } else {
            self.file.zero_range(range.start(), range.len(), true).await
        };
        match result {
            // Advice that cannot be taken is no failure; a range off the device's blocks neither.
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => Ok(()),
            other => other.map_err(|source| failed(Action::Discard, range, source)),
        }
    }

    async fn flush(&self) -> Result<(), Error> {
        self.file.sync_data().await.map_err(|source| Error::system(Action::Flush, 0, 0, source))
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.geometry.check(Action::Extents, range.start(), range.len())?;
        let data = vec![Extent { range, hole: false }];
        if self.is_device || self.grows || range.is_empty() {
            return Ok(data);
        }
        let mut extents = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            if extents.len() >= MOST_EXTENTS {
                extents.push(Extent { range: ByteRange::between(at, range.end()), hole: false });
                break;
            }
            let Ok(next_data) = self.file.next_data(at) else { return Ok(data) };
            let start = next_data.unwrap_or(range.end()).clamp(at, range.end());
            if start > at {
                extents.push(Extent { range: ByteRange::between(at, start), hole: true });
                at = start;
                continue;
            }
            let Ok(next_hole) = self.file.next_hole(at) else { return Ok(data) };
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
        if !self.file.is_direct() && self.geometry.check(Action::Read, range.start(), range.len()).is_ok() {
            let file = self.file.clone();
            blocking(move || system::read_ahead(file.get(), range.start(), range.len())).await;
        }
    }
}
