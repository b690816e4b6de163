//! The client when the connection breaks.

mod support;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::device::TestDevice;
use support::listening::{Listening, Place, listens, on_both, open, options};
use support::process::Process;
use support::{SIZE, eventually, pattern};
use tzero_block::{BlockDevice, ByteRange, Error};
use tzero_io::{Backend, Buffer, Runtime, timeout, together};
use tzero_nbd::client::{Changed, Refused};
use tzero_nbd::{ClientError, ClientOptions, NbdDevice};

/// What the client says within an error.
fn reason(error: &Error) -> &ClientError {
    ClientError::of(error).unwrap_or_else(|| panic!("{error}"))
}

async fn write(device: &NbdDevice, offset: u64, byte: u8, fua: bool) -> Result<(), Error> {
    device.write(offset, Buffer::copy_of(&[byte; 4096]), fua).await.1
}

/// Writers that own their blocks, flushes between, and a server that dies whenever some more was written. What is there at the end is what was
/// acknowledged last, and every read on the way saw it.
fn under_load(backend: Backend, connections: usize, place: &Place, mut start: impl FnMut() -> Box<dyn Server>) {
    const WRITERS: u64 = 16;
    const DEATHS: u64 = 12;
    let mut server = Some(start());
    let (written, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (seen, stop, uri) = (Arc::clone(&written), Arc::clone(&enough), place.uri("vol"));
    let client = std::thread::spawn(move || {
        Runtime::new(backend).expect("a runtime").block_on(async {
            let options = ClientOptions { connections, ..options(Duration::from_secs(60)) };
            let device = NbdDevice::open(uri, options).await.expect("the export opens");
            let (device, seen, stop, lost) = (&device, &seen, &stop, &Cell::new(0));
            let writers = (0..WRITERS).map(|writer| async move {
                let mut version = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    version += 1;
                    let place = (writer + WRITERS * (version % 4)) * 8192;
                    let stamp = [writer.to_be_bytes(), version.to_be_bytes()].concat().repeat(512);
                    let fua = version.is_multiple_of(5);
                    device.write(place, Buffer::copy_of(&stamp), fua).await.1.expect("written");
                    seen.fetch_add(1, Ordering::Relaxed);
                    if version.is_multiple_of(7)
                        && let Err(error) = device.flush().await
                    {
                        assert!(matches!(reason(&error), ClientError::LostChanges), "{error}");
                        lost.set(lost.get() + 1);
                    }
                    let (bytes, result) = device.read(place, Buffer::uncleared(8192)).await;
                    result.expect("read");
                    assert!(bytes[..] == stamp, "writer {writer}, version {version}");
                }
            });
            together(writers).await;
            assert!(device.breaks() >= DEATHS, "{} breaks", device.breaks());
            assert!(lost.get() > 0, "no flush was told that changes may be lost");
            let _ = device.flush().await;
            device.flush().await.expect("nothing is left to be told");
        });
    });
    let goes_on = || {
        let before = written.load(Ordering::Relaxed);
        eventually(|| written.load(Ordering::Relaxed) >= before + 200 || client.is_finished());
    };
    for _ in 0..DEATHS {
        goes_on();
        server.take().expect("a server").kill();
        server = Some(start());
    }
    goes_on();
    enough.store(true, Ordering::Relaxed);
    client.join().expect("no panic");
}

trait Server {
    fn kill(self: Box<Self>);
}

impl Server for Listening {
    fn kill(self: Box<Self>) {
        (*self).kill();
    }
}

impl Server for Process {
    fn kill(self: Box<Self>) {
        (*self).kill();
    }
}

#[test]
fn our_server_dies_under_load() {
    for (backend, connections) in [(Backend::Ring, 1), (Backend::Threads, 1), (Backend::Ring, 3)] {
        let place = Place::new();
        let device = Arc::new(TestDevice::new(pattern(SIZE)));
        under_load(backend, connections, &place, || Box::new(Listening::start(&place.socket(), &device, 512)));
    }
}

