//! What a client cannot do to the server, and how the server ends.

mod support;

use std::cell::RefCell;
use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use support::client::{Client, info_request, request};
use support::{Harness, SIZE, eventually, pattern};
use tzero_block::ByteRange;
use tzero_nbd::{End, Error, Limits, Violation};

const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

fn connected(harness: &Harness) -> Client {
    let mut client = harness.connect();
    client.go_simple("vol");
    client
}

/// Whatever the server's thread could do by now, it has done.
fn settle(other: &mut Client) {
    for _ in 0..50 {
        assert_eq!(other.read_simple(0, 512), pattern(512));
    }
}

#[test]
fn requests_in_flight_are_bounded() {
    let harness = Harness::with(pattern(SIZE), Limits { requests: 8, ..Limits::default() });
    let mut other = connected(&harness);
    harness.device.hold(ByteRange::new(4096, SIZE as u64 - 4096));
    let mut client = connected(&harness);
    client.send(&(0..40).flat_map(|index| request(0, READ, index, 4096 * (index + 1), 512)).collect::<Vec<_>>());
    let held = || harness.device.calls().iter().filter(|call| call.offset >= 4096).count();
    eventually(|| held() == 8);
    settle(&mut other);
    assert_eq!(held(), 8);
    harness.device.let_go();
    for _ in 0..40 {
        let (cookie, errno) = client.simple();
        assert_eq!(errno, 0);
        assert_eq!(client.receive_vec(512), pattern(SIZE)[4096 * (cookie as usize + 1)..][..512]);
    }
}

#[test]
fn payload_in_memory_is_bounded() {
    let harness = Harness::with(pattern(SIZE), Limits { bytes: 256 << 10, ..Limits::default() });
    let mut other = connected(&harness);
    harness.device.hold(ByteRange::new(4096, SIZE as u64 - 4096));
    let mut client = connected(&harness);
    let len = 64 << 10;
    client.send(&(0..12).flat_map(|index| request(0, READ, index, 4096, len)).collect::<Vec<_>>());
    let held = || harness.device.calls().iter().filter(|call| call.offset == 4096).count();
    eventually(|| held() == 4);
    settle(&mut other);
    assert_eq!(held(), 4);
    harness.device.let_go();
    for _ in 0..12 {
        assert_eq!(client.simple().1, 0);
        assert_eq!(client.receive_vec(len as usize), pattern(SIZE)[4096..][..len as usize]);
    }
    // More than the bound goes alone.
    assert_eq!(client.read_simple(0, SIZE as u32), pattern(SIZE));
}

/// Sends until the server takes no more; gives the number of whole requests sent.
fn stuff(client: &mut Client, one: &dyn Fn(u64) -> Vec<u8>) -> u64 {
    client.stream.set_nonblocking(true).expect("still open");
    let mut sent = 0;
    let mut refused_since = None;
    'requests: loop {
        let bytes = one(sent);
        let mut at = 0;
        while at < bytes.len() {
            match client.stream.write(&bytes[at..]) {
                Ok(count) => {
                    at += count;
                    refused_since = None;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > Duration::from_millis(300) {
                        break 'requests;
                    }
                    std::thread::yield_now();
                }
                Err(error) => panic!("the server cut the connection: {error}"),
            }
        }
        sent += 1;
    }
    client.stream.set_nonblocking(false).expect("still open");
    sent
}

#[test]
fn a_client_that_does_not_read_is_alone() {
    let harness = Harness::new();
    let mut other = connected(&harness);
    let mut greedy = connected(&harness);
    let len = 128 << 10;
    let sent = stuff(&mut greedy, &|index| request(0, READ, index, 4096, len));
    let started = harness.device.calls().len();
    assert!(started <= 128 + 8, "{started} reads were started for a client that reads nothing");
    settle(&mut other);
    for _ in 0..sent {
        assert_eq!(greedy.simple().1, 0);
        assert_eq!(greedy.receive_vec(len as usize), pattern(SIZE)[4096..][..len as usize]);
    }
}

#[test]
fn a_client_that_stalls_in_a_payload_is_alone() {
    let harness = Harness::new();
    let mut other = connected(&harness);
    let mut stalled = connected(&harness);
    stalled.send(&request(0, WRITE, 1, 0, SIZE as u32));
    stalled.send(&[9; 100_000]);
    settle(&mut other);
    assert_eq!(harness.device.bytes(), pattern(SIZE));
    stalled.send(&vec![9; SIZE - 100_000]);
    assert_eq!(stalled.simple(), (1, 0));
    assert_eq!(harness.device.bytes(), vec![9; SIZE]);
}

/// What requests that are held have in memory.
fn held_bytes(harness: &Harness, from: u64) -> u64 {
    harness.device.calls().iter().filter(|call| call.offset >= from).map(|call| call.len).sum()
}

