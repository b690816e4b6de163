//! The file that is measured, and the state of the page cache that every server finds.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tzero_io::{Buffer, system};

use crate::bench::content::{BLOCK, Content};

/// What is written or copied at once.
const PIECE: usize = 1 << 20;
/// Threads that copy.
const COPIERS: usize = 8;
/// What the file is filled with.
pub(super) const FIRST: Content = Content(1);

/// The file.
pub(super) struct Material {
    pub(super) path: PathBuf,
    pub(super) size: u64,
}

fn direct(path: &Path, writable: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(writable).create(writable).custom_flags(system::DIRECT).open(path)
}

impl Material {
    /// Makes the file, all of it written, nothing of it cached.
    pub(super) fn make(path: PathBuf, size: u64) -> io::Result<Self> {
        let file = direct(&path, true)?;
        let mut piece = Buffer::zeroed(PIECE);
        for offset in (0..size).step_by(PIECE) {
            let len = (size - offset).min(PIECE as u64) as usize;
            FIRST.fill(&mut piece[..len], offset);
            file.write_all_at(&piece[..len], offset)?;
        }
        file.sync_data()?;
        Ok(Self { path, size })
    }

    /// Empties the page cache of the file.
    pub(super) fn cool(&self) -> io::Result<()> {
        let file = File::open(&self.path)?;
        file.sync_data()?;
        system::drop_cache(&file, 0, 0);
        Ok(())
    }

    /// Has the file's first bytes cached, block by block as a host would have left them, and on the medium. In large pieces the kernel would
    /// keep them so, and every small write after that would be dear.
    pub(super) fn warm(&self, len: u64) -> io::Result<()> {
        self.cool()?;
        let file = OpenOptions::new().write(true).open(&self.path)?;
        let mut block = vec![0; BLOCK];
        for offset in (0..len).step_by(BLOCK) {
            FIRST.fill(&mut block, offset);
            file.write_all_at(&block, offset)?;
        }
        file.sync_data()
    }

    /// The block at a byte offset, as the file has it.
    pub(super) fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK];
        File::open(&self.path)?.read_exact_at(&mut block, offset)?;
        Ok(block)
    }

    /// Copies the file as fast as the disk lets it, reading and writing at the same time, past the page cache.
    pub(super) fn copy(&self, to: &Path) -> io::Result<()> {
        let (from, to) = (direct(&self.path, false)?, direct(to, true)?);
        let next = AtomicU64::new(0);
        let copier = || -> io::Result<()> {
            let mut piece = Buffer::zeroed(PIECE);
            loop {
                let offset = next.fetch_add(PIECE as u64, Ordering::Relaxed);
                if offset >= self.size {
                    return Ok(());
                }
                let len = (self.size - offset).min(PIECE as u64) as usize;
                from.read_exact_at(&mut piece[..len], offset)?;
                to.write_all_at(&piece[..len], offset)?;
            }
        };
        thread::scope(|scope| {
            let copiers: Vec<_> = (0..COPIERS).map(|_| scope.spawn(copier)).collect();
            copiers.into_iter().try_for_each(|copier| copier.join().expect("a copier does not panic"))
        })?;
        to.sync_data()
    }
}
