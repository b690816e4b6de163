//! Fixed newstyle negotiation: from the first byte to an export that both sides agree on.
//!
//! [`Negotiation::answer`] is the whole of it without a socket; [`negotiate`] moves the bytes.
//!
//! # Invariants
//! 1. Number and length of options are bounded; so is the time, by the caller.
//! 2. A context selected for one export is not selected for another.
//!
//! Deliberately absent: TLS (`STARTTLS` is answered as unsupported, so a server must listen where nobody else can) and
//! extended headers.

use std::io::IoSlice;

use tzero_block::{Export, ExportError, Exports};
use tzero_io::Stream;

use crate::contexts::{self, ALLOCATION, ALLOCATION_ID};
use crate::error::{Error, Violation};
use crate::inbox::Inbox;
use crate::options::{ContextRequest, InfoRequest, Malformed, OptionHeader, OptionReplies, string};
use crate::request::Terms;
use crate::wire::{GREETING_MAGIC, LARGEST_PAYLOAD, OPTION_MAGIC, handshake_flag, info, option, option_reply};

/// Data of one option that is looked at, in bytes: a name and a good many queries.
const LARGEST_OPTION: u32 = 64 << 10;
/// Data of one option that is skipped to be answered politely, in bytes. Beyond it the connection is cut.
const LARGEST_SKIPPED: u32 = 1 << 20;
/// Options of one client.
const MOST_OPTIONS: usize = 1024;
/// Smallest preferred block that the protocol knows, in bytes.
const SMALLEST_PREFERRED: u32 = 512;

/// How a handshake ends well.
pub(crate) enum Agreed<S> {
    /// The export to transmit.
    Transmit(S, Terms),
    /// The client has ended it.
    Aborted,
    /// The client has gone between two options.
    Left,
}

/// Talks to a client until an export is agreed on.
pub(crate) async fn negotiate<E: Exports>(
    exports: &E,
    stream: &Stream,
    inbox: &mut Inbox,
) -> Result<Agreed<E::Session>, Error> {
    let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut out = Vec::new();
    out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&offered.to_be_bytes());
    send(stream, &mut out).await?;
    let Some(flags) = next::<4>(stream, inbox).await? else { return Ok(Agreed::Left) };
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(offered) != 0 {
        return Err(Violation::ClientFlags(flags).into());
    }
    let mut negotiation = Negotiation::new(exports, flags & u32::from(handshake_flag::NO_ZEROES) == 0);
    for _ in 0..MOST_OPTIONS {
        let Some(header) = next::<{ OptionHeader::LEN }>(stream, inbox).await? else { return Ok(Agreed::Left) };
        let header = OptionHeader::parse(&header).ok_or(Violation::OptionMagic)?;
        let next = if header.len <= LARGEST_OPTION {
            let mut data = vec![0; header.len as usize];
            inbox.exact(stream, &mut data).await.map_err(Error::receive)?;
            negotiation.answer(header.option, &data, &mut out)
        } else if header.len <= LARGEST_SKIPPED {
            inbox.discard(stream, u64::from(header.len)).await.map_err(Error::receive)?;
            negotiation.answer_too_big(header.option, &mut out)
        } else {
            return Err(Violation::OptionLength(header.len).into());
        };
        let next = next?;
        let sent = send(stream, &mut out).await;
        match next {
            Next::Option => sent?,
            // Some clients do not wait for the reply.
            Next::Abort => return Ok(Agreed::Aborted),
            Next::Transmit(session, terms) => {
                sent?;
                return Ok(Agreed::Transmit(session, terms));
            }
        }
    }
    Err(Violation::TooManyOptions.into())
}

async fn next<const N: usize>(stream: &Stream, inbox: &mut Inbox) -> Result<Option<[u8; N]>, Error> {
    loop {
        if let Some(bytes) = inbox.next() {
            return Ok(Some(bytes));
        }
        if inbox.fill(stream, usize::MAX).await.map_err(Error::receive)? == 0 {
            return if inbox.is_empty() { Ok(None) } else { Err(Violation::Truncated.into()) };
        }
    }
}

async fn send(stream: &Stream, out: &mut Vec<u8>) -> Result<(), Error> {
    let result = stream.send_all(&[IoSlice::new(out)]).await.map_err(Error::Send);
    out.clear();
    result
}

/// What comes after an option.
enum Next<S> {
    Option,
    Abort,
    Transmit(S, Terms),
}

/// What was negotiated so far.
struct Negotiation<'a, E> {
    exports: &'a E,
    /// The reply to `EXPORT_NAME` ends in 124 zeroes.
    padded: bool,
    structured: bool,
    /// The export for which `base:allocation` is selected.
    selected: Option<String>,
}

impl<'a, E: Exports> Negotiation<'a, E> {
    fn new(exports: &'a E, padded: bool) -> Self {
        Self { exports, padded, structured: false, selected: None }
    }

    /// Appends the replies to an option to `out`.
    fn answer(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Next<E::Session>, Error> {
        let mut replies = OptionReplies::new(out, option);
        let done = match option {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                replies.add(option_reply::ACK, &[]);
                return Ok(Next::Abort);
            }
            option::GO => match self.info(data, &mut replies) {
                Ok((session, terms)) => {
                    replies.add(option_reply::ACK, &[]);
                    return Ok(Next::Transmit(session, terms));
                }
                Err(error) => Err(error),
            },
            option::INFO => self.info(data, &mut replies).map(drop),
            option::LIST => self.list(data, &mut replies),
            option::STRUCTURED_REPLY => self.structured_reply(data),
            option::LIST_META_CONTEXT => self.list_contexts(data, &mut replies),
            option::SET_META_CONTEXT => self.set_contexts(data, &mut replies),
            _ => Err(option_reply::ERR_UNSUP),
        };
        match done {
            Ok(()) => replies.add(option_reply::ACK, &[]),
            Err(error) => replies.add(error, &[reason(error).as_bytes()]),
        }
        Ok(Next::Option)
    }

