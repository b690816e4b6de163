//! The client against servers that can do little, die at the wrong moment, or do not listen.

mod support;

use std::rc::Rc;
use std::time::Duration;

use support::fake::{ACK, FLUSH, Fake, OPTION_GO, UNSUPPORTED, WRITE};
use support::listening::{Place, on_both, options};
use tzero_block::{BlockDevice, ByteRange, Error, Geometry, Zeroes};
use tzero_io::{Buffer, sleep, spawn, timeout};
use tzero_nbd::{ClientError, ClientOptions, NbdDevice};

const SIZE: u64 = 1 << 20;
const HAS_FLAGS: u16 = 1;
const FLUSHES: u16 = HAS_FLAGS | 1 << 2;

async fn open(place: &Place, options: ClientOptions) -> Result<NbdDevice, ClientError> {
    timeout(Duration::from_secs(20), NbdDevice::open(place.uri("vol"), options)).await.expect("never for ever")
}

async fn write(device: &NbdDevice, offset: u64) -> Result<(), Error> {
    device.write(offset, Buffer::copy_of(&[7; 512]), false).await.1
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
        let (tell, given_up) = std::sync::mpsc::channel();
        let _fake = Fake::start(&place.socket(), move |number, peer| {
            peer.negotiate(64 << 20, FLUSHES, false)?;
            if number == 0 {
                // Nothing is received until the client has given up.
                return given_up.recv_timeout(Duration::from_secs(20)).ok();
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
        while device.breaks() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        tell.send(()).expect("the server waits");
        first.await.expect("written on the next connection");
        large.await.expect("written on the next connection");
        assert_eq!(device.breaks(), 1);
    });
}
