//! The client against servers that others wrote.

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use support::listening::{Place, listens, on_both, open, options};
use support::process::Process;
use support::{SIZE, pattern};
use tzero_block::{BlockDevice, ByteRange, Fault, Zeroes};
use tzero_io::{Buffer, together};
use tzero_nbd::client::Refused;
use tzero_nbd::{ClientError, ClientOptions, NbdDevice, Uri};

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn nbdkit(place: &Place, arguments: &[&str]) -> Process {
    let socket = place.socket();
    let _ = std::fs::remove_file(&socket);
    let server = Process::start("nbdkit", &[&["-f", "-U", text(&socket)][..], arguments].concat());
    listens(&socket);
    server
}

fn qemu(place: &Place, arguments: &[&str]) -> Process {
    let socket = place.socket();
    let _ = std::fs::remove_file(&socket);
    let always = ["-t", "-e", "8", "-x", "vol", "-k", text(&socket)];
    let server = Process::start("qemu-nbd", &[&always[..], arguments].concat());
    listens(&socket);
    server
}

/// Writes, zeroes and reads all over an export of [`SIZE`] zero bytes, many at a time.
async fn exercise(device: &NbdDevice) -> Vec<u8> {
    let mut model = vec![0; SIZE];
    let bytes = pattern(SIZE);
    let write = |part: u64| {
        let (place, bytes) = (part * 16384 + 512 * (part % 7), &bytes);
        async move {
            let within = place as usize..place as usize + 9728;
            device.write(place, Buffer::copy_of(&bytes[within]), part.is_multiple_of(3)).await.1.expect("written");
        }
    };
    together((0..60).map(write)).await;
    for part in 0..60u64 {
        let place = (part * 16384 + 512 * (part % 7)) as usize;
        model[place..place + 9728].copy_from_slice(&bytes[place..place + 9728]);
    }
    for (start, len, may_unmap, fua) in
        [(0, 65536, true, false), (200_192, 1024, false, true), (300_032, 100_352, true, true)]
    {
        let zeroes = Zeroes { may_unmap, fast: false, fua };
        device.write_zeroes(ByteRange::new(start, len), zeroes).await.expect("zeroed");
        model[start as usize..(start + len) as usize].fill(0);
    }
    device.flush().await.expect("flushed");
    let read = |part: u64| async move {
        let (bytes, result) = device.read(part * 32768, Buffer::uncleared(32768)).await;
        result.expect("read");
        bytes.to_vec()
    };
    assert!(together((0..32).map(read)).await.concat() == model);
    let (whole, result) = device.read(0, Buffer::uncleared(SIZE)).await;
    result.expect("read");
    assert!(whole[..] == model);
    let extents = device.extents(ByteRange::new(0, SIZE as u64)).await.expect("extents");
    let mut at = 0;
    for extent in extents {
        assert_eq!(extent.range.start(), at);
        at = extent.range.end();
        let said = &model[extent.range.start() as usize..at as usize];
        assert!(!extent.hole || said.iter().all(|byte| *byte == 0));
    }
    assert_eq!(at, SIZE as u64);
    model
}

#[test]
fn nbdkit_in_every_shape() {
    let shapes: &[&[&str]] = &[
        &[],
        &["--filter=nozero"],
        &["--filter=nozero", "zeromode=notrim"],
        &["--filter=noextents"],
        &["--filter=fua"],
        &["--filter=fua", "fuamode=emulate"],
        &["--filter=multi-conn", "multi-conn-mode=disable"],
        &[
            "--filter=blocksize-policy",
            "blocksize-minimum=4096",
            "blocksize-preferred=65536",
            "blocksize-maximum=65536",
            "blocksize-error-policy=error",
        ],
        &["--no-sr"],
        &["--filter=delay", "delay-read=2ms", "delay-write=2ms"],
    ];
    on_both(async |_| {
        for shape in shapes {
            let place = Place::new();
            let (filters, settings): (Vec<_>, Vec<_>) = shape.iter().partition(|argument| argument.starts_with("--"));
            let _server = nbdkit(&place, &[&filters[..], &["memory", "size=1M"], &settings].concat());
            let device = open(place.uri("vol")).await;
            exercise(&device).await;
            assert_eq!(device.breaks(), 0, "{shape:?}");
        }
    });
}

