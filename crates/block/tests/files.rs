//! Files as devices, buffered and direct, against a model.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use tzero_block::{Action, BlockDevice, ByteRange, Fault, Faulty, FileDevice, Injected, Mode, Zeroes};
use tzero_io::{Backend, Buffer, Runtime, spawn};

const SIZE: u64 = 1 << 20;

fn file(path: &Path, direct: bool) -> FileDevice {
    OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap().set_len(SIZE).unwrap();
    FileDevice::open(path, Mode { direct, writable: true }).unwrap()
}

fn on_all(test: impl AsyncFn(&FileDevice)) {
    // Not on a memory file system: direct I/O is to be real.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for backend in [Backend::Ring, Backend::Threads] {
        for direct in [false, true] {
            let device = file(&directory.path().join("base"), direct);
            Runtime::new(backend).unwrap().block_on(test(&device));
        }
    }
}

/// A loop device with blocks of 4096 bytes over a fresh file; given back on drop.
struct LargeBlocks {
    device: String,
    _directory: tempfile::TempDir,
}

impl LargeBlocks {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("medium");
        OpenOptions::new().create(true).truncate(true).write(true).open(&path).unwrap().set_len(SIZE).unwrap();
        let output =
            Command::new("losetup").args(["--find", "--show", "--sector-size", "4096"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "a loop device needs root: {}", String::from_utf8_lossy(&output.stderr));
        Self { device: String::from_utf8(output.stdout).unwrap().trim().into(), _directory: directory }
    }
}

