//! Stream sockets, unix and TCP.
//!
//! Calls are made at once and only wait for readiness when the kernel says so; no memory is left with the kernel, so a
//! dropped future is harmless. But for [`Stream::recv_later`]: where nothing is expected to be there yet, waiting and receiving are one request.

#![allow(unsafe_code)]

use std::fs;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use io_uring::{opcode, types};

use crate::buffer::Buffer;
use crate::descriptor::check_len;
use crate::runtime::reactor;

/// Vectors per system call.
const VECTORS: usize = 256;

pub(crate) async fn ready(socket: &OwnedFd, events: libc::c_short) -> io::Result<()> {
    let (_, result) = reactor().readiness(socket.as_raw_fd(), events)?.await;
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Option<SocketAddr>,
}

impl Listener {
    /// Listens at a path, mode 0600. The path must not exist.
    ///
    /// # Errors
    /// When it does, or its directory cannot be written.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { socket: listener.into(), address: None })
    }

    /// Listens on a TCP address.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { socket: listener.into(), address: Some(address) })
    }

    /// The TCP address, with the port that the kernel chose where 0 was asked for.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The next connection.
    ///
    /// # Errors
    /// When the kernel has no descriptor or memory left; the listener stays usable.
    pub async fn accept(&self) -> io::Result<Stream> {
        loop {
            // SAFETY: plain system call; the peer's address is not asked for.
            let accepted = unsafe {
                libc::accept4(self.socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
            };
            match crate::descriptor::check(accepted) {
                Ok(raw) => {
                    // SAFETY: the descriptor is new and owned here.
                    let socket = unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) };
                    let stream = Stream::over(socket);
                    if self.address.is_some() {
                        stream.no_delay();
                    }
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready(&self.socket, libc::POLLIN).await?,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A connected stream socket. Accepted ones block, for the ring; every call that is made here says that it must not.
#[derive(Debug)]
pub struct Stream {
    /// Shared with a request of the ring that is under way.
    socket: Arc<OwnedFd>,
}

impl Stream {
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self { socket: Arc::new(socket) }
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Takes over a connected unix socket.
    ///
    /// # Errors
    /// When it cannot be made blocking.
    pub fn from_unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        Ok(Self::over(stream.into()))
    }

    pub(crate) fn no_delay(&self) {
        let on: libc::c_int = 1;
        // SAFETY: the option takes an `int`, given by address and size.
        unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_NODELAY,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
    }

    /// What has arrived, at least a byte; 0 is the end of the stream.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn recv(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            // SAFETY: writes at most `len` bytes to a buffer that is borrowed exclusively.
            let received = unsafe {
                libc::recv(self.socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT)
            };
            match check_len(received) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready(&self.socket, libc::POLLIN).await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Self::recv`], into `place` of a buffer that is given back, for when nothing is expected to be there yet: with a ring it costs one system call
    /// less. Where the future is dropped, what was received is lost.
    ///
    /// # Panics
    /// Where `place` is not in the buffer.
    pub async fn recv_later(&self, mut buffer: Buffer, place: Range<usize>) -> (Buffer, io::Result<usize>) {
        if reactor().has_ring() {
            let into = &mut buffer[place.clone()];
            let len = u32::try_from(into.len()).unwrap_or(u32::MAX);
            let entry = opcode::Recv::new(types::Fd(self.socket.as_raw_fd()), into.as_mut_ptr(), len).build();
            // SAFETY: the buffer's memory does not move with it; the descriptor is held beside it.
            let mut submitted = unsafe { reactor().submit(entry, (buffer, Arc::clone(&self.socket))) };
            submitted.cancels();
            let ((returned, _), result) = submitted.await;
            match result {
                // One of a socket that somebody made non-blocking, or a signal: as without a ring.
                error if error == -libc::EAGAIN || error == -libc::EINTR => buffer = returned,
                error if error < 0 => return (returned, Err(io::Error::from_raw_os_error(-error))),
                count => return (returned, Ok(count as usize)),
            }
        }
        let result = self.recv(&mut buffer[place]).await;
        (buffer, result)
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// `UnexpectedEof` at the end of the stream.
    pub async fn recv_exact(&self, into: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            match self.recv(&mut into[filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Resolves when something has arrived, or the stream has ended.
    ///
    /// # Errors
    /// When the kernel cannot wait for the socket.
    pub async fn readable(&self) -> io::Result<()> {
        ready(&self.socket, libc::POLLIN).await
    }

    /// Sends as much of the slices as the socket's buffer takes, at least a byte of what is not empty; says how many bytes.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match self.try_send(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready(&self.socket, libc::POLLOUT).await?,
                other => return other,
            }
        }
    }

    /// Sends what the socket's buffer takes now; says how many bytes.
    ///
    /// # Errors
    /// `WouldBlock` if it takes nothing now, others when the connection breaks.
    pub fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match self.send_some(slices, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Sends all slices in order, with as few system calls as the socket's buffer allows.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send_all(&self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let mut first = 0;
        let mut skip = 0;
        while first < slices.len() {
            let sent = match self.send_some(&slices[first..], skip) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready(&self.socket, libc::POLLOUT).await?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut left = sent + skip;
            while first < slices.len() && left >= slices[first].len() {
                left -= slices[first].len();
                first += 1;
            }
            skip = left;
        }
        Ok(())
    }

    fn send_some(&self, slices: &[IoSlice<'_>], skip: usize) -> io::Result<usize> {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; VECTORS];
        let count = slices.len().min(VECTORS);
        for (index, (vector, slice)) in vectors.iter_mut().zip(slices).enumerate() {
            let slice = if index == 0 { &slice[skip..] } else { &slice[..] };
            *vector = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
        }
        // SAFETY: an all-zero `msghdr` is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = count;
        // SAFETY: the vectors refer to slices that are borrowed through the call, which only reads them.
        check_len(unsafe { libc::sendmsg(self.socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
    }

    /// Ends both directions: whoever waits on the socket, here or at the peer, is woken.
    pub fn shutdown(&self) {
        // SAFETY: plain system call on an open descriptor.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }
}
