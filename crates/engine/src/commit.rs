//! Group commit of originals that must be durable before the changes that they permit (`durability = power`).
//!
//! ```text
//!  save ──▶ queue ──▶ nobody leads? lead: take what waits ──▶ payloads and records ──▶ one flush ──▶ published, all of them ──▶ the next
//!             └────── somebody does: wait; what comes meanwhile is the next batch
//! ```
//!
//! There is no delay: a lone save is written and flushed at once, and pays one flush. The slower the flush, the more share the next one.
//!
//! # Invariants
//! 1. INV-2, against loss of power: an original is published only after a flush of the cache that began after its payload and its record were
//!    written, and has succeeded.
//! 2. One batch is under way at a time, so sequences are published in the order in which they were assigned. Those of a batch that failed are
//!    not used again.
//! 3. A batch that fails costs its own originals, no others: each save of it goes down the ladder by itself.
//!
//! | | lead | wait | give up waiting |
//! |---|---|---|---|
//! | **lead** | one at a time | the outcome is there before anybody is woken | a save that is gone is left out; one that is under way is published all the same |
//!
//! Deliberately absent: a task of its own. Whoever has something to save leads.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use tzero_block::{BlockDevice, Error};
use tzero_io::{Buffer, Notify, together};
use tzero_originals::{BrokenReason, Epoch, GrainIndex, Located, Original, Reservation, Reserved, Sequence};

use crate::first::within;
use crate::platform::Platform;
use crate::points::{Event, Planted, Point};
use crate::save::NotStored;
use crate::volume::Volume;

/// Most originals of one batch, so that the first of it does not wait for too many.
const MOST_ORIGINALS: usize = 2048;
/// Most bytes that are put together for one write.
const MOST_WRITE: usize = 1 << 20;

/// Where published originals are, and their sequences.
pub(crate) type Published = Vec<(GrainIndex, Located, Sequence)>;

/// Originals of one save that are to be durable.
pub(crate) struct Saving {
    pub(crate) tag: Epoch,
    pub(crate) lines: Vec<Original>,
    state: Mutex<State>,
}

struct State {
    /// Places for them; taken when they are published.
    reservation: Option<Reservation>,
    /// What goes into slots from the first on.
    payloads: Vec<(u64, Buffer)>,
    outcome: Option<Result<Published, NotStored>>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Arc<Saving>>,
    /// Somebody leads.
    led: bool,
}

/// Saves that wait to be committed.
#[derive(Default)]
pub(crate) struct Commits {
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Saving {
    pub(crate) fn new(
        tag: Epoch,
        lines: Vec<Original>,
        reservation: Reservation,
        payloads: Vec<(u64, Buffer)>,
    ) -> Arc<Self> {
        let state = State { reservation: Some(reservation), payloads, outcome: None };
        Arc::new(Self { tag, lines, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    /// The places, where they were not used.
    pub(crate) fn take_reservation(&self) -> Option<Reservation> {
        self.state().reservation.take()
    }

    fn end(&self, outcome: Result<Published, NotStored>) {
        self.state().outcome.get_or_insert(outcome);
    }
}

impl Commits {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing panics under this lock")
    }

    /// Takes the lead, with what waits; `None` where somebody else has it.
    fn lead(&self) -> Option<Lead<'_>> {
        let mut queue = self.queue();
        if queue.led || queue.waiting.is_empty() {
            return None;
        }
        queue.led = true;
        let mut originals = 0;
        let fits = queue.waiting.iter().take_while(|saving| {
            originals += saving.lines.len();
            originals <= MOST_ORIGINALS
        });
        let count = fits.count().max(1);
        Some(Lead { commits: self, batch: queue.waiting.drain(..count).collect() })
    }
}

/// The lead over one batch. Whatever becomes of it, everybody in it has an outcome at the end.
struct Lead<'a> {
    commits: &'a Commits,
    batch: Vec<Arc<Saving>>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // Without one only where the leader was dropped on its way: what it wrote may land at any time.
        self.batch.iter().for_each(|saving| saving.end(Err(NotStored::Hangs)));
        self.commits.queue().led = false;
        self.commits.changed.notify_all();
    }
}

/// A save that waits; taken out of the queue if it is dropped.
struct Waiting<'a> {
    commits: &'a Commits,
    saving: &'a Arc<Saving>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.commits.queue().waiting.retain(|other| !Arc::ptr_eq(other, self.saving));
    }
}

impl<P: Platform> Volume<P> {
    /// Makes originals durable and publishes them.
    pub(crate) async fn commit(&self, saving: &Arc<Saving>) -> Result<Published, NotStored> {
        self.commits.queue().waiting.push(Arc::clone(saving));
        let waiting = Waiting { commits: &self.commits, saving };
        loop {
            let changed = self.commits.changed.listen();
            if let Some(outcome) = saving.state().outcome.take() {
                drop(waiting);
                return outcome;
            }
            match self.commits.lead() {
                Some(lead) => self.commit_batch(&lead.batch).await,
                None => changed.await,
            }
        }
    }