    /// Answers an option whose data was skipped.
    fn answer_too_big(&mut self, option: u32, out: &mut Vec<u8>) -> Result<Next<E::Session>, Error> {
        match option {
            option::EXPORT_NAME => return Err(Violation::ExportName.into()),
            // It replaces the selection even when it fails.
            option::SET_META_CONTEXT => self.selected = None,
            _ => {}
        }
        let error = option_reply::ERR_TOO_BIG;
        OptionReplies::new(out, option).add(error, &[reason(error).as_bytes()]);
        Ok(Next::Option)
    }

    fn terms(&self, session: &E::Session, export: &str) -> Terms {
        let allocation = self.structured && self.selected.as_deref() == Some(export);
        Terms::new(session.info(), self.structured, allocation)
    }

    fn export_name(&self, data: &[u8], out: &mut Vec<u8>) -> Result<Next<E::Session>, Error> {
        let name = string(data).map_err(|_| Violation::ExportName)?;
        let session = self.exports.open(name).map_err(|source| Error::NoExport { name: name.into(), source })?;
        let terms = self.terms(&session, name);
        out.extend_from_slice(&terms.size.to_be_bytes());
        out.extend_from_slice(&terms.flags().to_be_bytes());
        if self.padded {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Next::Transmit(session, terms))
    }

    fn info(&self, data: &[u8], replies: &mut OptionReplies<'_>) -> Result<(E::Session, Terms), u32> {
        let request = InfoRequest::parse(data).map_err(number_of)?;
        let session = self.exports.open(request.export).map_err(number_of_export)?;
        let terms = self.terms(&session, request.export);
        let export = session.info();
        replies.add_info(info::EXPORT, &[&terms.size.to_be_bytes(), &terms.flags().to_be_bytes()]);
        if request.wants_name {
            replies.add_info(info::NAME, &[export.name.as_bytes()]);
        }
        if request.wants_description {
            replies.add_info(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        let preferred = export.preferred_block.max(export.minimum_block).clamp(SMALLEST_PREFERRED, LARGEST_PAYLOAD);
        let sizes = [export.minimum_block, preferred, LARGEST_PAYLOAD].map(u32::to_be_bytes);
        replies.add_info(info::BLOCK_SIZE, &[sizes.as_flattened()]);
        Ok((session, terms))
    }

    fn list(&self, data: &[u8], replies: &mut OptionReplies<'_>) -> Result<(), u32> {
        if !data.is_empty() {
            return Err(option_reply::ERR_INVALID);
        }
        for export in self.exports.list() {
            let (name, description) = (export.name.as_bytes(), export.description.as_bytes());
            replies.add(option_reply::SERVER, &[&(name.len() as u32).to_be_bytes(), name, description]);
        }
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), u32> {
        if !data.is_empty() {
            return Err(option_reply::ERR_INVALID);
        }
        self.structured = true;
        Ok(())
    }

    fn contexts<'d>(&self, data: &'d [u8]) -> Result<ContextRequest<'d>, u32> {
        let request = ContextRequest::parse(data).map_err(number_of)?;
        if !self.structured {
            return Err(option_reply::ERR_INVALID);
        }
        self.exports.open(request.export).map_err(number_of_export)?;
        Ok(request)
    }

    fn list_contexts(&self, data: &[u8], replies: &mut OptionReplies<'_>) -> Result<(), u32> {
        let request = self.contexts(data)?;
        if contexts::lists(&request.queries) {
            // Only a selected context has an id.
            replies.add(option_reply::META_CONTEXT, &[&0u32.to_be_bytes(), ALLOCATION.as_bytes()]);
        }
        Ok(())
    }

    fn set_contexts(&mut self, data: &[u8], replies: &mut OptionReplies<'_>) -> Result<(), u32> {
        self.selected = None;
        let request = self.contexts(data)?;
        if contexts::selects(&request.queries) {
            replies.add(option_reply::META_CONTEXT, &[&ALLOCATION_ID.to_be_bytes(), ALLOCATION.as_bytes()]);
            self.selected = Some(request.export.to_owned());
        }
        Ok(())
    }
}

fn number_of(malformed: Malformed) -> u32 {
    match malformed {
        Malformed::Invalid => option_reply::ERR_INVALID,
        Malformed::TooBig => option_reply::ERR_TOO_BIG,
    }
}

fn number_of_export(error: ExportError) -> u32 {
    match error {
        ExportError::ShuttingDown => option_reply::ERR_SHUTDOWN,
        ExportError::Busy => option_reply::ERR_POLICY,
        _ => option_reply::ERR_UNKNOWN,
    }
}

/// An error reply as a sentence.
fn reason(error: u32) -> &'static str {
    match error {
        option_reply::ERR_UNSUP => "this server does not know the option",
        option_reply::ERR_UNKNOWN => "there is no such export",
        option_reply::ERR_SHUTDOWN => "the server is ending",
        option_reply::ERR_POLICY => "the export has a client, and takes one only",
        option_reply::ERR_TOO_BIG => "the option is too big",
        _ => "the option's data is invalid, or the option needs structured replies first",
    }
}
