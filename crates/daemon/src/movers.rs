//! The mover socket: control of backups, and the descriptors that they read through (R27, R31).
//!
//! A thread a session. What a session has begun is a lease that ends with its connection; a private snapshot stands on, so that the
//! backup can be resumed with the same T0. One that nobody could resume, because its mover ended before it had a journal, is deleted
//! (see `backups`).
//!
//! | | release | delete (by command) | close |
//! |---|---|---|---|
//! | **session's request** | one mover a snapshot | the engine refuses one of the two | volume's gate; after the close it is refused |

mod files;
mod private;
mod session;
mod shown;
mod trouble;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::backups::Backups;
use crate::service::Daemon;
use private::delete;
use session::{Session, path_of};

/// How long a mover may take to take in an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long to rest when the process has no descriptor left for a mover.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Listens for movers and serves them until the process ends.
pub(crate) fn serve(daemon: Arc<Daemon>) -> io::Result<()> {
    let socket = daemon.paths.mover_socket();
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    let sweeping = Arc::clone(&daemon);
    // On a thread of its own, because it waits; before anybody can list what it deletes.
    let swept = thread::Builder::new().name("movers".into()).spawn(move || sweep(&sweeping))?;
    swept.join().map_err(|_| io::Error::other("looking for what movers left has failed"))?;
    thread::Builder::new().name("movers".into()).spawn(move || accept(&listener, &daemon))?;
    Ok(())
}

fn accept(listener: &UnixListener, daemon: &Arc<Daemon>) {
    for stream in listener.incoming() {
        let daemon = Arc::clone(daemon);
        let started = stream.and_then(|stream| {
            stream.set_write_timeout(Some(ANSWER))?;
            thread::Builder::new().name("mover".into()).spawn(move || Session::new(daemon, stream).serve())
        });
        if let Err(error) = started {
            tracing::warn!("a mover cannot be served: {error}");
            thread::sleep(EXHAUSTED);
        }
    }
}

/// Deletes the snapshots of backups that an earlier daemon began and that nobody could resume.
fn sweep(daemon: &Daemon) {
    for volume in daemon.volumes.all() {
        let Ok(serving) = volume.serving() else { continue };
        let backups = Backups::of(&volume.directory);
        let mut standing = Vec::new();
        for info in serving.engine.snapshots().into_iter().filter(|info| info.private) {
            if !backups.is_begun(&info.name) {
                standing.push(info.name);
                continue;
            }
            let deleted = path_of(&volume, &info).and_then(|path| delete(daemon, &volume, &path, info.id));
            match deleted {
                Ok(()) => tracing::info!("deleted {}@{}: its backup never began to copy", volume.name, info.name),
                Err(error) => {
                    tracing::warn!("{}@{} of a backup that never began stays: {error}", volume.name, info.name);
                    standing.push(info.name);
                }
            }
        }
        if let Err(error) = backups.sweep(&standing) {
            tracing::warn!(volume = %volume.name, "notes of backups that are gone stay behind: {error}");
        }
    }
}
