//! Records beside payloads: the header, what is found again, and what is believed of it.

use tzero_block::{BlockDevice, MemoryDevice};
use tzero_io::{Backend, Buffer, Directory, MappedFile, Runtime, Storage};
use tzero_originals::{
    AreaFound, CacheLayout, Components, Epoch, GrainIndex, Grains, ModifiedMap, Original, OriginalCache, Payload,
    RecordArea, Recording, Reserved, Sequence, certain,
};

const VOLUME: [u8; 16] = *b"volume's own id.";
const GRAIN: u64 = 4096;
const LIMIT: u64 = 1 << 20;

fn run<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    Runtime::new(Backend::Auto).unwrap().block_on(async { test().await })
}

struct Cache {
    cache: OriginalCache<MappedFile, MemoryDevice>,
    _scratch: tempfile::TempDir,
}

impl Cache {
    fn new(area: &RecordArea, life: u32, device: MemoryDevice) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let map = Directory::new(scratch.path()).open("map", ModifiedMap::<MappedFile>::NEW_LEN).unwrap();
        let map = ModifiedMap::create_or_open(map, GRAIN as u32, VOLUME).unwrap();
        let grains = Grains::new(GRAIN as u32, 1 << 24).unwrap();
        let recording = Some(Recording { area: area.clone(), life });
        let layout = CacheLayout { recording, ..CacheLayout::default() };
        let cache = OriginalCache::open(map, vec![], vec![], device, layout, grains, |_, _, _, _| true).unwrap();
        Self { cache, _scratch: scratch }
    }

    /// Saves originals of one tag together; says their first sequence.
    async fn save(&self, tag: u64, originals: &[(u64, u8)]) -> Sequence {
        let stored = originals.iter().filter(|(_, fill)| *fill != 0).count() as u64;
        let reservation = self.cache.reserve(originals.len() as u64, stored).unwrap();
        let mut slots = reservation.slots.iter().cloned().flatten();
        let mut lines = Vec::new();
        for (grain, fill) in originals {
            let payload = if *fill == 0 {
                Payload::Zero
            } else {
                let (slot, bytes) = (slots.next().unwrap(), vec![*fill; GRAIN as usize]);
                self.cache.store(slot, Buffer::copy_of(&bytes)).await.1.unwrap();
                Payload::Stored { offset: self.cache.offset_of(slot), checksum: crc32c::crc32c(&bytes) }
            };
            lines.push(Original { grain: GrainIndex(*grain), len: GRAIN as u32, payload });
        }
        let first = self.cache.assign(originals.len() as u64);
        let reserved = Reserved { reservation: &reservation, tag: Epoch(tag), originals: &lines };
        for (offset, bytes) in self.cache.records(&[reserved], first) {
            self.cache.device().write(offset, bytes, false).await.1.unwrap();
        }
        let published = self.cache.publish(reservation, Epoch(tag), &lines, Some(first)).unwrap();
        self.cache.index(&published, false);
        first
    }

    async fn found(&self, area: &RecordArea) -> Vec<(u64, u64, u64)> {
        let found = area.scan(self.cache.device(), &Components::one()).await.unwrap();
        let mut found: Vec<_> = found
            .iter()
            .map(|record| (record.entry.offset / GRAIN, record.entry.tag.0, record.entry.sequence.0))
            .collect();
        found.sort_unstable();
        found
    }

    async fn believed(&self, area: &RecordArea) -> Vec<u64> {
        let found = area.scan(self.cache.device(), &Components::one()).await.unwrap();
        let mut grains: Vec<_> = certain(self.cache.device(), found, false)
            .await
            .unwrap()
            .iter()
            .map(|it| it.entry.offset / GRAIN)
            .collect();
        grains.sort_unstable();
        grains
    }
}

#[test]
fn a_header_says_whose_records_they_are() {
    run(|| async {
        let area = RecordArea::new(VOLUME, 77, GRAIN, LIMIT);
        assert_eq!((area.positions(), area.slots_at()), (LIMIT / 16 / 64, 4096 + LIMIT / 16));
        let device = MemoryDevice::new(LIMIT);
        assert_eq!(RecordArea::find(&device, VOLUME, GRAIN).await.unwrap(), AreaFound::None);
        for void in [false, true] {
            area.store(&device, void).await.unwrap();
            let found = RecordArea::find(&device, VOLUME, GRAIN).await.unwrap();
            assert_eq!(found, AreaFound::Area { area: area.clone(), void });
        }
        assert_eq!(RecordArea::find(&device, [1; 16], GRAIN).await.unwrap(), AreaFound::None);
        assert_eq!(RecordArea::find(&device, VOLUME, 512).await.unwrap(), AreaFound::None);
        for byte in 0..80 {
            let mut bytes = device.to_vec();
            bytes[byte] ^= 1;
            let torn = MemoryDevice::from_bytes(bytes);
            assert_eq!(RecordArea::find(&torn, VOLUME, GRAIN).await.unwrap(), AreaFound::None, "byte {byte}");
        }
        assert_eq!(RecordArea::find(&MemoryDevice::new(0), VOLUME, GRAIN).await.unwrap(), AreaFound::None);
    });
}

