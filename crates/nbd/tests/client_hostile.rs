//! The client against servers that break the protocol, lie, or say nothing.

mod support;

use std::rc::Rc;
use std::time::{Duration, Instant};

use support::fake::{ACK, FLUSH, Fake, OPTION_GO, OPTION_STRUCTURED, Peer, UNSUPPORTED, WRITE};
use support::listening::{Place, on_both, options};
use tzero_block::{BlockDevice, ByteRange, Error, Geometry, Zeroes};
use tzero_io::{Buffer, sleep, spawn, timeout};
use tzero_nbd::client::{Breach, Refused, Unusable};
use tzero_nbd::{ClientError, ClientOptions, NbdDevice};

const SIZE: u64 = 1 << 20;
const HAS_FLAGS: u16 = 1;
const FLUSHES: u16 = HAS_FLAGS | 1 << 2;
const EVERYTHING: u16 = 0b1_1110_1101;

async fn open(place: &Place, options: ClientOptions) -> Result<NbdDevice, ClientError> {
    timeout(Duration::from_secs(20), NbdDevice::open(place.uri("vol"), options)).await.expect("never for ever")
}

fn brief() -> ClientOptions {
    ClientOptions { connect: Duration::from_millis(300), ..options(Duration::ZERO) }
}

async fn read(device: &NbdDevice) -> Result<(), Error> {
    timeout(Duration::from_secs(20), device.read(0, Buffer::uncleared(4096))).await.expect("never for ever").1
}

async fn write(device: &NbdDevice, offset: u64) -> Result<(), Error> {
    device.write(offset, Buffer::copy_of(&[7; 512]), false).await.1
}

type Part = fn(&mut Peer) -> Option<()>;