fn nbdkit(place: &Path, socket: &Path) -> Process {
    let _ = std::fs::remove_file(socket);
    let file = place.to_str().expect("text");
    let server = Process::start("nbdkit", &["-f", "-U", socket.to_str().expect("text"), "file", file]);
    listens(socket);
    server
}

#[test]
fn another_server_dies_under_load() {
    for backend in [Backend::Ring, Backend::Threads] {
        let place = Place::new();
        std::fs::write(place.path("image"), pattern(SIZE)).expect("an image");
        under_load(backend, 1, &place, || Box::new(nbdkit(&place.path("image"), &place.socket())));
    }
}

#[test]
fn a_flush_fails_once_when_acknowledged_changes_may_be_lost() {
    on_both(async |_| {
        let place = Place::new();
        let bytes = Arc::new(TestDevice::new(pattern(SIZE)));
        let mut server = Listening::start(&place.socket(), &bytes, 512);
        let device = open(place.uri("vol")).await;
        let mut restart = || {
            let old = std::mem::replace(&mut server, Listening::start(&place.path("other"), &bytes, 512));
            old.kill();
            server = Listening::start(&place.socket(), &bytes, 512);
        };
        restart();
        device.flush().await.expect("nothing was changed");
        write(&device, 0, 1, false).await.expect("written");
        device.flush().await.expect("flushed");
        restart();
        device.flush().await.expect("everything was durable");
        write(&device, 0, 2, true).await.expect("durable at once");
        restart();
        device.flush().await.expect("everything was durable");
        write(&device, 0, 3, false).await.expect("written");
        restart();
        write(&device, 4096, 4, true).await.expect("a durable write vouches for itself");
        let flushes = together((0..3).map(|_| device.flush())).await;
        for error in flushes.into_iter().map(|flush| flush.expect_err("changes may be lost")) {
            assert!(matches!(reason(&error), ClientError::LostChanges), "{error}");
        }
        device.flush().await.expect("it was told");
        device.write_zeroes(ByteRange::new(0, 4096), Default::default()).await.expect("zeroed");
        restart();
        device.flush().await.expect_err("zeroes may be lost too");
        assert_eq!(device.breaks(), 5);
        let trusting = ClientOptions { keeps_acknowledged: true, ..ClientOptions::default() };
        let device = NbdDevice::open(place.uri("vol"), trusting).await.expect("opens");
        write(&device, 0, 3, false).await.expect("written");
        restart();
        device.flush().await.expect("the server keeps what it acknowledged");
    });
}

#[test]
fn one_connection_knows_of_the_changes_of_another() {
    let place = Place::new();
    let bytes = Arc::new(TestDevice::new(pattern(SIZE)));
    let server = Listening::start(&place.socket(), &bytes, 512);
    let options = ClientOptions { connections: 2, ..options(Duration::from_secs(10)) };
    let run = || Runtime::new(Backend::Auto).expect("a runtime");
    let device = run().block_on(NbdDevice::open(place.uri("vol"), options)).expect("opens");
    // Neighbours in number: each has another connection.
    let on_another = |test: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| scope.spawn(test).join().expect("no panic"));
    };
    on_another(&|| run().block_on(write(&device, 0, 1, false)).expect("written"));
    on_another(&|| run().block_on(write(&device, 4096, 1, true)).expect("written"));
    server.kill();
    let _server = Listening::start(&place.socket(), &bytes, 512);
    on_another(&|| drop(run().block_on(device.flush()).expect_err("the first one's change may be lost")));
    on_another(&|| run().block_on(device.flush()).expect("it was told"));
}

