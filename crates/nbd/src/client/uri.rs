//! Where an export is, as a URI.
//!
//! Source: `doc/uri.md` of the NBD project. `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`; everything in it may be
//! percent-encoded, and is where it must be.
//!
//! Deliberately absent: TLS, user names, abstract sockets. What is not understood is refused, never ignored.

use std::ffi::OsString;
use std::fmt::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::wire::LONGEST_STRING;

/// The protocol's own port.
const PORT: u16 = 10809;
/// Longest URI in bytes: every byte of the longest name encoded, and room for the rest.
const LONGEST_URI: usize = 3 * LONGEST_STRING + 2048;
/// Longest host name in bytes (RFC 1035).
const LONGEST_HOST: usize = 253;
/// Longest path of a unix socket in bytes.
const LONGEST_PATH: usize = 107;

/// An export and the server that has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri {
    server: Server,
    export: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Server {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// Why something is no URI of an export that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UriError {
    /// Another scheme, or none.
    #[error("it does not begin with nbd:// or nbd+unix://")]
    Scheme,
    /// `nbds` or a `tls-` parameter.
    #[error("encrypted connections are not supported")]
    Encryption,
    /// No host, a malformed one, or one where there should be none.
    #[error("its host is missing, malformed, or out of place")]
    Host,
    /// Not a number from 1 to 65535.
    #[error("its port is no number from 1 to 65535")]
    Port,
    /// No path of a socket, or one that cannot be.
    #[error("it needs ?socket=PATH, an absolute path of at most {LONGEST_PATH} bytes")]
    Socket,
    /// A parameter that is not known, or one given twice.
    #[error("it has a parameter that is not known here, or one twice")]
    Parameter,
    /// A `%` that two hexadecimal digits do not follow, or a character that has no place in a URI.
    #[error("it is not encoded as a URI has to be")]
    Encoding,
    /// An export's name that is not UTF-8, has a NUL, or is longer than the protocol allows.
    #[error("its export name is too long or not text")]
    Export,
    /// Longer than any that makes sense.
    #[error("it is too long")]
    TooLong,
}

impl Uri {
    /// An export of a server that listens at a path.
    ///
    /// # Errors
    /// When the path or the name cannot be used.
    pub fn unix(socket: &Path, export: &str) -> Result<Self, UriError> {
        let bytes = socket.as_os_str().as_bytes();
        if !socket.is_absolute() || bytes.len() > LONGEST_PATH || bytes.contains(&0) {
            return Err(UriError::Socket);
        }
        Ok(Self { server: Server::Unix(socket.to_owned()), export: checked(export.to_owned())? })
    }

    /// An export of a server that listens on TCP. `host` is a name or a number, an IPv6 one without brackets.
    ///
    /// # Errors
    /// When the host, port or name cannot be used.
    pub fn tcp(host: &str, port: u16, export: &str) -> Result<Self, UriError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        let colons = host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err();
        if host.is_empty() || host.len() > LONGEST_HOST || !host.bytes().all(plain) || colons {
            return Err(UriError::Host);
        }
        if port == 0 {
            return Err(UriError::Port);
        }
        Ok(Self { server: Server::Tcp { host: host.to_owned(), port }, export: checked(export.to_owned())? })
    }

    /// The export's name; may be empty.
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The path of the server's unix socket, if it has one.
    pub fn socket(&self) -> Option<&Path> {
        match &self.server {
            Server::Unix(path) => Some(path),
            Server::Tcp { .. } => None,
        }
    }

    /// Host and port of the server, if it listens on TCP.
    pub fn host(&self) -> Option<(&str, u16)> {
        match &self.server {
            Server::Unix(_) => None,
            Server::Tcp { host, port } => Some((host, *port)),
        }
    }

    /// Whether `text` is meant as a URI of this kind, valid or not: what a command line asks before it takes it for a path.
    pub fn is_meant(text: &str) -> bool {
        ["nbd:", "nbds:", "nbd+unix:", "nbds+unix:"].iter().any(|scheme| text.starts_with(scheme))
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }
}

