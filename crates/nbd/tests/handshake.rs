//! Every option, and every way to spoil a handshake, byte by byte.

mod support;

use std::net::Shutdown;
use std::time::{Duration, Instant};

use support::client::{Client, context_request, info_request};
use support::{Harness, SIZE, pattern};
use tzero_block::ExportError;
use tzero_nbd::{End, Error, Limits, Violation};

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;

fn greeted(harness: &Harness) -> Client {
    let mut client = harness.connect();
    client.greet(3);
    client
}

fn violation(harness: &Harness) -> Violation {
    match harness.outcome() {
        Err(Error::Violation(violation)) => violation,
        other => panic!("no violation: {other:?}"),
    }
}

#[test]
fn list() {
    let harness = Harness::new();
    let mut client = greeted(&harness);
    let replies = client.option(3, &[]);
    assert_eq!(
        replies,
        [
            (SERVER, b"\0\0\0\x03volvol itself".to_vec()),
            (SERVER, b"\0\0\0\x06vol@rovol@ro itself".to_vec()),
            (ACK, vec![]),
        ]
    );
    assert_eq!(client.outcome(3, b"x"), ERR_INVALID);
}

#[test]
fn info_tells_everything() {
    let harness = Harness::new();
    let mut client = greeted(&harness);
    let flags: u16 = 0b1101_0110_1101;
    let replies = client.option(6, &info_request("vol", &[3, 1, 2, 999]));
    let export = [&[0, 0][..], &(SIZE as u64).to_be_bytes(), &flags.to_be_bytes()].concat();
    let sizes = b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0".to_vec();
    assert_eq!(
        replies,
        [
            (INFO, export),
            (INFO, b"\0\x01vol".to_vec()),
            (INFO, b"\0\x02vol itself".to_vec()),
            (INFO, sizes),
            (ACK, vec![]),
        ]
    );
    assert_eq!(client.outcome(8, &[]), ACK);
    let structured = client.option(6, &info_request("vol", &[]));
    assert_eq!(structured[0].1[10..], 0b1101_1110_1101_u16.to_be_bytes());
    let read_only = client.option(6, &info_request("vol@ro", &[]));
    assert_eq!(read_only[0].1[10..], 0b0101_1000_1111_u16.to_be_bytes());
    assert_eq!(client.outcome(6, &info_request("nothing", &[])), ERR_UNKNOWN);
    assert_eq!(client.outcome(6, &info_request("", &[])), ERR_UNKNOWN);
}

#[test]
fn go_after_a_refused_go() {
    let harness = Harness::new();
    let mut client = greeted(&harness);
    assert_eq!(client.outcome(7, &info_request("nothing", &[])), ERR_UNKNOWN);
    assert_eq!(client.outcome(7, b"\0\0\0\x09vol\0\0"), ERR_INVALID);
    assert_eq!(client.outcome(7, &info_request("vol", &[])), ACK);
    assert_eq!(client.read_simple(512, 512), pattern(1024)[512..]);
    drop(client);
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Left);
}

#[test]
fn export_name() {
    let harness = Harness::new();
    for (flags, padding) in [(1, 124), (3, 0), (0, 124), (2, 0)] {
        let mut client = harness.connect();
        client.greet(flags);
        client.send_option(1, b"vol@ro");
        assert_eq!(client.u64(), SIZE as u64);
        assert_eq!(client.u16(), 0b0101_0000_1111);
        assert_eq!(client.receive_vec(padding), vec![0; padding]);
        assert_eq!(client.read_simple(0, 512), pattern(512));
    }
}

#[test]
fn export_name_cannot_be_refused_politely() {
    let harness = Harness::new();
    let mut client = greeted(&harness);
    client.send_option(1, b"nothing");
    client.assert_closed();
    match harness.outcome() {
        Err(Error::NoExport { name, source: ExportError::Unknown }) => assert_eq!(&*name, "nothing"),
        other => panic!("{other:?}"),
    }
    for name in [&b"\xff"[..], &[b'a'; 4097], &[b'a'; 70_000]] {
        let mut client = greeted(&harness);
        client.send_option(1, name);
        assert_eq!(violation(&harness), Violation::ExportName);
    }
}