#[test]
fn a_server_that_stays_away_is_an_error_in_time_and_comes_back() {
    on_both(async |_| {
        let place = Place::new();
        let bytes = Arc::new(TestDevice::new(pattern(SIZE)));
        for within in [Duration::ZERO, Duration::from_millis(200)] {
            let server = Listening::start(&place.socket(), &bytes, 512);
            let device = NbdDevice::open(place.uri("vol"), options(within)).await.expect("opens");
            write(&device, 0, 1, true).await.expect("written");
            server.kill();
            std::fs::remove_file(place.socket()).expect("it was there");
            let begun = Instant::now();
            let results = together((0..5).map(|place| write(&device, place * 4096, 2, false))).await;
            for error in results.into_iter().map(|result| result.expect_err("nobody is there")) {
                assert!(
                    matches!(reason(&error), ClientError::Connect(_) | ClientError::Broken(_) | ClientError::Closed),
                    "{error}"
                );
            }
            let took = begun.elapsed();
            assert!(took >= within && took < within + Duration::from_secs(5), "{took:?}");
            let begun = Instant::now();
            write(&device, 0, 2, false).await.expect_err("nobody is there");
            device.flush().await.expect_err("nobody is there");
            assert!(within.is_zero() || begun.elapsed() < within, "the time was used up before");
            let _server = Listening::start(&place.socket(), &bytes, 512);
            write(&device, 0, 3, false).await.expect("it is back");
            assert!(bytes.bytes()[..4096] == [3; 4096]);
        }
    });
}

#[test]
fn another_export_is_never_taken_for_the_same() {
    on_both(async |_| {
        let place = Place::new();
        let bytes = Arc::new(TestDevice::new(pattern(SIZE)));
        let server = Listening::start(&place.socket(), &bytes, 512);
        let device = open(place.uri("vol")).await;
        write(&device, 0, 1, true).await.expect("written");
        server.kill();
        let longer = Arc::new(TestDevice::new(pattern(SIZE + 512)));
        let server = Listening::start(&place.socket(), &longer, 512);
        let error = write(&device, 0, 2, false).await.expect_err("it has another length");
        let size = SIZE as u64;
        assert!(
            matches!(reason(&error), ClientError::Changed(Changed::Size { was, is }) if (*was, *is) == (size, size + 512))
        );
        server.kill();
        let _server = Listening::start(&place.socket(), &bytes, 512);
        let error = device.read(0, Buffer::uncleared(512)).await.1.expect_err("for ever");
        assert!(matches!(reason(&error), ClientError::Changed(_)), "{error}");
        assert!(longer.bytes() == pattern(SIZE + 512), "nothing was written to it");
        let fresh = open(place.uri("vol")).await;
        fresh.read(0, Buffer::uncleared(512)).await.1.expect("opened anew");
    });
}

#[test]
fn an_export_that_is_not_there_yet_is_waited_for() {
    on_both(async |_| {
        let place = Place::new();
        std::fs::write(place.path("image"), pattern(SIZE)).expect("an image");
        let socket = place.socket();
        let filtered = |only: &str| {
            let _ = std::fs::remove_file(&socket);
            let (image, socket) = (place.path("image"), socket.to_str().expect("text"));
            let strict = ["--filter=exportname", "file", image.to_str().expect("text"), "exportname-strict=true", only];
            let server = Process::start("nbdkit", &[&["-f", "-U", socket][..], &strict].concat());
            listens(&place.socket());
            server
        };
        let server = filtered("exportname=vol");
        let device = Rc::new(open(place.uri("vol")).await);
        server.kill();
        let server = filtered("exportname=other");
        let refused = NbdDevice::open(place.uri("vol"), ClientOptions::default()).await.expect_err("not there");
        assert!(matches!(refused, ClientError::Refused(Refused::Unknown | Refused::Other(_))), "{refused}");
        let theirs = Rc::clone(&device);
        let mut waiting = std::pin::pin!(async move { theirs.read(0, Buffer::uncleared(512)).await });
        assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_none());
        server.kill();
        let _server = filtered("exportname=vol");
        waiting.await.1.expect("there it is");
    });
}
