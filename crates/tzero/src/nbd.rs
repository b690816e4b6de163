//! As much of an NBD client as the demo and the bench need: one export, its requests, and simple replies. Blocking, with time limits.
//!
//! Protocol: `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the server may be silent.
const SILENCE: Duration = Duration::from_secs(30);

const GREETING: u64 = 0x4e42_444d_4147_4943;
const HAVE_OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY: u32 = 0x6744_6698;
const FIXED_NO_ZEROES: u32 = 3;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
/// Longest information about an export that is read, in bytes.
const LONGEST_INFORMATION: u32 = 64 << 10;

/// Bytes of a request without its payload.
pub(crate) const REQUEST_BYTES: usize = 28;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// A connection to one export.
pub(crate) struct Connection {
    stream: UnixStream,
}

pub(crate) fn protocol(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Connection {
    /// Connects and opens `export`.
    pub(crate) fn open(socket: &Path, export: &str) -> io::Result<Self> {
        let mut connection = Self::greet(socket)?;
        connection.go(export)?;
        Ok(connection)
    }

    /// The same, for replies as most clients have them: structured. Gives the bare stream.
    pub(crate) fn open_structured(socket: &Path, export: &str) -> io::Result<UnixStream> {
        let mut connection = Self::greet(socket)?;
        connection.ask(OPTION_STRUCTURED_REPLY, &[])?;
        connection.go(export)?;
        Ok(connection.stream)
    }

    fn greet(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let mut connection = Self { stream };
        if connection.number::<8>()? != GREETING || connection.number::<8>()? != HAVE_OPTION {
            return Err(protocol("the server does not speak NBD"));
        }
        let _flags = connection.number::<2>()?;
        connection.stream.write_all(&FIXED_NO_ZEROES.to_be_bytes())?;
        Ok(connection)
    }

    fn go(&mut self, export: &str) -> io::Result<()> {
        let mut data = Vec::new();
        data.extend_from_slice(&(export.len() as u32).to_be_bytes());
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&0u16.to_be_bytes());
        self.ask(OPTION_GO, &data)
    }

    fn ask(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut message = Vec::new();
        message.extend_from_slice(&HAVE_OPTION.to_be_bytes());
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&(data.len() as u32).to_be_bytes());
        message.extend_from_slice(data);
        self.stream.write_all(&message)?;
        loop {
            if self.number::<8>()? != OPTION_REPLY || self.number::<4>()? != u64::from(option) {
                return Err(protocol("the server's answer is not one to the option"));
            }
            let kind = self.number::<4>()? as u32;
            let len = self.number::<4>()? as u32;
            if len > LONGEST_INFORMATION {
                return Err(protocol("the server's answer is too long"));
            }
            let mut information = vec![0; len as usize];
            self.stream.read_exact(&mut information)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO => {}
                _ => return Err(protocol("the server does not offer the export, or not in this form")),
            }
        }
    }

    /// Sends a write. Its reply carries the cookie.
    pub(crate) fn send_write(&mut self, cookie: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(REQUEST_BYTES + bytes.len());
        message.extend_from_slice(&request(Command::Write, cookie, offset, bytes.len() as u32));
        message.extend_from_slice(bytes);
        self.stream.write_all(&message)
    }

    /// Waits for the next reply; gives its cookie.
    pub(crate) fn receive_reply(&mut self) -> io::Result<u64> {
        if self.number::<4>()? != u64::from(SIMPLE_REPLY) {
            return Err(protocol("the server's reply is not a simple one"));
        }
        let error = self.number::<4>()?;
        let cookie = self.number::<8>()?;
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error as i32));
        }
        Ok(cookie)
    }

    /// Ends the connection in good order.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.stream.write_all(&request(Command::Disconnect, 0, 0, 0))
    }

    fn number<const BYTES: usize>(&mut self) -> io::Result<u64> {
        let mut bytes = [0; BYTES];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// A request as it is on the wire.
pub(crate) fn request(command: Command, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&REQUEST.to_be_bytes());
    bytes[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}