fn checked(export: String) -> Result<String, UriError> {
    if export.len() > LONGEST_STRING || export.contains('\0') { Err(UriError::Export) } else { Ok(export) }
}

fn decoded(text: &str) -> Result<Vec<u8>, UriError> {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16)).ok_or(UriError::Encoding);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => bytes.push((hex(rest.next())? * 16 + hex(rest.next())?) as u8),
            // Not of RFC 3986, but what people type; controls and spaces are mistakes.
            byte if byte.is_ascii_control() || b" #".contains(byte) => return Err(UriError::Encoding),
            byte => bytes.push(*byte),
        }
    }
    Ok(bytes)
}

fn tcp_server(authority: &str) -> Result<(String, u16), UriError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(UriError::Host)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| UriError::Host)?;
            (host.to_owned(), if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(UriError::Host)?) })
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            let host = String::from_utf8(decoded(host)?).map_err(|_| UriError::Host)?;
            if host.contains(':') {
                return Err(UriError::Host);
            }
            (host, port)
        }
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    match port {
        None | Some("") => Ok((host, PORT)),
        Some(port) if digits(port) => Ok((host, port.parse().map_err(|_| UriError::Port)?)),
        Some(_) => Err(UriError::Port),
    }
}

fn socket_of(query: Option<&str>) -> Result<Option<PathBuf>, UriError> {
    let mut socket = None;
    for parameter in query.unwrap_or("").split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("socket", path)) if socket.is_none() => {
                socket = Some(PathBuf::from(OsString::from_vec(decoded(path)?)));
            }
            Some((name, _)) if name.starts_with("tls-") => return Err(UriError::Encryption),
            _ => return Err(UriError::Parameter),
        }
    }
    Ok(socket)
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > LONGEST_URI {
            return Err(UriError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(UriError::Host);
        }
        let export = || String::from_utf8(decoded(path)?).map_err(|_| UriError::Export);
        match scheme {
            "nbd" => {
                if socket_of(query)?.is_some() {
                    return Err(UriError::Parameter);
                }
                let (host, port) = tcp_server(authority)?;
                Self::tcp(&host, port, &export()?)
            }
            "nbd+unix" => {
                if !authority.is_empty() {
                    return Err(UriError::Host);
                }
                Self::unix(&socket_of(query)?.ok_or(UriError::Socket)?, &export()?)
            }
            "nbds" | "nbds+unix" => Err(UriError::Encryption),
            _ => Err(UriError::Scheme),
        }
    }
}

