//! Connecting to others, without a thread that waits for it.

#![allow(unsafe_code)]

use std::io;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use crate::blocking::Pool;
use crate::descriptor::check;
use crate::socket::{Stream, ready};
use crate::timers::sleep;

/// How long to leave a listener alone whose queue is full.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// An address as the kernel takes it.
enum Raw {
    Unix(libc::sockaddr_un, usize),
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl Raw {
    fn unix(path: &Path) -> io::Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        // SAFETY: all zeroes are a valid address.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        // One byte is left for the terminator.
        if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path that a socket can have"));
        }
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        address.sun_path.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from as libc::c_char);
        Ok(Self::Unix(address, offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1))
    }

    fn tcp(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    fn family(&self) -> libc::c_int {
        match self {
            Self::Unix(..) => libc::AF_UNIX,
            Self::V4(_) => libc::AF_INET,
            Self::V6(_) => libc::AF_INET6,
        }
    }

    fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        let (address, len) = match self {
            Self::Unix(address, len) => ((&raw const *address).cast(), *len),
            Self::V4(address) => ((&raw const *address).cast(), size_of::<libc::sockaddr_in>()),
            Self::V6(address) => ((&raw const *address).cast(), size_of::<libc::sockaddr_in6>()),
        };
        (address, len as libc::socklen_t)
    }
}

async fn connect(address: Raw) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: plain system call; the descriptor is new and owned here.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(address.family(), kind, 0))?) };
    loop {
        let called = {
            let (pointer, len) = address.parts();
            // SAFETY: the pointer and length are those of an address that lives through the call.
            check(unsafe { libc::connect(socket.as_raw_fd(), pointer, len) })
        };
        match called {
            Ok(_) => return Ok(socket),
            Err(error) => match error.raw_os_error() {
                // A unix listener whose queue is full; such a socket is never in progress.
                Some(libc::EAGAIN) => sleep(QUEUE_FULL).await,
                Some(libc::EINPROGRESS | libc::EINTR) => break,
                _ => return Err(error),
            },
        }
    }
    ready(&socket, libc::POLLOUT).await?;
    let mut code: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is an `int`, given by address and size.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut code).cast(), &mut len)
    })?;
    if code == 0 { Ok(socket) } else { Err(io::Error::from_raw_os_error(code)) }
}

impl Stream {
    /// Connects to a unix socket. May wait as long as nobody accepts: whoever cannot, bounds it.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect_unix(path: &Path) -> io::Result<Self> {
        Ok(Self::over(connect(Raw::unix(path)?).await?))
    }

    /// Connects to a TCP address. May take as long as the kernel tries, which is minutes: whoever cannot wait, bounds it.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect_tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = Self::over(connect(Raw::tcp(address)).await?);
        stream.no_delay();
        Ok(stream)
    }

    /// Has the kernel break a TCP connection whose other machine was not heard of for about `limit`, whether something is on its way or not. A
    /// peer that is only slow is heard of.
    ///
    /// # Errors
    /// When the socket is none of TCP.
    pub fn watch_peer(&self, limit: Duration) -> io::Result<()> {
        const PROBES: u32 = 3;
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let seconds = (millis / 1000 / (PROBES + 1)).max(1);
        let settings = [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, millis),
        ];
        for (level, option, value) in settings {
            let value = value as libc::c_int;
            let len = size_of::<libc::c_int>() as libc::socklen_t;
            // SAFETY: the options take an `int`, given by address and size.
            check(unsafe { libc::setsockopt(self.raw(), level, option, (&raw const value).cast(), len) })?;
        }
        Ok(())
    }
}

/// The addresses of a host, by name or by number. Names are asked for on a thread of the few that all questions of the process
/// share; a dropped future leaves the question running.
///
/// # Errors
/// When the name is not known, or nobody answers.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    static POOL: OnceLock<Pool> = OnceLock::new();
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let host = host.to_owned();
    POOL.get_or_init(Pool::default).run(move || Ok((host.as_str(), port).to_socket_addrs()?.collect())).await
}
