//! Having the kernel copy from file to file (R32): sharing the bytes where the file system can, else `copy_file_range`.
//!
//! The kernel's copying goes through the page cache, and reads ahead. What of the base was not there before is dropped again, by pieces, each looked at long before
//! reading ahead comes near it.
//!
//! Neither promises anything: each may refuse, and the second may copy less than it was asked to. What it does not take, plain reads do.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
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
    bare: Bare,
}

/// Pieces of the base are looked at so many bytes before they are copied: no reading ahead goes so far.
const AHEAD: u64 = 64 << 20;
/// Bytes of a piece.
const PIECE: u64 = 1 << 20;
/// Pieces that are dropped again with those that follow them: more than the largest page has.
const LATELY: u64 = 8;

/// Which pieces of a file had no page in the page cache when they were looked at.
#[derive(Default)]
struct Bare {
    pieces: BTreeSet<u64>,
    looked_to: u64,
}

impl Bare {
    /// Looks at what comes up to `end`.
    fn look(&mut self, file: &File, end: u64) {
        while self.looked_to * PIECE < end {
            let piece = self.looked_to;
            if system::cached_pages(file, piece * PIECE, PIECE).is_ok_and(|pages| pages == 0) {
                self.pieces.insert(piece);
            }
            self.looked_to += 1;
        }
    }

    /// Drops the pages of pieces before `end` that had none. Neighbours go together, and some that went before once more: a page is as large as the kernel
    /// likes, and stays as long as a part of it does.
    fn drop_before(&mut self, file: &File, end: u64) {
        let rest = self.pieces.split_off(&(end / PIECE));
        let mut gone = std::mem::replace(&mut self.pieces, rest);
        let mut run: Option<Range<u64>> = None;
        let drop_run = |run: Range<u64>| system::drop_cache(file, run.start * PIECE, (run.end - run.start) * PIECE);
        for piece in &gone {
            match &mut run {
                Some(run) if run.end == *piece => run.end += 1,
                _ => run.replace(*piece..*piece + 1).into_iter().for_each(drop_run),
            }
        }
        run.into_iter().for_each(drop_run);
        let lately = gone.split_off(&(end / PIECE).saturating_sub(LATELY));
        self.pieces.extend(lately);
    }
}

impl Offload {
    /// Where it can be tried: two regular files, of one file system.
    pub(super) fn between(base: Option<&File>, image: Option<&File>) -> Option<Self> {
        let (base, image) = (base?, image?);
        let (of_base, of_image) = (base.metadata().ok()?, image.metadata().ok()?);
        let both = of_base.is_file() && of_image.is_file() && of_base.dev() == of_image.dev();
        let (base, image) = (base.try_clone().ok()?, image.try_clone().ok()?);
        both.then_some(Self { base, image, may_share: true, ran: None, bare: Bare::default() })
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
        let mut bare = std::mem::take(&mut self.bare);
        let (moved, may_share, copied, bare) = blocking(move || {
            let mut pair = Pair { base: &base, image: &image, may_share, copied: false, bare: &mut bare };
            let moved = chunks.iter().take_while(|chunk| chunk.iter().all(|range| pair.copy(*range).is_ok())).count();
            (moved, pair.may_share, pair.copied, bare)
        })
        .await;
        self.may_share = may_share;
        self.bare = bare;
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
    bare: &'a mut Bare,
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

    fn copy_data(&mut self, range: ByteRange) -> io::Result<()> {
        for piece in range.pieces(AHEAD) {
            self.bare.look(self.base, piece.end() + AHEAD);
            let mut at = piece.start();
            while at < piece.end() {
                match system::copy_range(self.base, self.image, at, piece.end() - at)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => at += count,
                }
                self.copied = true;
            }
            self.bare.drop_before(self.base, piece.end());
        }
        Ok(())
    }
}

impl Drop for Offload {
    /// What was read ahead of the end.
    fn drop(&mut self) {
        self.bare.drop_before(&self.base, u64::MAX);
    }
}
