//! Reading a copy again and comparing it with what it must be.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tzero_api::Exit;
use tzero_block::ByteRange;
use tzero_io::{Backend, Runtime};

use crate::digests::chunk_range;
use crate::flow::{self, End, Landed, Outcome, Sink, Step, Unkept};
use crate::medium::Medium;
use crate::pace::Pace;
use crate::scope::Scope;
use crate::source::PlainSource;
use crate::{Cancel, ChunkDigest, Copy, CopyId, Error, Event, Observer, Phase, Timestamp};

/// Most damaged ranges that are told one by one.
const MOST_TOLD: usize = 16;

/// What is wrong with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// Its bytes are not the ones that were written.
    Altered,
    /// It cannot be read.
    Unreadable,
    /// The image ends before it.
    Missing,
}

/// A damaged range of a copy: whole chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What reading a copy showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Which copy.
    pub id: CopyId,
    /// The instant that it shows.
    pub t0: Timestamp,
    /// Where its image is.
    pub image: PathBuf,
    /// Bytes that it should have.
    pub size: u64,
    /// Bytes that it has; of a device, as many as the copy needs at most.
    pub size_found: u64,
    /// Bytes that are as they should be.
    pub good_bytes: u64,
    /// How many chunks are damaged.
    pub damaged_chunks: u64,
    /// Where, merged, the first few.
    pub damage: Vec<Damage>,
}

impl Verification {
    /// Whether every byte is as it should be, and there is none too many.
    pub fn is_good(&self) -> bool {
        self.damaged_chunks == 0 && self.size == self.size_found
    }

    /// For the process's exit status.
    pub fn exit(&self) -> Exit {
        if self.is_good() { Exit::AsAsked } else { Exit::Failed }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, t0, image, size, size_found, damaged_chunks, .. } = self;
        if self.is_good() {
            return write!(f, "the copy {id} of {t0} is good: {size} bytes");
        }
        write!(f, "the copy {id} of {t0} at {} is damaged: ", image.display())?;
        if size != size_found {
            write!(f, "it has {size_found} bytes instead of {size}")?;
        }
        if *damaged_chunks > 0 {
            let and = if size != size_found { ", and " } else { "" };
            let are = if *damaged_chunks == 1 { "chunk is" } else { "chunks are" };
            write!(f, "{and}{damaged_chunks} {are} bad")?;
        }
        for (index, damage) in self.damage.iter().enumerate() {
            let what = match damage.kind {
                DamageKind::Altered => "altered",
                DamageKind::Unreadable => "unreadable",
                DamageKind::Missing => "missing",
            };
            let before = if index == 0 { ": " } else { ", " };
            write!(f, "{before}{}+{} {what}", damage.offset, damage.length)?;
        }
        let told: u64 = self.damage.iter().map(|damage| damage.length).sum();
        if self.good_bytes + told < *size {
            f.write_str(" …")?;
        }
        Ok(())
    }
}

/// Reads the whole copy from its medium and compares every chunk with its digest.
///
/// # Errors
/// When the image cannot be opened, or it was told to stop. Damage is no error: see [`Verification`].
pub fn verify(copy: &Copy, observer: Observer<'_>, cancel: &Cancel) -> Result<Verification, Error> {
    let runtime = Runtime::new(Backend::Auto).map_err(Error::Runtime)?;
    let medium = runtime.block_on(copy.open_any_image())?;
    let manifest = copy.manifest();
    let size_found = if copy.is_device() { medium.size().min(manifest.size()) } else { medium.size() };
    let expected = Expected { size: manifest.size(), chunk: manifest.chunk, scope: manifest.scope.clone() };
    let comparison = runtime.block_on(compare(
        (&medium, copy.image()),
        expected,
        manifest.digests.iter(),
        observer,
        cancel,
        Pace::default(),
    ))?;
    let Some(Comparison { good_bytes, damaged_chunks, damage }) = comparison else {
        return Err(Error::Interrupted { path: copy.image().to_owned(), what: "verified" });
    };
    Ok(Verification {
        id: copy.id(),
        t0: manifest.t0,
        image: copy.image().to_owned(),
        size: manifest.size(),
        size_found,
        good_bytes,
        damaged_chunks,
        damage,
    })
}

#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) size: u64,
    pub(crate) chunk: u64,
    /// What else there is may be anything.
    pub(crate) scope: Scope,
}

#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) good_bytes: u64,
    pub(crate) damaged_chunks: u64,
    pub(crate) damage: Vec<Damage>,
}

/// Reads a medium and compares it. What was written must have been flushed. `None` when told to stop.
pub(crate) async fn compare(
    (medium, path): (&Medium, &Path),
    expected: Expected,
    digests: impl Iterator<Item = ChunkDigest>,
    observer: Observer<'_>,
    cancel: &Cancel,
    pace: Pace,
) -> Result<Option<Comparison>, Error> {
    medium.forget(None);
    let Expected { size, chunk, scope } = expected;
    let has = medium.size();
    let mut judge =
        Judge { comparison: Comparison::default(), done: 0, total: size, observer, missing: Vec::new(), path };
    let mut missing = Vec::new();
    let steps = (0..).zip(digests).filter_map(|(index, expect)| {
        let range = chunk_range(index, chunk, size);
        if range.end() > has {
            missing.push(range);
            return None;
        }
        Some(Step { index, range, expect: Some(expect) })
    });
    let mut source = PlainSource::new(Arc::clone(medium.device()), size.min(has)).scoped(scope).paced(pace);
    let end = flow::run(&mut source, Unkept, steps, cancel, &mut judge).await?;
    if end == End::Cancelled {
        return Ok(None);
    }
    judge.missing = missing;
    Ok(Some(judge.finish()))
}

struct Judge<'a> {
    comparison: Comparison,
    done: u64,
    total: u64,
    observer: Observer<'a>,
    missing: Vec<ByteRange>,
    path: &'a Path,
}

impl Judge<'_> {
    fn damaged(&mut self, range: ByteRange, kind: DamageKind) {
        let Comparison { damaged_chunks, damage, .. } = &mut self.comparison;
        *damaged_chunks += 1;
        let adjoins = |last: &&mut Damage| last.kind == kind && last.offset + last.length == range.start();
        if let Some(last) = damage.last_mut().filter(adjoins) {
            last.length += range.len();
        } else if damage.len() < MOST_TOLD {
            damage.push(Damage { offset: range.start(), length: range.len(), kind });
        }
    }

    fn finish(mut self) -> Comparison {
        for range in std::mem::take(&mut self.missing) {
            self.damaged(range, DamageKind::Missing);
        }
        (self.observer)(&Event::Progress { phase: Phase::Verify, done: self.total, total: self.total });
        self.comparison
    }
}

impl Sink for Judge<'_> {
    async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        match landed.outcome {
            Outcome::Good(_) => self.comparison.good_bytes += landed.range.len(),
            Outcome::Mismatch | Outcome::Unwritable(_) => self.damaged(landed.range, DamageKind::Altered),
            Outcome::Unreadable(_, fault) if fault.is_link() => {
                return Err(Error::Unread { path: self.path.to_owned(), fault });
            }
            Outcome::Unreadable(..) => self.damaged(landed.range, DamageKind::Unreadable),
        }
        self.done += landed.range.len();
        (self.observer)(&Event::Progress { phase: Phase::Verify, done: self.done, total: self.total });
        Ok(())
    }
}
