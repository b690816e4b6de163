//! A volume that becomes longer or shorter, by way of its last base.
//!
//! ```text
//! longer, a file or device:  record: may be old or new ─▶ file extended ─▶ record: new ─▶ engine, new sessions      (while it is used)
//! longer, an export:         closed ─▶ record: may be old or new ─▶ opened over a new connection                    (snapshots stay)
//! shorter, a file:           closed ─▶ record: may be old or new ─▶ file cut ─▶ opened                              (no snapshots)
//! ```
//!
//! # Invariants
//! 1. Before a base has another size the record allows both: whatever the base has when the next start looks is what the volume has.
//! 2. Nobody is told of a size before it is on record for good, and the bytes are there for good: what is written there stays.
//! 3. What cannot be finished is undone: a file that was extended is cut again, as nobody can have written there.
//! 4. A volume never becomes shorter while somebody uses it, or a snapshot shows what it was.
//!
//! | | resize | another change of volumes | snapshots, movers | clients |
//! |---|---|---|---|---|
//! | **longer** | `changing` | `changing` | each has the size that the volume had | those that are there keep the size that they know |
//! | **shorter** | `changing` | `changing` | refused | refused, under the members' lock |

use std::cmp::Ordering;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use tzero_api::{Name, ResizeVolume};

use crate::base::{Component, Medium};
use crate::identity::size_of;
use crate::opening::{self, Opening};
use crate::platform::Moment;
use crate::record::{VolumeDirectory, VolumeRecord};
use crate::refusal::Refusal;
use crate::remote::{Purpose, Remote};
use crate::threads::off_thread;
use crate::volume::{Serving, Volume};
use crate::volumes::{Snapshots, Volumes, count_snapshots};

/// How a volume gets its new size.
enum Way {
    /// While it is used.
    Longer,
    /// Closed, and opened again over a new connection.
    LongerElsewhere,
    /// Closed, cut, and opened again.
    Shorter,
}

impl Volumes {
    /// Makes a volume longer or shorter; gives the volume. One that has the size already is left alone.
    pub(crate) async fn resize(self: &Arc<Self>, name: &Name, request: ResizeVolume) -> Result<Arc<Volume>, Refusal> {
        request.check()?;
        let _changing = self.change(name).await?;
        let volume = self.get(name)?;
        let size = request.size.0;
        let (volumes, looked_at) = (Arc::clone(self), Arc::clone(&volume));
        let planned = off_thread(move || {
            looked_at.look_at_base();
            volumes.plan(&looked_at, size)
        });
        let Some((way, record)) = planned.await? else { return Ok(volume) };
        match way {
            Way::Longer => {
                let gate = volume.enter()?;
                let (theirs, opening) = (Arc::clone(&volume), self.opening.clone());
                off_thread(move || grow(&theirs, record, &opening)).await?;
                drop(gate);
                Ok(volume)
            }
            Way::LongerElsewhere => self.reopen_resized(volume, record, size, Snapshots::Stay).await,
            Way::Shorter => {
                match count_snapshots(&volume).await {
                    0 => volume.without_clients().await?,
                    count => return Err(Refusal::SnapshotsOfSize { volume: name.clone(), count }),
                }
                self.reopen_resized(volume, record, size, Snapshots::None).await
            }
        }
    }