#[test]
fn many_stalled_clients_are_bounded_together_and_stop_nobody() {
    const LEN: u32 = 32 << 10;
    const CLIENTS: usize = 24;
    const REQUESTS: u64 = 30;
    let (own, shared) = (64 << 10, 1 << 20);
    let half = SIZE as u64 / 2;
    let harness = Harness::with(pattern(SIZE), Limits { own, shared, ..Limits::default() });
    harness.device.hold(ByteRange::between(half, SIZE as u64));
    let bound = shared + CLIENTS * own;
    let reads: Vec<u8> = (0..REQUESTS).flat_map(|index| request(0, READ, index, half, LEN)).collect();
    let mut readers: Vec<_> = (0..CLIENTS).map(|_| connected(&harness)).collect();
    readers.iter_mut().for_each(|client| client.send(&reads));
    let mut writers: Vec<_> = (0..CLIENTS).map(|_| connected(&harness)).collect();
    for client in &mut writers {
        client.send(&request(0, WRITE, 1, 0, LEN));
        client.send(&[9; 1000]);
    }
    // Each has at least what is its own, and some have more.
    eventually(|| held_bytes(&harness, half) > (CLIENTS * own) as u64);

    let mut live = connected(&harness);
    settle(&mut live);
    let held = held_bytes(&harness, half);
    assert!(held <= bound as u64, "{held} bytes are held, {bound} are allowed");
    assert_eq!(live.read_simple(0, half as u32), pattern(SIZE)[..half as usize], "a large request goes alone");
    let many: Vec<u8> = (0..100).flat_map(|index| request(0, READ, index, 512 * index, 512)).collect();
    live.send(&many);
    for _ in 0..100 {
        let (cookie, errno) = live.simple();
        assert_eq!((live.receive_vec(512), errno), (pattern(SIZE)[512 * cookie as usize..][..512].to_vec(), 0));
    }

    harness.device.let_go();
    for client in &mut readers {
        for _ in 0..REQUESTS {
            assert_eq!(client.simple().1, 0);
            assert_eq!(client.receive_vec(LEN as usize), pattern(SIZE)[half as usize..][..LEN as usize]);
        }
    }
    for client in &mut writers {
        client.send(&vec![9; LEN as usize - 1000]);
        assert_eq!(client.simple(), (1, 0));
    }
    assert_eq!(harness.device.bytes()[..LEN as usize], vec![9; LEN as usize]);
}

#[test]
fn a_client_that_reads_no_reply_gives_its_memory_back_when_it_goes() {
    let limits = Limits { own: 4096, shared: 1 << 20, ..Limits::default() };
    let harness = Harness::with(pattern(SIZE), limits);
    let len = 128 << 10;
    let mut waiting = connected(&harness);
    for _ in 0..4 {
        let mut greedy = connected(&harness);
        stuff(&mut greedy, &|index| request(0, READ, index, 4096, len));
        drop(greedy);
        drop(harness.outcome());
        waiting.send(&(0..8).flat_map(|index| request(0, READ, index, 4096, len)).collect::<Vec<_>>());
        for _ in 0..8 {
            assert_eq!(waiting.simple().1, 0);
            assert_eq!(waiting.receive_vec(len as usize), pattern(SIZE)[4096..][..len as usize]);
        }
    }
}

#[test]
fn long_requests_without_payload_hold_up_no_other_and_are_bounded() {
    let harness = Harness::with(pattern(SIZE), Limits { requests: 8, ..Limits::default() });
    let half = SIZE as u64 / 2;
    harness.device.hold(ByteRange::between(half, SIZE as u64));
    let mut client = connected(&harness);
    for cookie in 0..7 {
        client.send(&request(0, [TRIM, WRITE_ZEROES][cookie as usize % 2], cookie, 0, SIZE as u32));
    }
    // The eighth and many more pass while the others take their time.
    settle(&mut client);
    assert_eq!(harness.device.calls().iter().filter(|call| call.len == SIZE as u64).count(), 7);
    harness.device.let_go();
    for _ in 0..7 {
        assert_eq!(client.simple().1, 0);
    }
    assert_eq!(harness.device.bytes(), vec![0; SIZE]);
}

#[test]
fn connections_are_bounded() {
    let harness = Harness::with(pattern(SIZE), Limits { connections: 2, ..Limits::default() });
    let (mut first, second) = (connected(&harness), connected(&harness));
    assert_eq!(harness.server.connections(), 2);
    harness.connect().assert_closed();
    assert!(matches!(harness.outcome(), Err(Error::TooManyConnections)));
    drop(second);
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Left);
    let mut third = connected(&harness);
    settle(&mut first);
    settle(&mut third);
}

#[test]
fn who_says_nothing_keeps_nobody_out() {
    let harness = Harness::with(pattern(SIZE), Limits { connections: 3, ..Limits::default() });
    let mut host = connected(&harness);
    let mut silent: Vec<Client> = Vec::new();
    for _ in 0..50 {
        let mut client = harness.connect();
        client.greet(3);
        silent.push(client);
        if let Some(oldest) = silent.len().checked_sub(3) {
            silent[oldest].assert_closed();
            assert!(matches!(harness.outcome(), Err(Error::TooManyConnections)));
        }
    }
    let mut other = connected(&harness);
    settle(&mut host);
    settle(&mut other);
    assert_eq!(harness.server.connections(), 3);
    silent[48].assert_closed();
    assert!(matches!(harness.outcome(), Err(Error::TooManyConnections)));
    assert_eq!(silent[49].outcome(7, &info_request("vol", &[])), 1);
    settle(&mut silent[49]);
    harness.connect().assert_closed();
    assert!(matches!(harness.outcome(), Err(Error::TooManyConnections)), "all others have an export");
}