impl Drop for LargeBlocks {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

#[test]
fn direct_io_on_large_blocks_takes_sectors() {
    let large = LargeBlocks::new();
    for backend in [Backend::Ring, Backend::Threads] {
        Runtime::new(backend).unwrap().block_on(async {
            let device = FileDevice::open(Path::new(&large.device), Mode { direct: true, writable: true }).unwrap();
            assert_eq!(device.geometry().alignment, 512);
            let device = Rc::new(device);
            // Neighbouring sectors of the same blocks, all at once: none may undo another.
            let writes: Vec<_> = (0..64u64)
                .map(|sector| {
                    let device = Rc::clone(&device);
                    spawn(async move {
                        let len = if sector % 5 == 0 { 8192 } else { 512 };
                        if len == 512 {
                            let bytes = Buffer::copy_of(&[sector as u8 + 1; 512]);
                            device.write(sector * 512, bytes, sector % 7 == 0).await.1.unwrap();
                        } else {
                            let bytes = Buffer::copy_of(&[0xEE; 8192]);
                            device.write(65536 + sector * 8192, bytes, false).await.1.unwrap();
                        }
                    })
                })
                .collect();
            for write in writes {
                write.await;
            }
            let (buffer, result) = device.read(512, Buffer::uncleared(63 * 512)).await;
            result.unwrap();
            for (index, sector) in buffer.chunks(512).enumerate() {
                let number = index as u8 + 1;
                let expected = if number.is_multiple_of(5) { 0 } else { number + 1 };
                assert!(sector.iter().all(|byte| *byte == expected), "sector {number}");
            }
            let zeroed = ByteRange::new(1024, 3 * 512);
            device.write_zeroes(zeroed, Zeroes::default()).await.unwrap();
            let (buffer, result) = device.read(512, Buffer::uncleared(5 * 512)).await;
            result.unwrap();
            assert!(buffer[512..4 * 512].iter().all(|byte| *byte == 0));
            assert_eq!((buffer[0], buffer[4 * 512]), (2, 0));
            device
                .write_zeroes(ByteRange::new(0, SIZE), Zeroes { may_unmap: true, ..Zeroes::default() })
                .await
                .unwrap();
        });
    }
}

#[test]
fn zeroes_are_not_undone_by_a_partial_write_beside_them() {
    let large = LargeBlocks::new();
    for backend in [Backend::Ring, Backend::Threads] {
        Runtime::new(backend).unwrap().block_on(async {
            let device = FileDevice::open(Path::new(&large.device), Mode { direct: true, writable: true }).unwrap();
            let device = Rc::new(device);
            for round in 0..300 {
                device.write(0, Buffer::copy_of(&[0xAA; 16384]), false).await.1.unwrap();
                let zeroes = Zeroes { may_unmap: round % 2 == 0, ..Zeroes::default() };
                let (first, second) = (Rc::clone(&device), Rc::clone(&device));
                let partial = spawn(async move { first.write(512, Buffer::copy_of(&[0x55; 512]), false).await.1 });
                let zeroing = spawn(async move { second.write_zeroes(ByteRange::new(0, 16384), zeroes).await });
                partial.await.unwrap();
                zeroing.await.unwrap();
                let (bytes, result) = device.read(0, Buffer::uncleared(16384)).await;
                result.unwrap();
                assert!(bytes[..512].iter().chain(&bytes[1024..]).all(|byte| *byte == 0), "round {round}");
            }
        });
    }
}

#[test]
fn a_block_device_zeroes_what_no_command_fits() {
    let large = LargeBlocks::new();
    for (direct, backend) in [(true, Backend::Ring), (false, Backend::Ring), (false, Backend::Threads)] {
        Runtime::new(backend).unwrap().block_on(async {
            let device = FileDevice::open(Path::new(&large.device), Mode { direct, writable: true }).unwrap();
            let mut numbers = Numbers(0x5EED);
            for round in 0..60u64 {
                device.write(0, Buffer::copy_of(&[0xAA; 65536]), false).await.1.unwrap();
                let start = numbers.below(100) * 512;
                let range = ByteRange::new(start, ((numbers.below(40) + 1) * 512).min(65536 - start));
                let zeroes = Zeroes { may_unmap: round % 2 == 0, fast: false, fua: round % 3 == 0 };
                device.write_zeroes(range, zeroes).await.unwrap();
                let (bytes, result) = device.read(0, Buffer::uncleared(65536)).await;
                result.unwrap();
                for (at, byte) in bytes.iter().enumerate() {
                    let zeroed = range.contains(ByteRange::new(at as u64, 1));
                    assert_eq!(*byte, if zeroed { 0 } else { 0xAA }, "byte {at} of {range:?}");
                }
                // Advice: what is outside stays, what is inside is either.
                device.discard(ByteRange::new(start, range.len())).await.unwrap();
                let (bytes, _) = device.read(0, Buffer::uncleared(65536)).await;
                assert!(bytes[..start as usize].iter().all(|byte| *byte == 0xAA));
            }
        });
    }
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn a_device_is_the_model() {
    on_all(async |device| {
        let unit = u64::from(device.geometry().alignment.max(512));
        let mut numbers = Numbers(0x5EED);
        let mut model = vec![0u8; SIZE as usize];
        for step in 0..400u64 {
            let start = numbers.below(SIZE / unit) * unit;
            let len = (numbers.below(200) + 1) * unit;
            let range = ByteRange::between(start, (start + len).min(SIZE));
            let place = range.start() as usize..range.end() as usize;
            match numbers.below(4) {
                0 => {
                    let zeroes = Zeroes { may_unmap: step % 2 == 0, fast: false, fua: step % 7 == 0 };
                    device.write_zeroes(range, zeroes).await.unwrap();
                    model[place].fill(0);
                }
                1 => {
                    let (buffer, result) = device.read(range.start(), Buffer::uncleared(range.len() as usize)).await;
                    result.unwrap();
                    assert!(buffer[..] == model[place]);
                }
                _ => {
                    let bytes: Vec<u8> = (0..range.len()).map(|n| (n * 31 + step) as u8).collect();
                    let (_, result) = device.write(range.start(), Buffer::copy_of(&bytes), step % 11 == 0).await;
                    result.unwrap();
                    model[place].copy_from_slice(&bytes);
                }
            }
        }
        device.flush().await.unwrap();
        let (buffer, result) = device.read(0, Buffer::uncleared(SIZE as usize)).await;
        result.unwrap();
        assert!(buffer[..] == model[..]);
    });
}

#[test]
fn holes_are_told_and_cover_what_was_asked() {
    on_all(async |device| {
        device.write(65536, Buffer::copy_of(&[1; 65536]), false).await.1.unwrap();
        let extents = device.extents(ByteRange::new(4096, 499_712)).await.unwrap();
        assert_eq!(extents.first().unwrap().range.start(), 4096);
        assert_eq!(extents.last().unwrap().range.end(), 503_808);
        assert!(extents.windows(2).all(|pair| pair[0].range.end() == pair[1].range.start()));
        assert!(extents.iter().any(|extent| extent.hole));
        let data = ByteRange::new(65536, 65536);
        assert!(extents.iter().all(|extent| !extent.hole || !extent.range.overlaps(data)));
        device.discard(data).await.unwrap();
        let (buffer, result) = device.read(65536, Buffer::uncleared(65536)).await;
        result.unwrap();
        assert!(buffer.is_zero(), "a punched file reads zeroes");
    });
}

#[test]
fn requests_past_the_end_do_nothing() {
    on_all(async |device| {
        let past = device.write(SIZE - 4096, Buffer::zeroed(8192), false).await.1.unwrap_err();
        assert!(matches!(past.fault, Fault::OutOfRange));
        let past = device.read(u64::MAX - 10, Buffer::zeroed(512)).await.1.unwrap_err();
        assert!(matches!(past.fault, Fault::OutOfRange));
        if device.geometry().alignment > 1 {
            let unaligned = device.read(1, Buffer::zeroed(512)).await.1.unwrap_err();
            assert!(matches!(unaligned.fault, Fault::Unaligned));
        }
    });
}

#[test]
fn a_file_that_shrank_is_an_error_not_zeroes() {
    on_all(async |device| {
        device.file().get().set_len(8192).unwrap();
        assert!(device.read(4096, Buffer::zeroed(8192)).await.1.is_err());
    });
}

#[test]
fn faults_hit_what_they_were_meant_for() {
    on_all(async |device| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(device.file().get()));
        let inner = FileDevice::open(Path::new(&path), Mode { direct: false, writable: true }).unwrap();
        let faulty = Faulty::new(inner);
        faulty.inject(Action::Write, ByteRange::new(0, 512), Injected::Fail(28), 1, 1);
        faulty.inject(Action::Write, ByteRange::new(4096, 512), Injected::Short(512), 0, 1);
        assert!(faulty.write(0, Buffer::copy_of(&[1; 512]), false).await.1.is_ok());
        assert!(faulty.write(0, Buffer::copy_of(&[2; 512]), false).await.1.unwrap_err().is_no_space());
        assert!(faulty.write(0, Buffer::copy_of(&[3; 512]), false).await.1.is_ok());
        assert!(faulty.write(4096, Buffer::copy_of(&[4; 1024]), false).await.1.is_err());
        let (buffer, _) = faulty.read(4096, Buffer::zeroed(1024)).await;
        assert_eq!((buffer[511], buffer[512]), (4, 0));
    });
}

