//! Having the kernel copy from file to file (R32): sharing the bytes where the file system can, else `copy_file_range`.
//!
//! Neither promises anything: each may refuse, and the second may copy less than it was asked to. What it does not take, plain reads do.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use tzero_block::ByteRange;
use tzero_io::{blocking, system};

use crate::manifest::Engine;

/// Copies ranges from one file to another, at the same offsets.
pub(super) struct Offload {
    base: File,
    image: File,
    may_share: bool,
    ran: Option<Engine>,
}

impl Offload {
    /// Where it can be tried: two regular files, of one file system.
    pub(super) fn between(base: Option<&File>, image: Option<&File>) -> Option<Self> {
        let (base, image) = (base?, image?);
        let (of_base, of_image) = (base.metadata().ok()?, image.metadata().ok()?);
        let both = of_base.is_file() && of_image.is_file() && of_base.dev() == of_image.dev();
        let (base, image) = (base.try_clone().ok()?, image.try_clone().ok()?);
        both.then_some(Self { base, image, may_share: true, ran: None })
    }

    /// What has copied, so far.
    pub(super) fn ran(&self) -> Option<Engine> {
        self.ran
    }

    /// Copies chunks, each a list of ranges, until one fails; says how many were copied, and whether it makes sense to go on.
    pub(super) async fn copy(&mut self, chunks: Vec<Vec<ByteRange>>) -> (usize, bool) {
        let clones = self.base.try_clone().and_then(|base| Ok((base, self.image.try_clone()?)));
        let Ok((base, image)) = clones else { return (0, false) };
        let (may_share, count) = (self.may_share, chunks.len());
        let (moved, may_share, copied) = blocking(move || {
            let mut pair = Pair { base: &base, image: &image, may_share, copied: false };
            let moved = chunks.iter().take_while(|chunk| chunk.iter().all(|range| pair.copy(*range).is_ok())).count();
            (moved, pair.may_share, pair.copied)
        })
        .await;
        self.may_share = may_share;
        self.ran = match self.ran {
            _ if copied => Some(Engine::CopyFileRange),
            // A base that is one hole has nothing to share.
            None if moved > 0 && !may_share => Some(Engine::CopyFileRange),
            None if moved > 0 => Some(Engine::Reflink),
            ran => ran,
        };
        (moved, moved == count)
    }
}

struct Pair<'a> {
    base: &'a File,
    image: &'a File,
    may_share: bool,
    copied: bool,
}

impl Pair<'_> {
    fn copy(&mut self, range: ByteRange) -> io::Result<()> {
        if self.may_share {
            match system::share_range(self.base, self.image, range.start(), range.len()) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => self.may_share = false,
                other => return other,
            }
        }
        let mut at = range.start();
        while at < range.end() {
            let data = system::next_data(self.base, at)?.unwrap_or(range.end()).clamp(at, range.end());
            let end = system::next_hole(self.base, data)?.unwrap_or(range.end()).clamp(data, range.end());
            self.copy_data(ByteRange::between(data, end))?;
            at = end.max(data);
        }
        Ok(())
    }

    /// Leaves the page cache of the base as it was, as far as can be told.
    fn copy_data(&mut self, range: ByteRange) -> io::Result<()> {
        let is_bare = system::cached_pages(self.base, range.start(), range.len()).is_ok_and(|pages| pages == 0);
        let mut at = range.start();
        while at < range.end() {
            match system::copy_range(self.base, self.image, at, range.end() - at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => at += count,
            }
            self.copied = true;
        }
        if is_bare {
            system::drop_cache(self.base, range.start(), range.len());
        }
        Ok(())
    }
}
