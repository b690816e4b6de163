//! A request's 28 bytes to a [`Command`] that is safe to carry out, or to the reason why not. Pure.
//!
//! # Invariants
//! 1. A [`Command`] lies within the export, is not empty, is aligned, and carries only flags that belong to it.
//! 2. A command that changes anything exists only for a writable export (R24).
//! 3. A payload in either direction is at most [`LARGEST_PAYLOAD`] bytes long.

use tzero_block::{ByteRange, ExportInfo, Zeroes};

use crate::contexts::STATUS_WINDOW;
use crate::wire::{Errno, LARGEST_PAYLOAD, REQUEST_MAGIC, command, command_flag, transmission_flag as flag};

/// Charged against a connection's memory for the extents of one `BLOCK_STATUS`, in bytes: what the most fragmented
/// [`STATUS_WINDOW`] of 4 KiB blocks takes while it is turned into a reply.
const COST_OF_STATUS: usize = 8 << 20;

/// A request as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// The client's own number for the request, opaque.
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Header {
    pub(crate) const LEN: usize = 28;

    /// `None` if the magic number is wrong.
    pub(crate) fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|index| bytes[at + index]));
        let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|index| bytes[at + index]));
        (u32_at(0) == REQUEST_MAGIC).then(|| Self {
            flags: u16_at(4),
            command: u16_at(6),
            cookie: u64_at(8),
            offset: u64_at(16),
            len: u32_at(24),
        })
    }

    /// Bytes that follow the header on the wire, whatever else is wrong with it.
    pub(crate) fn payload(&self) -> u32 {
        if self.command == command::WRITE { self.len } else { 0 }
    }
}

/// What was agreed about the export when the handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    /// Granularity of offsets and lengths in bytes, a power of two.
    pub(crate) minimum_block: u32,
    /// Replies are structured.
    pub(crate) structured: bool,
    /// `base:allocation` was selected.
    pub(crate) allocation: bool,
    /// Several connections may have the export.
    pub(crate) shared: bool,
    /// The export is told what was delivered.
    pub(crate) counts_deliveries: bool,
}

impl Terms {
    pub(crate) fn new(info: &ExportInfo, structured: bool, allocation: bool) -> Self {
        Self {
            size: info.size,
            read_only: info.read_only,
            minimum_block: info.minimum_block,
            structured,
            allocation,
            shared: info.shared,
            counts_deliveries: info.counts_deliveries,
        }
    }

    /// What the export can do, as the client is told it.
    pub(crate) fn flags(&self) -> u16 {
        let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
        let shared = if self.shared { flag::CAN_MULTI_CONN } else { 0 };
        let access = if self.read_only {
            flag::READ_ONLY
        } else {
            flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
        };
        always | shared | access | if self.structured { flag::SEND_DF } else { 0 }
    }
}

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read(ByteRange),
    Write { range: ByteRange, fua: bool },
    Flush,
    Trim { range: ByteRange, fua: bool },
    Cache(ByteRange),
    WriteZeroes { range: ByteRange, zeroes: Zeroes },
    BlockStatus { range: ByteRange, one: bool },
    Disconnect,
}

impl Command {
    /// Memory that the request and its reply take, in bytes.
    pub(crate) fn cost(&self) -> usize {
        match self {
            Self::Read(range) | Self::Write { range, .. } => range.len() as usize,
            Self::BlockStatus { .. } => COST_OF_STATUS,
            _ => 0,
        }
    }
}

/// Why a request is refused: the number for programs, the sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) reason: &'static str,
}

const fn refusal(errno: Errno, reason: &'static str) -> Refusal {
    Refusal { errno, reason }
}

