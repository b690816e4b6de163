use std::task::Waker;

use proptest::prelude::*;
use tzero_block::ByteRange;

use super::super::agreed::Claims;
use super::super::command::{Answer, Command, Failure};
use super::*;

const SIZE: u64 = 64 << 10;

fn agreed(structured: bool) -> Agreed {
    let mut claims = Claims::default();
    (claims.structured, claims.allocation) = (structured, structured.then_some(7));
    let export = [&[0, 0][..], &(1u64 << 40).to_be_bytes(), &[0, 1]].concat();
    claims.learn(crate::wire::option_reply::INFO, &export).expect("well-formed");
    Agreed::new(&claims).expect("usable")
}

/// A table with requests that were sent, and a receiver for their replies.
struct Bench {
    table: Table,
    receiver: Receiver,
}

impl Bench {
    fn new(structured: bool) -> Self {
        Self { table: Table::default(), receiver: Receiver::new(&agreed(structured)) }
    }

    fn sent(&mut self, kind: Kind, offset: u64, len: u64) -> u64 {
        let buffer = (kind == Kind::Read).then(|| Buffer::copy_of(&vec![0xEE; len as usize]));
        let cookie = self.table.insert(Command::new(kind, 0, ByteRange::new(offset, len)), buffer, None);
        let (queued, _, payload) = self.table.next_to_send().expect("room");
        assert_eq!(queued, cookie);
        self.table.sent(cookie, payload, None);
        cookie
    }

