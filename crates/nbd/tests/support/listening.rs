//! Our own server at a path, that can be killed and started again over the same bytes.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tzero_io::{Backend, Listener, Runtime, Sender, Stream, channel, spawn};
use tzero_nbd::{ClientOptions, Limits, NbdDevice, Reconnect, Server, Uri};

use super::device::{DeviceExports, TestDevice};
use super::eventually;

/// A server on a thread of its own.
pub(crate) struct Listening {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Serves `device` as `vol` and `vol@ro` at `socket`.
    pub(crate) fn start(socket: &Path, device: &Arc<TestDevice>, minimum_block: u32) -> Self {
        Self::with(socket, DeviceExports { device: Arc::clone(device), minimum_block }, Backend::Auto)
    }

    pub(crate) fn with(socket: &Path, exports: DeviceExports<TestDevice>, backend: Backend) -> Self {
        let (stop, mut stopped) = channel();
        let (ready, listens) = mpsc::channel();
        let socket = socket.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = Runtime::new(backend).expect("a runtime");
            runtime.block_on(async {
                let _ = std::fs::remove_file(&socket);
                let listener = Listener::unix(&socket).expect("the socket can be made");
                ready.send(()).expect("the test waits");
                let server = Arc::new(Server::new(exports, Limits::default()));
                drop(spawn(async move {
                    while let Ok(stream) = listener.accept().await {
                        let server = Arc::clone(&server);
                        drop(spawn(async move { drop(server.serve_connection(stream).await) }));
                    }
                }));
                stopped.recv().await;
            });
            // Connections and requests go with the runtime, wherever they are.
        });
        listens.recv().expect("the server listens");
        Self { stop: Some(stop), thread: Some(thread) }
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server's thread panicked");
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.end();
    }
}

/// A place for sockets, and what is at them.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    pub(crate) fn uri(&self, export: &str) -> Uri {
        Uri::unix(&self.socket(), export).expect("usable")
    }
}

/// Options that fail soon where a test means them to.
pub(crate) fn options(within: std::time::Duration) -> ClientOptions {
    ClientOptions { reconnect: Reconnect { within }, ..ClientOptions::default() }
}

/// With ten seconds for the server to come back.
pub(crate) async fn open(uri: Uri) -> NbdDevice {
    NbdDevice::open(uri, options(std::time::Duration::from_secs(10))).await.expect("the export opens")
}

/// Runs a test on every backend.
pub(crate) fn on_both(test: impl AsyncFn(Backend)) {
    for backend in [Backend::Ring, Backend::Threads] {
        Runtime::new(backend).expect("a runtime").block_on(test(backend));
    }
}

/// Waits until somebody listens at `socket`.
pub(crate) fn listens(socket: &Path) {
    eventually(|| UnixStream::connect(socket).is_ok());
}

/// A stream of this runtime over one of the standard library.
pub(crate) fn stream(stream: UnixStream) -> Stream {
    Stream::from_unix(stream).expect("a socket can be made non-blocking")
}
