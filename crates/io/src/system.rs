//! What the machine knows of itself.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::descriptor::{check, check_len};

const BLKROGET: libc::Ioctl = 0x125e;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// Id of the running boot.
///
/// # Errors
/// When `/proc` is not there or not as expected.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let number =
        u128::from_str_radix(&digits, 16).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(number.to_be_bytes())
}

/// Bytes of memory that new work can have without any being taken from what is in use; nothing where the kernel does not say.
pub fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Nanoseconds on a clock that never goes back; its zero is arbitrary.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a writable struct; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds since the Unix epoch.
pub fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Sixteen random bytes from the kernel.
///
/// # Panics
/// If the kernel has no random numbers: nothing can be named then.
pub fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    // SAFETY: sixteen writable bytes. Requests of up to 256 bytes are never cut short.
    let count = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
    assert_eq!(count, 16, "the kernel has no random numbers");
    id
}

/// Lets others go first: adds to this process's niceness. Where that cannot be, it stays as it is.
pub fn be_nice(more: i32) {
    // SAFETY: plain system call.
    let _ = unsafe { libc::nice(more) };
}

/// Ends this process at once with an exit status, whatever its threads are doing: nothing is flushed, nothing is waited for.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: plain system call.
    unsafe { libc::_exit(status.into()) }
}

/// Ends this process at once as `kill -9` would.
pub fn kill_self() -> ! {
    // SAFETY: plain system calls.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    std::process::abort()
}

/// Waits until a child of this process has ended, and leaves it to be reaped: until then its id is nobody else's. Blocking.
///
/// # Errors
/// When there is no such child.
pub fn wait_ended(child: u32) -> io::Result<()> {
    loop {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::uninit();
        // SAFETY: the call writes `info`, which nobody reads.
        let waited = unsafe { libc::waitid(libc::P_PID, child, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) };
        match check_len(waited as isize) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes free to this process on the file system that holds `path`.
///
/// # Errors
/// When the path cannot be reached.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    // SAFETY: an all-zero `statvfs` is a valid value to be filled in.
    let mut status: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a writable struct.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), &mut status) })?;
    Ok(status.f_bavail * status.f_frsize)
}

/// Length in bytes of a block device.
///
/// # Errors
/// When it is none.
pub fn device_size(device: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the call writes eight bytes to `size`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &mut size) })?;
    Ok(size)
}

/// Logical block size of a block device in bytes.
///
/// # Errors
/// When it is none.
pub fn device_block(device: &File) -> io::Result<u32> {
    let mut block: libc::c_int = 0;
    // SAFETY: the call writes an `int`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET, &mut block) })?;
    Ok(block as u32)
}

/// Whether a block device is set read-only.
///
/// # Errors
/// When it is none.
pub fn device_is_read_only(device: &File) -> io::Result<bool> {
    let mut read_only: libc::c_int = 0;
    // SAFETY: the call writes an `int`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &mut read_only) })?;
    Ok(read_only != 0)
}

/// Discards a range of a block device. Blocking.
///
/// # Errors
/// `Unsupported` where the device has no discard.
pub fn device_discard(device: &File, offset: u64, len: u64) -> io::Result<()> {
    device_range(device, BLKDISCARD, offset, len)
}

/// Zeroes a range of a block device, by its own means where it has some. Blocking.
///
/// # Errors
/// When the device refuses.
pub fn device_zero(device: &File, offset: u64, len: u64) -> io::Result<()> {
    device_range(device, BLKZEROOUT, offset, len)
}

fn device_range(device: &File, request: libc::Ioctl, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the call reads two 64-bit words.
    match check(unsafe { libc::ioctl(device.as_raw_fd(), request, range.as_ptr()) }) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
        other => other.map(drop),
    }
}

