//! The state directory: one daemon's, and private.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tzero_api::StatePaths;
use tzero_io::LockError;

const STICKY: u32 = 0o1000;
/// Longest path of a unix socket in bytes, which the system fixes.
const LONGEST_SOCKET: usize = 107;
/// How long a killed daemon may hold its lock and its sockets.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_STEP: Duration = Duration::from_millis(20);

/// The directory, locked for as long as this value lives.
#[derive(Debug)]
pub(crate) struct StateDirectory {
    paths: StatePaths,
    _lock: File,
}

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or read.
    #[error("the state directory {} cannot be used: {source}", .path.display())]
    Unusable {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is open to others and making it private would take it from them.
    #[error("{} is shared with other users and cannot hold state: choose a directory of its own with --state", .0.display())]
    Shared(PathBuf),
    /// Another daemon has it.
    #[error("another daemon{} serves the state directory {}: stop it first, or choose another with --state", pid_phrase(.pid), .path.display())]
    Held {
        /// The directory.
        path: PathBuf,
        /// That daemon's process, where it is known.
        pid: Option<u32>,
    },
    /// No socket can have a path that long.
    #[error("the path {} is longer than the {LONGEST_SOCKET} bytes that a socket's may have: choose a shorter one with --state", .0.display())]
    TooLong(PathBuf),
    /// A socket's place is taken.
    #[error("{} is in use by another process or is no socket: stop that process, or listen elsewhere", .0.display())]
    SocketTaken(PathBuf),
}

fn pid_phrase(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    |source| StateError::Unusable { path, source }
}

impl StateDirectory {
    /// Makes the directory where it is not there, makes it private, locks it, and clears what a dead daemon left.
    pub(crate) fn open(root: &Path) -> Result<Self, StateError> {
        private_directory(root)?;
        let root = root.canonicalize().map_err(unusable(root))?;
        let paths = StatePaths::new(root);
        let longest = paths.control_socket();
        if longest.as_os_str().len() > LONGEST_SOCKET {
            return Err(StateError::TooLong(longest));
        }
        let lock = lock(&paths)?;
        private_directory(&paths.volumes())?;
        for socket in [paths.control_socket(), paths.mover_socket(), paths.nbd_socket()] {
            // With the lock held nobody serves them, even where a dead daemon's last requests still hold one open.
            remove_socket(&socket)?;
        }
        Ok(Self { paths, _lock: lock })
    }

    pub(crate) fn paths(&self) -> &StatePaths {
        &self.paths
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.canonicalize()?.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Makes sure of a directory of mode 0700, by a durable name.
pub(crate) fn private_directory(path: &Path) -> Result<(), StateError> {
    if !path.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable(path))?;
        sync_parent(path).map_err(unusable(path))?;
    }
    let metadata = fs::metadata(path).map_err(unusable(path))?;
    // An empty one, such as a fresh mount, is nobody's yet.
    if metadata.mode() & STICKY != 0 && !is_empty(path).map_err(unusable(path))? {
        return Err(StateError::Shared(path.into()));
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(unusable(path))?;
    }
    Ok(())
}

fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(path)?.next().is_none())
}

fn lock(paths: &StatePaths) -> Result<File, StateError> {
    let path = paths.lock();
    let failed = |source| StateError::Unusable { path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match linger(LINGER, || tzero_io::lock_exclusive(&file), |error| matches!(error, LockError::Held)) {
        Ok(()) => {}
        Err(LockError::Held) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(StateError::Held { path: paths.root().into(), pid: holder.trim().parse().ok() });
        }
        Err(LockError::Failed(source)) => return Err(failed(source)),
    }
    // Only for the message above: the lock itself is what counts, and a full disk is no reason not to serve.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Removes a socket that nobody listens on.
pub(crate) fn remove_stale(path: &Path) -> Result<(), StateError> {
    let silent = || if UnixStream::connect(path).is_ok() { Err(StateError::SocketTaken(path.into())) } else { Ok(()) };
    linger(LINGER, silent, |_| true)?;
    remove_socket(path)
}

fn remove_socket(path: &Path) -> Result<(), StateError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(unusable(path))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(StateError::SocketTaken(path.into()));
    }
    fs::remove_file(path).map_err(unusable(path))
}

/// Tries again for a while: what a killed daemon had open stays open until its last requests have left the kernel.
pub(crate) fn linger<T, E>(
    patience: Duration,
    attempt: impl Fn() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if may_pass(&error) && Instant::now() < deadline => thread::sleep(LINGER_STEP),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn private_locked_and_swept() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("a/state");
        fs::create_dir_all(&root).unwrap();
        drop(UnixListener::bind(root.join("control.sock")).unwrap());

        let held = StateDirectory::open(&root).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(held.paths().lock()).unwrap().mode() & 0o777, 0o600);
        assert!(!held.paths().control_socket().exists());

        let own = std::process::id();
        assert!(matches!(StateDirectory::open(&root), Err(StateError::Held { pid: Some(pid), .. }) if pid == own));
        drop(held);
        StateDirectory::open(&root).unwrap();
    }

    #[test]
    fn a_live_socket_and_a_file_are_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(remove_stale(&path), Err(StateError::SocketTaken(_))));
        drop(listener);
        remove_stale(&path).unwrap();
        fs::write(&path, "data").unwrap();
        assert!(matches!(remove_stale(&path), Err(StateError::SocketTaken(_))));
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_shared_directory_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let shared = || fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(scratch.path().join("theirs"), "").unwrap();
        shared();
        assert!(matches!(StateDirectory::open(scratch.path()), Err(StateError::Shared(_))));
        assert_eq!(fs::metadata(scratch.path()).unwrap().mode() & 0o7777, 0o1777);
        fs::remove_file(scratch.path().join("theirs")).unwrap();
        StateDirectory::open(scratch.path()).unwrap();
        assert_eq!(fs::metadata(scratch.path()).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let deep = scratch.path().join("d".repeat(LONGEST_SOCKET));
        assert!(matches!(StateDirectory::open(&deep), Err(StateError::TooLong(_))));
    }
}
