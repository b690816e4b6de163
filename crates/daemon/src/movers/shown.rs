//! The view of a snapshot as an export for one mover: its name is a secret that the mover is told, it is not listed, and it goes with the session.

use std::path::Path;
use std::sync::Arc;

use tzero_io::system;
use tzero_nbd::Uri;
use tzero_originals::SnapshotId;

use crate::address::Address;
use crate::service::Daemon;
use crate::volume::Volume;
use crate::volumes::Volumes;

/// How such names begin. No volume's does: it has a character that no name may have.
const PREFIX: &str = "mover:";

/// An export that stands as long as this lives.
pub(super) struct Shown {
    volumes: Arc<Volumes>,
    name: String,
}

impl Shown {
    /// Shows a snapshot.
    pub(super) fn to(daemon: &Daemon, volume: &Volume, id: SnapshotId) -> Self {
        let name = format!("{PREFIX}{:032x}", u128::from_be_bytes(system::random_id()));
        let volumes = Arc::clone(&daemon.volumes);
        volumes.shown().insert(name.clone(), (volume.name.clone(), id));
        Self { volumes, name }
    }

    /// Where the mover finds it; none where nobody listens any more.
    pub(super) fn uri(&self, daemon: &Daemon) -> Option<String> {
        let listening = daemon.volumes.listening.get()?;
        let unix = listening.iter().find(|address| matches!(address, Address::Unix(_)));
        let uri = match unix.or(listening.first())? {
            Address::Unix(path) => {
                Uri::unix(&std::path::absolute(path).unwrap_or_else(|_| Path::new("").into()), &self.name)
            }
            Address::Tcp(address) => Uri::tcp(&address.ip().to_string(), address.port(), &self.name),
        };
        uri.ok().map(|uri| uri.to_string())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.volumes.shown().remove(&self.name);
    }
}