#[test]
fn abort_is_acknowledged() {
    let harness = Harness::new();
    let mut client = greeted(&harness);
    assert_eq!(client.option(2, b"ignored"), [(ACK, vec![])]);
    client.assert_closed();
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Aborted);
    let mut impatient = greeted(&harness);
    impatient.send_option(2, &[]);
    drop(impatient);
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Aborted);
}

#[test]
fn what_is_not_there_is_unsupported() {
    let harness = Harness::new();
    let mut client = greeted(&harness);
    for option in [0, 4, 5, 11, 12, u32::MAX] {
        assert_eq!(client.outcome(option, &[]), ERR_UNSUP);
        assert_eq!(client.outcome(option, &[0xff; 1000]), ERR_UNSUP);
    }
    assert_eq!(client.outcome(8, b"x"), ERR_INVALID);
    assert_eq!(client.outcome(8, &[]), ACK);
    assert_eq!(client.outcome(8, &[]), ACK);
}

#[test]
fn contexts_are_listed() {
    let harness = Harness::new();
    let mut client = greeted(&harness);
    assert_eq!(client.outcome(9, &context_request("vol", &[])), ERR_INVALID);
    assert_eq!(client.outcome(8, &[]), ACK);
    let found = [(META_CONTEXT, b"\0\0\0\0base:allocation".to_vec()), (ACK, vec![])];
    assert_eq!(client.option(9, &context_request("vol", &[])), found);
    assert_eq!(client.option(9, &context_request("vol", &["base:"])), found);
    assert_eq!(client.option(9, &context_request("vol", &["qemu:x", "base:allocation"])), found);
    assert_eq!(client.option(9, &context_request("vol", &["qemu:", "base:other"])), [(ACK, vec![])]);
    assert_eq!(client.outcome(9, &context_request("nothing", &[])), ERR_UNKNOWN);
    assert_eq!(client.outcome(9, &context_request("vol", &["q"; 65])), ERR_TOO_BIG);
    assert_eq!(client.outcome(9, b"\0\0\0\x03vol\0\0\0\x01\xff\xff\xff\xff"), ERR_INVALID);
}

#[test]
fn contexts_are_set_for_one_export() {
    let harness = Harness::new();
    let status = |prepare: &dyn Fn(&mut Client), name: &str| {
        let mut client = greeted(&harness);
        prepare(&mut client);
        assert_eq!(client.outcome(8, &[]), ACK);
        let set = client.option(10, &context_request("vol", &["base:allocation"]));
        assert_eq!(set, [(META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()), (ACK, vec![])]);
        if name == "cleared" {
            assert_eq!(client.outcome(10, &context_request("vol", &[])), ACK);
        } else if name == "failed" {
            assert_eq!(client.outcome(10, &context_request("nothing", &["base:allocation"])), ERR_UNKNOWN);
        } else if name == "too big" {
            assert_eq!(client.outcome(10, &[0; 70_000]), ERR_TOO_BIG);
        }
        let export = if name == "other" { "vol@ro" } else { "vol" };
        assert_eq!(client.outcome(7, &info_request(export, &[])), ACK);
        client.send(&support::client::request(0, 7, 5, 0, 4096));
        client.chunk().kind
    };
    let early: &dyn Fn(&mut Client) = &|client| {
        assert_eq!(client.outcome(10, &context_request("vol", &["base:allocation"])), ERR_INVALID);
    };
    assert_eq!(status(early, "set"), support::client::BLOCK_STATUS);
    for name in ["cleared", "failed", "too big", "other"] {
        assert_eq!(status(&|_| (), name), support::client::ERROR, "{name}");
    }
}