    /// How a volume gets a size, and the record that allows for it; nothing where it has it. Blocking.
    fn plan(&self, volume: &Volume, size: u64) -> Result<Option<(Way, VolumeRecord)>, Refusal> {
        let serving = volume.whole()?;
        let record = volume.record().ok_or_else(|| Refusal::BeingChanged(volume.name.clone()))?;
        let last = last_of(serving);
        let (now, before) = (serving.engine.size(), serving.engine.size() - last.size());
        let way = match (size.cmp(&now), &last.medium) {
            (Ordering::Equal, _) => return Ok(None),
            (Ordering::Greater, Medium::File(_)) => Way::Longer,
            (Ordering::Greater, Medium::Export(_)) => Way::LongerElsewhere,
            (Ordering::Less, _) => Way::Shorter,
        };
        if size <= before {
            let (volume, place) = (volume.name.clone(), last.place.clone());
            return Err(Refusal::NothingLeft { volume, place, least: before });
        }
        let wanted = size - before;
        if !matches!(way, Way::Shorter) {
            opening::afford(&volume.name, size, record.grain)?;
        }
        match (&last.medium, is_file(last)) {
            (_, true) => refuse_blocks(volume, serving, wanted)?,
            (_, false) if matches!(way, Way::Shorter) => {
                return Err(Refusal::NotCut { volume: volume.name.clone(), place: last.place.clone() });
            }
            (medium, false) => {
                let found = self.size_now(medium).map_err(|why| not_resized(volume, last, wanted, why))?;
                if found != wanted {
                    let (volume, place, would) = (volume.name.clone(), last.place.clone(), before + found);
                    return Err(Refusal::SizeNotThere { volume, place, found, wanted, size, would });
                }
            }
        }
        let mut record = VolumeRecord::clone(&record).of_today();
        record.bases.last_mut().expect("a volume has a base").becoming = Some(wanted);
        Ok(Some((way, record)))
    }

    /// How long a device, or an export for a new client, is by now.
    fn size_now(&self, medium: &Medium) -> io::Result<u64> {
        match medium {
            Medium::File(file) => size_of(file),
            Medium::Export(remote) => {
                let uri = remote.device().uri().to_string();
                Remote::open(&self.threads, &uri, Purpose::Base).map(|again| again.size()).map_err(io::Error::other)
            }
        }
    }

    /// Closes a volume that nobody uses, gives its last base the size that the record allows for, and opens it again.
    async fn reopen_resized(
        self: &Arc<Self>,
        volume: Arc<Volume>,
        record: VolumeRecord,
        size: u64,
        snapshots: Snapshots,
    ) -> Result<Arc<Volume>, Refusal> {
        let name = volume.name.clone();
        let old = volume.record().map(|record| VolumeRecord::clone(&record));
        let old = old.ok_or_else(|| Refusal::BeingChanged(name.clone()))?;
        let gate = volume.enter_alone().await?;
        let waiting = Volume::failed(name.clone(), Some(old.clone()), volume.directory.clone(), "it gets another size");
        let place = self.supplant(&volume, waiting, snapshots)?;
        let changed = match volume.close(&self.threads).await {
            Ok(()) => {
                let (theirs, opening, record) = (Arc::clone(&volume), self.opening.clone(), record.clone());
                off_thread(move || change_closed(&theirs, &record, &opening)).await
            }
            Err(unclean) => Err(unclean),
        };
        drop(gate);
        drop(volume);
        match changed {
            Ok(()) => {
                let served = self.reopen(place, record, None).await;
                served.map_err(|why| Refusal::ResizedNotServed { volume: name, size, why: Box::new(why) })
            }
            Err(why) => match self.reopen(place, old, None).await {
                Ok(_) => Err(why),
                Err(why) => Err(Refusal::UnresizedNotServed { volume: name, why: Box::new(why) }),
            },
        }
    }
}

/// Makes a served volume longer, by the size that the record allows for. Blocking.
fn grow(volume: &Volume, mut record: VolumeRecord, opening: &Opening) -> Result<(), Refusal> {
    let serving = volume.whole()?;
    let last = last_of(serving);
    let place = record.bases.last_mut().expect("a volume has a base");
    let wanted = place.becoming.expect("the record allows for a new size");
    let no_memory = |source| Refusal::NoBits { volume: volume.name.clone(), source };
    serving.engine.prepare_to_grow(serving.engine.size() - last.size() + wanted).map_err(no_memory)?;
    let was = room_for(last, wanted).map_err(|source| not_resized(volume, last, wanted, source))?;
    volume.directory.write(&record)?;
    opening.pass(Moment::ResizeIntended);
    // A device has it already.
    if is_file(last)
        && let Err(source) = resize_file(last, wanted)
    {
        undo(volume, last, was);
        return Err(not_resized(volume, last, wanted, source));
    }
    opening.pass(Moment::ResizeDone);
    let base = record.bases.last_mut().expect("a volume has a base");
    (base.identity, base.becoming) = (Some(last.identity().resized(wanted)), None);
    if let Err(error) = volume.directory.write(&record)
        && !says(&volume.directory, &record)
    {
        undo(volume, last, was);
        return Err(error.into());
    }
    opening.pass(Moment::ResizeRecorded);
    let device = serving.engine.base().components().last().expect("a volume has a base");
    device.grow().map_err(|source| not_resized(volume, last, wanted, source))?;
    last.has_grown(wanted);
    volume.put_record(record);
    serving.engine.grow().map(drop).map_err(no_memory)
}