    async fn commit_batch(&self, batch: &[Arc<Saving>]) {
        if batch.len() > 1 {
            self.platform.observe(Event::CommittedTogether);
        }
        match self.write_batch(batch).await {
            Ok(()) => {}
            // What has no room together may have some alone.
            Err(NotStored::Failed(BrokenReason::CacheFull)) if batch.len() > 1 => {
                for saving in batch {
                    if let Err(failed) = self.write_batch(std::slice::from_ref(saving)).await {
                        saving.end(Err(failed));
                    }
                }
            }
            Err(failed) => batch.iter().for_each(|saving| saving.end(Err(failed))),
        }
    }

    /// Writes payloads and records, flushes, publishes.
    async fn write_batch(&self, batch: &[Arc<Saving>]) -> Result<(), NotStored> {
        self.platform.point(Point::Batch).await;
        self.refuse_while_hanging()?;
        let count: u64 = batch.iter().map(|saving| saving.lines.len() as u64).sum();
        let first = self.originals.assign(count);
        let (payloads, records) = (self.payloads(batch), self.records(batch, first));
        let early = self.platform.planted(Planted::CommitBeforeFlush);
        if early {
            self.publish_batch(batch, first);
        }
        let limit = self.platform.longest_save();
        let durable = within(self.make_durable(payloads, records), self.platform.sleep(limit)).await;
        let Some(durable) = durable else {
            self.hangs(limit);
            self.originals.is_uncertain();
            return Err(NotStored::Hangs);
        };
        if let Err(error) = durable {
            self.platform.observe(Event::CommitFailed);
            self.originals.is_uncertain();
            let full = error.is_no_space();
            return Err(NotStored::Failed(if full { BrokenReason::CacheFull } else { BrokenReason::SaveFailed }));
        }
        self.originals.is_durable(Sequence(first.0 + count - 1));
        self.platform.point(Point::Flushed).await;
        if !early {
            self.publish_batch(batch, first);
        }
        self.platform.point(Point::Entry).await;
        Ok(())
    }

    async fn make_durable(&self, payloads: Vec<(u64, Buffer)>, records: Vec<(u64, Buffer)>) -> Result<(), Error> {
        let cache = self.cache();
        let write = |(offset, buffer)| async move { cache.write(offset, buffer, false).await.1 };
        if self.platform.planted(Planted::PayloadNotDurable) {
            together(records.into_iter().map(write)).await.into_iter().collect::<Result<(), _>>()?;
            cache.flush().await?;
            return together(payloads.into_iter().map(write)).await.into_iter().collect();
        }
        together(payloads.into_iter().chain(records).map(write)).await.into_iter().collect::<Result<(), _>>()?;
        self.platform.point(Point::Payload).await;
        cache.flush().await
    }

    /// What goes into slots, as offsets in the cache; what lies together becomes one write.
    fn payloads(&self, batch: &[Arc<Saving>]) -> Vec<(u64, Buffer)> {
        // They are copied: a batch that fails for want of space is written again, one by one.
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        for saving in batch {
            let state = saving.state();
            pieces.extend(state.payloads.iter().map(|(slot, bytes)| (self.originals.offset_of(*slot), bytes.to_vec())));
        }
        pieces.sort_by_key(|(offset, _)| *offset);
        let joins = |open: &(u64, Vec<u8>), offset: u64, len: usize| {
            open.0 + open.1.len() as u64 == offset && open.1.len() + len <= MOST_WRITE
        };
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        for (offset, bytes) in pieces {
            match writes.last_mut() {
                Some(open) if joins(open, offset, bytes.len()) => open.1.extend(bytes),
                _ => writes.push((offset, bytes)),
            }
        }
        writes.into_iter().map(|(offset, bytes)| (offset, Buffer::copy_of(&bytes))).collect()
    }

    fn records(&self, batch: &[Arc<Saving>], first: Sequence) -> Vec<(u64, Buffer)> {
        let states: Vec<_> = batch.iter().map(|saving| saving.state()).collect();
        let mut lines = Vec::with_capacity(batch.len());
        for (saving, state) in batch.iter().zip(&states) {
            if let Some(reservation) = &state.reservation {
                lines.push(Reserved { reservation, tag: saving.tag, originals: &saving.lines });
            }
        }
        self.originals.records(&lines, first)
    }

    fn publish_batch(&self, batch: &[Arc<Saving>], mut first: Sequence) {
        for saving in batch {
            let Some(reservation) = saving.take_reservation() else { continue };
            let published = self.originals.publish(reservation, saving.tag, &saving.lines, Some(first));
            first.0 += saving.lines.len() as u64;
            saving.end(published.map_err(|_| NotStored::Unpublished));
        }
    }
}

/// Pieces of a buffer that go into slots, as buffers of their own.
pub(crate) fn cut_out(writes: &[(u64, Range<usize>)], bytes: &[u8]) -> Vec<(u64, Buffer)> {
    writes.iter().map(|(slot, place)| (*slot, Buffer::copy_of(&bytes[place.clone()]))).collect()
}