    /// Gives the bytes to the receiver in pieces of at most `most` bytes.
    fn arrive(&mut self, mut bytes: &[u8], most: usize) -> Result<(), ClientError> {
        while !bytes.is_empty() {
            let large = self.table.expects_large();
            let space = self.receiver.space(large);
            let count = bytes.len().min(space.len()).min(most);
            space[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.receiver.advance(count, &mut self.table)?;
        }
        Ok(())
    }

    fn answer(&mut self, cookie: u64) -> Option<Answer> {
        self.table.take(cookie, Waker::noop())
    }

    fn bytes(&mut self, cookie: u64) -> Vec<u8> {
        let answer = self.answer(cookie).expect("done");
        answer.result.expect("success");
        answer.buffer.expect("its buffer").to_vec()
    }
}

fn simple(cookie: u64, error: u32) -> Vec<u8> {
    [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    let magic = CHUNK_MAGIC.to_be_bytes();
    [&magic[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes(), &len, payload].concat()
}

fn data(flags: u16, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(flags, chunk::OFFSET_DATA, cookie, &[&offset.to_be_bytes(), bytes].concat())
}

fn hole(flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    chunk(flags, chunk::OFFSET_HOLE, cookie, &[&offset.to_be_bytes()[..], &len.to_be_bytes()].concat())
}

fn extents(flags: u16, cookie: u64, id: u32, lens: &[u32]) -> Vec<u8> {
    let extents = lens.iter().flat_map(|len| [len.to_be_bytes(), [0, 0, 0, 3]]).flatten();
    chunk(flags, chunk::BLOCK_STATUS, cookie, &id.to_be_bytes().into_iter().chain(extents).collect::<Vec<_>>())
}

fn error(flags: u16, cookie: u64, number: u32, text: &str) -> Vec<u8> {
    let payload = [&number.to_be_bytes()[..], &(text.len() as u16).to_be_bytes(), text.as_bytes()].concat();
    chunk(flags, chunk::ERROR, cookie, &payload)
}

fn breach(result: Result<(), ClientError>) -> Breach {
    match result {
        Err(ClientError::Breach(breach)) => breach,
        other => panic!("no breach: {other:?}"),
    }
}

#[test]
fn replies_in_any_cut_and_order() {
    for most in [1, 7, 28, 4096, usize::MAX] {
        for large in [100, 70_000] {
            let mut bench = Bench::new(true);
            let first = bench.sent(Kind::Read, 512, large);
            let second = bench.sent(Kind::Read, 0, 10);
            let write = bench.sent(Kind::Write, 0, 512);
            let status = bench.sent(Kind::BlockStatus, 0, SIZE);
            let body = vec![0xAB; large as usize - 20];
            let bytes = [
                hole(0, first, 522, 10),
                data(1, second, 0, &[1; 10]),
                data(0, first, 512, &[2; 10]),
                simple(write, 28),
                extents(0, status, 7, &[512, 1024]),
                data(0, first, 532, &body),
                chunk(1, chunk::NONE, status, &[]),
                chunk(1, chunk::NONE, first, &[]),
            ];
            bench.arrive(&bytes.concat(), most).expect("as it should be");
            assert!(bench.table.is_idle());
            assert_eq!(bench.bytes(second), [1; 10]);
            assert!(bench.bytes(first) == [&[2; 10][..], &[0; 10], &body].concat());
            let refused = bench.answer(write).expect("done").result;
            assert!(matches!(refused, Err(Failure::Server(28))));
            let told = bench.answer(status).expect("done");
            assert_eq!(told.descriptors, [Descriptor { len: 512, status: 3 }, Descriptor { len: 1024, status: 3 }]);
        }
    }
}

#[test]
fn simple_reads() {
    for most in [1, 1000, usize::MAX] {
        let mut bench = Bench::new(false);
        let (read, failed) = (bench.sent(Kind::Read, 0, 100_000), bench.sent(Kind::Read, 0, 512));
        bench.arrive(&[simple(failed, 5), simple(read, 0), vec![9; 100_000]].concat(), most).expect("as it should be");
        assert!(bench.bytes(read) == vec![9; 100_000]);
        assert!(matches!(bench.answer(failed).expect("done").result, Err(Failure::Server(5))));
    }
}

#[test]
fn errors_in_chunks() {
    let mut bench = Bench::new(true);
    let read = bench.sent(Kind::Read, 0, 1024);
    let bytes = [data(0, read, 0, &[1; 512]), error(0, read, 5, "bad sector"), error(1, read, 28, "")];
    bench.arrive(&bytes.concat(), 9).expect("as it should be");
    assert!(matches!(bench.answer(read).expect("done").result, Err(Failure::Server(5))), "the first one counts");
    let read = bench.sent(Kind::Read, 0, 512);
    let unknown = chunk(1, 0x8123, read, &[0, 0, 0x12, 0x34, 0, 2, b'h', b'o', 9, 9, 9]);
    bench.arrive(&unknown, 100).expect("an error of a kind that is not known");
    assert!(matches!(bench.answer(read).expect("done").result, Err(Failure::Server(22))));
    let read = bench.sent(Kind::Read, 0, 512);
    let ending = bench.arrive(&error(1, read, 108, ""), 100);
    assert!(matches!(ending, Err(ClientError::ShuttingDown)));
    assert!(bench.answer(read).is_none(), "it is sent again");
}

#[test]
fn what_does_not_belong_is_a_breach() {
    type Case = (&'static str, Kind, bool, fn(u64) -> Vec<u8>, fn(Breach) -> bool);
    let cases: &[Case] = &[
        ("garbage", Kind::Read, true, |_| vec![0x55; 40], |b| b == Breach::ReplyMagic(0x5555_5555)),
        ("chunk unasked", Kind::Read, false, |c| chunk(1, 0, c, &[]), |b| b == Breach::ReplyMagic(CHUNK_MAGIC)),
        ("wrong cookie", Kind::Read, true, |c| simple(c ^ 1, 0), |b| matches!(b, Breach::Cookie(_))),
        ("old cookie", Kind::Read, true, |c| simple(c - (1 << 32), 0), |b| matches!(b, Breach::Cookie(_))),
        ("cookie far out", Kind::Read, true, |_| simple(u64::MAX, 5), |b| b == Breach::Cookie(u64::MAX)),
        ("simple read", Kind::Read, true, |c| simple(c, 0), |b| matches!(b, Breach::Kind(_))),
        ("simple status", Kind::BlockStatus, true, |c| simple(c, 0), |b| matches!(b, Breach::Kind(_))),
        ("nothing", Kind::Read, true, |c| chunk(1, 0, c, &[]), |b| b == Breach::Missing),
        ("nothing of status", Kind::BlockStatus, true, |c| chunk(1, 0, c, &[]), |b| b == Breach::Missing),
        ("none but not last", Kind::Write, true, |c| chunk(0, 0, c, &[]), |b| matches!(b, Breach::Kind(_))),
        ("none with data", Kind::Write, true, |c| chunk(1, 0, c, &[0]), |b| matches!(b, Breach::Length { .. })),
        ("data of write", Kind::Write, true, |c| data(1, c, 0, &[0]), |b| matches!(b, Breach::Kind(_))),
        ("extents of read", Kind::Read, true, |c| extents(1, c, 7, &[1]), |b| matches!(b, Breach::Kind(_))),
        ("part", Kind::Read, true, |c| data(1, c, 0, &[0; 511]), |b| b == Breach::Missing),
        ("too long", Kind::Read, true, |c| data(1, c, 0, &[0; 513]), |b| b == Breach::Place),
        ("beside", Kind::Read, true, |c| data(1, c, 512, &[0]), |b| b == Breach::Place),
        ("far out", Kind::Read, true, |c| data(1, c, u64::MAX, &[0; 9]), |b| b == Breach::Place),
        ("long hole", Kind::Read, true, |c| hole(1, c, 0, u32::MAX), |b| b == Breach::Place),
        ("no hole", Kind::Read, true, |c| hole(1, c, 0, 0), |b| b == Breach::Place),
        ("no data", Kind::Read, true, |c| data(1, c, 0, &[]), |b| matches!(b, Breach::Length { .. })),
        ("other context", Kind::BlockStatus, true, |c| extents(1, c, 8, &[512]), |b| b == Breach::Extents),
        ("empty extent", Kind::BlockStatus, true, |c| extents(1, c, 7, &[512, 0]), |b| b == Breach::Extents),
        ("no extent", Kind::BlockStatus, true, |c| extents(1, c, 7, &[]), |b| matches!(b, Breach::Length { .. })),
        ("odd extents", Kind::BlockStatus, true, |c| chunk(1, 5, c, &[0; 13]), |b| matches!(b, Breach::Length { .. })),
        ("error without number", Kind::Read, true, |c| error(1, c, 0, ""), |b| matches!(b, Breach::Length { .. })),
        ("short error", Kind::Read, true, |c| chunk(1, 0x8001, c, &[0; 5]), |b| matches!(b, Breach::Length { .. })),
        ("unknown", Kind::Read, true, |c| chunk(1, 99, c, &[0; 5]), |b| b == Breach::Kind(99)),
    ];
    for (name, kind, structured, bytes, expected) in cases {
        let mut bench = Bench::new(*structured);
        let old = bench.sent(Kind::Write, 0, 512);
        bench.arrive(&simple(old, 0), 100).expect("a write");
        bench.answer(old).expect("done");
        let cookie = bench.sent(*kind, 0, 512);
        let found = breach(bench.arrive(&bytes(cookie), usize::MAX));
        assert!(expected(found), "{name}: {found}");
        bench.receiver.end(&mut bench.table);
        bench.table.requeue();
        assert!(bench.answer(cookie).is_none() && bench.table.has_to_send(), "{name}: it can be sent again");
    }
    let mut bench = Bench::new(true);
    let read = bench.sent(Kind::Read, 0, 512);
    let twice = [data(0, read, 0, &[0; 300]), data(0, read, 299, &[0; 213])].concat();
    assert_eq!(breach(bench.arrive(&twice, 50)), Breach::Place);
    let mut bench = Bench::new(true);
    let status = bench.sent(Kind::BlockStatus, 0, 512);
    let twice = [extents(0, status, 7, &[512]), extents(1, status, 7, &[512])].concat();
    assert_eq!(breach(bench.arrive(&twice, 50)), Breach::Extents);
    // A claim alone costs nothing.
    let mut bench = Bench::new(true);
    let read = bench.sent(Kind::Read, 0, 512);
    let mut giant = data(1, read, 0, &[0]);
    giant[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(breach(bench.arrive(&giant, 50)), Breach::Place);
    let queued = bench.table.insert(Command::new(Kind::Write, 0, ByteRange::new(0, 512)), None, None);
    let mut fresh = Receiver::new(&agreed(true));
    let reply = simple(queued, 0);
    fresh.space(false)[..16].copy_from_slice(&reply);
    assert!(fresh.advance(16, &mut bench.table).is_err(), "a reply to what was not sent");
}

#[test]
fn extents_beyond_what_is_kept_are_counted_off() {
    let mut bench = Bench::new(true);
    let status = bench.sent(Kind::BlockStatus, 0, 1 << 20);
    bench.arrive(&extents(1, status, 7, &vec![8; 10_000]), 1000).expect("as it should be");
    assert_eq!(bench.answer(status).expect("done").descriptors.len(), KEPT_EXTENTS);
}

proptest! {
    /// Whatever bytes come, in whatever cut: a breach, or waiting for more; and a read succeeds only with bytes that came.
    #[test]
    fn any_bytes_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        shape in proptest::collection::vec((0u16..8, 0u16..7, 0u64..3, 0u64..1100, 0usize..600), 0..8),
        structured: bool,
        most in 1usize..700,
    ) {
        let mut bench = Bench::new(structured);
        let cookies = [bench.sent(Kind::Read, 0, 1024), bench.sent(Kind::BlockStatus, 0, 1024), bench.sent(Kind::Write, 0, 512)];
        // Mostly well-formed heads, or nothing is ever reached.
        let mut stream = Vec::new();
        for (flags, kind, cookie, offset, len) in shape {
            let cookie = cookies[cookie as usize];
            stream.extend(match kind {
                0 => simple(cookie, u32::from(flags)),
                1 => data(flags & 1, cookie, offset, &bytes[..len.min(bytes.len())]),
                2 => hole(flags & 1, cookie, offset, len as u32),
                3 => error(flags & 1, cookie, len as u32, "no"),
                4 => chunk(flags & 1, chunk::BLOCK_STATUS, cookie, &bytes[..len.min(bytes.len())]),
                _ => chunk(flags & 1, 0, cookie, &[]),
            });
        }
        stream.extend(&bytes);
        let _ = bench.arrive(&stream, most);
        for cookie in cookies {
            if let Some(answer) = bench.answer(cookie)
                && let (Ok(()), Some(buffer)) = (answer.result, answer.buffer) {
                prop_assert!(!buffer.windows(8).any(|bytes| bytes == [0xEE; 8]), "old contents were handed out");
            }
        }
        bench.receiver.end(&mut bench.table);
        bench.table.requeue();
    }
}
