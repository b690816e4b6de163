//! What a file system promises about space that a file has already.
//!
//! A store through a mapping cannot fail, it can only kill the process: where the file system finds no space for it, SIGBUS is the answer. So a
//! mapping is stored to only where a store into allocated space never needs more of it, whatever anybody does to
//! the file meanwhile. That leaves out every file system that can share extents between files: a copy of the state directory made
//! by `cp` while it is in use shares them, and from then on each store moves its block to a new place. It would not be enough to
//! look for shared extents, or to unshare them, at opening. Elsewhere stores go through `pwrite`, which can say no.
//!
//! | | shares extents | stores |
//! |---|---|---|
//! | ext4, tmpfs, XFS made without `reflink` | never | memory |
//! | XFS | when asked to | `pwrite`; extents shared before are unshared at opening |
//! | btrfs | when asked to | `pwrite`; in place, as files are created without copy-on-write |
//! | others, network file systems | unknown | `pwrite` |

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::descriptor::check;
use crate::file::fallocate;

const EXT_MAGIC: i64 = 0xEF53;
const XFS_MAGIC: i64 = 0x5846_5342;
const TMPFS_MAGIC: i64 = 0x0102_1994;

const XFS_IOC_FSGEOMETRY: libc::Ioctl = 0x8100_587e_u32 as libc::Ioctl;
/// Bytes of XFS's description of itself, where its flags stand in it, and the flag that extents may be shared.
const XFS_GEOMETRY: usize = 256;
const XFS_GEOMETRY_FLAGS: usize = 92;
const XFS_REFLINK: u32 = 1 << 20;

const FS_IOC_GETFLAGS: libc::Ioctl = 0x8008_6601_u32 as libc::Ioctl;
const FS_IOC_SETFLAGS: libc::Ioctl = 0x4008_6602;
const FS_NOCOW_FL: libc::c_int = 0x0080_0000;

/// Whether a store into allocated space of this file never needs more space, now and later.
///
/// # Errors
/// When the file cannot be looked at.
pub fn is_kept(file: &File) -> io::Result<bool> {
    // SAFETY: an all-zero `statfs` is a valid value to be filled in.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a writable struct.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &mut status) })?;
    Ok(match status.f_type {
        EXT_MAGIC | TMPFS_MAGIC => true,
        XFS_MAGIC => !xfs_may_share(file),
        _ => false,
    })
}

/// Whether the file or directory lies in memory (tmpfs): what is there goes with the machine, and costs no disk anything.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_in_memory(file: &File) -> io::Result<bool> {
    // SAFETY: an all-zero `statfs` is a valid value to be filled in.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a writable struct.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &mut status) })?;
    Ok(status.f_type == TMPFS_MAGIC)
}

/// Gives a file of this length all its space, so that writing to it never needs more.
///
/// # Errors
/// When there is not as much, or the file system cannot promise it.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    fallocate(file, 0, 0, len)
}

fn xfs_may_share(file: &File) -> bool {
    let mut geometry = [0u64; XFS_GEOMETRY / 8];
    // SAFETY: the call writes `XFS_GEOMETRY` bytes, a number that is part of its own.
    if unsafe { libc::ioctl(file.as_raw_fd(), XFS_IOC_FSGEOMETRY, geometry.as_mut_ptr()) } < 0 {
        return true;
    }
    let word = geometry[XFS_GEOMETRY_FLAGS / 8].to_ne_bytes();
    let flags: [u8; 4] = std::array::from_fn(|index| word[XFS_GEOMETRY_FLAGS % 8 + index]);
    u32::from_ne_bytes(flags) & XFS_REFLINK != 0
}

/// Allocates the first `len` bytes of the file, and gives it blocks of its own in place of those it shares.
///
/// # Errors
/// When there is no space.
pub(crate) fn make_own(file: &File, len: u64) -> io::Result<()> {
    fallocate(file, 0, 0, len)?;
    match fallocate(file, libc::FALLOC_FL_UNSHARE_RANGE, 0, len) {
        // A file system that cannot: nothing is promised, and `pwrite` will say.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)) => Ok(()),
        other => other,
    }
}

/// Asks a copy-on-write file system to write this file, which is still empty, in place. Others have nothing to do.
pub(crate) fn write_in_place(file: &File) {
    let mut flags: libc::c_int = 0;
    // SAFETY: both calls take an `int` by address, whatever their numbers say.
    unsafe {
        if libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &mut flags) == 0 {
            flags |= FS_NOCOW_FL;
            libc::ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS, &flags);
        }
    }
}
