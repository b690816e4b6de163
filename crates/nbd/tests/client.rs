//! The client against our own server: what a device promises.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::device::{DeviceExports, TestDevice};
use support::listening::{Listening, Place, on_both, open, options};
use support::{SIZE, eventually, pattern};
use tzero_block::{Action, BlockDevice, ByteRange, Concat, Fault, FileDevice, Geometry, Injected, Zeroes};
use tzero_io::{Backend, Buffer, Runtime, spawn, timeout, together};
use tzero_nbd::{AnyDevice, ClientError, ClientOptions, NbdDevice};

struct Served {
    place: Place,
    device: Arc<TestDevice>,
    _server: Listening,
}

fn serve_with(bytes: Vec<u8>, minimum_block: u32, backend: Backend) -> Served {
    let place = Place::new();
    let device = Arc::new(TestDevice::new(bytes));
    let exports = DeviceExports { device: Arc::clone(&device), minimum_block };
    let server = Listening::with(&place.socket(), exports, backend);
    Served { place, device, _server: server }
}

fn serve(backend: Backend) -> Served {
    serve_with(pattern(SIZE), 512, backend)
}

fn system(error: &tzero_block::Error) -> Option<i32> {
    match &error.fault {
        Fault::System(error) => error.raw_os_error(),
        _ => None,
    }
}

/// Pseudo-random numbers; the seed is the test's.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn a_device_is_the_model() {
    on_both(async |backend| {
        for minimum_block in [1, 512, 4096] {
            let served = serve_with(pattern(SIZE), minimum_block, backend);
            let device = open(served.place.uri("vol")).await;
            let alignment = minimum_block.min(512);
            assert_eq!(device.geometry(), Geometry { size: SIZE as u64, alignment });
            let (mut model, mut numbers) = (pattern(SIZE), Numbers(7));
            for round in 0..400u32 {
                let places = SIZE as u64 / u64::from(alignment);
                let start = numbers.below(places);
                let len = numbers.below((places - start).min(100_000 / u64::from(alignment))) + 1;
                let range = ByteRange::new(start * u64::from(alignment), len * u64::from(alignment));
                let within = range.start() as usize..range.end() as usize;
                let fua = numbers.below(2) == 0;
                match numbers.below(5) {
                    0 | 1 => {
                        let (read, result) = device.read(range.start(), Buffer::uncleared(within.len())).await;
                        result.expect("read");
                        assert!(read[..] == model[within], "round {round}: {range}");
                    }
                    2 | 3 => {
                        model[within.clone()].fill(round as u8);
                        let buffer = Buffer::copy_of(&model[within]);
                        device.write(range.start(), buffer, fua).await.1.expect("written");
                    }
                    _ => {
                        model[within].fill(0);
                        let zeroes = Zeroes { may_unmap: numbers.below(2) == 0, fast: false, fua };
                        device.write_zeroes(range, zeroes).await.expect("zeroed");
                    }
                }
            }
            device.flush().await.expect("flushed");
            assert!(served.device.bytes() == model);
            assert_eq!(device.breaks(), 0);
        }
    });
}

#[test]
fn what_is_longer_than_a_payload_is_cut() {
    on_both(async |backend| {
        let served = serve_with(vec![0; 70 << 20], 512, backend);
        let device = open(served.place.uri("vol")).await;
        let bytes = pattern(65 << 20);
        device.write(512, Buffer::copy_of(&bytes), false).await.1.expect("written");
        assert!(served.device.bytes()[512..512 + bytes.len()] == bytes);
        let (read, result) = device.read(512, Buffer::uncleared(bytes.len())).await;
        result.expect("read");
        assert!(read[..] == bytes);
    });
}

#[test]
fn flags_reach_the_export() {
    on_both(async |backend| {
        let served = serve(backend);
        let device = open(served.place.uri("vol")).await;
        let range = ByteRange::new(4096, 8192);
        let all = [
            Zeroes { may_unmap: true, fast: true, fua: true },
            Zeroes { may_unmap: true, ..Zeroes::default() },
            Zeroes::default(),
        ];
        for zeroes in all {
            device.write_zeroes(range, zeroes).await.expect("zeroed");
        }
        let slow = Zeroes { fast: true, ..Zeroes::default() };
        assert!(device.write_zeroes(range, slow).await.expect_err("not fast").is_unsupported());
        let given: Vec<Zeroes> = served.device.calls().iter().filter_map(|call| call.zeroes).collect();
        assert_eq!(given, [all[0], all[1], all[2], slow]);
        device.write(0, Buffer::zeroed(512), true).await.1.expect("written");
        device.write(0, Buffer::zeroed(512), false).await.1.expect("written");
        let writes = served.device.calls().into_iter().filter(|call| call.action == Action::Write);
        assert_eq!(writes.map(|call| call.fua).collect::<Vec<_>>(), [true, false]);
        device.discard(range).await.expect("advice");
        device.flush().await.expect("flushed");
        let calls = served.device.calls();
        let last: Vec<_> = calls.iter().rev().take(2).map(|call| (call.action, call.offset, call.len)).collect();
        assert_eq!(last, [(Action::Flush, 0, 0), (Action::Discard, 4096, 8192)]);
        device.prefetch(range).await;
    });
}