/// Alignment in bytes that direct I/O on this open file needs.
///
/// # Errors
/// When the file system does no direct I/O on it.
pub fn direct_alignment(file: &File) -> io::Result<u32> {
    // SAFETY: an all-zero `statx` is a valid value to be filled in.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, an empty C string and a writable struct.
    check(unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut status)
    })?;
    if status.stx_mask & libc::STATX_DIOALIGN == 0 {
        // An older kernel: the file system's block is always enough.
        return Ok(4096);
    }
    match status.stx_dio_offset_align {
        0 => Err(io::ErrorKind::Unsupported.into()),
        align => Ok(align.max(status.stx_dio_mem_align).min(4096).max(align)),
    }
}

/// Where the next data of a file at or after `offset` starts; `None` if there is none up to the end.
///
/// # Errors
/// When the file cannot tell.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_DATA)
}

/// Where the next hole of a file at or after `offset` starts; its end counts as one. `None` past the end.
///
/// # Errors
/// When the file cannot tell.
pub fn next_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_HOLE)
}

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: plain system call on an open descriptor. The file position it moves is used by nobody.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Has the file system share a range of `source` with `target`, at the same offset in both, instead of copying it. Blocking.
///
/// # Errors
/// `Unsupported` where it cannot be done at all or not with this range; else what the system says.
pub fn share_range(source: &File, target: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: source.as_raw_fd().into(),
        src_offset: offset,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: two open descriptors; the call reads the struct.
    match check(unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, &range) }) {
        Err(error) if is_refusal(&error) => Err(io::ErrorKind::Unsupported.into()),
        other => other.map(drop),
    }
}

/// Has the kernel copy up to `len` bytes of `source` to `target`, at the same offset in both; says how many, which may be fewer, and 0 at
/// the end of `source`. Blocking.
///
/// # Errors
/// `Unsupported` where it cannot be done between these two; else what the system says.
pub fn copy_range(source: &File, target: &File, offset: u64, len: u64) -> io::Result<u64> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (mut from, mut to) = (i64::try_from(offset).map_err(invalid)?, i64::try_from(offset).map_err(invalid)?);
    let len = len.min(1 << 30) as usize;
    loop {
        // SAFETY: two open descriptors and two writable offsets.
        let count = check_len(unsafe {
            libc::copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, len, 0)
        });
        match count {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_refusal(&error) => return Err(io::ErrorKind::Unsupported.into()),
            other => return other.map(|count| count as u64),
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    let refusals =
        [libc::EOPNOTSUPP, libc::EXDEV, libc::EINVAL, libc::ENOSYS, libc::ENOTTY, libc::EBADF, libc::ETXTBSY];
    error.raw_os_error().is_some_and(|code| refusals.contains(&code))
}

/// How many pages of a range of the file are in the page cache.
///
/// # Errors
/// `Unsupported` where the kernel (before 6.5) or the file cannot tell.
pub fn cached_pages(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    const CACHESTAT: libc::c_long = 451;
    let range = [offset, len];
    let mut found = [0u64; 5];
    // SAFETY: an open descriptor; the call reads two 64-bit words and writes five.
    match check_len(unsafe {
        libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0) as isize
    }) {
        Ok(_) => Ok(found[0]),
        Err(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Asks the kernel to drop clean cached pages of a range of the file (`len` 0: to the end).
pub fn drop_cache(file: &File, offset: u64, len: u64) {
    // SAFETY: plain system call on an open descriptor; advice cannot fail in a way that matters.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as i64, len as i64, libc::POSIX_FADV_DONTNEED) };
}

/// Asks the kernel to read a range of the file ahead.
pub fn read_ahead(file: &File, offset: u64, len: u64) {
    // SAFETY: as above.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as i64, len as i64, libc::POSIX_FADV_WILLNEED) };
}

/// Flag for holding what a path leads to without opening it, which never waits.
pub const HOLD: i32 = libc::O_PATH;
/// Flag for opening a file past the page cache.
pub const DIRECT: i32 = libc::O_DIRECT;
/// Flag for opening a block device that nobody else holds exclusively (a mount, for one).
pub const EXCLUSIVE: i32 = libc::O_EXCL;
