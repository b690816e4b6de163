//! A client that writes and reads the protocol's bytes by hand.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longest wait for a byte before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
}

/// A chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const OFFSET_DATA: u16 = 1;
pub(crate) const OFFSET_HOLE: u16 = 2;
pub(crate) const BLOCK_STATUS: u16 = 5;
pub(crate) const ERROR: u16 = 0x8001;

/// Replies of one kind to an option.
pub(crate) type OptionReply = (u32, Vec<u8>);

pub(crate) fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// Data of INFO and GO.
pub(crate) fn info_request(name: &str, kinds: &[u16]) -> Vec<u8> {
    let kinds: Vec<u8> =
        std::iter::once(kinds.len() as u16).chain(kinds.iter().copied()).flat_map(u16::to_be_bytes).collect();
    [counted(name.as_bytes()), kinds].concat()
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn context_request(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(counted(query.as_bytes())));
    data
}

/// The bytes of a request without payload.
pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

impl Client {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Self { stream }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server receives");
    }

    pub(crate) fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("the server sends");
        bytes
    }

    pub(crate) fn receive_vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("the server sends");
        bytes
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.receive())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.receive())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.receive())
    }

    /// The server has closed, and sent nothing more.
    pub(crate) fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(rest, [0; 0]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    /// Greeting, with the client flags given.
    pub(crate) fn greet(&mut self, flags: u32) {
        assert_eq!(&self.receive::<18>(), b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes());
    }

    pub(crate) fn send_option(&mut self, option: u32, data: &[u8]) {
        let head = [&b"IHAVEOPT"[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
        self.send(&[&head, data].concat());
    }

    pub(crate) fn option_reply(&mut self, option: u32) -> OptionReply {
        assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
        assert_eq!(self.u32(), option);
        let kind = self.u32();
        let len = self.u32() as usize;
        (kind, self.receive_vec(len))
    }

    /// Sends an option; gives all replies, the last of which is an ACK or an error.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option);
            let last = reply.0 == 1 || reply.0 >= 1 << 31;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// The final reply's kind.
    pub(crate) fn outcome(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data).last().expect("there is a final reply").0
    }

    /// From the greeting to transmission, with simple replies.
    pub(crate) fn go_simple(&mut self, name: &str) {
        self.greet(3);
        assert_eq!(self.outcome(7, &info_request(name, &[])), 1);
    }

    /// From the greeting to transmission, with structured replies and `base:allocation`.
    pub(crate) fn go(&mut self, name: &str) {
        self.greet(3);
        assert_eq!(self.outcome(8, &[]), 1);
        assert_eq!(self.outcome(10, &context_request(name, &["base:allocation"])), 1);
        assert_eq!(self.outcome(7, &info_request(name, &[])), 1);
    }

    pub(crate) fn simple(&mut self) -> (u64, u32) {
        assert_eq!(self.u32(), 0x6744_6698);
        let errno = self.u32();
        (self.u64(), errno)
    }

    pub(crate) fn chunk(&mut self) -> Chunk {
        assert_eq!(self.u32(), 0x668e_33ef);
        let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
        let len = self.u32() as usize;
        Chunk { flags, kind, cookie, payload: self.receive_vec(len) }
    }

    /// The errno of the reply to a request that is sent with cookie 77 and is not a successful read.
    pub(crate) fn errno(&mut self, flags: u16, command: u16, offset: u64, len: u32) -> u32 {
        self.send(&request(flags, command, 77, offset, len));
        self.errno_of_reply()
    }

    /// The same for a write.
    pub(crate) fn write(&mut self, flags: u16, offset: u64, bytes: &[u8]) -> u32 {
        self.send(&request(flags, 1, 77, offset, bytes.len() as u32));
        self.send(bytes);
        self.errno_of_reply()
    }

    fn errno_of_reply(&mut self) -> u32 {
        match self.u32() {
            0x6744_6698 => {
                let errno = self.u32();
                assert_eq!(self.u64(), 77);
                errno
            }
            0x668e_33ef => {
                assert_eq!((self.u16(), self.u16(), self.u64()), (1, ERROR, 77));
                let len = self.u32() as usize;
                let payload = self.receive_vec(len);
                let (errno, message) = (&payload[..4], &payload[6..]);
                assert_eq!(payload[4..6], (message.len() as u16).to_be_bytes());
                assert!(!message.is_empty() && std::str::from_utf8(message).is_ok());
                u32::from_be_bytes(errno.try_into().expect("four bytes"))
            }
            magic => panic!("no reply starts with {magic:#x}"),
        }
    }

    /// The bytes of a successful read with simple replies.
    pub(crate) fn read_simple(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.send(&request(0, 0, 78, offset, len));
        assert_eq!(self.simple(), (78, 0));
        self.receive_vec(len as usize)
    }

    /// The one chunk that answers a read with structured replies.
    pub(crate) fn read(&mut self, flags: u16, offset: u64, len: u32) -> Chunk {
        self.send(&request(flags, 0, 79, offset, len));
        let chunk = self.chunk();
        assert_eq!((chunk.flags, chunk.cookie), (1, 79));
        chunk
    }
}
