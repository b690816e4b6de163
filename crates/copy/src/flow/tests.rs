use std::sync::atomic::{AtomicU64, Ordering};

use tzero_block::{Action, Extent, Faulty, Geometry, Injected, MemoryDevice, Zeroes};
use tzero_io::{Backend, Runtime};

use super::*;
use crate::digests::{CHUNK, chunk_count, chunk_range};
use crate::source::{Part, PlainSource, Settled};

/// Small and seeded, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Bytes with data, zeroes, and edges off every unit.
fn content(random: &mut Random, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        let len = (random.below(900_000) as usize + 1).min(size - at);
        if random.below(2) == 0 {
            let seed = random.next();
            bytes[at..at + len].iter_mut().enumerate().for_each(|(i, byte)| *byte = (seed >> (i % 56)) as u8 ^ i as u8);
        }
        at += len;
    }
    bytes
}

fn steps(size: u64) -> impl Iterator<Item = Step> {
    (0..chunk_count(CHUNK, size)).map(move |index| Step { index, range: chunk_range(index, CHUNK, size), expect: None })
}

#[derive(Default)]
struct Collected(Vec<Landed>);

impl Sink for Collected {
    async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        self.0.push(landed);
        Ok(())
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    Runtime::new(Backend::Auto).expect("a runtime").block_on(future)
}

fn expected_digest(bytes: &[u8]) -> ChunkDigest {
    if is_zero(bytes) { ChunkDigest::Zero } else { ChunkDigest::Data(*blake3::hash(bytes).as_bytes()) }
}

#[test]
fn every_byte_arrives_with_its_digest() {
    for seed in 1..=6 {
        let mut random = Random(seed);
        let size = 2 * CHUNK as usize + random.below(CHUNK) as usize;
        let bytes = content(&mut random, size);
        let blank = seed % 2 == 0;
        let before = if blank { vec![0; size] } else { vec![0xEE; size] };
        let device = Arc::new(MemoryDevice::from_bytes(before));
        let target = Target { device: Arc::clone(&device), blank, pace: None };
        let mut source = PlainSource::new(Arc::new(MemoryDevice::from_bytes(bytes.clone())), size as u64);
        let mut sink = Collected::default();
        let end = block_on(run(&mut source, target, steps(size as u64), &Cancel::new(), &mut sink)).unwrap();
        assert_eq!(end, End::Done);
        assert!(device.to_vec() == bytes, "seed {seed}");
        let indices: Vec<u64> = sink.0.iter().map(|landed| landed.index).collect();
        assert_eq!(indices, [0, 1, 2]);
        for landed in &sink.0 {
            let part = &bytes[landed.range.start() as usize..landed.range.end() as usize];
            let Outcome::Good(digest) = landed.outcome else { panic!("{:?}", landed.outcome) };
            assert_eq!(digest, expected_digest(part));
            assert!(landed.written <= landed.range.len());
        }
    }
}

/// A base that a host goes on writing to, with copy-on-write as the engine does it: the original is saved before the
/// base changes. It writes during every read of the base, before and after the bytes are taken.
struct Live {
    now: MemoryDevice,
    t0: Vec<u8>,
    /// One flag per grain: an original exists.
    saved: Vec<AtomicU64>,
    clock: AtomicU64,
}

const GRAIN: u64 = 4096;

impl Live {
    fn new(t0: Vec<u8>) -> Self {
        let saved = (0..(t0.len() as u64).div_ceil(GRAIN)).map(|_| AtomicU64::new(0)).collect();
        Self { now: MemoryDevice::from_bytes(t0.clone()), t0, saved, clock: AtomicU64::new(99) }
    }

    async fn host_writes(&self, near: ByteRange) {
        for _ in 0..4 {
            let mut random = Random(self.clock.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed) | 1);
            random.next();
            let grain = (near.start() + random.below(near.len())) / GRAIN;
            self.saved[grain as usize].store(1, Ordering::Release);
            let len = GRAIN.min(self.t0.len() as u64 - grain * GRAIN) as usize;
            let bytes = Buffer::copy_of(&vec![random.next() as u8; len]);
            self.now.write(grain * GRAIN, bytes, false).await.1.expect("memory takes it");
        }
    }
}

