//! Giving a volume back: a copy, or ranges of one, to a file, a block device, an export of an NBD server, or a served volume, in one pass
//! (R43, R46, R47).
//!
//! ```text
//!   beside:    claim TARGET.tzero-restore ──────────▶ write ▶ flush ▶ compare ▶ cut ▶ rename
//!   in place:  open, lock ▶ (compare) ▶ (survey) ▶ note ▶ un-declare what stands there ▶ write ▶ flush ▶ compare ▶ note goes
//! ```
//!
//! # Invariants
//! 1. A chunk is written only after its bytes were compared with its digest: damage is never restored, and what cannot be read is never
//!    filled with zeroes.
//! 2. (INV-9, R46) A restore is declared only after the target was flushed, what was written read again, past caches where the target allows
//!    it, and compared. The declaration covers what was restored and nothing else (R47).
//! 3. A file that is made appears under its name only then. What is overwritten in place has a [`note`] from before its first byte until then.
//! 4. Nothing is overwritten unasked but zeroes and what the copy has there anyway: see [`laying::Way::Survey`]. All else takes `force`. And nothing is written at
//!    all to what is not to be written to (see `forbidden`).
//! 5. No manifest ever speaks of bytes that a restore has put in the place of its copy: the copy that stood there is
//!    un-declared durably before (see `standing`), and only on `force`.
//! 6. What can be told before the first byte is told before it: sizes, ranges, another restore to the same place.
//! 7. A restore can be repeated after anything: it writes fixed bytes to fixed places.
//!
//! A volume is restored as one of its hosts would do it, by an NBD client of the daemon's own export: snapshots that stand stay what they are,
//! other clients are served. What a host writes to the restored ranges meanwhile is found by the comparison, and then nothing is declared.
//!
//! Deliberately absent: archives, and files within volumes.

mod beside;
mod laying;
mod note;
mod place;
mod selection;

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use tzero_api::Name;
use tzero_api::control::Part;
use tzero_api::restores::{RECORD_VERSION, RestoreRecord, RestoreState, Restorer};
use tzero_block::ByteRange;
use tzero_io::{Backend, Runtime, system};
use tzero_nbd::Uri;

use crate::blank::is_blank;
use crate::error::{Halted, Refusal};
use crate::flow::{self, End, Landed, Outcome, Sink, Unkept};
use crate::medium::Medium;
use crate::source::PlainSource;
use crate::{Cancel, Copy, CopyId, Error, Event, Observer, Phase, Timestamp, hex};
use laying::{Laying, Way};
use note::Note;
use place::{BesidePlace, InPlace, Place};
use selection::Selection;

pub(crate) use note::dismiss;
pub use selection::MOST_RANGES;

/// Where to restore to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreTarget {
    /// A file, which is made or written, or a block device.
    Path(PathBuf),
    /// An export of an NBD server.
    Export(Uri),
    /// A volume that the daemon of the state directory serves.
    Volume(Name),
}

impl fmt::Display for RestoreTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Export(uri) => uri.fmt(f),
            Self::Volume(name) => write!(f, "volume:{name}"),
        }
    }
}

/// What to restore, and where.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The copy.
    pub copy: Copy,
    /// The state directory: catalogue, records of copies on devices, and notes of restores.
    pub state: PathBuf,
    /// Where to.
    pub target: RestoreTarget,
    /// What of the copy, in any order; all of it where empty. At most [`MOST_RANGES`].
    pub ranges: Vec<ByteRange>,
    /// The target is read first, and only what differs is written.
    pub differing: bool,
    /// What the target holds may be overwritten, a file be replaced once the restore is complete, and a copy that stands at the
    /// target given up.
    pub force: bool,
    /// The daemon's job that this belongs to.
    pub job: Option<String>,
}

/// A restore that was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Which copy.
    pub copy: CopyId,
    /// Where it is now, as `--to` takes it.
    pub target: PathBuf,
    /// Whether the target is a block device.
    pub device: bool,
    /// What of the copy, ascending; all that it is of where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<Part>>,
    /// Bytes of the volume that are as in the copy now.
    pub bytes_restored: u64,
    /// Bytes written, zeroes excluded.
    pub bytes_written: u64,
    /// Bytes that the target had already; known only where it was asked for what differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_equal: Option<u64>,
    /// What was written was read again and is as it should be.
    pub verified: bool,
}

