//! As much of an NBD client as writers need: one export, writes, simple replies. Blocking, with time limits.
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
const SIMPLE_REPLY: u32 = 0x6744_6698;
const FIXED_NO_ZEROES: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
/// Longest information about an export that is read, in bytes.
const LONGEST_INFORMATION: u32 = 64 << 10;

/// A connection to one export.
pub(crate) struct Connection {
    stream: UnixStream,
}

fn protocol(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Connection {
    /// Connects and opens `export`.
    pub(crate) fn open(socket: &Path, export: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let mut connection = Self { stream };
        connection.negotiate(export)?;
        Ok(connection)
    }

    fn negotiate(&mut self, export: &str) -> io::Result<()> {
        if self.number::<8>()? != GREETING || self.number::<8>()? != HAVE_OPTION {
            return Err(protocol("the server does not speak NBD"));
        }
        let _flags = self.number::<2>()?;
        let data_len = 4 + export.len() + 2;
        let mut message = Vec::new();
        message.extend_from_slice(&FIXED_NO_ZEROES.to_be_bytes());
        message.extend_from_slice(&HAVE_OPTION.to_be_bytes());
        message.extend_from_slice(&OPTION_GO.to_be_bytes());
        message.extend_from_slice(&(data_len as u32).to_be_bytes());
        message.extend_from_slice(&(export.len() as u32).to_be_bytes());
        message.extend_from_slice(export.as_bytes());
        message.extend_from_slice(&0u16.to_be_bytes());
        self.stream.write_all(&message)?;
        loop {
            if self.number::<8>()? != OPTION_REPLY || self.number::<4>()? != u64::from(OPTION_GO) {
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
                _ => return Err(protocol("the server does not offer the export")),
            }
        }
    }

    /// Sends a write. Its reply carries the cookie.
    pub(crate) fn send_write(&mut self, cookie: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(28 + bytes.len());
        request(&mut message, COMMAND_WRITE, cookie, offset, bytes.len() as u32);
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
        let mut message = Vec::new();
        request(&mut message, COMMAND_DISCONNECT, 0, 0, 0);
        self.stream.write_all(&message)
    }

    fn number<const BYTES: usize>(&mut self) -> io::Result<u64> {
        let mut bytes = [0; BYTES];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

fn request(message: &mut Vec<u8>, command: u16, cookie: u64, offset: u64, len: u32) {
    message.extend_from_slice(&REQUEST.to_be_bytes());
    message.extend_from_slice(&0u16.to_be_bytes());
    message.extend_from_slice(&command.to_be_bytes());
    message.extend_from_slice(&cookie.to_be_bytes());
    message.extend_from_slice(&offset.to_be_bytes());
    message.extend_from_slice(&len.to_be_bytes());
}