#[test]
fn a_file_that_became_longer_is_so_when_it_is_asked() {
    on_all(async |device| {
        let file = device.file().get();
        let write = async |offset: u64| device.write(offset, Buffer::copy_of(&[7; 4096]), false).await.1;
        file.set_len(SIZE + 100).unwrap();
        match device.grow() {
            Ok(size) => assert_eq!((size, device.block()), (SIZE + 100, 1)),
            // Direct I/O has whole blocks only.
            Err(error) => assert_eq!((error.kind(), device.geometry().size), (std::io::ErrorKind::InvalidInput, SIZE)),
        }
        file.set_len(2 * SIZE).unwrap();
        let refused = write(2 * SIZE - 4096).await.unwrap_err();
        assert!(matches!(refused.fault, Fault::OutOfRange), "nobody has asked yet");
        assert_eq!((device.grow().unwrap(), device.geometry().size), (2 * SIZE, 2 * SIZE));
        write(2 * SIZE - 4096).await.unwrap();
        write(SIZE).await.unwrap();
        let (bytes, result) = device.read(SIZE - 4096, Buffer::uncleared(12_288)).await;
        result.unwrap();
        assert!(bytes[..4096].iter().all(|byte| *byte == 0) && bytes[4096..8192].iter().all(|byte| *byte == 7));
        assert!(bytes[8192..].iter().all(|byte| *byte == 0));
        // It is never shorter than it was.
        file.set_len(SIZE).unwrap();
        assert_eq!(device.grow().unwrap(), 2 * SIZE);
    });
}