/// Restores a copy, or ranges of one.
///
/// # Errors
/// When the target is refused, the copy is damaged, or the target does not take or keep the bytes.
pub fn restore(request: &RestoreRequest, observer: Observer<'_>, cancel: &Cancel) -> Result<Restored, Error> {
    let runtime = Runtime::new(Backend::Auto).map_err(Error::Runtime)?;
    let selection = Rc::new(Selection::of(&request.copy, &request.ranges)?);
    runtime.block_on(async {
        let image = request.copy.open_image().await?;
        let mut run = Run { request, selection, image, observer, cancel };
        match place::open(request, &run.selection, &run.image).await? {
            Place::Beside(place) => run.beside(&place).await,
            Place::InPlace(place) => run.in_place(&place).await,
        }
    })
}

/// One run.
struct Run<'a> {
    request: &'a RestoreRequest,
    selection: Rc<Selection>,
    image: Medium,
    observer: Observer<'a>,
    cancel: &'a Cancel,
}

/// Which chunks are to be written.
enum Todo {
    All,
    /// These, ascending.
    Some(Vec<u64>),
}

impl Todo {
    fn has(&self, index: u64) -> bool {
        match self {
            Self::All => true,
            Self::Some(chunks) => chunks.binary_search(&index).is_ok(),
        }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Some(chunks) if chunks.is_empty())
    }
}

