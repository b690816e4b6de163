//! Bytes of replies to answers of requests. Pure: the socket is the driver's.
//!
//! ```text
//!         ┌──────── simple, or a chunk without more ────────┐
//!         ▼                                                 │
//!  ──▶  Head ──▶ Payload │ Extents │ Text ──▶ last chunk? ──┴──▶ the request is done
//! ```
//! [`Receiver::space`] says where the next bytes are to go, [`Receiver::advance`] that they are there. A large payload goes straight to its
//! request's buffer; everything small comes many at a time.
//!
//! # Invariants
//! 1. Any bytes may arrive. What does not belong to a request that waits for it is a [`Breach`], after which nothing more is taken in.
//! 2. A buffer is written within the place that its request asked for, and each byte of it once.
//! 3. Memory does not depend on what the server claims: payloads have their buffers, extents are counted, texts are skipped.

use tzero_block::ByteRange;
use tzero_io::Buffer;

use super::agreed::Agreed;
use super::command::Kind;
use super::error::{Breach, ClientError};
use super::table::Table;
use crate::contexts::Descriptor;
use crate::wire::{CHUNK_MAGIC, Fields, SIMPLE_REPLY_MAGIC, chunk};

/// Bytes that one receive may bring beside payloads.
const CAPACITY: usize = 128 << 10;
/// What is received at once when a large payload may follow: the start of a structured reply's data.
const HEAD: usize = 28;
/// Bytes of an error's text, with its place.
const LONGEST_TEXT: u32 = 64 << 10;
/// Extents that one reply may hold, and how many are kept of them.
const MOST_EXTENTS: u32 = 1 << 20;
const KEPT_EXTENTS: usize = 4096;

enum Expect {
    Head,
    Payload { cookie: u64, buffer: Buffer, at: usize, end: usize, last: bool },
    Extents { cookie: u64, left: u32, last: bool },
    Text { cookie: u64, left: u32, last: bool },
}

/// Start of a chunk.
struct Chunk {
    last: bool,
    kind: u16,
    cookie: u64,
    len: u32,
}

/// What has arrived and is not yet understood.
pub(crate) struct Receiver {
    inbox: Buffer,
    start: usize,
    end: usize,
    /// Bytes that have to be there before anything can be understood.
    need: usize,
    expect: Expect,
    structured: bool,
    allocation: Option<u32>,
}

impl Receiver {
    pub(crate) fn new(agreed: &Agreed) -> Self {
        Self {
            inbox: Buffer::uncleared(CAPACITY),
            start: 0,
            end: 0,
            need: 0,
            expect: Expect::Head,
            structured: agreed.structured,
            allocation: agreed.allocation,
        }
    }

    fn held(&self) -> &[u8] {
        &self.inbox[self.start..self.end]
    }