/// Gives the last base of a closed volume the size that the record allows for. Blocking.
fn change_closed(volume: &Volume, record: &VolumeRecord, opening: &Opening) -> Result<(), Refusal> {
    let last = last_of(volume.serving()?);
    let wanted = record.bases.last().and_then(|base| base.becoming).expect("the record allows for a new size");
    // It is about a base of the old size.
    volume.directory.record_clean_stop(None)?;
    volume.directory.write(record)?;
    opening.pass(Moment::ResizeIntended);
    if is_file(last) {
        resize_file(last, wanted).map_err(|source| not_resized(volume, last, wanted, source))?;
    }
    opening.pass(Moment::ResizeDone);
    Ok(())
}

fn last_of(serving: &Serving) -> &Component {
    serving.base.components.last().expect("a volume has a base")
}

/// Whether it is a file, whose size the daemon decides.
fn is_file(component: &Component) -> bool {
    component
        .local()
        .is_some_and(|(_, file)| file.metadata().is_ok_and(|metadata| !metadata.file_type().is_block_device()))
}

fn not_resized(volume: &Volume, last: &Component, wanted: u64, source: io::Error) -> Refusal {
    Refusal::NotResized { volume: volume.name.clone(), place: last.place.clone(), wanted, source }
}

/// How long the last base is by now: no longer than it is to be, or somebody else has plans for it.
fn room_for(last: &Component, wanted: u64) -> io::Result<u64> {
    let Some((_, file)) = last.local() else { return Err(io::ErrorKind::Unsupported.into()) };
    match size_of(file)? {
        found if found > wanted => {
            Err(io::Error::other(format!("it is {found} bytes long already, and nothing of that is to be lost")))
        }
        found => Ok(found),
    }
}

/// Past the page cache only whole blocks can be had.
fn refuse_blocks(volume: &Volume, serving: &Serving, wanted: u64) -> Result<(), Refusal> {
    let last = last_of(serving);
    let device = serving.engine.base().components().last().expect("a volume has a base");
    let block = device.block();
    if wanted.is_multiple_of(block) {
        return Ok(());
    }
    Err(Refusal::NotBlocks { volume: volume.name.clone(), place: last.place.clone(), block })
}

/// Gives a file a size, durably.
fn resize_file(last: &Component, size: u64) -> io::Result<()> {
    let Some((_, file)) = last.local() else { return Err(io::ErrorKind::Unsupported.into()) };
    file.set_len(size)?;
    file.sync_all()
}

/// Gives a file the size back that it had, of which nobody has heard that it was to be longer, and takes back that it may be. Where that
/// fails too, the next start finds what the record allows for.
fn undo(volume: &Volume, last: &Component, was: u64) {
    if is_file(last)
        && let Err(error) = resize_file(last, was)
    {
        tracing::warn!(volume = %volume.name, "{} stays longer than the volume until the next start: {error}", last.place);
        return;
    }
    if let Some(record) = volume.record()
        && let Err(error) = volume.directory.write(&record)
    {
        tracing::warn!(volume = %volume.name, "the record still allows for another size: {error}");
    }
}

/// Whether the record that is there is this one, although writing it failed.
fn says(directory: &VolumeDirectory, record: &VolumeRecord) -> bool {
    directory.read().is_ok_and(|found| found.bases == record.bases)
}
