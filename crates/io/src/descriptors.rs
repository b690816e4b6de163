//! Open files passed from process to process over a unix socket (`SCM_RIGHTS`).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::descriptor::check_len;

/// Most descriptors in one message.
pub const MOST: usize = 128;

/// Their control message in bytes: a header of 16, and 4 for each.
const SPACE: usize = 16 + 4 * MOST;

#[repr(C, align(8))]
struct Control([u8; SPACE]);

/// Sends `bytes` with `files`. Fewer bytes may be taken than offered; the descriptors go with the first one. Blocking.
///
/// # Errors
/// When the peer is gone or the socket refuses.
///
/// # Panics
/// With more than [`MOST`] files or no byte.
pub fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    assert!(files.len() <= MOST && !bytes.is_empty(), "too many descriptors, or no byte to carry them");
    let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let payload = size_of_val(raw.as_slice());
    let mut control = Control([0; SPACE]);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero `msghdr` is valid: no name, no data, no control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    if !raw.is_empty() {
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload as u32) } as usize;
        assert!(message.msg_controllen <= SPACE, "the control buffer holds {MOST} descriptors");
        // SAFETY: the control buffer is large enough (asserted) and aligned, so the first header and its data lie in it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload as u32) as usize;
            std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), payload);
        }
    }
    loop {
        // SAFETY: `message` refers to buffers that live through the call.
        match check_len(unsafe { libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Receives bytes and whatever descriptors came with them; 0 bytes is the end of the stream. Blocking.
///
/// # Errors
/// When the socket fails, or more descriptors came than are accepted.
pub fn recv(stream: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; SPACE]);
    let mut vector = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: an all-zero `msghdr` is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = SPACE;
    let count = loop {
        // SAFETY: `message` refers to buffers that live through the call.
        match check_len(unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    let mut files = Vec::new();
    // SAFETY: the kernel wrote well-formed headers into the control buffer; each descriptor in it is new and ours.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let len = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                for index in 0..len / size_of::<RawFd>() {
                    let raw = libc::CMSG_DATA(header).cast::<RawFd>().add(index).read_unaligned();
                    files.push(OwnedFd::from_raw_fd(raw));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than are accepted"));
    }
    Ok((count, files))
}
