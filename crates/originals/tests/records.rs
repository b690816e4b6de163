//! Records beside payloads: the header, what is found again, and what is believed of it.

use tzero_block::{BlockDevice, MemoryDevice};
use tzero_io::{Backend, Buffer, Directory, MappedFile, Runtime, Storage};
use tzero_originals::{
    AreaFound, CacheLayout, Components, Entry, EntryState, Epoch, FoundRecord, GrainIndex, Grains, ModifiedMap,
    Original, OriginalCache, Payload, RecordArea, RecordScan, Recording, Reserved, Sequence, certain,
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
            .records
            .iter()
            .map(|record| (record.entry.offset / GRAIN, record.entry.tag.0, record.entry.sequence.0))
            .collect();
        found.sort_unstable();
        found
    }

    /// Over a base that is all zero.
    async fn believed(&self, area: &RecordArea) -> Vec<(u64, bool)> {
        self.believed_over(area, &MemoryDevice::new(1 << 24)).await
    }

    /// Grains of which an original is believed to have been saved, and whether it is there.
    async fn believed_over(&self, area: &RecordArea, base: &MemoryDevice) -> Vec<(u64, bool)> {
        let found = area.scan(self.cache.device(), &Components::one()).await.unwrap();
        assert_eq!(found.damaged, 0);
        let believed = certain(self.cache.device(), base, found.records, false).await.unwrap();
        let mut grains: Vec<_> =
            believed.iter().map(|it| (it.entry.offset / GRAIN, it.entry.payload != Payload::Bad)).collect();
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
        for (other, whose) in [
            (RecordArea::new(VOLUME, 78, GRAIN, LIMIT), "another incarnation"),
            (RecordArea::new([1; 16], 77, GRAIN, LIMIT), "another volume"),
        ] {
            let scan = other.scan(cache.cache.device(), &Components::one()).await.unwrap();
            assert_eq!((scan.records, scan.damaged), (vec![], 4), "{whose}");
        }
        // The record at the second place, moved to the ninth; a bit of the third.
        let whole = cache.cache.device().to_vec();
        let damaged = async |spoil: fn(&mut [u8])| {
            let mut bytes = whole.clone();
            spoil(&mut bytes);
            let scan = area.scan(&MemoryDevice::from_bytes(bytes), &Components::one()).await.unwrap();
            (scan.records.len(), scan.damaged)
        };
        assert_eq!(damaged(|bytes| bytes.copy_within(4096 + 64..4096 + 128, 4096 + 8 * 64)).await, (4, 1));
        assert_eq!(damaged(|bytes| bytes[4096 + 2 * 64 + 63] ^= 128).await, (3, 1));
        assert_eq!(damaged(|bytes| bytes[4096 + 900] ^= 1).await, (4, 1), "where there was none");
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
        let mut base = vec![0; 1 << 24];
        base[13 * 4096..14 * 4096].fill(4);
        let base = MemoryDevice::from_bytes(base);
        assert_eq!(
            lost.believed_over(&area, &base).await,
            [(10, true), (11, true), (12, true), (14, true)],
            "11 was durable: damage, and an error when it is read; 13 is still on the base"
        );
        assert_eq!(
            lost.believed(&area).await,
            [(10, true), (11, true), (12, true), (13, false), (14, true)],
            "13 has changed on the base: it had been durable, and is lost"
        );
        // Two lives in one: what is written after something uncertain covers nothing.
        cache.cache.is_uncertain();
        cache.cache.is_durable(Sequence(5));
        cache.save(3, &[(15, 0)]).await;
        let spoilt = || {
            let mut bytes = cache.cache.device().to_vec();
            bytes[slots + 2 * 4096] ^= 1;
            Cache::new(&area, 2, MemoryDevice::from_bytes(bytes))
        };
        let believed = [(10, true), (11, true), (12, false), (13, true), (14, true), (15, true)];
        assert_eq!(spoilt().believed(&area).await, believed);
        let lost = spoilt();
        area.clear(lost.cache.device()).await.unwrap();
        assert_eq!(area.scan(lost.cache.device(), &Components::one()).await.unwrap(), RecordScan::default());
    });
}

#[test]
fn what_was_saved_again_is_not_missed() {
    run(|| async {
        let entry = |tag, sequence, payload| Entry {
            offset: 12 * GRAIN,
            len: GRAIN as u32,
            tag: Epoch(tag),
            sequence: Sequence(sequence),
            payload,
            state: EntryState::Unread,
        };
        let record = |position, after, entry| FoundRecord { position, entry, after, life: 1, durable: Sequence(0) };
        let (cache, base) = (MemoryDevice::new(LIMIT), MemoryDevice::new(1 << 24));
        let zeroes = crc32c::crc32c(&[0; GRAIN as usize]);
        // Of the first only the record is there; the base has changed since, or is what it was once.
        for (checksum, same) in [(77, false), (zeroes, true)] {
            let first = record(0, Some(Epoch(1)), entry(3, 1, Payload::Stored { offset: LIMIT, checksum }));
            let second = |tag, after| record(9, after, entry(tag, 2, Payload::Zero));
            let cases = [
                (None, !same, "the base tells"),
                (Some(second(3, Some(Epoch(1)))), false, "saved again, the first failed"),
                (Some(second(4, Some(Epoch(1)))), false, "the first failed, and it serves younger ones, too"),
                (Some(second(4, Some(Epoch(3)))), true, "the first was there"),
                (Some(second(2, None)), !same, "an older one does not know"),
            ];
            for (second, lost, why) in cases {
                let found = second.into_iter().chain([first]).collect();
                let kept = certain(&cache, &base, found, false).await.unwrap();
                let bad: Vec<_> = kept.iter().filter(|it| it.entry.payload == Payload::Bad).collect();
                assert_eq!(bad.len(), usize::from(lost), "{why}, {same}");
                assert_eq!(kept.len(), usize::from(lost) + usize::from(second.is_some()), "{why}");
            }
        }
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
        let position =
            |grain: u64| found.records.iter().find(|record| record.entry.offset == grain * GRAIN).unwrap().position;
        assert_eq!((position(1), position(2)), (0, 1));
        assert!(position(3) >= 8, "not in the sector of the hung write: {}", position(3));
    });
}