#[test]
fn negotiations_that_go_wrong_end_and_in_time() {
    fn go(peer: &mut Peer) -> Option<()> {
        peer.greet()?;
        loop {
            match peer.option()? {
                OPTION_GO => return Some(()),
                option => peer.reply(option, UNSUPPORTED, &[])?,
            }
        }
    }
    let parts: &[(&str, Part, fn(&ClientError) -> bool)] = &[
        ("silence", Peer::left, |error| matches!(error, ClientError::TimedOut)),
        ("closed", |_| None, |error| matches!(error, ClientError::Closed | ClientError::Broken(_))),
        ("garbage", |peer| { peer.send(&[0x5A; 500])?; peer.left() }, |error| matches!(error, ClientError::Breach(Breach::Greeting))),
        ("http", |peer| { peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")?; peer.left() }, |error| matches!(error, ClientError::Breach(Breach::Greeting))),
        ("old style", |peer| { peer.send(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0\0\0\0\0\0\0")?; peer.left() }, |error| matches!(error, ClientError::Breach(Breach::OldStyle))),
        ("not fixed", |peer| { peer.send(b"NBDMAGICIHAVEOPT\0\0")?; peer.left() }, |error| matches!(error, ClientError::Breach(Breach::OldStyle))),
        ("half a greeting", |peer| { peer.send(b"NBDMAGICIHA")?; peer.left() }, |error| matches!(error, ClientError::TimedOut)),
        ("no reply", |peer| { peer.greet()?; peer.left() }, |error| matches!(error, ClientError::TimedOut)),
        ("dripping", |peer| { peer.greet()?; loop { peer.send(&[0])?; std::thread::sleep(Duration::from_millis(30)); } }, |error| matches!(error, ClientError::TimedOut)),
        ("other option", |peer| { peer.greet()?; peer.option()?; peer.reply(OPTION_GO, ACK, &[])?; peer.left() }, |error| matches!(error, ClientError::Breach(Breach::OptionReply))),
        ("giant reply", |peer| { peer.greet()?; peer.option()?; peer.send(&[&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &OPTION_STRUCTURED.to_be_bytes(), &1u32.to_be_bytes(), &[0xff; 4]].concat())?; peer.left() }, |error| matches!(error, ClientError::Breach(Breach::OptionLength(u32::MAX)))),
        ("endless replies", |peer| { go(peer)?; loop { peer.info(SIZE, HAS_FLAGS)?; } }, |error| matches!(error, ClientError::Breach(Breach::TooManyReplies))),
        ("no information", |peer| { go(peer)?; peer.reply(OPTION_GO, ACK, &[])?; peer.left() }, |error| matches!(error, ClientError::Breach(Breach::Info))),
        ("short information", |peer| { go(peer)?; peer.reply(OPTION_GO, 3, &[0, 0, 1])?; peer.left() }, |error| matches!(error, ClientError::Breach(Breach::Info))),
        ("too old", |peer| { go(peer)?; peer.reply(OPTION_GO, UNSUPPORTED, &[])?; peer.left() }, |error| matches!(error, ClientError::Refused(Refused::TooOld))),
        ("encrypted", |peer| { go(peer)?; peer.reply(OPTION_GO, 0x8000_0005, &[])?; peer.left() }, |error| matches!(error, ClientError::Refused(Refused::Encryption))),
        ("endless", |peer| { go(peer)?; peer.info(u64::MAX, HAS_FLAGS)?; peer.reply(OPTION_GO, ACK, &[])?; peer.left() }, |error| matches!(error, ClientError::Unusable(Unusable::Size(_)))),
        ("odd blocks", |peer| { go(peer)?; peer.info(SIZE, HAS_FLAGS)?; peer.blocks(1000, 1 << 20)?; peer.reply(OPTION_GO, ACK, &[])?; peer.left() }, |error| matches!(error, ClientError::Unusable(Unusable::Blocks { .. }))),
        ("a tail", |peer| { go(peer)?; peer.info(SIZE + 512, HAS_FLAGS)?; peer.blocks(4096, 1 << 20)?; peer.reply(OPTION_GO, ACK, &[])?; peer.left() }, |error| matches!(error, ClientError::Unusable(Unusable::Tail { .. }))),
    ];
    on_both(async |_| {
        for (name, part, expected) in parts {
            let place = Place::new();
            let part = *part;
            let _fake = Fake::start(&place.socket(), move |_, peer| part(peer));
            let begun = Instant::now();
            let error = open(&place, brief()).await.expect_err(name);
            assert!(expected(&error), "{name}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", begun.elapsed());
            // The reactor lets go of the socket.
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn replies_that_break_the_protocol_end_the_connection_and_fail_the_request() {
    let parts: &[(&str, Part, fn(&ClientError) -> bool)] = &[
        ("garbage", |peer| peer.send(&[0xA5; 5000]), |error| matches!(error, ClientError::Breach(Breach::ReplyMagic(_)))),
        ("wrong cookie", |peer| peer.simple(77, 0), |error| matches!(error, ClientError::Breach(Breach::Cookie(77)))),
        ("giant chunk", |peer| { let cookie = peer.request()?.cookie; peer.chunk(1, 1, cookie, u32::MAX, &[0; 8]) }, |error| matches!(error, ClientError::Breach(Breach::Place))),
        ("overlap", |peer| {
            let cookie = peer.request()?.cookie;
            peer.chunk(0, 1, cookie, 8 + 2048, &[0; 8 + 2048])?;
            peer.chunk(1, 1, cookie, 8 + 2049, &[&2047u64.to_be_bytes()[..], &[0; 2049]].concat())
        }, |error| matches!(error, ClientError::Breach(Breach::Place))),
        ("missing", |peer| {
            let cookie = peer.request()?.cookie;
            peer.chunk(0, 1, cookie, 8 + 2048, &[0; 8 + 2048])?;
            peer.chunk(1, 1, cookie, 8 + 2047, &[&2049u64.to_be_bytes()[..], &[0; 2047]].concat())
        }, |error| matches!(error, ClientError::Breach(Breach::Missing))),
        ("giant error", |peer| { let cookie = peer.request()?.cookie; peer.chunk(1, 0x8001, cookie, u32::MAX, &[0; 100]) }, |error| matches!(error, ClientError::Breach(Breach::Length { .. }))),
        ("twice", |peer| {
            let cookie = peer.request()?.cookie;
            let reply = [&0x668e_33ef_u32.to_be_bytes()[..], &[0, 0, 0x80, 1], &cookie.to_be_bytes(), &[0, 0, 0, 6, 0, 0, 0, 5, 0, 0]].concat();
            peer.send(&reply)?;
            peer.send(&[0; 40])
        }, |error| matches!(error, ClientError::Breach(Breach::ReplyMagic(0)))),
        ("short", |peer| { let cookie = peer.request()?.cookie; peer.chunk(1, 1, cookie, 8 + 4096, &[0; 100])?; None }, |error| matches!(error, ClientError::Closed)),
        ("ending", |peer| { let cookie = peer.request()?.cookie; peer.simple(cookie, 108) }, |error| matches!(error, ClientError::ShuttingDown)),
        ("silence", Peer::left, |error| matches!(error, ClientError::TimedOut)),
    ];
    on_both(async |_| {
        for (name, part, expected) in parts {
            let place = Place::new();
            let part = *part;
            let _fake = Fake::start(&place.socket(), move |number, peer| {
                peer.negotiate(SIZE, EVERYTHING, true)?;
                if number == 0 {
                    part(peer)?;
                    return peer.left();
                }
                let request = peer.request()?;
                peer.chunk(1, 2, request.cookie, 12, &[&request.offset.to_be_bytes()[..], &request.len.to_be_bytes()].concat())?;
                peer.left()
            });
            let limited = ClientOptions { request: Some(Duration::from_millis(100)), ..options(Duration::ZERO) };
            let device = open(&place, limited).await.expect("it negotiates well");
            let error = read(&device).await.expect_err(name);
            let said = ClientError::of(&error).unwrap_or_else(|| panic!("{name}: {error}"));
            assert!(expected(said), "{name}: {said}");
            assert_eq!(device.breaks(), 1);
            read(&device).await.unwrap_or_else(|error| panic!("{name}: the next connection is good: {error}"));
        }
    });
}

#[test]
fn a_server_that_breaks_every_connection_is_an_error_in_time() {
    on_both(async |_| {
        let place = Place::new();
        let _fake = Fake::start(&place.socket(), |_, peer| {
            peer.negotiate(SIZE, EVERYTHING, true)?;
            peer.request().map(drop)
        });
        let device = open(&place, options(Duration::from_millis(300))).await.expect("it negotiates well");
        let begun = Instant::now();
        read(&device).await.expect_err("no answer ever");
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(5), "{took:?}");
        assert!(device.breaks() < 40, "{} connections without a pause", device.breaks());
    });
}

#[test]
fn a_flush_on_its_way_fails_when_the_change_before_it_may_be_lost() {
    on_both(async |_| {
        let place = Place::new();
        let _fake = Fake::start(&place.socket(), |number, peer| {
            peer.negotiate(SIZE, FLUSHES, false)?;
            loop {
                let request = peer.request()?;
                // The first flush is never answered; all of its kind are good later.
                if number == 0 && request.kind == FLUSH {
                    return None;
                }
                peer.serve(&request)?;
            }
        });
        let device = open(&place, options(Duration::from_secs(10))).await.expect("opens");
        write(&device, 0).await.expect("acknowledged");
        let error = device.flush().await.expect_err("the server may have forgotten it");
        assert!(matches!(ClientError::of(&error), Some(ClientError::LostChanges)), "{error}");
        device.flush().await.expect("it was told");
        assert_eq!(device.breaks(), 1);
    });
}

#[test]
fn a_write_without_an_answer_is_written_again() {
    on_both(async |_| {
        let place = Place::new();
        let (told, writes) = std::sync::mpsc::channel();
        let _fake = Fake::start(&place.socket(), move |number, peer| {
            peer.negotiate(SIZE, FLUSHES, false)?;
            loop {
                let request = peer.request()?;
                let _ = told.send((number, request.kind, request.offset, request.payload.clone()));
                // Received whole, and never answered.
                if number < 3 {
                    return None;
                }
                peer.serve(&request)?;
            }
        });
        let device = open(&place, options(Duration::from_secs(10))).await.expect("opens");
        write(&device, 512).await.expect("written on the fourth connection");
        device.flush().await.expect("nothing was acknowledged before the breaks");
        let seen: Vec<_> = writes.try_iter().collect();
        let write = |number| (number, WRITE, 512, vec![7; 512]);
        assert_eq!(seen, [write(0), write(1), write(2), write(3), (3, FLUSH, 0, vec![])]);
    });
}

#[test]
fn a_server_without_abilities_gets_plain_writes() {
    on_both(async |_| {
        let place = Place::new();
        let (told, requests) = std::sync::mpsc::channel();
        let _fake = Fake::start(&place.socket(), move |_, peer| {
            peer.negotiate(3 << 20, FLUSHES, false)?;
            loop {
                let request = peer.request()?;
                let _ = told.send((request.kind, request.offset, request.len));
                peer.serve(&request)?;
            }
        });
        let device = open(&place, options(Duration::from_secs(10))).await.expect("opens");
        assert_eq!(device.geometry(), Geometry { size: 3 << 20, alignment: 512 });
        let range = ByteRange::new(512, 2 << 20);
        assert!(device.write_zeroes(range, Zeroes { fast: true, ..Zeroes::default() }).await.is_err());
        device.discard(range).await.expect("advice");
        assert!(device.extents(range).await.expect("extents").iter().all(|extent| !extent.hole));
        device.prefetch(range).await;
        assert_eq!(requests.try_iter().count(), 0);
        device.write_zeroes(range, Zeroes { fua: true, ..Zeroes::default() }).await.expect("zeroed");
        let mut seen: Vec<_> = requests.try_iter().collect();
        assert_eq!(seen.pop(), Some((FLUSH, 0, 0)), "durable without a flag for it");
        seen.sort_unstable();
        let mib = 1 << 20;
        assert_eq!(seen, [(WRITE, 512, mib - 512), (WRITE, mib.into(), mib), (WRITE, 2 * u64::from(mib), 512)]);
    });
}

#[test]
fn small_payloads_and_large_blocks_are_kept_to() {
    on_both(async |_| {
        let place = Place::new();
        let _fake = Fake::start(&place.socket(), |_, peer| {
            peer.greet()?;
            loop {
                match peer.option()? {
                    OPTION_GO => break,
                    option => peer.reply(option, UNSUPPORTED, &[])?,
                }
            }
            peer.info(SIZE, HAS_FLAGS)?;
            peer.blocks(4096, 10_000)?;
            peer.reply(OPTION_GO, ACK, &[])?;
            let mut bytes = vec![1; SIZE as usize];
            loop {
                let request = peer.request()?;
                assert!((request.offset | u64::from(request.len)).is_multiple_of(4096) && request.len <= 8192);
                let range = request.offset as usize..request.offset as usize + request.len as usize;
                peer.simple(request.cookie, 0)?;
                match request.kind {
                    WRITE => bytes[range].copy_from_slice(&request.payload),
                    _ => peer.send(&bytes[range])?,
                }
            }
        });
        let device = open(&place, options(Duration::from_secs(10))).await.expect("opens");
        assert_eq!(device.geometry().alignment, 512);
        device.write(512, Buffer::copy_of(&[2; 100 * 512]), false).await.1.expect("written");
        let (bytes, result) = device.read(0, Buffer::uncleared(110 * 512)).await;
        result.expect("read");
        let model = [vec![1; 512], vec![2; 100 * 512], vec![1; 9 * 512]].concat();
        assert!(bytes[..] == model);
    });
}

#[test]
fn a_server_that_reads_nothing_holds_nobody_else_up() {
    on_both(async |_| {
        let place = Place::new();
        let _fake = Fake::start(&place.socket(), |number, peer| {
            peer.negotiate(64 << 20, FLUSHES, false)?;
            if number == 0 {
                // Nothing is received until the client gives up.
                std::thread::sleep(Duration::from_millis(400));
                return peer.left();
            }
            loop {
                let request = peer.request()?;
                peer.serve(&request)?;
            }
        });
        let limited = ClientOptions { request: Some(Duration::from_millis(200)), ..options(Duration::from_secs(10)) };
        let device = Rc::new(open(&place, limited).await.expect("opens"));
        let theirs = Rc::clone(&device);
        let first = spawn(async move { write(&theirs, 0).await });
        let theirs = Rc::clone(&device);
        let large = spawn(async move { theirs.write(0, Buffer::zeroed(16 << 20), false).await.1 });
        // The thread goes on meanwhile.
        for _ in 0..5 {
            sleep(Duration::from_millis(1)).await;
        }
        first.await.expect("written on the next connection");
        large.await.expect("written on the next connection");
        assert_eq!(device.breaks(), 1);
    });
}

#[test]
fn random_bytes_are_survived() {
    on_both(async |_| {
        for seed in 1..=60u64 {
            let place = Place::new();
            let _fake = Fake::start(&place.socket(), move |number, peer| {
                let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + number as u64;
                let mut random = move |len: u64| {
                    let mut byte = || {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        state as u8
                    };
                    (0..len).map(|_| byte()).collect::<Vec<u8>>()
                };
                if seed % 3 == 0 {
                    peer.greet()?;
                    peer.option()?;
                    return peer.send(&random(seed * 7));
                }
                peer.negotiate(SIZE, EVERYTHING, seed % 2 == 0)?;
                let request = peer.request()?;
                // After a head that leads somewhere, or none.
                match seed % 5 {
                    0 => {}
                    1 => peer.simple(request.cookie, 0)?,
                    kind => peer.chunk(seed as u16 % 2, kind as u16 - 1, request.cookie, seed as u32 * 8, &random(12))?,
                }
                peer.send(&random(seed * 90))
            });
            if let Ok(device) = open(&place, ClientOptions { request: Some(Duration::from_millis(100)), ..brief() }).await {
                let _ = read(&device).await;
                let _ = device.extents(ByteRange::new(0, SIZE)).await;
            }
        }
    });
}