/// Holds a request against the terms.
pub(crate) fn check(header: &Header, terms: &Terms) -> Result<Command, Refusal> {
    if header.command == command::DISC {
        return Ok(Command::Disconnect);
    }
    if header.flags & !allowed_flags(header.command, terms) != 0 {
        return Err(refusal(Errno::Inval, "the request has a flag that does not belong to it"));
    }
    let fua = header.flags & command_flag::FUA != 0;
    match header.command {
        command::READ => {
            if header.len > LARGEST_PAYLOAD {
                let errno = if terms.structured { Errno::Overflow } else { Errno::Inval };
                return Err(refusal(errno, "the read is larger than the largest payload"));
            }
            place(header, terms, Errno::Inval).map(Command::Read)
        }
        command::WRITE => {
            writable(terms)?;
            if header.len > LARGEST_PAYLOAD {
                return Err(refusal(Errno::Inval, "the write is larger than the largest payload"));
            }
            Ok(Command::Write { range: place(header, terms, Errno::NoSpc)?, fua })
        }
        command::FLUSH if header.offset != 0 || header.len != 0 => {
            Err(refusal(Errno::Inval, "a flush has neither offset nor length"))
        }
        command::FLUSH => Ok(Command::Flush),
        command::TRIM => {
            writable(terms)?;
            Ok(Command::Trim { range: place(header, terms, Errno::Inval)?, fua })
        }
        command::CACHE => place(header, terms, Errno::Inval).map(Command::Cache),
        command::WRITE_ZEROES => {
            writable(terms)?;
            let zeroes = Zeroes {
                may_unmap: header.flags & command_flag::NO_HOLE == 0,
                fast: header.flags & command_flag::FAST_ZERO != 0,
                fua,
            };
            Ok(Command::WriteZeroes { range: place(header, terms, Errno::NoSpc)?, zeroes })
        }
        command::BLOCK_STATUS if !terms.allocation => {
            Err(refusal(Errno::Inval, "no metadata context was selected for this export"))
        }
        command::BLOCK_STATUS => {
            let range = place(header, terms, Errno::Inval)?;
            let range = ByteRange::new(range.start(), range.len().min(STATUS_WINDOW));
            Ok(Command::BlockStatus { range, one: header.flags & command_flag::REQ_ONE != 0 })
        }
        _ => Err(refusal(Errno::Inval, "unknown command")),
    }
}

/// FUA is valid everywhere and means nothing where nothing is written.
fn allowed_flags(command: u16, terms: &Terms) -> u16 {
    command_flag::FUA
        | match command {
            command::READ if terms.structured => command_flag::DF,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        }
}

fn writable(terms: &Terms) -> Result<(), Refusal> {
    if terms.read_only { Err(refusal(Errno::Perm, "the export is read-only")) } else { Ok(()) }
}

