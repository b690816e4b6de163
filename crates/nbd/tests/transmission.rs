//! Every command with simple and structured replies, and every way to get one wrong.

mod support;

use std::net::Shutdown;

use support::client::{BLOCK_STATUS, Chunk, Client, ERROR, OFFSET_DATA, OFFSET_HOLE, request};
use support::{Harness, SIZE, eventually, pattern};
use tzero_block::{Action, ByteRange, Injected, Zeroes};
use tzero_io::Backend;
use tzero_nbd::{End, Error, Limits, Violation};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

fn simple(harness: &Harness) -> Client {
    let mut client = harness.connect();
    client.go_simple("vol");
    client
}

fn structured(harness: &Harness) -> Client {
    let mut client = harness.connect();
    client.go("vol");
    client
}

/// A full exchange that shows that the connection is whole.
fn assert_sound(client: &mut Client) {
    client.send(&request(0, READ, 99, 0, 512));
    let magic = client.u32();
    if magic == 0x6744_6698 {
        assert_eq!((client.u32(), client.u64()), (0, 99));
    } else {
        assert_eq!((magic, client.u16(), client.u16(), client.u64()), (0x668e_33ef, 1, OFFSET_DATA, 99));
        assert_eq!((client.u32(), client.u64()), (520, 0));
    }
    assert_eq!(client.receive_vec(512), pattern(512));
}

fn data(offset: u64, cookie: u64, bytes: &[u8]) -> Chunk {
    Chunk { flags: 1, kind: OFFSET_DATA, cookie, payload: [&offset.to_be_bytes(), bytes].concat() }
}

#[test]
fn reads_and_writes_move_bytes() {
    for connect in [simple, structured] {
        let harness = Harness::new();
        let mut client = connect(&harness);
        assert_eq!(client.write(0, 4096, &[7; 1024]), 0);
        assert_eq!(client.write(FUA, 8192, &[9; 512]), 0);
        let mut model = pattern(SIZE);
        model[4096..5120].fill(7);
        model[8192..8704].fill(9);
        assert_eq!(harness.device.bytes(), model);
        let writes: Vec<_> = harness.device.calls().iter().map(|call| (call.offset, call.len, call.fua)).collect();
        assert_eq!(writes, [(4096, 1024, false), (8192, 512, true)]);
        assert_sound(&mut client);
    }
}

#[test]
fn a_simple_read_is_header_and_bytes() {
    let harness = Harness::new();
    let mut client = simple(&harness);
    assert_eq!(client.read_simple(512, 100 * 512), pattern(101 * 512)[512..]);
    assert_eq!(client.read_simple(0, SIZE as u32), pattern(SIZE));
}

#[test]
fn a_structured_read_is_one_chunk() {
    let harness = Harness::new();
    let mut client = structured(&harness);
    assert_eq!(client.read(0, 512, 1024), data(512, 79, &pattern(1536)[512..]));
    assert_eq!(client.read(DF | FUA, 0, SIZE as u32), data(0, 79, &pattern(SIZE)));
    assert_eq!(client.write(0, 65536, &[0; 8192]), 0);
    let hole = [&65536u64.to_be_bytes()[..], &8192u32.to_be_bytes()].concat();
    assert_eq!(client.read(0, 65536, 8192), Chunk { flags: 1, kind: OFFSET_HOLE, cookie: 79, payload: hole });
    let both = [&[0; 512][..], &pattern(SIZE)[65536 + 8192..][..512]].concat();
    assert_eq!(client.read(0, 65536 + 7680, 1024), data(65536 + 7680, 79, &both));
}

#[test]
fn the_largest_payload() {
    let size = 40 << 20;
    let harness = Harness::with(vec![1; size], Limits::default());
    let mut client = structured(&harness);
    let bytes = pattern(32 << 20);
    assert_eq!(client.write(0, 4 << 20, &bytes), 0);
    assert_eq!(client.read(0, 4 << 20, 32 << 20), data(4 << 20, 79, &bytes));
    assert_eq!(client.errno(0, READ, 0, (32 << 20) + 512), EOVERFLOW);
    assert_eq!(client.write(0, 0, &vec![5; (32 << 20) + 512]), EINVAL);
    assert_eq!(client.read(0, 0, 512), data(0, 79, &[1; 512]));
    let mut model = vec![1; size];
    model[4 << 20..36 << 20].copy_from_slice(&bytes);
    assert!(harness.device.bytes() == model, "bytes differ from the model's");
    let mut old = simple(&harness);
    assert_eq!(old.errno(0, READ, 0, (32 << 20) + 512), EINVAL);
}