#[test]
fn holes_are_told() {
    on_both(async |backend| {
        let mut bytes = pattern(SIZE);
        bytes[8192..20480].fill(0);
        bytes[SIZE - 4096..].fill(0);
        let served = serve_with(bytes, 512, backend);
        let device = open(served.place.uri("vol")).await;
        let extents = device.extents(ByteRange::new(4096, SIZE as u64 - 4096)).await.expect("extents");
        let told: Vec<_> =
            extents.iter().map(|extent| (extent.range.start(), extent.range.end(), extent.hole)).collect();
        let size = SIZE as u64;
        assert_eq!(
            told,
            [(4096, 8192, false), (8192, 20480, true), (20480, size - 4096, false), (size - 4096, size, true)]
        );
        let nothing = device.extents(ByteRange::new(0, 0)).await.expect("extents");
        assert!(nothing.iter().all(|extent| extent.range.is_empty()));
    });
}

#[test]
fn errors_have_the_servers_number() {
    on_both(async |backend| {
        let served = serve(backend);
        let device = open(served.place.uri("vol")).await;
        let all = ByteRange::new(0, SIZE as u64);
        served.device.faulty.inject(Action::Write, all, Injected::Fail(28), 0, 1);
        let (buffer, result) = device.write(512, Buffer::copy_of(&[3; 1024]), false).await;
        let error = result.expect_err("no space");
        assert!(error.is_no_space() && buffer[..] == [3; 1024]);
        assert_eq!((error.action, error.offset, error.len), (Action::Write, 512, 1024));
        served.device.faulty.inject(Action::Read, all, Injected::Fail(5), 0, 1);
        assert_eq!(system(&device.read(0, Buffer::uncleared(512)).await.1.expect_err("fails")), Some(5));
        served.device.faulty.inject(Action::Flush, all, Injected::Fail(5), 0, 1);
        assert_eq!(system(&device.flush().await.expect_err("fails")), Some(5));
        let past = device.read(SIZE as u64, Buffer::uncleared(512)).await.1.expect_err("past the end");
        assert!(matches!(past.fault, Fault::OutOfRange));
        let odd = device.write(1, Buffer::uncleared(512), false).await.1.expect_err("unaligned");
        assert!(matches!(odd.fault, Fault::Unaligned));
        assert_eq!(device.breaks(), 0);
        let reading = open(served.place.uri("vol@ro")).await;
        assert!(reading.is_read_only());
        let before = served.device.calls().len();
        assert_eq!(system(&reading.write(0, Buffer::zeroed(512), false).await.1.expect_err("refused")), Some(30));
        assert_eq!(system(&reading.discard(all).await.expect_err("refused")), Some(30));
        assert_eq!(served.device.calls().len(), before, "the server is not even asked");
    });
}

#[test]
fn what_is_not_there_cannot_be_opened() {
    on_both(async |backend| {
        let served = serve(backend);
        let options = ClientOptions::default();
        let unknown = NbdDevice::open(served.place.uri("none"), options).await.expect_err("no such export");
        assert!(matches!(unknown, ClientError::Refused(tzero_nbd::client::Refused::Unknown)), "{unknown}");
        let nowhere = Place::new();
        let nobody = NbdDevice::open(nowhere.uri("vol"), options).await.expect_err("nobody listens");
        assert!(matches!(nobody, ClientError::Connect(_)), "{nobody}");
    });
}

#[test]
fn many_requests_are_in_flight_and_none_waits_for_another() {
    on_both(async |backend| {
        let served = serve(backend);
        let device = Arc::new(open(served.place.uri("vol")).await);
        served.device.hold(ByteRange::new(0, 512));
        let slow = Arc::clone(&device);
        let held = spawn(async move { slow.read(0, Buffer::uncleared(512)).await });
        let reads = (1..1000u64).map(|sector| {
            let device = Arc::clone(&device);
            async move {
                let (bytes, result) = device.read(sector * 512, Buffer::uncleared(512)).await;
                result.expect("read");
                let at = sector as usize * 512;
                assert!(bytes[..] == pattern(SIZE)[at..at + 512]);
            }
        });
        together(reads).await;
        served.device.let_go();
        held.await.1.expect("read at last");
    });
}

