//! What is done with a copy's bytes at the target: laid over what is there, or held against it.
//!
//! | way | bytes that are there already | others |
//! |---|---|---|
//! | over | written all the same | written |
//! | differing | left alone, 4 KiB at a time | written |
//! | compare | counted | told |
//! | survey | fine, and so are zeroes | told |
//!
//! The bytes have been compared with their digests before they come here; only what is selected is looked at.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tzero_block::{ByteRange, Error};
use tzero_io::{Buffer, is_zero};
use tzero_nbd::AnyDevice;

use super::selection::Selection;
use crate::flow::{Taken, Taker, Target};
use crate::medium::Medium;
use crate::pace::Pace;
use crate::source::{Content, Part};
use crate::{ChunkDigest, unaligned};

/// What is compared, and written, at a time.
const PIECE: u64 = 4096;

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Over,
    Differing,
    Compare,
    Survey,
}

/// What was found at the target.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// Bytes that were there already.
    pub(super) equal: u64,
    /// Where something else was, first.
    pub(super) differs: Option<ByteRange>,
}

/// Takes a copy's chunks at a target.
#[derive(Clone)]
pub(super) struct Laying {
    medium: Medium,
    selection: Rc<Selection>,
    way: Way,
    /// The target reads as zeroes where nothing was written.
    blank: bool,
    found: Rc<RefCell<Found>>,
}

impl Laying {
    pub(super) fn new(medium: &Medium, selection: &Rc<Selection>, way: Way) -> Self {
        let (medium, selection) = (medium.clone(), Rc::clone(selection));
        Self { medium, selection, way, blank: false, found: Rc::default() }
    }

    /// Over a target that reads as zeroes.
    pub(super) fn over_blank(medium: &Medium, selection: &Rc<Selection>) -> Self {
        Self { blank: true, ..Self::new(medium, selection, Way::Over) }
    }

    /// What was found so far.
    pub(super) fn found(&self) -> Found {
        *self.found.borrow()
    }

    fn target(&self) -> Target<AnyDevice> {
        let pace = self.medium.file().is_none().then(Pace::default);
        Target { device: Arc::clone(self.medium.device()), blank: self.blank, pace }
    }

    /// Writes what is not there already.
    async fn differing(&self, range: ByteRange, content: Content) -> Taken {
        let there = self.medium.read(range).await?;
        let (mut written, mut changed) = (0, 0);
        for (run, zero) in differing(range, &there, &content) {
            changed += run.len();
            let device = self.medium.device().as_ref();
            if zero {
                unaligned::zero(device, run).await?;
                continue;
            }
            unaligned::write(device, run.start(), Buffer::copy_of(&slice(range, &content, run))).await?;
            written += run.len();
        }
        self.found.borrow_mut().equal += range.len() - changed;
        Ok(written)
    }

    async fn hold_against(&self, range: ByteRange, content: Content) -> Result<(), Error> {
        let there = self.medium.read(range).await?;
        let surveyed = self.way == Way::Survey;
        let mut found = self.found.borrow_mut();
        found.equal += range.len();
        for (run, _) in differing(range, &there, &content) {
            found.equal -= run.len();
            let at = (run.start() - range.start()) as usize;
            let is_fine =
                surveyed && is_zero_or_equal(&there[at..at + run.len() as usize], &slice(range, &content, run));
            if !is_fine && found.differs.is_none() {
                found.differs = Some(run);
            }
        }
        Ok(())
    }
}

impl Taker for Laying {
    async fn take(self, _range: ByteRange, digest: ChunkDigest, parts: Vec<Part>, pace: Pace) -> Taken {
        let parts = selected(parts, &self.selection);
        if self.way == Way::Over {
            return self.target().write(parts, digest == ChunkDigest::Zero, &pace).await;
        }
        let mut written = 0;
        for (range, content) in parts {
            match self.way {
                Way::Differing => written += self.differing(range, content).await?,
                _ => self.hold_against(range, content).await?,
            }
        }
        Ok(written)
    }
}

/// The stretches of `parts` that are selected.
fn selected(parts: Vec<Part>, selection: &Selection) -> Vec<Part> {
    let mut cut = Vec::with_capacity(parts.len());
    for (range, content) in parts {
        match selection.within(range).as_slice() {
            [] => {}
            [whole] if *whole == range => cut.push((range, content)),
            stretches => cut.extend(stretches.iter().map(|stretch| (*stretch, copied(range, &content, *stretch)))),
        }
    }
    cut
}

/// What `content`, which is that of `range`, has in `part`.
fn copied(range: ByteRange, content: &Content, part: ByteRange) -> Content {
    match content {
        Content::Hole | Content::Outside => Content::Hole,
        Content::Bytes(bytes) => Content::Bytes(Buffer::copy_of(&bytes[place(range, part)])),
    }
}

fn slice(range: ByteRange, content: &Content, part: ByteRange) -> std::borrow::Cow<'_, [u8]> {
    match content {
        Content::Hole | Content::Outside => vec![0; part.len() as usize].into(),
        Content::Bytes(bytes) => (&bytes[place(range, part)]).into(),
    }
}

fn place(range: ByteRange, part: ByteRange) -> std::ops::Range<usize> {
    (part.start() - range.start()) as usize..(part.end() - range.start()) as usize
}

/// Whether each sector is zero or what is to be there.
fn is_zero_or_equal(there: &[u8], wanted: &[u8]) -> bool {
    const SECTOR: usize = 512;
    there.chunks(SECTOR).zip(wanted.chunks(SECTOR)).all(|(there, wanted)| is_zero(there) || there == wanted)
}

/// Where `there` is not `content`, in pieces of 4 KiB, neighbours together; and whether zeroes are to be there.
fn differing(range: ByteRange, there: &[u8], content: &Content) -> Vec<(ByteRange, bool)> {
    let mut runs: Vec<(ByteRange, bool)> = Vec::new();
    for piece in range.pieces(PIECE) {
        let at = place(range, piece);
        let zero = match content {
            Content::Hole | Content::Outside => true,
            Content::Bytes(bytes) => is_zero(&bytes[at.clone()]),
        };
        let is_same = match content {
            Content::Bytes(bytes) if !zero => there[at.clone()] == bytes[at],
            _ => is_zero(&there[at]),
        };
        match runs.last_mut() {
            _ if is_same => {}
            Some((run, was)) if *was == zero && run.end() == piece.start() => {
                *run = ByteRange::between(run.start(), piece.end());
            }
            _ => runs.push((piece, zero)),
        }
    }
    runs
}
