//! Any sectors of a file that takes whole blocks only.
//!
//! Direct I/O on a device with blocks of more than 512 bytes still gets requests of 512: what is narrower than a block is widened, and kept apart
//! from every other change (see [`Edges`]). Where the blocks are no larger, nothing of this happens.

use std::io;
use std::sync::Arc;

use tzero_io::{Buffer, File, spawn};

use crate::ByteRange;
use crate::edges::{Edges, Entered};

/// Requests of this alignment are served whatever the blocks, in bytes.
pub(crate) const SECTOR: u32 = 512;

/// A file, and what the operating system wants offsets and lengths to be multiples of. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Medium {
    file: File,
    block: u64,
    edges: Arc<Edges>,
}

impl Medium {
    /// `block` is in bytes.
    pub(crate) fn new(file: File, block: u32) -> Self {
        Self { file, block: block.into(), edges: Arc::default() }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// In bytes.
    pub(crate) fn block(&self) -> u64 {
        self.block
    }

    /// To be held by whoever changes whole blocks without [`Medium::write`], until that is done.
    pub(crate) async fn pass(&self) -> Option<Entered<'_>> {
        if self.has_edges() { Some(self.edges.enter(false).await) } else { None }
    }

    fn has_edges(&self) -> bool {
        self.block > u64::from(SECTOR)
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

    pub(crate) async fn read(&self, range: ByteRange, mut buffer: Buffer) -> (Buffer, io::Result<()>) {
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

    pub(crate) async fn write(&self, range: ByteRange, buffer: Buffer, fua: bool) -> (Buffer, io::Result<()>) {
        if self.is_whole(range) {
            let entered = self.pass().await;
            let written = self.file.write_at(range.start(), buffer, fua).await;
            drop(entered);
            return written;
        }
        // A task of its own: were it given up while its blocks are on their way, others would pass and be undone.
        let own = self.clone();
        spawn(async move { own.write_partly(range, buffer, fua).await }).await
    }

    async fn write_partly(&self, range: ByteRange, buffer: Buffer, fua: bool) -> (Buffer, io::Result<()>) {
        let entered = self.edges.enter(true).await;
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

    /// As if a partial write were under way, until the result is dropped.
    #[cfg(test)]
    pub(crate) async fn hold_edges(&self) -> Entered<'_> {
        self.edges.enter(true).await
    }
}