    /// Where the next bytes are to go; never empty. With `large` they are few, so that a payload after them is not copied.
    pub(crate) fn space(&mut self, large: bool) -> &mut [u8] {
        let held = self.end - self.start;
        if let Expect::Payload { buffer, at, end, .. } = &mut self.expect
            && held == 0
        {
            return &mut buffer[*at..*end];
        }
        self.inbox.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, held);
        let until = if large { HEAD.max(self.need).max(held + 1) } else { CAPACITY };
        &mut self.inbox[held..until]
    }

    /// So many bytes were put into what [`Receiver::space`] gave.
    pub(crate) fn advance(&mut self, count: usize, table: &mut Table) -> Result<(), ClientError> {
        match &mut self.expect {
            Expect::Payload { at, .. } if self.start == self.end => *at += count,
            _ => self.end += count,
        }
        while self.step(table)? {}
        Ok(())
    }

    /// The next `len` bytes if they are here.
    fn take(&mut self, len: usize) -> Option<&[u8]> {
        self.need = len;
        let start = self.start;
        (self.end - start >= len).then(|| {
            self.start += len;
            &self.inbox[start..start + len]
        })
    }

    /// Understands one thing more; says whether there may be another.
    fn step(&mut self, table: &mut Table) -> Result<bool, ClientError> {
        match &mut self.expect {
            Expect::Head => self.head(table),
            Expect::Payload { cookie, buffer, at, end, last } => {
                let held = &self.inbox[self.start..self.end];
                let count = held.len().min(*end - *at);
                buffer[*at..*at + count].copy_from_slice(&held[..count]);
                self.start += count;
                *at += count;
                if at < end {
                    return Ok(false);
                }
                let (cookie, last) = (*cookie, *last);
                if let Expect::Payload { buffer, .. } = std::mem::replace(&mut self.expect, Expect::Head) {
                    table.give_back(cookie, Some(buffer));
                }
                self.ended(table, cookie, last)
            }
            Expect::Extents { cookie, left: 0, last } | Expect::Text { cookie, left: 0, last } => {
                let (cookie, last) = (*cookie, *last);
                self.ended(table, cookie, last)
            }
            Expect::Extents { cookie, left, .. } => {
                self.need = 8;
                let Some(bytes) = self.inbox[self.start..self.end].first_chunk::<8>() else { return Ok(false) };
                self.start += 8;
                *left -= 8;
                let mut fields = Fields(bytes);
                let (len, status) =
                    fields.u32().zip(fields.u32()).filter(|(len, _)| *len > 0).ok_or(Breach::Extents)?;
                let descriptors = &mut table.replied(*cookie)?.reply.descriptors;
                if descriptors.len() < KEPT_EXTENTS {
                    descriptors.push(Descriptor { len, status });
                }
                Ok(true)
            }
            Expect::Text { left, .. } => {
                let count = (*left).min((self.end - self.start) as u32);
                *left -= count;
                self.start += count as usize;
                self.need = 1;
                Ok(count > 0)
            }
        }
    }

    /// The end of a chunk.
    fn ended(&mut self, table: &mut Table, cookie: u64, last: bool) -> Result<bool, ClientError> {
        self.expect = Expect::Head;
        if last {
            table.finish(cookie)?;
        }
        Ok(true)
    }

    fn head(&mut self, table: &mut Table) -> Result<bool, ClientError> {
        self.need = 16;
        let Some(magic) = Fields(self.held()).u32() else { return Ok(false) };
        match magic {
            SIMPLE_REPLY_MAGIC => self.simple(table),
            CHUNK_MAGIC if self.structured => self.chunk(table),
            other => Err(Breach::ReplyMagic(other).into()),
        }
    }

    fn simple(&mut self, table: &mut Table) -> Result<bool, ClientError> {
        let Some(bytes) = self.take(16) else { return Ok(false) };
        let mut fields = Fields(&bytes[4..]);
        let (Some(error), Some(cookie)) = (fields.u32(), fields.u64()) else { return Ok(false) };
        let structured = self.structured;
        let request = table.replied(cookie)?;
        let range = request.command.range;
        match request.command.kind {
            _ if error != 0 => request.reply.error = Some(error),
            Kind::Read if !structured => {
                request.reply.coverage.add(range.start()..range.end())?;
                return self.payload(table, cookie, range, true);
            }
            Kind::Read | Kind::BlockStatus => return Err(Breach::Kind(chunk::NONE).into()),
            _ => {}
        }
        table.finish(cookie)?;
        Ok(true)
    }

    /// Data of a read's `range` follow.
    fn payload(&mut self, table: &mut Table, cookie: u64, range: ByteRange, last: bool) -> Result<bool, ClientError> {
        let request = table.replied(cookie)?;
        let at = (range.start() - request.command.range.start()) as usize;
        let buffer = request.buffer.take().ok_or(Breach::Cookie(cookie))?;
        self.expect = Expect::Payload { cookie, buffer, at, end: at + range.len() as usize, last };
        self.need = 1;
        Ok(true)
    }

    fn chunk(&mut self, table: &mut Table) -> Result<bool, ClientError> {
        const LEN: usize = 20;
        self.need = LEN;
        let held = self.held();
        if held.len() < LEN {
            return Ok(false);
        }
        let mut fields = Fields(&held[4..LEN]);
        let (Some(flags), Some(kind), Some(cookie), Some(len)) =
            (fields.u16(), fields.u16(), fields.u64(), fields.u32())
        else {
            return Ok(false);
        };
        let chunk = Chunk { last: flags & chunk::DONE != 0, kind, cookie, len };
        // What of its payload is understood together with the head.
        let fixed: u32 = match kind {
            chunk::NONE => 0,
            chunk::OFFSET_DATA => 8,
            chunk::OFFSET_HOLE => 12,
            chunk::BLOCK_STATUS => 4,
            kind if kind & chunk::IS_ERROR != 0 => 6,
            kind => return Err(Breach::Kind(kind).into()),
        };
        let fits = match kind {
            chunk::NONE | chunk::OFFSET_HOLE => len == fixed,
            chunk::OFFSET_DATA => len > fixed,
            chunk::BLOCK_STATUS => len > fixed && (len - fixed).is_multiple_of(8) && (len - fixed) / 8 <= MOST_EXTENTS,
            _ => len >= fixed && len - fixed <= LONGEST_TEXT,
        };
        if !fits {
            return Err(Breach::Length { kind, len }.into());
        }
        let request = table.replied(cookie)?;
        let belongs = match kind {
            chunk::NONE => chunk.last,
            chunk::OFFSET_DATA | chunk::OFFSET_HOLE => request.command.kind == Kind::Read,
            chunk::BLOCK_STATUS => request.command.kind == Kind::BlockStatus,
            _ => true,
        };
        if !belongs {
            return Err(Breach::Kind(kind).into());
        }
        let mut fixed_bytes = [0; 12];
        let Some(bytes) = self.take(LEN + fixed as usize) else { return Ok(false) };
        fixed_bytes[..fixed as usize].copy_from_slice(&bytes[LEN..]);
        self.content(table, &chunk, &fixed_bytes, len - fixed)
    }

    /// A chunk whose head is here; `rest` bytes of it are not yet looked at.
    fn content(&mut self, table: &mut Table, chunk: &Chunk, fixed: &[u8; 12], rest: u32) -> Result<bool, ClientError> {
        let &Chunk { last, kind, cookie, len } = chunk;
        let request = table.replied(cookie)?;
        let whole = request.command.range;
        let mut fields = Fields(fixed);
        match kind {
            chunk::NONE => return self.ended(table, cookie, last),
            chunk::OFFSET_DATA | chunk::OFFSET_HOLE => {
                let offset = fields.u64().ok_or(Breach::Place)?;
                let len = if kind == chunk::OFFSET_DATA { rest } else { fields.u32().ok_or(Breach::Place)? };
                let place = ByteRange::checked(offset, u64::from(len)).filter(|place| whole.contains(*place));
                let place = place.ok_or(Breach::Place)?;
                request.reply.coverage.add(place.start()..place.end())?;
                if kind == chunk::OFFSET_DATA {
                    return self.payload(table, cookie, place, last);
                }
                let at = (place.start() - whole.start()) as usize;
                let buffer = request.buffer.as_mut().ok_or(Breach::Cookie(cookie))?;
                buffer[at..at + place.len() as usize].fill(0);
                return self.ended(table, cookie, last);
            }
            chunk::BLOCK_STATUS => {
                let ours = self.allocation.is_some() && fields.u32() == self.allocation;
                if !ours || std::mem::replace(&mut request.reply.told_extents, true) {
                    return Err(Breach::Extents.into());
                }
                self.expect = Expect::Extents { cookie, left: rest, last };
            }
            _ => {
                let (error, text) = fields.u32().zip(fields.u16()).ok_or(Breach::Length { kind, len })?;
                if error == 0 || u32::from(text) > rest {
                    return Err(Breach::Length { kind, len }.into());
                }
                request.reply.error.get_or_insert(error);
                self.expect = Expect::Text { cookie, left: rest, last };
            }
        }
        Ok(true)
    }

    /// Nothing more will be received.
    pub(crate) fn end(&mut self, table: &mut Table) {
        if let Expect::Payload { cookie, buffer, .. } = std::mem::replace(&mut self.expect, Expect::Head) {
            table.give_back(cookie, Some(buffer));
        }
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests;