fn place(header: &Header, terms: &Terms, past_the_end: Errno) -> Result<ByteRange, Refusal> {
    let range = ByteRange::checked(header.offset, u64::from(header.len))
        .filter(|range| range.end() <= terms.size)
        .ok_or(refusal(past_the_end, "the request reaches past the end of the export"))?;
    if range.is_empty() {
        return Err(refusal(Errno::Inval, "the request has no length"));
    }
    if (range.start() | range.len()) % u64::from(terms.minimum_block) != 0 {
        return Err(refusal(Errno::Inval, "the request is not aligned to the minimum block"));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERMS: Terms = Terms {
        size: 1 << 30,
        read_only: false,
        minimum_block: 512,
        structured: true,
        allocation: true,
        shared: true,
        counts_deliveries: false,
    };

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> Header {
        Header { flags, command, cookie: 1, offset, len }
    }

    fn errno(command: u16, flags: u16, offset: u64, len: u32, terms: &Terms) -> Errno {
        check(&header(command, flags, offset, len), terms).expect_err("refused").errno
    }

    #[test]
    fn header_layout() {
        let mut bytes = [0; Header::LEN];
        bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        bytes[4..].iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        let parsed = Header::parse(&bytes).expect("the magic is right");
        assert_eq!(parsed.flags, 0x0102);
        assert_eq!(parsed.command, 0x0304);
        assert_eq!(parsed.cookie, 0x0506_0708_090a_0b0c);
        assert_eq!(parsed.offset, 0x0d0e_0f10_1112_1314);
        assert_eq!(parsed.len, 0x1516_1718);
        bytes[0] = 0;
        assert_eq!(Header::parse(&bytes), None);
    }

    #[test]
    fn past_the_end() {
        for command in [command::READ, command::TRIM, command::CACHE, command::BLOCK_STATUS] {
            assert_eq!(errno(command, 0, 1 << 30, 512, &TERMS), Errno::Inval);
            assert_eq!(errno(command, 0, u64::MAX - 511, 512, &TERMS), Errno::Inval);
        }
        for command in [command::WRITE, command::WRITE_ZEROES] {
            assert_eq!(errno(command, 0, (1 << 30) - 512, 1024, &TERMS), Errno::NoSpc);
            assert_eq!(
                errno(command, 0, u64::MAX, u32::MAX, &TERMS),
                if command == command::WRITE { Errno::Inval } else { Errno::NoSpc }
            );
        }
        let last = check(&header(command::READ, 0, (1 << 30) - 512, 512), &TERMS);
        assert_eq!(last, Ok(Command::Read(ByteRange::new((1 << 30) - 512, 512))));
    }

    #[test]
    fn read_only_refuses_every_change_first() {
        let terms = Terms { read_only: true, ..TERMS };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(errno(command, 0, u64::MAX, 3, &terms), Errno::Perm);
        }
        assert_eq!(check(&header(command::FLUSH, 0, 0, 0), &terms), Ok(Command::Flush));
    }

    #[test]
    fn flags_belong_to_commands() {
        let df = command_flag::DF;
        assert!(check(&header(command::READ, df | command_flag::FUA, 0, 512), &TERMS).is_ok());
        assert_eq!(errno(command::READ, df, 0, 512, &Terms { structured: false, ..TERMS }), Errno::Inval);
        assert_eq!(errno(command::WRITE, df, 0, 512, &TERMS), Errno::Inval);
        assert_eq!(errno(command::TRIM, command_flag::NO_HOLE, 0, 512, &TERMS), Errno::Inval);
        assert_eq!(errno(command::CACHE, 1 << 7, 0, 512, &TERMS), Errno::Inval);
        assert_eq!(errno(command::READ, 1 << 5, 0, 512, &TERMS), Errno::Inval);
        let flags = command_flag::NO_HOLE | command_flag::FAST_ZERO | command_flag::FUA;
        let zeroes = Zeroes { may_unmap: false, fast: true, fua: true };
        let command =
            check(&header(command::WRITE_ZEROES, flags, 512, u32::MAX / 512 * 512), &Terms { size: 1 << 40, ..TERMS });
        assert_eq!(command, Ok(Command::WriteZeroes { range: ByteRange::new(512, 0xffff_fe00), zeroes }));
    }

    #[test]
    fn too_large_odd_or_empty() {
        assert_eq!(errno(command::READ, 0, 0, (32 << 20) + 512, &TERMS), Errno::Overflow);
        assert_eq!(errno(command::READ, 0, 0, (32 << 20) + 512, &Terms { structured: false, ..TERMS }), Errno::Inval);
        assert_eq!(errno(command::WRITE, 0, 0, (32 << 20) + 512, &TERMS), Errno::Inval);
        assert!(check(&header(command::WRITE, 0, 0, 32 << 20), &TERMS).is_ok());
        for command in [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES, command::BLOCK_STATUS] {
            assert_eq!(errno(command, 0, 0, 0, &TERMS), Errno::Inval);
            assert_eq!(errno(command, 0, 256, 512, &TERMS), Errno::Inval);
            assert_eq!(errno(command, 0, 512, 100, &TERMS), Errno::Inval);
        }
        assert_eq!(errno(command::FLUSH, 0, 0, 1, &TERMS), Errno::Inval);
        assert_eq!(errno(8, 0, 0, 512, &TERMS), Errno::Inval);
        assert_eq!(errno(command::BLOCK_STATUS, 0, 0, 512, &Terms { allocation: false, ..TERMS }), Errno::Inval);
    }

    #[test]
    fn block_status_looks_at_a_window() {
        let terms = Terms { size: 1 << 40, ..TERMS };
        let command = check(&header(command::BLOCK_STATUS, command_flag::REQ_ONE, 512, u32::MAX - 511), &terms);
        assert_eq!(command, Ok(Command::BlockStatus { range: ByteRange::new(512, STATUS_WINDOW), one: true }));
    }

    #[test]
    fn flags_of_an_export() {
        assert_eq!(TERMS.flags(), 0b1101_1110_1101);
        assert_eq!(Terms { structured: false, ..TERMS }.flags(), 0b1101_0110_1101);
        assert_eq!(Terms { read_only: true, ..TERMS }.flags(), 0b0101_1000_1111);
    }

    proptest! {
        #[test]
        fn commands_keep_the_invariants(
            bytes in any::<[u8; 24]>(), command in 0u16..10, near in any::<bool>(), read_only in any::<bool>(), structured in any::<bool>(),
        ) {
            let mut whole = [0; Header::LEN];
            whole[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            whole[4..].copy_from_slice(&bytes);
            whole[6..8].copy_from_slice(&command.to_be_bytes());
            let mut parsed = Header::parse(&whole).expect("the magic is right");
            if near {
                parsed.flags &= 0x1f;
                parsed.offset &= 0x3fff_fe00;
                parsed.len &= 0x3ff_fe00;
            }
            let terms = Terms { read_only, structured, ..TERMS };
            let Ok(command) = check(&parsed, &terms) else { return Ok(()) };
            let changed = match command {
                Command::Read(range) => { prop_assert!(range.len() <= u64::from(LARGEST_PAYLOAD)); None }
                Command::Write { range, .. } => { prop_assert!(range.len() <= u64::from(LARGEST_PAYLOAD)); Some(range) }
                Command::Trim { range, .. } | Command::WriteZeroes { range, .. } => Some(range),
                _ => None,
            };
            prop_assert!(changed.is_none() || !read_only);
            let range = match command {
                Command::Read(range) | Command::Cache(range) | Command::BlockStatus { range, .. } => range,
                Command::Write { range, .. } | Command::Trim { range, .. } | Command::WriteZeroes { range, .. } => range,
                Command::Flush | Command::Disconnect => return Ok(()),
            };
            prop_assert!(range.end() <= terms.size && !range.is_empty());
            prop_assert_eq!((range.start() | range.len()) % 512, 0);
        }
    }
}
