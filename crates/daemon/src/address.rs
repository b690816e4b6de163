//! Where NBD clients connect.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

/// `unix:PATH` or `tcp:HOST:PORT`, the host a loopback address: there is no TLS, so nothing else is offered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port of this machine.
    Tcp(SocketAddr),
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither form.
    #[error("{0:?} is no address to listen on; write unix:PATH or tcp:HOST:PORT")]
    Malformed(String),
    /// A host that others can reach, or a name.
    #[error("{0:?} is not a loopback address, and there is no encryption: use 127.0.0.1, [::1] or localhost")]
    NotLoopback(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed(text.into());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(malformed()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':')).ok_or_else(malformed)?;
        let port: u16 = port.parse().map_err(|_| malformed())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let ip = match bare {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            "" => return Err(malformed()),
            _ => bare.parse().map_err(|_| AddressError::NotLoopback(text.into()))?,
        };
        if ip.is_loopback() { Ok(Self::Tcp((ip, port).into())) } else { Err(AddressError::NotLoopback(text.into())) }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_places() {
        for (text, shown) in [
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:relative", "unix:relative"),
            ("tcp:127.0.0.1:10809", "tcp:127.0.0.1:10809"),
            ("tcp:localhost:0", "tcp:127.0.0.1:0"),
            ("tcp:[::1]:7", "tcp:[::1]:7"),
            ("tcp:127.9.9.9:7", "tcp:127.9.9.9:7"),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(shown.into()));
        }
        for bad in [
            "",
            "unix:",
            "/run/x",
            "tcp:10809",
            "tcp::10809",
            "tcp:127.0.0.1:",
            "tcp:127.0.0.1:99999",
            "udp:127.0.0.1:1",
        ] {
            assert!(matches!(bad.parse::<Address>(), Err(AddressError::Malformed(_))), "{bad}");
        }
        for open in ["tcp:0.0.0.0:10809", "tcp:[::]:1", "tcp:192.168.0.1:1", "tcp:example.org:1"] {
            assert!(matches!(open.parse::<Address>(), Err(AddressError::NotLoopback(_))), "{open}");
        }
    }
}
