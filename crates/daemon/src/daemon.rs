//! The daemon from its start to its end.
//!
//! ```text
//! signals are heard ─▶ lock the state ─▶ data threads ─▶ volumes (recovery) ─▶ sockets ─▶ ready
//!   signal, at any time ─▶ jobs end ─▶ no new client ─▶ requests in flight end ─▶ volumes are closed (clean stop on record) ─▶ sockets go
//! ```
//! A volume whose requests do not end in time is left as it is: no clean stop is recorded of it, and the daemon says so and exits 1. What
//! happens where even that hangs is in `signals`.

use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinHandle;
use tzero_api::{Exit, StatePaths};
use tzero_nbd::{Limits, Server};

use crate::address::Address;
use crate::config::Config;
use crate::directory::{StateDirectory, StateError};
use crate::exports::Offered;
use crate::jobs::Jobs;
use crate::listener::{self, ListenError};
use crate::opening::{self, Opening};
use crate::platform::{self, CrashPlan, CrashPlanError, Without, WithoutError};
use crate::record::RecordError;
use crate::service::Daemon;
use crate::signals::Signals;
use crate::threads::{DataThreads, off_thread};
use crate::volumes::{LiesOn, Volumes};
use crate::{control, movers, notify, watch};

/// How long requests in flight have to end, and once more for their answers.
const GRACE: Duration = Duration::from_secs(2);
/// How long connections have to end; then the end goes on without them.
const CONNECTIONS: Duration = Duration::from_millis(4500);
/// How long all of the end may take, before it is hurried as `signals` says.
const END: Duration = Duration::from_millis(9000);
/// How long a client may take to say what it wants. Loopback and unix sockets are fast; who is silent holds a place that others need.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What to serve, and where.
pub struct ServeOptions {
    /// The state directory, an absolute path.
    pub state: PathBuf,
    /// The configuration.
    pub config: Config,
    /// Where to listen, instead of where the configuration says; both empty: on the state directory's socket.
    pub nbd: Vec<Address>,
    /// This program: it restores where a client of the control interface asks for it.
    pub program: PathBuf,
    /// Whether bytes written at a path would land on an open file or device.
    pub lies_on: LiesOn,
}