#[test]
fn zeroes_trims_and_advice() {
    let harness = Harness::new();
    let mut client = structured(&harness);
    assert_eq!(client.errno(0, WRITE_ZEROES, 0, 4096), 0);
    assert_eq!(client.errno(NO_HOLE | FUA, WRITE_ZEROES, 4096, 512), 0);
    assert_eq!(client.errno(FAST_ZERO, WRITE_ZEROES, 8192, 512), 0);
    assert_eq!(client.errno(FAST_ZERO | NO_HOLE, WRITE_ZEROES, 16384, 512), ENOTSUP);
    assert_eq!(client.errno(FUA, TRIM, 32768, 512), 0);
    assert_eq!(client.errno(0, CACHE, 0, SIZE as u32), 0);
    assert_eq!(client.errno(FUA, FLUSH, 0, 0), 0);
    let mut model = pattern(SIZE);
    model[..4608].fill(0);
    model[8192..8704].fill(0);
    assert_eq!(harness.device.bytes(), model);
    let calls = harness.device.calls();
    let zeroes: Vec<_> = calls.iter().filter_map(|call| call.zeroes).collect();
    let as_sent = |may_unmap, fast, fua| Zeroes { may_unmap, fast, fua };
    assert_eq!(
        zeroes,
        [
            as_sent(true, false, false),
            as_sent(false, false, true),
            as_sent(true, true, false),
            as_sent(false, true, false),
        ]
    );
    let rest: Vec<_> = calls[4..].iter().map(|call| (call.action, call.offset, call.len)).collect();
    assert_eq!(
        rest,
        [(Action::Discard, 32768, 512), (Action::Flush, 0, 0), (Action::Read, 0, SIZE as u64), (Action::Flush, 0, 0)]
    );
}

fn status(client: &mut Client, flags: u16, offset: u64, len: u32) -> Vec<(u32, u32)> {
    client.send(&request(flags, STATUS, 80, offset, len));
    let chunk = client.chunk();
    assert_eq!((chunk.flags, chunk.kind, chunk.cookie), (1, BLOCK_STATUS, 80));
    let (words, rest) = chunk.payload.as_chunks::<4>();
    assert!(rest.is_empty());
    let words: Vec<u32> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
    assert_eq!(words[0], 1);
    words[1..].as_chunks::<2>().0.iter().map(|[len, status]| (*len, *status)).collect()
}

#[test]
fn block_status_tells_holes() {
    let harness = Harness::new();
    let mut client = structured(&harness);
    assert_eq!(client.errno(0, WRITE_ZEROES, 8192, 8192), 0);
    let rest = SIZE as u32 - 16384;
    assert_eq!(status(&mut client, 0, 0, SIZE as u32), [(8192, 0), (8192, 3), (rest, 0)]);
    assert_eq!(status(&mut client, REQ_ONE, 0, SIZE as u32), [(8192, 0)]);
    assert_eq!(status(&mut client, REQ_ONE, 12288, 512), [(512, 3)]);
    assert_eq!(status(&mut client, FUA, 8704, 16384), [(7680, 3), (8704, 0)]);
    let mut old = simple(&harness);
    assert_eq!(old.errno(0, STATUS, 0, 512), EINVAL);
}

#[test]
fn failures_of_the_device_are_told() {
    for connect in [simple, structured] {
        let harness = Harness::new();
        let mut client = connect(&harness);
        let bad = ByteRange::new(4096, 512);
        for action in [Action::Read, Action::Write, Action::WriteZeroes, Action::Discard] {
            harness.device.faulty.inject(action, bad, Injected::Fail(EIO as i32), 0, u64::MAX);
        }
        assert_eq!(client.errno(0, READ, 4096, 512), EIO);
        assert_eq!(client.write(0, 4096, &[1; 512]), EIO);
        assert_eq!(client.errno(0, WRITE_ZEROES, 4096, 512), EIO);
        assert_eq!(client.errno(0, TRIM, 4096, 512), EIO);
        assert_eq!(client.errno(0, CACHE, 4096, 512), EIO);
        harness.device.faulty.heal();
        harness.device.faulty.inject(Action::Write, bad, Injected::Fail(ENOSPC as i32), 0, u64::MAX);
        assert_eq!(client.write(0, 4096, &[1; 512]), ENOSPC);
        assert_eq!(harness.device.bytes(), pattern(SIZE));
        assert_sound(&mut client);
    }
}

