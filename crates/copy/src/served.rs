//! What the daemon of the state directory serves, as far as whoever writes to an export, or restores to a volume, has to know.

use std::fs;

use tzero_api::control::{self, VolumeState};
use tzero_api::{Client, ClientError, Name, StatePaths};
use tzero_nbd::Uri;

use crate::Error;

/// The daemon's volumes, and where it listens.
#[derive(Debug)]
pub(crate) struct Served {
    addresses: Vec<String>,
    volumes: Vec<control::Volume>,
}

impl Served {
    /// Asks the daemon; `None` where none runs.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn ask(state: &StatePaths) -> Result<Option<Self>, Error> {
        match Client::new(state).and_then(|daemon| daemon.status()) {
            Ok(status) => Ok(Some(Self { addresses: status.nbd, volumes: status.volumes })),
            Err(ClientError::NotRunning(_)) => Ok(None),
            Err(error) => Err(Error::Served(error)),
        }
    }

    /// All volumes.
    pub(crate) fn volumes(&self) -> &[control::Volume] {
        &self.volumes
    }

    /// The export's name, if it is this daemon's.
    pub(crate) fn own<'a>(&self, uri: &'a Uri) -> Option<&'a str> {
        let is_here = match (uri.socket(), uri.host()) {
            (Some(socket), _) => self.sockets().any(|path| fs::canonicalize(path).is_ok_and(|path| path == socket)),
            (None, Some((host, port))) => self.ports().any(|own| own == port) && is_loopback(host),
            (None, None) => false,
        };
        is_here.then(|| uri.export())
    }

    fn sockets(&self) -> impl Iterator<Item = &str> {
        self.addresses.iter().filter_map(|address| address.strip_prefix("unix:"))
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        let ports = self.addresses.iter().filter_map(|address| address.strip_prefix("tcp:")?.rsplit(':').next());
        ports.filter_map(|port| port.parse().ok())
    }

    /// Where a client reaches a volume.
    fn uri(&self, volume: &Name) -> Option<Uri> {
        let unix = self.sockets().find_map(|path| Uri::unix(path.as_ref(), volume.as_str()).ok());
        unix.or_else(|| {
            let tcp = self.addresses.iter().find_map(|address| address.strip_prefix("tcp:"))?;
            format!("nbd://{tcp}/{volume}").parse().ok()
        })
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A served volume, and how it is reached.
#[derive(Debug)]
pub(crate) struct ServedVolume {
    pub(crate) volume: control::Volume,
    pub(crate) uri: Uri,
}

impl ServedVolume {
    /// The volume of that name.
    ///
    /// # Errors
    /// When there is none, or it cannot be reached.
    pub(crate) fn find(name: &Name, state: &StatePaths) -> Result<Self, Error> {
        let volume = Client::new(state).and_then(|daemon| daemon.volume(name)).map_err(Error::Served)?;
        if volume.state != VolumeState::Serving {
            return Err(Error::NotServed { volume: name.to_string(), reason: volume.reason.unwrap_or_default() });
        }
        let status = Client::new(state).and_then(|daemon| daemon.status()).map_err(Error::Served)?;
        let all = Served { addresses: status.nbd, volumes: status.volumes };
        match all.uri(name) {
            Some(uri) => Ok(Self { volume, uri }),
            None => Err(Error::NotServed { volume: name.to_string(), reason: "the daemon listens nowhere yet".into() }),
        }
    }
}