/// Why the daemon did not start, or did not end in good order.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state directory.
    #[error("{0}")]
    State(#[from] StateError),
    /// What is remembered of the volumes.
    #[error("{0}")]
    Records(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// NBD.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// The sockets for commands and movers, threads, signals.
    #[error("the daemon cannot start: {0}")]
    Setup(#[from] io::Error),
    /// A crash test that is none.
    #[error("{0}")]
    CrashPlan(#[from] CrashPlanError),
    /// A test of the ladder that is none.
    #[error("{0}")]
    Without(#[from] WithoutError),
    /// The end took too long, or a volume could not be closed.
    #[error(
        "the daemon ended without a clean stop of every volume: after a power failure their snapshots would be lost"
    )]
    Unclean,
}

impl ServeError {
    /// How the command ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::CrashPlan(_) | Self::Without(_) => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}

impl From<RecordError> for ServeError {
    fn from(error: RecordError) -> Self {
        Self::Records(Box::new(error))
    }
}

/// Serves until a signal (SIGTERM, SIGINT, SIGHUP) ends it. `ready` is called once, when every volume is served and every socket listens.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(options: ServeOptions, ready: impl FnOnce()) -> Result<(), ServeError> {
    let (crash, without) = (CrashPlan::from_environment()?, Without::from_environment()?);
    let signals = Signals::listen()?;
    let state = StateDirectory::open(&options.state)?;
    let opening = Opening { boot_id: platform::boot()?, crash, without };
    let threads = Arc::new(DataThreads::start()?);
    let volumes = Volumes::new(state.paths().clone(), Arc::clone(&threads), opening, options.lies_on);
    let daemon = Arc::new(Daemon {
        paths: state.paths().clone(),
        threads: Arc::clone(&threads),
        volumes: Arc::new(volumes),
        jobs: Arc::new(Jobs::new(options.program.clone(), state.paths().root())),
        notices: opening::place_notice("state directory", state.paths().root()).into_iter().collect(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(run(&daemon, options, &signals, ready));
    // Threads that look at originals, or wait for a stuck disk, are not waited for.
    runtime.shutdown_background();
    if served.is_ok() {
        threads.stop();
    }
    served
}

async fn run(
    daemon: &Arc<Daemon>,
    options: ServeOptions,
    signals: &Signals,
    ready: impl FnOnce(),
) -> Result<(), ServeError> {
    daemon.notices.iter().for_each(|notice| tracing::warn!("{notice}"));
    let limits = Limits { grace: GRACE, handshake: HANDSHAKE, ..Limits::default() };
    let server = Arc::new(Server::new(Offered(Arc::clone(&daemon.volumes)), limits));
    let mut answering = None;
    let signal = match unless(signals.received(), start(daemon, &options, &server)).await {
        Ok(started) => {
            answering = Some(started?);
            ready();
            tell(notify::READY);
            signals.received().await
        }
        Err(signal) => signal,
    };
    tracing::info!("{signal}: stopping");
    tell(notify::STOPPING);
    let clean = tokio::time::timeout(END, stop(daemon, &server)).await.unwrap_or(false);
    if let Some(answering) = answering {
        answering.abort();
    }
    let listening =
        daemon.volumes.listening.get().map(|addresses| listener::socket_paths(addresses)).unwrap_or_default();
    for socket in listening.into_iter().chain([daemon.paths.control_socket(), daemon.paths.mover_socket()]) {
        // A stale socket is removed at the next start.
        let _ = fs::remove_file(socket);
    }
    if clean { Ok(()) } else { Err(ServeError::Unclean) }
}

/// Opens the volumes and listens everywhere; gives the task that answers commands.
async fn start(
    daemon: &Arc<Daemon>,
    options: &ServeOptions,
    server: &Arc<Server<Offered>>,
) -> Result<JoinHandle<io::Result<()>>, ServeError> {
    daemon.volumes.start(&options.config).await?;
    let control = control::listen(&daemon.paths.control_socket())?;
    movers::serve(Arc::clone(daemon))?;
    let mut listening = Vec::new();
    for address in wanted(options, &daemon.paths) {
        listening.push(listener::listen(&address, &daemon.threads, server).await?);
    }
    let _ = daemon.volumes.listening.set(listening);
    tokio::spawn(watch::watch(Arc::clone(&daemon.volumes)));
    let answering = tokio::spawn(control::serve(control, Arc::clone(daemon)));
    tracing::info!(state = %daemon.paths.root().display(), nbd = ?daemon.addresses(), "ready");
    Ok(answering)
}

/// What `work` gives, unless the signal comes first.
async fn unless<T>(
    signal: impl Future<Output = &'static str>,
    work: impl Future<Output = T>,
) -> Result<T, &'static str> {
    let (mut signal, mut work) = (pin!(signal), pin!(work));
    poll_fn(|cx| match signal.as_mut().poll(cx) {
        Poll::Ready(name) => Poll::Ready(Err(name)),
        Poll::Pending => work.as_mut().poll(cx).map(Ok),
    })
    .await
}

fn wanted(options: &ServeOptions, paths: &StatePaths) -> Vec<Address> {
    let asked = if options.nbd.is_empty() { &options.config.nbd } else { &options.nbd };
    if asked.is_empty() { vec![Address::Unix(paths.nbd_socket())] } else { asked.clone() }
}

/// Lets requests in flight end and closes the volumes; says whether every one was closed in good order.
async fn stop(daemon: &Daemon, server: &Server<Offered>) -> bool {
    daemon.volumes.stopping.store(true, Ordering::Release);
    // First those that may be clients of its own; while they are served they end quickly.
    let jobs = Arc::clone(&daemon.jobs);
    off_thread(move || jobs.stop()).await;
    server.shut_down();
    if tokio::time::timeout(CONNECTIONS, server.ended()).await.is_err() {
        tracing::warn!("{} clients did not end in time", server.connections());
    }
    daemon.volumes.close().await == 0
}

fn tell(news: &str) {
    if let Err(error) = notify::tell(news) {
        tracing::warn!("the service manager cannot be told {news}: {error}");
    }
}