impl BlockDevice for Live {
    fn geometry(&self) -> Geometry {
        self.now.geometry()
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), tzero_block::Error>) {
        let range = ByteRange::new(offset, buffer.len() as u64);
        self.host_writes(range).await;
        let read = self.now.read(offset, buffer).await;
        self.host_writes(range).await;
        read
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), tzero_block::Error>) {
        self.now.write(offset, buffer, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), tzero_block::Error> {
        self.now.write_zeroes(range, zeroes).await
    }

    async fn discard(&self, range: ByteRange) -> Result<(), tzero_block::Error> {
        self.now.discard(range).await
    }

    async fn flush(&self) -> Result<(), tzero_block::Error> {
        self.now.flush().await
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, tzero_block::Error> {
        // Says hole where the bytes are zero now, and then they change.
        let (buffer, result) = self.now.read(range.start(), Buffer::uncleared(range.len() as usize)).await;
        result?;
        let hole = buffer.is_zero();
        self.host_writes(range).await;
        Ok(vec![Extent { range, hole }])
    }
}

struct LiveSource {
    live: Arc<Live>,
    /// How often it was asked to settle something.
    batches: u64,
    scope: Scope,
}

impl Source for LiveSource {
    type Base = Live;

    fn base(&self) -> &Arc<Live> {
        &self.live
    }

    fn size(&self) -> u64 {
        self.live.t0.len() as u64
    }

    fn scope(&self) -> &Scope {
        &self.scope
    }

    async fn settle(&mut self, mut parts: Vec<Part>) -> Settled {
        self.batches += 1;
        let mut changed = 0;
        for (range, content) in &mut parts {
            let mut buffer = match std::mem::replace(content, Content::Hole) {
                Content::Bytes(buffer) => buffer,
                Content::Hole => Buffer::zeroed(range.len() as usize),
                Content::Outside => {
                    *content = Content::Outside;
                    continue;
                }
            };
            for grain in range.start() / GRAIN..range.end().div_ceil(GRAIN) {
                if self.live.saved[grain as usize].load(Ordering::Acquire) == 1 {
                    let part = ByteRange::between(grain * GRAIN, ((grain + 1) * GRAIN).min(range.end()));
                    let place = (part.start() - range.start()) as usize..(part.end() - range.start()) as usize;
                    buffer[place].copy_from_slice(&self.live.t0[part.start() as usize..part.end() as usize]);
                    changed += part.len();
                }
            }
            *content = Content::Bytes(buffer);
        }
        Ok((parts, changed))
    }

    fn check(&self) -> Result<(), SourceFault> {
        Ok(())
    }
}

#[test]
fn a_source_that_changes_under_the_reads_is_copied_as_of_t0() {
    let mut random = Random(7);
    let size = 3 * CHUNK as usize + 12_288;
    let mut t0 = content(&mut random, size);
    t0[CHUNK as usize..2 * CHUNK as usize].fill(0);
    let live = Arc::new(Live::new(t0.clone()));
    let device = Arc::new(MemoryDevice::new(size as u64));
    let target = Target { device: Arc::clone(&device), blank: true, pace: None };
    let mut sink = Collected::default();
    let mut source = LiveSource { live: Arc::clone(&live), batches: 0, scope: Scope::default() };
    block_on(run(&mut source, target, steps(size as u64), &Cancel::new(), &mut sink)).unwrap();
    assert!(device.to_vec() == t0, "the copy is the T0 image");
    assert!(live.now.to_vec() != t0, "the host went on");
    assert_eq!(source.batches, 4, "a chunk is settled at once: catching up with a map costs as much as it is long");
    assert!(sink.0.iter().map(|landed| landed.changed).sum::<u64>() > 0);
    assert!(matches!(sink.0[1].outcome, Outcome::Good(ChunkDigest::Zero)));
}

#[test]
fn an_unreadable_piece_is_never_filled_with_zeroes() {
    let size = 2 * CHUNK;
    let faulty = Faulty::new(MemoryDevice::from_bytes(vec![5; size as usize]));
    let bad = ByteRange::new(CHUNK + PIECE + 4096, 512);
    faulty.inject(Action::Read, bad, Injected::Fail(5), 0, u64::MAX);
    let device = Arc::new(MemoryDevice::new(size));
    let target = Target { device: Arc::clone(&device), blank: true, pace: None };
    let mut sink = Collected::default();
    let mut source = PlainSource::new(Arc::new(faulty), size);
    block_on(run(&mut source, target, steps(size), &Cancel::new(), &mut sink)).unwrap();
    assert!(matches!(sink.0[0].outcome, Outcome::Good(_)));
    let Outcome::Unreadable(range, SourceFault::Base(_)) = &sink.0[1].outcome else { panic!() };
    assert_eq!(*range, ByteRange::new(CHUNK + PIECE, PIECE));
    assert!(is_zero(&device.to_vec()[CHUNK as usize..]), "nothing of the chunk was written");
}

#[test]
fn a_chunk_that_is_not_as_expected_is_not_written() {
    let size = 2 * CHUNK;
    let mut bytes = vec![5; size as usize];
    let good = expected_digest(&bytes[..CHUNK as usize]);
    bytes[CHUNK as usize + 77] ^= 1;
    let device = Arc::new(MemoryDevice::new(size));
    let target = Target { device: Arc::clone(&device), blank: true, pace: None };
    let mut sink = Collected::default();
    let mut source = PlainSource::new(Arc::new(MemoryDevice::from_bytes(bytes)), size);
    let steps = steps(size).map(|step| Step { expect: Some(good), ..step });
    block_on(run(&mut source, target, steps, &Cancel::new(), &mut sink)).unwrap();
    assert!(matches!(sink.0[0].outcome, Outcome::Good(_)));
    assert!(matches!(sink.0[1].outcome, Outcome::Mismatch));
    assert!(is_zero(&device.to_vec()[CHUNK as usize..]));
}

#[test]
fn a_target_without_space_says_so_and_the_sink_decides() {
    let size = 3 * CHUNK;
    let full = Arc::new(Faulty::new(MemoryDevice::new(size)));
    full.inject(Action::Write, ByteRange::new(CHUNK, CHUNK), Injected::Fail(28), 1, u64::MAX);
    let target = Target { device: Arc::clone(&full), blank: true, pace: None };
    let mut sink = Collected::default();
    let mut source = PlainSource::new(Arc::new(MemoryDevice::from_bytes(vec![5; size as usize])), size);
    block_on(run(&mut source, target, steps(size), &Cancel::new(), &mut sink)).unwrap();
    let kinds: Vec<bool> = sink.0.iter().map(|landed| matches!(landed.outcome, Outcome::Good(_))).collect();
    assert_eq!(kinds, [true, false, true]);
    let Outcome::Unwritable(error) = &sink.0[1].outcome else { panic!() };
    assert!(error.is_no_space());
}

#[test]
fn a_sinks_error_ends_the_run_with_nothing_in_flight() {
    struct Refusing(u64);
    impl Sink for Refusing {
        async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
            self.0 += 1;
            let path = std::path::Path::new("x");
            if landed.index < 2 { Ok(()) } else { Err(Error::refused(path, crate::Refusal::Busy)) }
        }
    }
    let size = 9 * CHUNK;
    let device = Arc::new(MemoryDevice::new(size));
    let target = Target { device: Arc::clone(&device), blank: true, pace: None };
    let base = Arc::new(MemoryDevice::from_bytes(vec![5; size as usize]));
    let mut source = PlainSource::new(Arc::clone(&base), size);
    let mut sink = Refusing(0);
    let result = block_on(run(&mut source, target, steps(size), &Cancel::new(), &mut sink));
    assert!(result.is_err());
    assert_eq!(sink.0, 3);
    drop(source);
    assert_eq!((Arc::strong_count(&device), Arc::strong_count(&base)), (1, 1), "no task holds the devices");
}