#[test]
fn malformed_requests_cost_nothing_but_an_answer() {
    for connect in [simple, structured] {
        let harness = Harness::new();
        let mut client = connect(&harness);
        let end = SIZE as u64;
        for command in [8, 9, 0x1234, u16::MAX] {
            assert_eq!(client.errno(0, command, 0, 512), EINVAL);
        }
        for command in [READ, TRIM, CACHE] {
            assert_eq!(client.errno(0, command, end, 512), EINVAL);
            assert_eq!(client.errno(0, command, end - 512, 1024), EINVAL);
            assert_eq!(client.errno(0, command, u64::MAX - 511, 512), EINVAL);
        }
        assert_eq!(client.errno(0, WRITE_ZEROES, end, 512), ENOSPC);
        assert_eq!(client.errno(0, WRITE_ZEROES, u64::MAX, u32::MAX), ENOSPC);
        assert_eq!(client.write(0, end - 512, &[1; 1024]), ENOSPC);
        assert_eq!(client.write(0, 256, &[1; 512]), EINVAL);
        assert_eq!(client.write(0, 512, &[1; 300]), EINVAL);
        assert_eq!(client.write(DF, 0, &[1; 512]), EINVAL);
        assert_eq!(client.write(1 << 5, 0, &[1; 512]), EINVAL);
        for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES] {
            assert_eq!(client.errno(0, command, 0, 0), EINVAL);
        }
        assert_eq!(client.errno(0, READ, 100, 512), EINVAL);
        assert_eq!(client.errno(NO_HOLE, TRIM, 0, 512), EINVAL);
        assert_eq!(client.errno(REQ_ONE, READ, 0, 512), EINVAL);
        assert_eq!(client.errno(0, FLUSH, 0, 512), EINVAL);
        assert_eq!(client.errno(0, FLUSH, 512, 0), EINVAL);
        assert_eq!(harness.device.calls(), []);
        assert_eq!(harness.device.bytes(), pattern(SIZE));
        assert_sound(&mut client);
    }
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let harness = Harness::new();
    let mut client = harness.connect();
    client.go("vol@ro");
    assert_eq!(client.write(0, 0, &[1; 512]), EPERM);
    assert_eq!(client.write(FUA, 0, &vec![1; SIZE]), EPERM);
    assert_eq!(client.write(0, 0, &vec![1; 33 << 20]), EPERM);
    assert_eq!(client.errno(0, WRITE_ZEROES, 0, 512), EPERM);
    assert_eq!(client.errno(FUA, TRIM, 0, 512), EPERM);
    assert_eq!(client.errno(0, FLUSH, 0, 0), 0);
    assert_eq!(client.errno(0, CACHE, 0, 512), 0);
    assert_eq!(client.read(0, 0, 512), data(0, 79, &pattern(512)));
    assert_eq!(harness.device.bytes(), pattern(SIZE));
}

#[test]
fn replies_go_out_as_requests_complete() {
    let harness = Harness::new();
    harness.device.hold(ByteRange::new(0, 512));
    let mut client = structured(&harness);
    client.send(&[request(0, READ, 1, 0, 512), request(0, READ, 2, 512, 512), request(0, FLUSH, 3, 0, 0)].concat());
    assert_eq!(client.chunk(), data(512, 2, &pattern(1024)[512..]));
    assert_eq!(client.simple(), (3, 0));
    harness.device.let_go();
    assert_eq!(client.chunk(), data(0, 1, &pattern(512)));
}

#[test]
fn a_burst_of_requests_in_one_send() {
    for backend in [Backend::Auto, Backend::Threads] {
        burst(&Harness::over(pattern(SIZE), Limits::default(), backend));
    }
}