#[test]
fn a_file_that_nbdkit_serves_has_the_bytes_and_the_holes() {
    on_both(async |_| {
        let place = Place::new();
        let image = place.path("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(SIZE as u64)).expect("an image");
        let _server = nbdkit(&place, &["file", text(&image)]);
        let options = ClientOptions { connections: 4, ..options(Duration::from_secs(10)) };
        let device = NbdDevice::open(place.uri(""), options).await.expect("opens");
        let all = ByteRange::new(0, SIZE as u64);
        assert!(device.extents(all).await.expect("extents").iter().all(|extent| extent.hole));
        let model = exercise(&device).await;
        assert!(std::fs::read(&image).expect("the image") == model);
        device.discard(all).await.expect("advice");
    });
}

#[test]
fn errors_of_nbdkit_have_their_numbers() {
    on_both(async |_| {
        for (name, number) in [("EIO", 5), ("ENOSPC", 28), ("EPERM", 1), ("EINVAL", 22), ("ENOMEM", 12)] {
            let place = Place::new();
            let error = format!("error={name}");
            let failing =
                ["--filter=error", "memory", "size=1M", &error, "error-pwrite-rate=100%", "error-pread-rate=100%"];
            let _server = nbdkit(&place, &failing);
            let device = open(place.uri("")).await;
            let write = device.write(0, Buffer::zeroed(512), false).await.1.expect_err("fails");
            let read = device.read(0, Buffer::uncleared(512)).await.1.expect_err("fails");
            for error in [write, read] {
                assert!(
                    matches!(&error.fault, Fault::System(error) if error.raw_os_error() == Some(number)),
                    "{error}"
                );
            }
            assert_eq!(device.breaks(), 0);
        }
    });
}

#[test]
fn now_and_then_an_error_and_never_a_wrong_byte() {
    on_both(async |_| {
        let place = Place::new();
        let _server = nbdkit(&place, &["--filter=error", "memory", "size=1M", "error-rate=20%"]);
        let device = &open(place.uri("")).await;
        let attempts = (0..SIZE as u64 / 4096).map(|place| async move {
            let wanted = place as u8 ^ 0x5A;
            let mut failures = 0;
            while device.write(place * 4096, Buffer::copy_of(&[wanted; 4096]), false).await.1.is_err() {
                failures += 1;
            }
            loop {
                let (bytes, result) = device.read(place * 4096, Buffer::uncleared(4096)).await;
                match result {
                    Ok(()) => assert!(bytes.iter().all(|byte| *byte == wanted)),
                    Err(_) => {
                        failures += 1;
                        continue;
                    }
                }
                return failures;
            }
        });
        assert!(together(attempts).await.iter().sum::<u32>() > 0);
    });
}

#[test]
fn a_delay_is_shared_by_requests_in_flight() {
    on_both(async |_| {
        let place = Place::new();
        let _server = nbdkit(&place, &["-t", "64", "--filter=delay", "memory", "size=1M", "delay-read=100ms"]);
        let device = &open(place.uri("")).await;
        let begun = Instant::now();
        let reads = (0..64u64).map(|place| async move { device.read(place * 4096, Buffer::uncleared(4096)).await.1 });
        together(reads).await.into_iter().for_each(|read| read.expect("read"));
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_length_of_odd_bytes_is_served_to_the_last() {
    on_both(async |_| {
        let place = Place::new();
        std::fs::write(place.path("image"), pattern(100_001)).expect("an image");
        let _server = nbdkit(&place, &["file", text(&place.path("image"))]);
        let device = open(place.uri("")).await;
        assert_eq!(device.geometry().size, 100_001);
        let (bytes, result) = device.read(99_000, Buffer::uncleared(1001)).await;
        result.expect("read");
        assert!(bytes[..] == pattern(100_001)[99_000..]);
    });
}

#[test]
fn qemu_serves_raw_and_qcow2() {
    on_both(async |_| {
        for format in ["raw", "qcow2"] {
            let place = Place::new();
            let image = place.path("image");
            let made = std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", format, text(&image), "1M"])
                .status()
                .expect("qemu-img: `cargo xtask setup` installs it");
            assert!(made.success());
            let server = qemu(&place, &["-f", format, "--discard=unmap", text(&image)]);
            let device = open(place.uri("vol")).await;
            let model = exercise(&device).await;
            assert_eq!(device.breaks(), 0);
            let wrong =
                NbdDevice::open(place.uri("other"), ClientOptions::default()).await.expect_err("no such export");
            assert!(matches!(wrong, ClientError::Refused(Refused::Unknown)), "{wrong}");
            server.kill();
            let _server = qemu(&place, &["-r", "-f", format, text(&image)]);
            let reading = NbdDevice::open(place.uri("vol"), ClientOptions::default()).await.expect("opens");
            assert!(reading.is_read_only());
            let (bytes, result) = reading.read(0, Buffer::uncleared(SIZE)).await;
            result.expect("read");
            assert!(bytes[..] == model);
        }
    });
}

#[test]
fn over_tcp_by_name_and_by_number() {
    on_both(async |_| {
        let port = {
            let free = TcpListener::bind("127.0.0.1:0").expect("a port");
            free.local_addr().expect("its address").port()
        };
        let arguments = ["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "memory", "size=1M"];
        let _server = Process::start("nbdkit", &arguments);
        support::eventually(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        for host in ["127.0.0.1", "localhost"] {
            let device = open(Uri::tcp(host, port, "").expect("usable")).await;
            device.write(0, Buffer::copy_of(&[5; 512]), true).await.1.expect("written");
            let (bytes, result) = device.read(0, Buffer::uncleared(512)).await;
            result.expect("read");
            assert!(bytes[..] == [5; 512]);
            device.write_zeroes(ByteRange::new(0, 512), Zeroes::default()).await.expect("zeroed");
        }
        let nobody = Uri::tcp("no-such-host.invalid", port, "").expect("usable");
        let error = NbdDevice::open(nobody, ClientOptions::default()).await.expect_err("no such host");
        assert!(matches!(error, ClientError::Connect(_) | ClientError::TimedOut), "{error}");
    });
}
