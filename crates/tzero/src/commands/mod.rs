//! One file a command.

pub(crate) mod backup;
pub(crate) mod copy;
pub(crate) mod restore;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod volume;

use tzero_api::{Client, StatePaths};

use crate::ending::Ending;
use crate::sockets;

/// Talks to the daemon of `state`. Nothing is asked yet.
fn client(state: &StatePaths) -> Result<Client, Ending> {
    sockets::check(&state.control_socket())?;
    Ok(Client::new(state)?)
}