#[test]
fn large_options_are_skipped_larger_ones_cut_the_connection() {
    let harness = Harness::new();
    let mut client = greeted(&harness);
    assert_eq!(client.outcome(7, &vec![0; 65537]), ERR_TOO_BIG);
    assert_eq!(client.outcome(99, &vec![0; 1 << 20]), ERR_TOO_BIG);
    assert_eq!(client.outcome(3, &[]), ACK);
    client.send(b"IHAVEOPT\0\0\0\x03\0\x10\0\x01");
    client.assert_closed();
    assert_eq!(violation(&harness), Violation::OptionLength((1 << 20) + 1));
}

#[test]
fn nonsense_cuts_the_connection() {
    let harness = Harness::new();
    let mut client = harness.connect();
    client.greet(7);
    client.assert_closed();
    assert_eq!(violation(&harness), Violation::ClientFlags(7));

    let mut client = greeted(&harness);
    client.send(b"IHAVENOOPT\0\0\0\0\0\0");
    client.assert_closed();
    assert_eq!(violation(&harness), Violation::OptionMagic);

    let mut client = greeted(&harness);
    for _ in 0..1024 {
        assert_eq!(client.outcome(5, &[]), ERR_UNSUP);
    }
    client.assert_closed();
    assert_eq!(violation(&harness), Violation::TooManyOptions);
}

#[test]
fn leaving_in_the_middle_is_noticed() {
    let harness = Harness::new();
    let pieces: [(&[u8], bool); 5] = [
        (b"", true),
        (b"IHAVE", false),
        (b"IHAVEOPT\0\0\0\x07\0\0\0\x20abc", false),
        (b"IHAVEOPT\0\0\0\x07\0\x02\0\0", false),
        (b"IHAVEOPT\0\0\0\x05\0\0\0\0", true),
    ];
    for (piece, clean) in pieces {
        let mut client = greeted(&harness);
        client.send(piece);
        client.stream.shutdown(Shutdown::Write).expect("still open");
        if clean {
            assert_eq!(harness.outcome().expect("nothing wrong"), End::Left);
        } else {
            assert_eq!(violation(&harness), Violation::Truncated);
        }
    }
    let client = harness.connect();
    client.stream.shutdown(Shutdown::Write).expect("still open");
    assert_eq!(harness.outcome().expect("nothing wrong"), End::Left);
}

#[test]
fn a_handshake_has_its_time() {
    let harness = Harness::with(pattern(SIZE), Limits { handshake: Duration::from_millis(50), ..Limits::default() });
    let mut silent = greeted(&harness);
    silent.send(b"IHAVE");
    silent.assert_closed();
    assert!(matches!(harness.outcome(), Err(Error::HandshakeTimeout)));
    // Transmission has no such limit.
    let mut client = harness.connect();
    client.go_simple("vol");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(150) {
        assert_eq!(client.read_simple(0, 512), pattern(512));
    }
}

#[test]
fn a_dribbling_client_is_understood() {
    let harness = Harness::new();
    let mut client = harness.connect();
    assert_eq!(&client.receive::<18>(), b"NBDMAGICIHAVEOPT\0\x03");
    let go = info_request("vol", &[3]);
    let bytes = [&[0, 0, 0, 3], &b"IHAVEOPT\0\0\0\x07"[..], &(go.len() as u32).to_be_bytes(), &go].concat();
    bytes.iter().for_each(|byte| client.send(&[*byte]));
    assert_eq!(client.option_reply(7).0, INFO);
    assert_eq!(client.option_reply(7).0, INFO);
    assert_eq!(client.option_reply(7), (ACK, vec![]));
    support::client::request(0, 0, 9, 1024, 512).iter().for_each(|byte| client.send(&[*byte]));
    assert_eq!(client.simple(), (9, 0));
    assert_eq!(client.receive_vec(512), pattern(1536)[1024..]);
}
