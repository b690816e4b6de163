//! The tiers of a served volume's cache, as others look at them: how full each is, how much more there is room for, and what is put by at a stop.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use tzero_api::Place;
use tzero_api::control::{Tier, TierKind};
use tzero_io::system;
use tzero_originals::OriginalsUse;

use crate::memory::Memory;
use crate::platform::Engine;
use crate::put_by;
use crate::record::VolumeDirectory;
use crate::store::Store;

/// How long originals in memory are put by at a stop: what is left of the ten seconds that a stop may take, after the slowest of everything before.
const PUT_BY: Duration = Duration::from_millis(2500);

/// What a served volume's originals are in, open.
pub(crate) struct Tiers {
    pub(crate) memory: Option<Memory>,
    pub(crate) memory_bytes: u64,
    pub(crate) store: Store,
    /// Where the store is.
    pub(crate) place: Place,
    /// Most bytes in the store.
    pub(crate) limit: Option<u64>,
}

impl Tiers {
    /// Each of them, in the order in which they fill up. Blocking.
    pub(crate) fn describe(&self, used: OriginalsUse) -> Vec<Tier> {
        let mut tiers = Vec::new();
        if let Some(memory) = &self.memory {
            tiers.push(Tier {
                kind: TierKind::Memory,
                place: Place::Path(memory.path.clone()),
                used: used.first_tier_bytes,
                limit: Some(self.memory_bytes),
            });
        }
        let kind = match self.store {
            Store::File(_) => TierKind::Disk,
            Store::Export(_) => TierKind::Nbd,
        };
        tiers.push(Tier {
            kind,
            place: self.place.clone(),
            used: used.bytes - used.first_tier_bytes,
            limit: self.limit,
        });
        tiers
    }

    /// Bytes that the store takes on disk.
    pub(crate) fn on_disk(&self) -> u64 {
        match &self.store {
            Store::File(file) => file.metadata().map_or(0, |file| file.blocks() * 512),
            Store::Export(_) => 0,
        }
    }

    /// How many more bytes of originals there is room for: what is left of the limits, as far as the file system has it.
    pub(crate) fn room(&self, used: OriginalsUse) -> u64 {
        let memory = if self.memory.is_some() { self.memory_bytes } else { 0 };
        let in_memory = memory.saturating_sub(used.first_tier_bytes);
        let in_store = used.bytes - used.first_tier_bytes;
        // A first tier that is withheld counts in the cache's limit, and nothing can ever be in it.
        let withheld = if self.memory.is_some() { 0 } else { self.memory_bytes };
        let left = used.limit_bytes.saturating_sub(memory + withheld).saturating_sub(in_store);
        let free = match &self.place {
            Place::Path(path) => self.free(path, in_store),
            Place::Export(_) => u64::MAX,
        };
        in_memory.saturating_add(left.min(free))
    }

    fn free(&self, path: &Path, used: u64) -> u64 {
        // What the file has and nobody uses is used again.
        let reusable = self.on_disk().saturating_sub(used);
        system::free_space(path).map_or(u64::MAX, |free| free.saturating_add(reusable))
    }

    /// Puts originals in memory by for a start of the machine. Of a volume that is closed. Blocking, for a bounded time if the disk answers.
    pub(crate) fn put_by(&self, volume: &str, id: [u8; 16], directory: &VolumeDirectory, engine: &Engine) {
        let Some(memory) = &self.memory else { return };
        let until = Instant::now() + PUT_BY;
        let originals = engine.stored_before(self.memory_bytes);
        if originals.is_empty() {
            return;
        }
        match put_by::write(&directory.put_by(), id, &memory.file, &originals, until) {
            Ok(done) if done.left == 0 => {
                tracing::info!(%volume, originals = done.originals, "put by what is in memory")
            }
            Ok(done) => tracing::warn!(
                %volume,
                "there was no time to put {} of {} originals in memory by: a restart of the machine would lose them, and the snapshots that need them",
                done.left,
                originals.len()
            ),
            Err(error) => tracing::warn!(
                %volume,
                "originals in memory cannot be put by ({error}): a restart of the machine would lose them, and the snapshots that need them"
            ),
        }
    }
}
