//! A server in this process, and clients of it over real unix sockets.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod client;
pub(crate) mod device;
pub(crate) mod fake;
pub(crate) mod listening;
pub(crate) mod process;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::Client;
use device::{DeviceExports, TestDevice};
use tzero_io::{Backend, Handle, Runtime, Sender, Stream, channel};
use tzero_nbd::{End, Error, Limits, Server};

/// Bytes of the device unless a test asks for others.
pub(crate) const SIZE: usize = 1 << 20;

/// How a connection ended.
pub(crate) type Outcome = Result<End, Error>;

/// A server on a thread of its own.
pub(crate) struct Harness {
    pub(crate) server: Arc<Server<DeviceExports<TestDevice>>>,
    pub(crate) device: Arc<TestDevice>,
    handle: Handle,
    outcomes: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Harness {
    /// Over [`pattern`] bytes.
    pub(crate) fn new() -> Self {
        Self::with(pattern(SIZE), Limits::default())
    }

    pub(crate) fn with(bytes: Vec<u8>, limits: Limits) -> Self {
        Self::over(bytes, limits, Backend::Auto)
    }

    pub(crate) fn over(bytes: Vec<u8>, limits: Limits, backend: Backend) -> Self {
        let device = Arc::new(TestDevice::new(bytes));
        let exports = DeviceExports { device: Arc::clone(&device), minimum_block: 512 };
        let server = Arc::new(Server::new(exports, limits));
        let (stop, mut stopped) = channel();
        let (ready, handle) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = Runtime::new(backend).expect("a runtime");
            ready.send(runtime.handle()).expect("the harness waits");
            runtime.block_on(stopped.recv());
        });
        let handle = handle.recv().expect("the runtime starts");
        Self { server, device, handle, outcomes: mpsc::channel(), stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn connect(&self) -> Client {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (server, outcomes) = (Arc::clone(&self.server), self.outcomes.0.clone());
        self.handle.spawn(move || async move {
            let stream = Stream::from_unix(theirs).expect("a socket can be made non-blocking");
            let _ = outcomes.send(server.serve_connection(stream).await);
        });
        Client::new(ours)
    }

    /// How the next connection to end has ended.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcomes.1.recv_timeout(Duration::from_secs(20)).expect("the connection ends")
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.device.let_go();
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server's thread panicked");
        }
    }
}

/// Bytes without a zero, different at every place nearby.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251 + index / 251 % 3 + 1) as u8).collect()
}

/// Yields until `condition` holds, and fails if it never does.
pub(crate) fn eventually(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never happens");
        std::thread::yield_now();
    }
}
