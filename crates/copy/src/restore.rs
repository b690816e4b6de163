//! Giving a volume back: a whole image to a file or a block device, in one pass (R43).
//!
//! # Invariants
//! 1. A chunk is written only after its bytes were compared with its digest: damage is never restored.
//! 2. (INV-9, R46) A restore is declared only after the target was flushed, read again from its medium, and compared.
//! 3. A file appears under its name only then. A device is overwritten in place: until it is declared, its contents are
//!    neither old nor new, and the error says so.
//! 4. A file that exists and a device that is not blank are overwritten only on `force`, and only if they are no volume's
//!    (see `forbidden`).
//! 5. No manifest ever speaks of bytes that a restore has put in the place of its copy: the copy that stood there is
//!    un-declared durably before (see `standing`), and only on `force`.
//!
//! Deliberately absent: parts of volumes, archives, and restoring through a daemon.

mod beside;
mod place;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tzero_io::{Backend, Runtime};

use crate::digests::chunk_range;
use crate::error::FileAction;
use crate::flow::{self, End, Landed, Outcome, Sink, Step, Target};
use crate::medium::Medium;
use crate::opening::open_for_reading;
use crate::source::PlainSource;
use crate::verify::{Expected, compare};
use crate::{Cancel, Copy, CopyId, Error, Event, Observer, Phase};
use place::Place;

/// What to restore, and where.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The copy.
    pub copy: Copy,
    /// The state directory: catalogue, and records of copies on devices.
    pub state: PathBuf,
    /// A file, which is made, or a block device.
    pub target: PathBuf,
    /// An existing file is replaced once the restore is complete, a device that is not blank is overwritten, a copy that
    /// stands at the target is given up.
    pub force: bool,
}

/// A restore that was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Which copy.
    pub copy: CopyId,
    /// Where it is now.
    pub target: PathBuf,
    /// Whether the target is a block device.
    pub device: bool,
    /// Bytes of the volume.
    pub bytes_restored: u64,
    /// Bytes written, holes excluded.
    pub bytes_written: u64,
    /// The target was read again and is as it should be.
    pub verified: bool,
}

/// Restores a whole copy.
///
/// # Errors
/// When the target is refused, the copy is damaged, or the target does not take or keep the bytes.
pub fn restore(request: &RestoreRequest, observer: Observer<'_>, cancel: &Cancel) -> Result<Restored, Error> {
    let runtime = Runtime::new(Backend::Auto).map_err(Error::Runtime)?;
    let copy = &request.copy;
    let size = copy.manifest().size();
    let image = open_for_reading(copy.image())?;
    let found = image.size();
    if found < size || (!copy.is_device() && found != size) {
        return Err(Error::WrongSize { path: copy.image().to_owned(), found, expected: size });
    }
    let mut place = Place::open(request, &image)?;
    place.prepare()?;
    let done = runtime.block_on(fill(request, image, &place, observer, cancel));
    match done.and_then(|written| place.declare().map(|()| written)) {
        Ok(written) => Ok(Restored {
            copy: copy.id(),
            device: place.is_device(),
            target: place.path,
            bytes_restored: size,
            bytes_written: written,
            verified: true,
        }),
        Err(error) => {
            place.give_up();
            match place.is_device() {
                false => Err(error),
                true => Err(Error::Overwritten { path: place.path, cause: Box::new(error) }),
            }
        }
    }
}

async fn fill(
    request: &RestoreRequest,
    image: Medium,
    place: &Place,
    observer: Observer<'_>,
    cancel: &Cancel,
) -> Result<u64, Error> {
    let manifest = request.copy.manifest();
    let (size, chunk) = (manifest.size(), manifest.chunk);
    let path = &place.path;
    let interrupted = || Error::Interrupted { path: path.clone(), what: "restored" };
    let writable = place.file().try_clone().map_err(Error::file(FileAction::Open, path))?;
    let medium = Medium::over(writable).map_err(Error::file(FileAction::Open, path))?;
    let target = Target { device: Arc::clone(medium.device()), blank: !place.is_device() };
    let steps = (0..).zip(manifest.digests.iter()).map(|(index, expect)| Step {
        index,
        range: chunk_range(index, chunk, size),
        expect: Some(expect),
    });
    let mut filling = Filling { request, path, done: 0, total: size, written: 0, observer };
    let mut source = PlainSource::new(Arc::clone(image.device()), size);
    let end = flow::run(&mut source, target, steps, cancel, &mut filling).await?;
    if end == End::Cancelled {
        return Err(interrupted());
    }
    let Filling { written, observer, .. } = filling;
    observer(&Event::Progress { phase: Phase::Flush, done: 0, total: size });
    medium.flush().await.map_err(Error::unflushed(path))?;
    observer(&Event::Progress { phase: Phase::Flush, done: size, total: size });
    let compared = compare(&medium, Expected { size, chunk }, manifest.digests.iter(), observer, cancel).await?;
    match compared.ok_or_else(interrupted)?.damage.first() {
        None => Ok(written),
        Some(damage) => {
            let range = tzero_block::ByteRange::new(damage.offset, damage.length);
            Err(Error::ReadBack { path: path.clone(), range })
        }
    }
}

struct Filling<'a> {
    request: &'a RestoreRequest,
    path: &'a Path,
    done: u64,
    total: u64,
    written: u64,
    observer: Observer<'a>,
}

impl Sink for Filling<'_> {
    async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        let copy = &self.request.copy;
        match landed.outcome {
            Outcome::Good(_) => {}
            Outcome::Unwritable(source) => return Err(Error::Target { path: self.path.to_owned(), source }),
            Outcome::Mismatch | Outcome::Unreadable(..) => {
                return Err(Error::Damaged {
                    copy: copy.id(),
                    t0: copy.manifest().t0,
                    range: landed.range,
                    target: self.path.to_owned(),
                });
            }
        }
        self.written += landed.written;
        self.done += landed.range.len();
        (self.observer)(&Event::Progress { phase: Phase::Copy, done: self.done, total: self.total });
        Ok(())
    }
}