#[test]
fn a_dropped_request_goes_on_and_leaves_its_buffer_alone() {
    on_both(async |backend| {
        let served = serve(backend);
        let device = open(served.place.uri("vol")).await;
        served.device.hold(ByteRange::new(0, 8192));
        let brief = Duration::from_millis(5);
        assert!(timeout(brief, device.write(0, Buffer::copy_of(&[9; 4096]), false)).await.is_none());
        assert!(timeout(brief, device.read(4096, Buffer::copy_of(&[8; 4096]))).await.is_none());
        // Whatever memory is free now, nothing writes to it.
        let others: Vec<Buffer> = (0..64).map(|_| Buffer::copy_of(&[7; 4096])).collect();
        let device_bytes = || served.device.bytes()[..4096].to_vec();
        served.device.let_go();
        let (bytes, result) = device.read(16384, Buffer::uncleared(4096)).await;
        result.expect("read");
        assert!(bytes[..] == pattern(SIZE)[16384..20480]);
        device.flush().await.expect("flushed");
        eventually(|| device_bytes() == [9; 4096]);
        assert!(others.iter().all(|buffer| buffer[..] == [7; 4096]));
    });
}

#[test]
fn components_of_different_kinds_are_one_device() {
    on_both(async |backend| {
        let served = serve(backend);
        let file = tempfile::tempfile().expect("a file");
        file.set_len(8192).expect("a length");
        let here = FileDevice::from_file(file.try_clone().expect("the file"), false).expect("a device");
        let there = open(served.place.uri("vol")).await;
        let row = Concat::new(vec![AnyDevice::from(here), AnyDevice::from(there)]).expect("a row");
        assert_eq!(row.geometry(), Geometry { size: SIZE as u64 + 8192, alignment: 512 });
        row.write(4096, Buffer::copy_of(&[6; 8192]), true).await.1.expect("written");
        row.flush().await.expect("flushed");
        let (bytes, result) = row.read(4096, Buffer::uncleared(8192)).await;
        result.expect("read");
        assert!(bytes[..] == [6; 8192]);
        assert!(served.device.bytes()[..4096] == [6; 4096] && served.device.bytes()[4096..] == pattern(SIZE)[4096..]);
        let extents = row.extents(ByteRange::new(0, 16384)).await.expect("extents");
        assert_eq!(extents.iter().map(|extent| extent.range.len()).sum::<u64>(), 16384);
    });
}

fn threads(backend: Backend, connections: usize) {
    const THREADS: usize = 4;
    let served = serve(backend);
    let runtime = Runtime::new(backend).expect("a runtime");
    let options = ClientOptions { connections, ..options(Duration::from_secs(10)) };
    let device = Arc::new(runtime.block_on(NbdDevice::open(served.place.uri("vol"), options)).expect("opens"));
    assert_eq!(device.connections(), connections);
    let share = SIZE as u64 / THREADS as u64;
    let workers: Vec<_> = (0..THREADS as u64)
        .map(|worker| {
            let device = Arc::clone(&device);
            std::thread::spawn(move || {
                // Runtimes that come and go, while the others' requests are on their connection.
                for round in 0..20u64 {
                    Runtime::new(backend).expect("a runtime").block_on(async {
                        let device = &*device;
                        let write = |part: u64| async move {
                            let bytes = Buffer::copy_of(&[(worker * 64 + round + part) as u8; 4096]);
                            device.write(worker * share + part * 4096, bytes, false).await.1.expect("written");
                        };
                        together((0..16).map(write)).await;
                        device.flush().await.expect("flushed");
                        let read = |part: u64| async move {
                            let place = worker * share + part * 4096;
                            let (bytes, result) = device.read(place, Buffer::uncleared(4096)).await;
                            result.expect("read");
                            assert!(bytes.iter().all(|byte| *byte == (worker * 64 + round + part) as u8));
                        };
                        together((0..16).map(read)).await;
                        // Left behind, on a connection that others use.
                        let last = device.read(worker * share, Buffer::uncleared(4096));
                        assert!(timeout(Duration::ZERO, last).await.is_none_or(|(_, result)| result.is_ok()));
                    });
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    assert_eq!(device.breaks(), 0, "a thread that ends breaks no connection");
}

#[test]
fn threads_share_one_connection() {
    threads(Backend::Ring, 1);
    threads(Backend::Threads, 1);
}

#[test]
fn threads_have_their_connections() {
    threads(Backend::Ring, 3);
    threads(Backend::Threads, 3);
}