/// Writes bytes so that they stand for themselves in a URI.
fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/@:".contains(byte) {
            f.write_char(char::from(*byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Server::Unix(path) => {
                f.write_str("nbd+unix:///")?;
                encode(f, self.export.as_bytes())?;
                f.write_str("?socket=")?;
                encode(f, path.as_os_str().as_bytes())
            }
            Server::Tcp { host, port } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "nbd://{open}{host}{close}")?;
                if *port != PORT {
                    write!(f, ":{port}")?;
                }
                f.write_char('/')?;
                encode(f, self.export.as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Uri {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn tcp(host: &str, port: u16, export: &str) -> Uri {
        Uri::tcp(host, port, export).expect("usable")
    }

    #[test]
    fn what_the_specification_shows() {
        assert_eq!(parsed("nbd://example.com/disk"), tcp("example.com", 10809, "disk"));
        assert_eq!(parsed("nbd://example.com/"), tcp("example.com", 10809, ""));
        assert_eq!(parsed("nbd://example.com"), tcp("example.com", 10809, ""));
        assert_eq!(parsed("nbd://example.com//disk"), tcp("example.com", 10809, "/disk"));
        assert_eq!(parsed("nbd://example.com:1/hello%20world"), tcp("example.com", 1, "hello world"));
        assert_eq!(parsed("nbd://[::1]:99/a?"), tcp("::1", 99, "a"));
        assert_eq!(parsed("nbd://[fe80::2]"), tcp("fe80::2", 10809, ""));
        let unix = Uri::unix(Path::new("/tmp/a b.sock"), "vol@snap").expect("usable");
        assert_eq!(parsed("nbd+unix:///vol%40snap?socket=/tmp/a%20b.sock"), unix);
        assert_eq!(parsed("nbd+unix:///vol@snap?socket=%2Ftmp/a%20b.sock"), unix);
        assert_eq!(unix.to_string(), "nbd+unix:///vol@snap?socket=/tmp/a%20b.sock");
        assert_eq!(tcp("::1", 99, "ä").to_string(), "nbd://[::1]:99/%C3%A4");
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let refused = |text: &str| text.parse::<Uri>().expect_err(text);
        assert_eq!(refused("/dev/sda"), UriError::Scheme);
        assert_eq!(refused("http://a/b"), UriError::Scheme);
        assert_eq!(refused("nbds://a/b"), UriError::Encryption);
        assert_eq!(refused("nbd://a/b?tls-type=psk"), UriError::Encryption);
        for text in ["nbd:///x", "nbd://me@a/x", "nbd://[::1/x", "nbd://[a]/x", "nbd://[::1]9/x", "nbd://a%3Ab/x"] {
            assert_eq!(refused(text), UriError::Host, "{text}");
        }
        assert_eq!(refused(&format!("nbd://{}/x", "a".repeat(254))), UriError::Host);
        for text in ["nbd://a:0/x", "nbd://a:65536/x", "nbd://a:+1/x", "nbd://a:1:2/x"] {
            assert_eq!(refused(text), UriError::Port, "{text}");
        }
        for text in ["nbd+unix:///x", "nbd+unix:///x?socket=", "nbd+unix:///x?socket=rel", "nbd+unix:///x?socket=%00/a"]
        {
            assert_eq!(refused(text), UriError::Socket, "{text}");
        }
        assert_eq!(refused(&format!("nbd+unix:///x?socket=/{}", "a".repeat(107))), UriError::Socket);
        for text in ["nbd://a/x?y=1", "nbd://a/x?socket=/a", "nbd+unix:///?socket=/a&socket=/b", "nbd://a/?x"] {
            assert_eq!(refused(text), UriError::Parameter, "{text}");
        }
        for text in ["nbd://a/%", "nbd://a/%4", "nbd://a/%g0", "nbd://a/a b", "nbd://a/x#y"] {
            assert_eq!(refused(text), UriError::Encoding, "{text}");
        }
        for text in ["nbd://a/%00", "nbd://a/%ff"] {
            assert_eq!(refused(text), UriError::Export, "{text}");
        }
        assert_eq!(refused(&format!("nbd://a/{}", "x".repeat(4097))), UriError::Export);
        assert_eq!(refused(&format!("nbd://a/{}", "%41".repeat(5000))), UriError::TooLong);
        assert!(Uri::is_meant("nbds://x") && !Uri::is_meant("/nbd:"));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_what_is_parsed(export in "[^\\x00]{0,60}", path in proptest::collection::vec(1u8..=255, 0..60), port in 1u16..) {
            let socket = Path::new("/").join(std::ffi::OsStr::from_bytes(&path));
            for uri in [Uri::unix(&socket, &export), Uri::tcp("a-1.b", port, &export), Uri::tcp("::1", port, &export)] {
                let uri = uri.expect("usable");
                prop_assert_eq!(uri.to_string().parse::<Uri>(), Ok(uri));
            }
        }

        #[test]
        fn any_text_is_survived(text in "(nbd|nbd\\+unix)://.{0,80}") {
            let _ = text.parse::<Uri>();
        }
    }
}
