//! The client against servers that break the protocol, lie, or say nothing.

mod support;

use std::time::{Duration, Instant};

use support::fake::{ACK, Fake, OPTION_GO, OPTION_STRUCTURED, Peer, UNSUPPORTED};
use support::listening::{Place, on_both, options};
use tzero_block::{BlockDevice, ByteRange, Error};
use tzero_io::{Buffer, sleep, timeout};
use tzero_nbd::client::{Breach, Refused, Unusable};
use tzero_nbd::{ClientError, ClientOptions, NbdDevice};

const SIZE: u64 = 1 << 20;
const HAS_FLAGS: u16 = 1;
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

type Part = fn(&mut Peer) -> Option<()>;
/// A name, what the server does, and what the client says of it.
type Case = (&'static str, Part, fn(&ClientError) -> bool);

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
    let parts: &[Case] = &[
        ("silence", Peer::left, |error| matches!(error, ClientError::TimedOut)),
        ("closed", |_| None, |error| matches!(error, ClientError::Closed | ClientError::Broken(_))),
        (
            "garbage",
            |peer| {
                peer.send(&[0x5A; 500])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Breach(Breach::Greeting)),
        ),
        (
            "http",
            |peer| {
                peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
                peer.left()
            },
            |error| matches!(error, ClientError::Breach(Breach::Greeting)),
        ),
        (
            "old style",
            |peer| {
                peer.send(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0\0\0\0\0\0\0")?;
                peer.left()
            },
            |error| matches!(error, ClientError::Breach(Breach::OldStyle)),
        ),
        (
            "not fixed",
            |peer| {
                peer.send(b"NBDMAGICIHAVEOPT\0\0")?;
                peer.left()
            },
            |error| matches!(error, ClientError::Breach(Breach::OldStyle)),
        ),
        (
            "half a greeting",
            |peer| {
                peer.send(b"NBDMAGICIHA")?;
                peer.left()
            },
            |error| matches!(error, ClientError::TimedOut),
        ),
        (
            "no reply",
            |peer| {
                peer.greet()?;
                peer.left()
            },
            |error| matches!(error, ClientError::TimedOut),
        ),
        (
            "dripping",
            |peer| {
                peer.greet()?;
                peer.option()?;
                loop {
                    peer.send(&[0])?;
                    peer.pause(Duration::from_millis(30))?;
                }
            },
            |error| matches!(error, ClientError::TimedOut),
        ),
        (
            "other option",
            |peer| {
                peer.greet()?;
                peer.option()?;
                peer.reply(OPTION_GO, ACK, &[])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Breach(Breach::OptionReply)),
        ),
        (
            "giant reply",
            |peer| {
                peer.greet()?;
                peer.option()?;
                peer.send(
                    &[
                        &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
                        &OPTION_STRUCTURED.to_be_bytes(),
                        &1u32.to_be_bytes(),
                        &[0xff; 4],
                    ]
                    .concat(),
                )?;
                peer.left()
            },
            |error| matches!(error, ClientError::Breach(Breach::OptionLength(u32::MAX))),
        ),
        (
            "endless replies",
            |peer| {
                go(peer)?;
                loop {
                    peer.info(SIZE, HAS_FLAGS)?;
                }
            },
            |error| matches!(error, ClientError::Breach(Breach::TooManyReplies)),
        ),
        (
            "no information",
            |peer| {
                go(peer)?;
                peer.reply(OPTION_GO, ACK, &[])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Breach(Breach::Info)),
        ),
        (
            "short information",
            |peer| {
                go(peer)?;
                peer.reply(OPTION_GO, 3, &[0, 0, 1])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Breach(Breach::Info)),
        ),
        (
            "too old",
            |peer| {
                go(peer)?;
                peer.reply(OPTION_GO, UNSUPPORTED, &[])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Refused(Refused::TooOld)),
        ),
        (
            "encrypted",
            |peer| {
                go(peer)?;
                peer.reply(OPTION_GO, 0x8000_0005, &[])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Refused(Refused::Encryption)),
        ),
        (
            "endless",
            |peer| {
                go(peer)?;
                peer.info(u64::MAX, HAS_FLAGS)?;
                peer.reply(OPTION_GO, ACK, &[])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Unusable(Unusable::Size(_))),
        ),
        (
            "odd blocks",
            |peer| {
                go(peer)?;
                peer.info(SIZE, HAS_FLAGS)?;
                peer.blocks(1000, 1 << 20)?;
                peer.reply(OPTION_GO, ACK, &[])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Unusable(Unusable::Blocks { .. })),
        ),
        (
            "a tail",
            |peer| {
                go(peer)?;
                peer.info(SIZE + 512, HAS_FLAGS)?;
                peer.blocks(4096, 1 << 20)?;
                peer.reply(OPTION_GO, ACK, &[])?;
                peer.left()
            },
            |error| matches!(error, ClientError::Unusable(Unusable::Tail { .. })),
        ),
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
    let parts: &[Case] = &[
        (
            "garbage",
            |peer| peer.send(&[0xA5; 5000]),
            |error| matches!(error, ClientError::Breach(Breach::ReplyMagic(_))),
        ),
        ("wrong cookie", |peer| peer.simple(77, 0), |error| matches!(error, ClientError::Breach(Breach::Cookie(77)))),
        (
            "giant chunk",
            |peer| {
                let cookie = peer.request()?.cookie;
                peer.chunk(1, 1, cookie, u32::MAX, &[0; 8])
            },
            |error| matches!(error, ClientError::Breach(Breach::Place)),
        ),
        (
            "overlap",
            |peer| {
                let cookie = peer.request()?.cookie;
                peer.chunk(0, 1, cookie, 8 + 2048, &[0; 8 + 2048])?;
                peer.chunk(1, 1, cookie, 8 + 2049, &[&2047u64.to_be_bytes()[..], &[0; 2049]].concat())
            },
            |error| matches!(error, ClientError::Breach(Breach::Place)),
        ),
        (
            "missing",
            |peer| {
                let cookie = peer.request()?.cookie;
                peer.chunk(0, 1, cookie, 8 + 2048, &[0; 8 + 2048])?;
                peer.chunk(1, 1, cookie, 8 + 2047, &[&2049u64.to_be_bytes()[..], &[0; 2047]].concat())
            },
            |error| matches!(error, ClientError::Breach(Breach::Missing)),
        ),
        (
            "giant error",
            |peer| {
                let cookie = peer.request()?.cookie;
                peer.chunk(1, 0x8001, cookie, u32::MAX, &[0; 100])
            },
            |error| matches!(error, ClientError::Breach(Breach::Length { .. })),
        ),
        (
            "twice",
            |peer| {
                let cookie = peer.request()?.cookie;
                let reply = [
                    &0x668e_33ef_u32.to_be_bytes()[..],
                    &[0, 0, 0x80, 1],
                    &cookie.to_be_bytes(),
                    &[0, 0, 0, 6, 0, 0, 0, 5, 0, 0],
                ]
                .concat();
                peer.send(&reply)?;
                peer.send(&[0; 40])
            },
            |error| matches!(error, ClientError::Breach(Breach::ReplyMagic(0))),
        ),
        (
            "short",
            |peer| {
                let cookie = peer.request()?.cookie;
                peer.chunk(1, 1, cookie, 8 + 4096, &[0; 100])?;
                None
            },
            |error| matches!(error, ClientError::Closed),
        ),
        (
            "ending",
            |peer| {
                let cookie = peer.request()?.cookie;
                peer.simple(cookie, 108)
            },
            |error| matches!(error, ClientError::ShuttingDown),
        ),
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
                peer.chunk(
                    1,
                    2,
                    request.cookie,
                    12,
                    &[&request.offset.to_be_bytes()[..], &request.len.to_be_bytes()].concat(),
                )?;
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
                    kind => {
                        peer.chunk(seed as u16 % 2, kind as u16 - 1, request.cookie, seed as u32 * 8, &random(12))?
                    }
                }
                peer.send(&random(seed * 90))
            });
            if let Ok(device) =
                open(&place, ClientOptions { request: Some(Duration::from_millis(100)), ..brief() }).await
            {
                let _ = read(&device).await;
                let _ = device.extents(ByteRange::new(0, SIZE)).await;
            }
        }
    });
}