#[test]
fn cancelled_it_finishes_what_it_began() {
    struct Cancelling<'a>(&'a Cancel, Vec<Landed>);
    impl Sink for Cancelling<'_> {
        async fn landed(&mut self, landed: Landed) -> Result<(), Error> {
            self.0.cancel();
            self.1.push(landed);
            Ok(())
        }
    }
    let size = 40 * CHUNK;
    let device = Arc::new(MemoryDevice::new(size));
    let target = Target { device: Arc::clone(&device), blank: true, pace: None };
    let mut source = PlainSource::new(Arc::new(MemoryDevice::from_bytes(vec![5; size as usize])), size);
    let cancel = Cancel::new();
    let mut sink = Cancelling(&cancel, Vec::new());
    let end = block_on(run(&mut source, target, steps(size), &cancel, &mut sink)).unwrap();
    assert_eq!(end, End::Cancelled);
    let landed = sink.1.len();
    assert!((1..10).contains(&landed), "{landed}");
    let bytes = device.to_vec();
    let edge = landed * CHUNK as usize;
    assert!(bytes[..edge].iter().all(|byte| *byte == 5) && is_zero(&bytes[edge..]), "whole chunks, no more");
}

#[test]
fn zeroes_are_found_at_every_offset() {
    let mut bytes = vec![0; 3 * HOLE + 100];
    assert_eq!(runs_of(&bytes), [(ByteRange::new(0, 3 * HOLE as u64 + 100), true)]);
    bytes[HOLE] = 1;
    bytes[3 * HOLE + 99] = 1;
    let hole = HOLE as u64;
    let expected = [
        (ByteRange::new(0, hole), true),
        (ByteRange::new(hole, hole), false),
        (ByteRange::new(2 * hole, hole), true),
        (ByteRange::new(3 * hole, 100), false),
    ];
    assert_eq!(runs_of(&bytes), expected);
}
