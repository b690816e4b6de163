//! A small NBD client (fixed newstyle, simple replies, one request at a time).
//!
//! Real clients prove that the server speaks the protocol; this one is for what they cannot do: to know when a reply came,
//! to send and not receive, to be cut off and say so.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

/// Longest wait for a reply.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Make completed changes durable.
    Flush = 3,
    /// Advice that bytes are not needed.
    Trim = 4,
    /// Make bytes zero.
    WriteZeroes = 6,
}

/// Force unit access, a command flag.
pub const FUA: u16 = 1;

/// Operation not permitted, as NBD numbers it.
pub const EPERM: u32 = 1;
/// Input/output error.
pub const EIO: u32 = 5;

/// Why a request has no good reply.
#[derive(Debug)]
pub enum Failure {
    /// The connection is gone; whether the request was carried out is unknown.
    Gone(io::Error),
    /// The server refused with this number.
    Refused(u32),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone(error) => write!(f, "the connection is gone: {error}"),
            Self::Refused(number) => write!(f, "refused with error {number}"),
        }
    }
}

impl std::error::Error for Failure {}

/// A connection to one export.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size: u64,
    flags: u16,
    cookie: u64,
}

impl Client {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// [`Failure::Refused`] when there is no such export.
    pub fn connect(socket: &Path, export: &str) -> Result<Self, Failure> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        if number::<8>(&mut stream)? != MAGIC || number::<8>(&mut stream)? != OPTION {
            return Err(unexpected("greeting"));
        }
        let fixed = number::<2>(&mut stream)? as u32;
        stream.write_all(&(fixed & 3).to_be_bytes())?;
        let mut option = Vec::new();
        option.extend_from_slice(&OPTION.to_be_bytes());
        option.extend_from_slice(&OPT_GO.to_be_bytes());
        option.extend_from_slice(&(export.len() as u32 + 6).to_be_bytes());
        option.extend_from_slice(&(export.len() as u32).to_be_bytes());
        option.extend_from_slice(export.as_bytes());
        option.extend_from_slice(&0_u16.to_be_bytes());
        stream.write_all(&option)?;
        let (mut size, mut flags) = (0, 0);
        loop {
            if number::<8>(&mut stream)? != OPTION_REPLY {
                return Err(unexpected("option reply"));
            }
            let _option = number::<4>(&mut stream)?;
            let kind = number::<4>(&mut stream)? as u32;
            let mut payload = vec![0; number::<4>(&mut stream)? as usize];
            stream.read_exact(&mut payload)?;
            match kind {
                REP_ACK => return Ok(Self { stream, size, flags, cookie: 0 }),
                REP_INFO if payload.len() == 12 && payload[..2] == INFO_EXPORT.to_be_bytes() => {
                    size = u64::from_be_bytes(payload[2..10].try_into().expect("eight bytes"));
                    flags = u16::from_be_bytes(payload[10..].try_into().expect("two bytes"));
                }
                REP_INFO => {}
                kind if kind & REP_ERROR != 0 => return Err(Failure::Refused(kind & !REP_ERROR)),
                _ => return Err(unexpected("kind of option reply")),
            }
        }
    }

    /// Bytes of the export.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The export refuses changes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags & 2 != 0
    }

    /// Sends a request and does not wait for its reply.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Result<(), Failure> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(28 + payload.len());
        message.extend_from_slice(&REQUEST.to_be_bytes());
        message.extend_from_slice(&flags.to_be_bytes());
        message.extend_from_slice(&(command as u16).to_be_bytes());
        message.extend_from_slice(&self.cookie.to_be_bytes());
        message.extend_from_slice(&offset.to_be_bytes());
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(payload);
        Ok(self.stream.write_all(&message)?)
    }

    fn reply(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        if number::<4>(&mut self.stream)? as u32 != REPLY {
            return Err(unexpected("reply"));
        }
        let error = number::<4>(&mut self.stream)? as u32;
        if number::<8>(&mut self.stream)? != self.cookie {
            return Err(unexpected("cookie"));
        }
        if error != 0 {
            return Err(Failure::Refused(error));
        }
        Ok(self.stream.read_exact(into)?)
    }

    /// Reads.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; length as usize];
        self.send(Command::Read, 0, offset, length, &[])?;
        self.reply(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.send(Command::Write, 0, offset, bytes.len() as u32, bytes)?;
        self.reply(&mut [])
    }

    /// Any command without data.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn order(&mut self, command: Command, flags: u16, offset: u64, length: u32) -> Result<(), Failure> {
        self.send(command, flags, offset, length, &[])?;
        self.reply(&mut [])
    }

    /// Reads everything.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn read_all(&mut self) -> Result<Vec<u8>, Failure> {
        let mut image = Vec::with_capacity(self.size as usize);
        while (image.len() as u64) < self.size {
            let left = self.size - image.len() as u64;
            image.extend_from_slice(&self.read(image.len() as u64, left.min(1 << 20) as u32)?);
        }
        Ok(image)
    }
}

fn number<const N: usize>(stream: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn unexpected(what: &'static str) -> Failure {
    Failure::Gone(io::Error::new(io::ErrorKind::InvalidData, what))
}