#[test]
fn records_are_found_again_and_no_others() {
    run(|| async {
        let area = RecordArea::new(VOLUME, 77, GRAIN, LIMIT);
        let cache = Cache::new(&area, 1, MemoryDevice::new(LIMIT));
        cache.save(3, &[(10, 1), (11, 0), (12, 2)]).await;
        cache.save(4, &[(10, 5)]).await;
        assert_eq!(cache.found(&area).await, [(10, 3, 1), (10, 4, 4), (11, 3, 2), (12, 3, 3)]);
        assert_eq!(cache.found(&RecordArea::new(VOLUME, 78, GRAIN, LIMIT)).await, [], "another incarnation");
        assert_eq!(cache.found(&RecordArea::new([1; 16], 77, GRAIN, LIMIT)).await, [], "another volume");
        // The record at the second place, moved to the ninth.
        let mut bytes = cache.cache.device().to_vec();
        bytes.copy_within(4096 + 64..4096 + 128, 4096 + 8 * 64);
        let moved = Cache::new(&area, 1, MemoryDevice::from_bytes(bytes));
        assert_eq!(moved.found(&area).await.len(), 4);
        // What is freed goes when something beside it is written; what stands stays.
        cache.cache.free_unwanted(GrainIndex(10), |_, tag, _| tag == Epoch(4)).unwrap();
        cache.save(5, &[(20, 0)]).await;
        assert_eq!(cache.found(&area).await, [(10, 4, 4), (11, 3, 2), (12, 3, 3), (20, 5, 5)]);
    });
}

/// As on the medium, word by word: what is written today must be read by what is written tomorrow.
#[test]
fn a_record_as_it_was_written() {
    run(|| async {
        let area = RecordArea::new(VOLUME, 77, GRAIN, LIMIT);
        let cache = Cache::new(&area, 9, MemoryDevice::new(LIMIT));
        cache.save(3, &[(10, 1)]).await;
        cache.cache.is_durable(Sequence(1));
        cache.save(4, &[(11, 0)]).await;
        let bytes = cache.cache.device().to_vec();
        let words: Vec<u64> =
            bytes[4096 + 64..4096 + 128].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert_eq!(words[..6], [88, 4096, u64::MAX, 4, 2, 1 << 32]);
        assert_eq!((words[6] >> 32, words[7]), (9, 1), "the life, and what was durable in it");
        assert_eq!(words[6] as u32, 0x14f1814e);
        area.store(cache.cache.device(), false).await.unwrap();
        let header = cache.cache.device().to_vec()[..80].to_vec();
        let words: Vec<u64> = header.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert_eq!(words[0], u64::from_le_bytes(*b"TZEROPWR"));
        assert_eq!(words[1..3], [1 | 64 << 32, 4096]);
        assert_eq!(header[24..40], VOLUME);
        assert_eq!(words[5..], [77, 1024, 69_632, 0, 0xc8a5f121]);
    });
}

#[test]
fn of_the_last_write_only_what_has_its_payload_is_believed() {
    run(|| async {
        let area = RecordArea::new(VOLUME, 77, GRAIN, LIMIT);
        let cache = Cache::new(&area, 1, MemoryDevice::new(LIMIT));
        cache.save(3, &[(10, 1), (11, 2)]).await;
        cache.cache.is_durable(Sequence(2));
        cache.save(3, &[(12, 3), (13, 4), (14, 0)]).await;
        let mut bytes = cache.cache.device().to_vec();
        let slots = area.slots_at() as usize;
        // The payloads of 11 and 13 are not what was saved.
        for slot in [1, 3] {
            bytes[slots + slot * 4096] ^= 1;
        }
        let lost = Cache::new(&area, 2, MemoryDevice::from_bytes(bytes));
        assert_eq!(
            lost.believed(&area).await,
            [10, 11, 12, 14],
            "11 was durable: damage, and an error when it is read"
        );
        // Two lives in one: what is written after something uncertain covers nothing.
        cache.cache.is_uncertain();
        cache.cache.is_durable(Sequence(5));
        cache.save(3, &[(15, 0)]).await;
        let mut bytes = cache.cache.device().to_vec();
        bytes[slots + 2 * 4096] ^= 1;
        let lost = Cache::new(&area, 2, MemoryDevice::from_bytes(bytes));
        assert_eq!(lost.believed(&area).await, [10, 11, 13, 14, 15]);
    });
}

#[test]
fn places_that_a_hung_write_may_still_reach_are_used_no_more() {
    run(|| async {
        let area = RecordArea::new(VOLUME, 77, GRAIN, LIMIT);
        let cache = Cache::new(&area, 1, MemoryDevice::new(LIMIT));
        cache.save(3, &[(1, 0), (2, 0)]).await;
        let hung = cache.cache.reserve(1, 1).unwrap();
        cache.cache.abandon(hung);
        cache.save(3, &[(3, 0)]).await;
        let found = area.scan(cache.cache.device(), &Components::one()).await.unwrap();
        let position = |grain: u64| found.iter().find(|record| record.entry.offset == grain * GRAIN).unwrap().position;
        assert_eq!((position(1), position(2)), (0, 1));
        assert!(position(3) >= 8, "not in the sector of the hung write: {}", position(3));
    });
}