impl Run<'_> {
    async fn beside(&mut self, place: &BesidePlace) -> Result<Restored, Error> {
        let filled = async {
            let medium = place.medium()?;
            let laying = Laying::over_blank(&medium, &self.selection);
            let written = self.lay(&medium, place.path(), laying, &Todo::All).await?;
            place.declare().map(|()| written)
        };
        match filled.await {
            Ok(written) => Ok(self.restored(place.path(), false, written, None)),
            Err(error) => {
                place.give_up();
                Err(error)
            }
        }
    }

    async fn in_place(&mut self, place: &InPlace) -> Result<Restored, Error> {
        let (todo, known) = if self.request.differing {
            let differing = self.differing(place).await?;
            let todo = Todo::Some(differing);
            let known = self.selection.bytes() - self.bytes_of(&todo);
            (todo, known)
        } else {
            (Todo::All, 0)
        };
        let record = self.record(place);
        if todo.is_nothing() {
            note::settle(&record, &self.request.state)?;
            return Ok(self.restored(&place.path, place.is_device, 0, Some(known)));
        }
        if !self.request.force {
            self.refuse_held(place, &todo).await?;
        }
        let mut note = Note::begin(record, &self.request.state)?;
        match self.overwrite(place, &todo).await {
            Ok((written, equal)) => {
                let restored = self.restored(
                    &place.path,
                    place.is_device,
                    written,
                    self.request.differing.then_some(known + equal),
                );
                let again = self.halted(place, &note);
                note.end().map_err(again).map(|()| restored)
            }
            Err(error) => {
                note.stop(&tzero_api::sentence(&error));
                Err(self.halted(place, &note)(error))
            }
        }
    }

    /// Everything between the note and the declaration.
    async fn overwrite(&mut self, place: &InPlace, todo: &Todo) -> Result<(u64, u64), Error> {
        place.retire()?;
        let way = if self.request.differing { Way::Differing } else { Way::Over };
        let laying = Laying::new(&place.medium, &self.selection, way);
        let written =
            self.lay(&place.medium, &place.path, laying.clone(), todo).await.map_err(|error| match error {
                Error::ReadBack { path, range } if place.is_shared() => Error::ChangedMeanwhile { path, range },
                error => error,
            })?;
        place.refuse_another(&self.request.state).await?;
        Ok((written, laying.found().equal))
    }

    fn halted(&self, place: &InPlace, note: &Note) -> impl FnOnce(Error) -> Error + use<> {
        let (path, record) = (place.path.clone(), note.record().clone());
        let dismissal = record.dismissal(&self.request.state);
        move |cause| Error::Halted(Box::new(Halted { path, again: record.again(), dismissal, cause }))
    }

    fn restored(&self, target: &Path, device: bool, written: u64, equal: Option<u64>) -> Restored {
        let part = |range: ByteRange| Part { offset: range.start(), length: range.len() };
        let ranges = self.selection.is_part().then(|| self.selection.ranges().into_iter().map(part).collect());
        Restored {
            copy: self.request.copy.id(),
            target: target.to_owned(),
            device,
            ranges,
            bytes_restored: self.selection.bytes(),
            bytes_written: written,
            bytes_equal: equal,
            verified: true,
        }
    }

    fn record(&self, place: &InPlace) -> RestoreRecord {
        let copy = &self.request.copy;
        let part = |range: ByteRange| Part { offset: range.start(), length: range.len() };
        RestoreRecord {
            version: RECORD_VERSION,
            id: hex::encode(&system::random_id()),
            copy: copy.id().to_string(),
            source: copy.image().to_str().map_or_else(|| copy.id().to_string(), str::to_owned),
            target: place.path.to_string_lossy().into_owned(),
            volume_id: place.volume.as_ref().map(|served| served.volume.id.clone()),
            ranges: match self.selection.is_part() {
                true => self.selection.ranges().into_iter().map(part).collect(),
                false => Vec::new(),
            },
            differing: self.request.differing,
            force: self.request.force,
            begun: Timestamp(system::wall_ns()).to_string(),
            by: Restorer { uid: user(), pid: std::process::id(), job: self.request.job.clone() },
            state: RestoreState::Writing,
            reason: None,
        }
    }

    fn bytes_of(&self, todo: &Todo) -> u64 {
        match todo {
            Todo::All => self.selection.bytes(),
            Todo::Some(chunks) => {
                chunks.iter().map(|index| self.selection.bytes_of(self.selection.chunk(*index))).sum()
            }
        }
    }

    fn source(&self) -> PlainSource<tzero_nbd::AnyDevice> {
        let image = PlainSource::new(Arc::clone(self.image.device()), self.selection.size());
        image.scoped(self.request.copy.manifest().scope.clone())
    }

    /// Reads what the target has, from its medium, and tells the chunks that are not as in the copy.
    async fn differing(&mut self, place: &InPlace) -> Result<Vec<u64>, Error> {
        let (manifest, selection) = (self.request.copy.manifest(), Rc::clone(&self.selection));
        place.medium.flush().await.map_err(Error::unflushed(&place.path))?;
        place.medium.forget(None);
        let has = place.medium.size();
        let within = |index: u64| selection.chunk(index).end() <= has;
        let mut differing: Vec<u64> =
            selection.steps(manifest, |index| !within(index)).map(|step| step.index).collect();
        let steps = selection.steps(manifest, within);
        let mut source = PlainSource::new(Arc::clone(place.medium.device()), has).scoped(manifest.scope.clone());
        let mut sink = Telling {
            phase: Phase::Compare,
            selection: &selection,
            done: 0,
            total: selection.bytes(),
            observer: &mut *self.observer,
            told: |landed: Landed| match landed.outcome {
                Outcome::Good(_) => Ok(()),
                Outcome::Unreadable(_, fault) => Err(Error::Unread { path: place.path.clone(), fault }),
                Outcome::Mismatch | Outcome::Unwritable(_) => {
                    differing.push(landed.index);
                    Ok(())
                }
            },
        };
        let end = flow::run(&mut source, Unkept, steps, self.cancel, &mut sink).await?;
        self.unless_cancelled(end, &place.path)?;
        differing.sort_unstable();
        Ok(differing)
    }

    /// Without `force` only zeroes are overwritten, and what the copy has there anyway.
    async fn refuse_held(&mut self, place: &InPlace, todo: &Todo) -> Result<(), Error> {
        let ranges = match self.selection.is_everything() {
            true => vec![place.medium.whole()],
            false => self.selection.ranges(),
        };
        let mut blank = true;
        for range in ranges {
            blank = blank && is_blank(&place.medium, range).await.map_err(Error::unread(&place.path))?;
        }
        if blank {
            return Ok(());
        }
        let laying = Laying::new(&place.medium, &self.selection, Way::Survey);
        let refused = || Error::refused(&place.path, Refusal::NotBlankTarget);
        let found = laying.clone();
        let phase = Phase::Survey;
        self.take(laying, todo, (phase, 0), &place.path, |_| match found.found().differs {
            Some(_) => Err(refused()),
            None => Ok(()),
        })
        .await
    }

    /// Writes what is to be written, flushes it, and reads it again; gives the bytes written.
    async fn lay(&mut self, medium: &Medium, path: &Path, laying: Laying, todo: &Todo) -> Result<u64, Error> {
        let mut written = 0;
        self.take(laying, todo, (Phase::Copy, 0), path, |landed| {
            written += landed.written;
            Ok(())
        })
        .await?;
        let total = self.bytes_of(todo);
        (self.observer)(&Event::Progress { phase: Phase::Flush, done: 0, total });
        medium.flush().await.map_err(Error::unflushed(path))?;
        (self.observer)(&Event::Progress { phase: Phase::Flush, done: total, total });
        self.read_back(medium, path, todo).await?;
        Ok(written)
    }

    /// Takes chunks of the copy, each held against its digest first.
    async fn take(
        &mut self,
        laying: Laying,
        todo: &Todo,
        (phase, done): (Phase, u64),
        path: &Path,
        mut told: impl FnMut(&Landed) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (copy, selection) = (&self.request.copy, Rc::clone(&self.selection));
        let (mut source, total) = (self.source(), self.bytes_of(todo).max(done));
        let steps = selection.steps(copy.manifest(), |index| todo.has(index));
        let damaged =
            |range| Error::Damaged { copy: copy.id(), t0: copy.manifest().t0, range, target: path.to_owned() };
        let mut sink = Telling {
            phase,
            selection: &selection,
            done,
            total,
            observer: &mut *self.observer,
            told: |landed: Landed| match landed.outcome {
                Outcome::Good(_) => told(&landed),
                Outcome::Unwritable(source) => Err(Error::Target { path: path.to_owned(), source }),
                Outcome::Mismatch => Err(damaged(landed.range)),
                Outcome::Unreadable(range, fault) => {
                    Err(Error::Unreadable { copy: copy.id(), range, fault, target: path.to_owned() })
                }
            },
        };
        let end = flow::run(&mut source, laying, steps, self.cancel, &mut sink).await?;
        self.unless_cancelled(end, path)
    }

    /// Reads what was written from the medium. Chunks that were written whole are held against their digests, parts against the copy.
    async fn read_back(&mut self, medium: &Medium, path: &Path, todo: &Todo) -> Result<(), Error> {
        medium.forget(None);
        let (manifest, selection) = (self.request.copy.manifest(), Rc::clone(&self.selection));
        let bad = |range| Error::ReadBack { path: path.to_owned(), range };
        let steps = selection.steps(manifest, |index| todo.has(index) && selection.is_whole(index));
        let mut source = PlainSource::new(Arc::clone(medium.device()), selection.size());
        let mut sink = Telling {
            phase: Phase::Verify,
            selection: &selection,
            done: 0,
            total: self.bytes_of(todo),
            observer: &mut *self.observer,
            told: |landed: Landed| match landed.outcome {
                Outcome::Good(_) => Ok(()),
                Outcome::Unreadable(_, fault) => Err(Error::Unread { path: path.to_owned(), fault }),
                Outcome::Mismatch | Outcome::Unwritable(_) => Err(bad(landed.range)),
            },
        };
        let end = flow::run(&mut source, Unkept, steps, self.cancel, &mut sink).await?;
        let done = sink.done;
        self.unless_cancelled(end, path)?;
        let parts = selection.steps(manifest, |index| todo.has(index) && !selection.is_whole(index));
        let parts = Todo::Some(parts.map(|step| step.index).collect());
        let laying = Laying::new(medium, &selection, Way::Compare);
        let found = laying.clone();
        self.take(laying, &parts, (Phase::Verify, done), path, |_| {
            found.found().differs.map_or(Ok(()), |range| Err(bad(range)))
        })
        .await
    }

    fn unless_cancelled(&self, end: End, path: &Path) -> Result<(), Error> {
        match end {
            End::Done => Ok(()),
            End::Cancelled => Err(Error::Interrupted { path: path.to_owned(), what: "restored" }),
        }
    }
}

/// The number of the user that this process runs as.
fn user() -> u32 {
    fs::metadata("/proc/self").map_or(0, |process| process.uid())
}

/// Tells how far a phase is.
struct Telling<'a, T> {
    phase: Phase,
    selection: &'a Selection,
    done: u64,
    total: u64,
    observer: Observer<'a>,
    told: T,
}

impl<T: FnMut(Landed) -> Result<(), Error>> Sink for Telling<'_, T> {
    async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        let range = landed.range;
        (self.told)(landed)?;
        self.done += self.selection.bytes_of(range);
        (self.observer)(&Event::Progress { phase: self.phase, done: self.done, total: self.total });
        Ok(())
    }
}