#[test]
fn the_end_finishes_what_was_started() {
    let harness = Harness::new();
    harness.device.hold(ByteRange::new(0, 512));
    let mut client = connected(&harness);
    client.send(&[request(0, WRITE, 1, 0, 512), vec![3; 512], request(0, READ, 2, 512, 512)].concat());
    assert_eq!(client.simple(), (2, 0));
    assert_eq!(client.receive_vec(512), pattern(1024)[512..]);
    harness.server.shut_down();
    let mut late = harness.connect();
    late.assert_closed();
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Stopped);
    assert_eq!(harness.server.connections(), 1);
    harness.device.let_go();
    assert_eq!(client.simple(), (1, 0));
    client.assert_closed();
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Stopped);
    assert_eq!(harness.device.bytes()[..512], [3; 512]);
    eventually(|| harness.server.connections() == 0);
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let grace = Duration::from_millis(200);
    let harness = Harness::with(pattern(SIZE), Limits { grace, ..Limits::default() });
    let mut greeting = harness.connect();
    greeting.greet(3);
    let mut idle = connected(&harness);
    let mut stalled = connected(&harness);
    stalled.send(&request(0, WRITE, 1, 0, SIZE as u32));
    let mut greedy = connected(&harness);
    stuff(&mut greedy, &|index| request(0, READ, index, 0, 65536));
    harness.device.hold(ByteRange::new(0, 512));
    let mut hung = connected(&harness);
    let before = harness.device.calls().len();
    hung.send(&request(0, READ, 1, 0, 512));
    eventually(|| harness.device.calls().len() > before);
    let start = Instant::now();
    harness.server.shut_down();
    for _ in 0..5 {
        assert_eq!(harness.outcome().expect("nothing wrong"), End::Stopped);
    }
    assert!(start.elapsed() < Duration::from_secs(8), "it took {:?}", start.elapsed());
    for client in [&mut greeting, &mut idle, &mut stalled, &mut hung] {
        client.assert_closed();
    }
}

#[test]
fn nobody_waits_for_a_payload_that_does_not_come() {
    let harness = Harness::new();
    let start = Instant::now();
    for cut in [true, false] {
        let mut stalled = connected(&harness);
        stalled.send(&[request(0, WRITE, 1, 0, SIZE as u32), vec![9; 100]].concat());
        if cut {
            stalled.stream.shutdown(Shutdown::Write).expect("still open");
            assert!(matches!(harness.outcome(), Err(Error::Violation(Violation::Truncated))));
        } else {
            harness.server.shut_down();
            assert_eq!(harness.outcome().expect("nothing wrong"), End::Stopped);
        }
        stalled.assert_closed();
    }
    assert!(start.elapsed() < Limits::default().grace, "it took {:?}", start.elapsed());
}

/// Sends bytes after a sound start, closes, and waits for the end.
fn survive(harness: &Harness, start: impl FnOnce(&mut Client), bytes: &[u8]) {
    let mut client = harness.connect();
    start(&mut client);
    // The server may have cut the connection by now.
    let _ = client.stream.write_all(bytes);
    drop(client);
    drop(harness.outcome());
}

#[test]
fn any_bytes_are_survived() {
    let harness = Harness::new();
    let witness = RefCell::new(harness.connect());
    witness.borrow_mut().go_simple("vol@ro");
    let raw = proptest::collection::vec(any::<u8>(), 0..600);
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        (0u32..12, proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(option, data)| {
            [&b"IHAVEOPT"[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), &data].concat()
        }),
        (0u16..64, 0u16..9, 0u64..2 << 20, 0u32..2 << 20)
            .prop_map(|(flags, command, offset, len)| request(flags, command, 1, offset, len)),
        (any::<u16>(), 0u16..9, 0u64..4096, 0u32..9).prop_map(|(flags, command, block, blocks)| request(
            flags,
            command,
            1,
            block * 512,
            blocks * 512
        )),
    ];
    let pieces = proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 300, ..ProptestConfig::default() });
    runner
        .run(&(raw, pieces), |(raw, pieces)| {
            for bytes in [&raw, &pieces] {
                survive(&harness, |_| (), bytes);
                survive(&harness, |client| client.greet(3), bytes);
                survive(&harness, |client| client.go_simple("vol@ro"), bytes);
                survive(&harness, |client| client.go("vol@ro"), bytes);
            }
            prop_assert_eq!(witness.borrow_mut().read_simple(0, 512), pattern(512));
            Ok(())
        })
        .expect("every client's nonsense is its own affair");
    assert_eq!(harness.server.connections(), 1);
    assert_eq!(harness.device.bytes(), pattern(SIZE));
}