fn burst(harness: &Harness) {
    let mut client = simple(harness);
    let mut bytes = Vec::new();
    let mut model = pattern(SIZE);
    for index in 0..500_u64 {
        let len = 512 * (1 + index as u32 % 3);
        let place = index * 2048;
        let payload = vec![index as u8; len as usize];
        model[place as usize..][..len as usize].copy_from_slice(&payload);
        bytes.extend(request(0, WRITE, index, place, len));
        bytes.extend(payload);
    }
    client.send(&bytes);
    let mut answered: Vec<u64> =
        (0..500).map(|_| client.simple()).inspect(|reply| assert_eq!(reply.1, 0)).map(|reply| reply.0).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..500).collect::<Vec<_>>());
    assert_eq!(harness.device.bytes(), model);
    client.send(&(0..500).flat_map(|index| request(0, READ, index, index * 2048, 2048)).collect::<Vec<_>>());
    for _ in 0..500 {
        let (cookie, errno) = client.simple();
        assert_eq!(errno, 0);
        assert_eq!(client.receive_vec(2048), model[cookie as usize * 2048..][..2048]);
    }
}

#[test]
fn disconnect_waits_for_requests() {
    let harness = Harness::new();
    harness.device.hold(ByteRange::new(0, 512));
    let mut client = simple(&harness);
    client.send(&[request(0, WRITE, 1, 0, 512), vec![3; 512], request(0, DISC, 0, 0, 0)].concat());
    eventually(|| harness.device.calls().len() == 1);
    harness.device.let_go();
    assert_eq!(client.simple(), (1, 0));
    client.assert_closed();
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Disconnected);
    assert_eq!(harness.device.bytes()[..512], [3; 512]);
}

#[test]
fn a_half_closed_client_gets_its_replies() {
    let harness = Harness::new();
    harness.device.hold(ByteRange::new(0, 512));
    let mut client = simple(&harness);
    client.send(&request(0, READ, 1, 0, 512));
    client.stream.shutdown(Shutdown::Write).expect("still open");
    eventually(|| harness.device.calls().len() == 1);
    harness.device.let_go();
    assert_eq!(client.simple(), (1, 0));
    assert_eq!(client.receive_vec(512), pattern(512));
    client.assert_closed();
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Left);
}

#[test]
fn a_vanished_client_costs_its_own_connection() {
    let harness = Harness::new();
    let mut other = structured(&harness);
    harness.device.hold(ByteRange::new(0, 512));
    let mut client = simple(&harness);
    client.send(&[request(0, READ, 1, 0, 512), request(0, WRITE, 2, 0, 512), vec![4; 512]].concat());
    eventually(|| harness.device.calls().len() == 2);
    drop(client);
    harness.device.let_go();
    drop(harness.outcome());
    assert_eq!(other.read(0, 0, 512), data(0, 79, &[4; 512]));
}

#[test]
fn nonsense_costs_its_own_connection() {
    let harness = Harness::new();
    let mut other = structured(&harness);
    let mut client = simple(&harness);
    client.send(&[request(0, READ, 1, 0, 512), vec![0xee; 28]].concat());
    assert_eq!(client.simple(), (1, 0));
    assert_eq!(client.receive_vec(512), pattern(512));
    client.assert_closed();
    assert!(matches!(harness.outcome(), Err(Error::Violation(Violation::RequestMagic(0xeeee_eeee)))));
    let cut = [
        &request(0, READ, 1, 0, 512)[..27],
        &[request(0, WRITE, 1, 0, 512), vec![1; 511]].concat(),
        &request(0, WRITE, 1, 1, 512),
    ];
    for piece in cut {
        let mut client = simple(&harness);
        client.send(piece);
        client.stream.shutdown(Shutdown::Write).expect("still open");
        client.assert_closed();
        assert!(matches!(harness.outcome(), Err(Error::Violation(Violation::Truncated))));
    }
    assert_sound(&mut other);
    assert_eq!(harness.device.bytes(), pattern(SIZE));
}

#[test]
fn errors_are_never_simple_replies_to_structured_reads() {
    let harness = Harness::new();
    let mut client = structured(&harness);
    client.send(&request(1 << 9, READ, 6, 0, 512));
    let chunk = client.chunk();
    assert_eq!((chunk.flags, chunk.kind, chunk.cookie), (1, ERROR, 6));
    assert_eq!(chunk.payload[..4], EINVAL.to_be_bytes());
}
