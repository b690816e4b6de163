//! A blocking client of the control interface.
//!
//! Every call makes its own connection and has a limit in time, so that a daemon that hangs never hangs its callers.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::control::{AddVolume, CreateSnapshot, Forecast, Snapshot, Status, Volume};
use crate::jobs::{Job, StartRestore};
use crate::{Exit, Failure, Name, RebaseVolume, ResizeVolume, SnapshotPath, StatePaths, route};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take: recovery of a large volume and deletion of a large snapshot are the slowest.
const ANSWER: Duration = Duration::from_secs(120);

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the daemon is not running (nobody listens on {}): start it with `tzero serve`", .0.display())]
    NotRunning(PathBuf),
    /// The socket is there but not for this user.
    #[error("the daemon's socket {} cannot be used: {source}; ask for it with the user that runs `tzero serve`", .socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No answer came in time.
    #[error("the daemon at {} did not answer within {seconds} seconds; look at its log", .socket.display())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The connection broke.
    #[error("the daemon at {} ended the connection: {source}; look at its log", .socket.display())]
    Lost {
        /// The socket.
        socket: PathBuf,
        /// What the protocol said.
        source: hyper::Error,
    },
    /// The answer is not of this interface.
    #[error("the daemon at {} answered what this version does not understand: {source}; use one version for both", .socket.display())]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// Where it went wrong.
        source: serde_json::Error,
    },
    /// The request cannot be made.
    #[error("no request can be made: {0}")]
    Setup(#[source] io::Error),
    /// The daemon said no.
    #[error("{0}")]
    Refused(#[from] Failure),
}

impl ClientError {
    /// How a command that met this ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Refused(failure) => failure.code.exit(),
            _ => Exit::Failed,
        }
    }
}

/// Talks to the daemon of one state directory.
pub struct Client {
    runtime: Runtime,
    socket: PathBuf,
}

impl Client {
    /// For the daemon of `state`. Touches nothing yet.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(state: &StatePaths) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Setup)?;
        Ok(Self { runtime, socket: state.control_socket() })
    }

    /// The daemon as a whole.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get(route::STATUS)
    }

    /// All volumes by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn volumes(&self) -> Result<Vec<Volume>, ClientError> {
        self.get(route::VOLUMES)
    }

    /// One volume.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn volume(&self, name: &Name) -> Result<Volume, ClientError> {
        self.get(&route::volume(name))
    }

    /// Adds a volume.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn add_volume(&self, volume: &AddVolume) -> Result<Volume, ClientError> {
        self.post(route::VOLUMES, volume)
    }

    /// Gives a volume another base.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn rebase_volume(&self, name: &Name, rebase: &RebaseVolume) -> Result<Volume, ClientError> {
        self.put(&route::volume_base(name), rebase)
    }

    /// Makes a volume longer or shorter.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resize_volume(&self, name: &Name, resize: ResizeVolume) -> Result<Volume, ClientError> {
        self.put(&route::volume_size(name), &resize)
    }

    /// Removes a volume; gives what it was.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn remove_volume(&self, name: &Name) -> Result<Volume, ClientError> {
        self.delete(&route::volume(name))
    }

    /// When a volume's cache would be full.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn forecast(&self, volume: &Name) -> Result<Forecast, ClientError> {
        self.get(&route::volume_forecast(volume))
    }

    /// All snapshots by volume and T0.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, ClientError> {
        self.get(route::SNAPSHOTS)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn snapshot(&self, path: &SnapshotPath) -> Result<Snapshot, ClientError> {
        self.get(&route::snapshot(path))
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create_snapshot(&self, path: &SnapshotPath) -> Result<Snapshot, ClientError> {
        self.create_snapshot_as(&path.volume, &CreateSnapshot::new(path.snapshot.clone()))
    }

    /// Takes a snapshot as the request says.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create_snapshot_as(&self, volume: &Name, request: &CreateSnapshot) -> Result<Snapshot, ClientError> {
        self.post(&route::volume_snapshots(volume), request)
    }

    /// Deletes a snapshot; gives what it was.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete_snapshot(&self, path: &SnapshotPath) -> Result<Snapshot, ClientError> {
        self.delete(&route::snapshot(path))
    }

    /// What was saved for a snapshot: a line per entry, as the route says.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn snapshot_map(&self, path: &SnapshotPath) -> Result<Bytes, ClientError> {
        self.call(Method::GET, &route::snapshot_map(path), Bytes::new())
    }

    /// Has the daemon restore a copy. What comes of it is for [`Client::job`] to ask.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn start_restore(&self, restore: &StartRestore) -> Result<Job, ClientError> {
        self.post(route::RESTORES, restore)
    }

    /// All jobs that the daemon remembers, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn jobs(&self) -> Result<Vec<Job>, ClientError> {
        self.get(route::JOBS)
    }

    /// One job.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn job(&self, id: &str) -> Result<Job, ClientError> {
        self.get(&route::job(id))
    }

    /// Tells a job to stop, in good order; forgets one that is over. Gives what it was.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn cancel_job(&self, id: &str) -> Result<Job, ClientError> {
        self.delete(&route::job(id))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parse(&self.call(Method::GET, path, Bytes::new())?)
    }

    fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parse(&self.call(Method::DELETE, path, Bytes::new())?)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.send(Method::POST, path, body)
    }

    fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.send(Method::PUT, path, body)
    }

    fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|source| self.garbled(source))?;
        self.parse(&self.call(method, path, body.into())?)
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|source| self.garbled(source))
    }

    fn garbled(&self, source: serde_json::Error) -> ClientError {
        ClientError::Garbled { socket: self.socket.clone(), source }
    }

    fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let exchange = exchange(&self.socket, method, path, body);
        let answer = self.runtime.block_on(async { tokio::time::timeout(ANSWER, exchange).await });
        let (accepted, body) =
            answer.map_err(|_| ClientError::TimedOut { socket: self.socket.clone(), seconds: ANSWER.as_secs() })??;
        if accepted { Ok(body) } else { Err(ClientError::Refused(self.parse(&body)?)) }
    }
}

async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    let timed_out = || ClientError::TimedOut { socket: socket.into(), seconds: CONNECT.as_secs() };
    match tokio::time::timeout(CONNECT, UnixStream::connect(socket)).await.map_err(|_| timed_out())? {
        Ok(stream) => Ok(stream),
        Err(source) if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(ClientError::NotRunning(socket.into()))
        }
        Err(source) => Err(ClientError::Unreachable { socket: socket.into(), source }),
    }
}

/// Sends one request; gives whether it was accepted, and the whole body.
async fn exchange(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<(bool, Bytes), ClientError> {
    let stream = connect(socket).await?;
    let lost = |source| ClientError::Lost { socket: socket.into(), source };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "tzero")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .expect("a route is a valid path");
    let response = sender.send_request(request).await.map_err(lost)?;
    let accepted = response.status().is_success();
    let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
    driver.abort();
    Ok((accepted, body))
}
