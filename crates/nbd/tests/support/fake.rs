//! A server that says whatever a test makes it say.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait for a byte.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const OPTION_STRUCTURED: u32 = 8;
pub(crate) const OPTION_CONTEXT: u32 = 10;
pub(crate) const OPTION_GO: u32 = 7;
pub(crate) const ACK: u32 = 1;
pub(crate) const UNSUPPORTED: u32 = 0x8000_0001;
const INFO: u32 = 3;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;

/// Accepts connections and plays `part` for each, numbered from 0, one after the other.
pub(crate) struct Fake {
    socket: std::path::PathBuf,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn start(socket: &Path, mut part: impl FnMut(usize, &mut Peer) -> Option<()> + Send + 'static) -> Self {
        let listener = UnixListener::bind(socket).expect("the socket can be made");
        let ends = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                let (stream, _) = listener.accept().expect("a connection");
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
                stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
                // A client that leaves ends the part.
                let _ = part(number, &mut Peer { stream });
            }
        });
        Self { socket: socket.to_owned(), ends, thread: Some(thread) }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server's thread panicked");
        }
    }
}

/// A request as it came.
pub(crate) struct Request {
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) payload: Vec<u8>,
}

/// The client, seen from the server. Everything gives `None` once it is gone.
pub(crate) struct Peer {
    stream: UnixStream,
}

impl Peer {
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()
    }

    pub(crate) fn receive(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Waits until the client has gone.
    pub(crate) fn left(&mut self) -> Option<()> {
        while self.stream.read(&mut [0; 4096]).ok()? > 0 {}
        Some(())
    }

    /// Does nothing for a while, unless the client leaves.
    pub(crate) fn pause(&mut self, time: Duration) -> Option<()> {
        self.stream.set_read_timeout(Some(time)).expect("a timeout can be set");
        let gone = matches!(self.stream.read(&mut [0]), Ok(0));
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        (!gone).then_some(())
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.receive(4)?.try_into().expect("four bytes")))
    }

    pub(crate) fn greet(&mut self) -> Option<()> {
        self.send(b"NBDMAGICIHAVEOPT\0\x03")?;
        self.u32().map(drop)
    }

    /// The number of the next option.
    pub(crate) fn option(&mut self) -> Option<u32> {
        assert_eq!(self.receive(8)?, b"IHAVEOPT");
        let option = self.u32()?;
        let len = self.u32()?;
        self.receive(len as usize)?;
        Some(option)
    }

    pub(crate) fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Option<()> {
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let len = (data.len() as u32).to_be_bytes();
        self.send(&[&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &len, data].concat())
    }

    pub(crate) fn info(&mut self, size: u64, flags: u16) -> Option<()> {
        self.reply(OPTION_GO, INFO, &[&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat())
    }

    pub(crate) fn blocks(&mut self, minimum: u32, maximum: u32) -> Option<()> {
        let sizes = [minimum, 4096, maximum].map(u32::to_be_bytes);
        self.reply(OPTION_GO, INFO, &[&[0, 3][..], sizes.as_flattened()].concat())
    }

    /// Negotiates an export of `size` bytes. With `structured` there are extents too, with the number 1.
    pub(crate) fn negotiate(&mut self, size: u64, flags: u16, structured: bool) -> Option<()> {
        self.greet()?;
        loop {
            match self.option()? {
                OPTION_GO => {
                    self.info(size, flags)?;
                    return self.reply(OPTION_GO, ACK, &[]);
                }
                option if !structured => self.reply(option, UNSUPPORTED, b"no")?,
                OPTION_CONTEXT => {
                    self.reply(OPTION_CONTEXT, 4, b"\0\0\0\x01base:allocation")?;
                    self.reply(OPTION_CONTEXT, ACK, &[])?;
                }
                option => self.reply(option, ACK, &[])?,
            }
        }
    }

    pub(crate) fn request(&mut self) -> Option<Request> {
        let head = self.receive(28)?;
        assert_eq!(head[..4], 0x2560_9513_u32.to_be_bytes());
        let number = |from: usize, to: usize| head[from..to].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (kind, len) = (number(6, 8) as u16, number(24, 28) as u32);
        let payload = if kind == WRITE { self.receive(len as usize)? } else { Vec::new() };
        Some(Request { kind, cookie: number(8, 16), offset: number(16, 24), len, payload })
    }

    pub(crate) fn simple(&mut self, cookie: u64, error: u32) -> Option<()> {
        self.send(&[&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat())
    }

    /// Start of a chunk that claims a payload of `len` bytes.
    pub(crate) fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, len: u32, payload: &[u8]) -> Option<()> {
        let magic = 0x668e_33ef_u32.to_be_bytes();
        let (flags, kind) = (flags.to_be_bytes(), kind.to_be_bytes());
        self.send(&[&magic[..], &flags, &kind, &cookie.to_be_bytes(), &len.to_be_bytes(), payload].concat())
    }

    /// Answers a request as a good server over zeroes would.
    pub(crate) fn serve(&mut self, request: &Request) -> Option<()> {
        self.simple(request.cookie, 0)?;
        if request.kind == READ { self.send(&vec![0; request.len as usize]) } else { Some(()) }
    }
}
