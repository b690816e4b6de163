//! An NBD server in this process, over memory that outlives it.

#[path = "../../../nbd/tests/support/device.rs"]
mod device;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tzero_block::{BlockDevice, ByteRange};
use tzero_io::{Backend, Buffer, Listener, Runtime, Sender, channel, spawn};
use tzero_nbd::{Limits, Server, Uri};

use device::{DeviceExports, TestDevice};

/// Memory behind a socket, as the exports `vol` and, read-only, `vol@ro`.
pub struct Exported {
    device: Arc<TestDevice>,
    socket: PathBuf,
    running: Option<Running>,
}

struct Running {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Exported {
    pub fn new(socket: &Path, bytes: Vec<u8>) -> Self {
        let mut exported = Self { device: Arc::new(TestDevice::new(bytes)), socket: socket.to_owned(), running: None };
        exported.start();
        exported
    }

    pub fn uri(&self, export: &str) -> Uri {
        Uri::unix(&self.socket, export).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.device.bytes()
    }

    /// Bytes that were written since the last time that this was asked, zeroes as commands not counted.
    pub fn written(&self) -> u64 {
        let calls = self.device.calls().into_iter();
        calls.filter(|call| matches!(call.action, tzero_block::Action::Write)).map(|call| call.len).sum()
    }

    /// Whether a change has come to a place at or behind `offset`.
    pub fn has_changed_at(&self, offset: u64) -> bool {
        let is_change = |action| matches!(action, tzero_block::Action::Write | tzero_block::Action::WriteZeroes);
        self.device.calls().iter().any(|call| is_change(call.action) && call.offset >= offset)
    }

    /// From the next request on that touches the range, nothing is answered.
    pub fn hold(&self, offset: u64, len: u64) {
        self.device.hold(ByteRange::new(offset, len));
    }

    /// Changes bytes behind everybody's back, while no server runs.
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) {
        Runtime::new(Backend::Auto).unwrap().block_on(async {
            let device = self.device.faulty.inner();
            device.write(offset, Buffer::copy_of(bytes), false).await.1.unwrap();
        });
    }

    pub fn let_go(&self) {
        self.device.let_go();
    }

    pub fn start(&mut self) {
        let (stop, mut stopped) = channel();
        let (ready, listens) = mpsc::channel();
        let exports = DeviceExports { device: Arc::clone(&self.device), minimum_block: 512 };
        let socket = self.socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime = Runtime::new(Backend::Auto).unwrap();
            runtime.block_on(async {
                let _ = std::fs::remove_file(&socket);
                let listener = Listener::unix(&socket).unwrap();
                ready.send(()).unwrap();
                let server = Arc::new(Server::new(exports, Limits::default()));
                drop(spawn(async move {
                    while let Ok(stream) = listener.accept().await {
                        let server = Arc::clone(&server);
                        drop(spawn(async move { drop(server.serve_connection(stream).await) }));
                    }
                }));
                stopped.recv().await;
            });
        });
        listens.recv().unwrap();
        self.running = Some(Running { stop, thread });
    }

    /// Ends the server in the middle of whatever it does.
    pub fn kill(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            drop(stop);
            thread.join().unwrap();
        }
        self.device.let_go();
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        self.kill();
    }
}
