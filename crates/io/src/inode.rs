//! What tells a file from another one that has its number, or had it.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::descriptor::check;

const FS_IOC_GETVERSION: libc::Ioctl = 0x8008_7601_u32 as libc::Ioctl;
const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500_u32 as libc::Ioctl;

/// Generation of an inode: another one when the number is given out again.
///
/// # Errors
/// Where the file system counts none, or does not tell.
pub fn generation(file: &File) -> io::Result<u64> {
    let mut generation: libc::c_long = 0;
    // SAFETY: the call writes an `int`, or the `long` of its number.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETVERSION, &mut generation) })?;
    Ok(generation as u64)
}

/// Uuid of the file system that holds the file, as it tells it itself (Linux 6.9 and later).
///
/// # Errors
/// Where it does not.
pub fn file_system_uuid(file: &File) -> io::Result<[u8; 16]> {
    let mut answer = [0u8; 17];
    // SAFETY: the call writes one byte and a uuid of sixteen, of which the first byte says how many count.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFSUUID, answer.as_mut_ptr()) })?;
    let [16, uuid @ ..] = answer else { return Err(io::ErrorKind::Unsupported.into()) };
    Ok(uuid)
}
