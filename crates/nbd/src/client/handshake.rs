//! Fixed newstyle negotiation from the client's side: from a fresh socket to an export and what it can do.
//!
//! # Invariants
//! 1. No number of the server is used before it was held against a bound: lengths and numbers of replies here, sizes in [`Agreed::new`].
//!    The time is bounded by the caller.
//! 2. Nothing is agreed on that was not asked for.
//!
//! Deliberately absent: TLS, `EXPORT_NAME` (servers without `GO` are too old to tell their block sizes), extended headers.

use std::io::IoSlice;

use tzero_io::Stream;

use super::agreed::{Agreed, Claims};
use super::error::{Breach, ClientError, Refused};
use super::uri::Uri;
use crate::contexts::ALLOCATION;
use crate::wire::{
    Fields, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag, info, option, option_reply,
};

/// Data of one reply that is looked at, in bytes: names and descriptions are at most 4096 each.
const LARGEST_REPLY: u32 = 16 << 10;
/// Replies to one option.
const MOST_REPLIES: usize = 64;
/// Bits that mark errors among kinds of replies.
const ERROR: u32 = 1 << 31;

/// Talks to a server until it gives the export.
pub(crate) async fn negotiate(stream: &Stream, uri: &Uri) -> Result<Agreed, ClientError> {
    let talk = Talk { stream };
    let offered = u16::from_be_bytes(talk.greeting().await?);
    if offered & handshake_flag::FIXED_NEWSTYLE == 0 {
        return Err(Breach::OldStyle.into());
    }
    let flags = u32::from(offered & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES));
    talk.send(&flags.to_be_bytes()).await?;
    let mut claims = Claims::default();
    claims.structured = talk.structured().await?;
    if claims.structured {
        claims.allocation = talk.allocation(uri.export()).await?;
    }
    talk.go(uri.export(), &mut claims).await?;
    Agreed::new(&claims)
}

/// One reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

struct Talk<'a> {
    stream: &'a Stream,
}

/// Bytes after their length.
fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

impl Talk<'_> {
    async fn send(&self, bytes: &[u8]) -> Result<(), ClientError> {
        self.stream.send_all(&[IoSlice::new(bytes)]).await.map_err(ClientError::Broken)
    }

    async fn exact(&self, into: &mut [u8]) -> Result<(), ClientError> {
        self.stream.recv_exact(into).await.map_err(ClientError::receive)
    }

    /// The server's flags.
    async fn greeting(&self) -> Result<[u8; 2], ClientError> {
        let mut magics = [[0; 8]; 2];
        self.exact(magics.as_flattened_mut()).await?;
        if u64::from_be_bytes(magics[0]) != GREETING_MAGIC {
            return Err(Breach::Greeting.into());
        }
        if u64::from_be_bytes(magics[1]) != OPTION_MAGIC {
            return Err(Breach::OldStyle.into());
        }
        let mut flags = [0; 2];
        self.exact(&mut flags).await?;
        Ok(flags)
    }

    async fn ask(&self, option: u32, data: &[u8]) -> Result<(), ClientError> {
        let mut bytes = Vec::with_capacity(16 + data.len());
        bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        self.send(&bytes).await
    }

    async fn reply(&self, asked: u32) -> Result<Reply, ClientError> {
        let mut head = [0; 20];
        self.exact(&mut head).await?;
        let mut fields = Fields(&head);
        let (magic, option) = (fields.u64(), fields.u32());
        if magic != Some(OPTION_REPLY_MAGIC) || option != Some(asked) {
            return Err(Breach::OptionReply.into());
        }
        let (Some(kind), Some(len)) = (fields.u32(), fields.u32()) else { return Err(Breach::OptionReply.into()) };
        if len > LARGEST_REPLY {
            return Err(Breach::OptionLength(len).into());
        }
        let mut data = vec![0; len as usize];
        self.exact(&mut data).await?;
        Ok(Reply { kind, data })
    }

    /// Asks, gives every reply but the last to `each`, and says how it ended: an error's number, or well.
    async fn option(
        &self,
        option: u32,
        data: &[u8],
        mut each: impl FnMut(&Reply) -> Result<(), Breach>,
    ) -> Result<Result<(), u32>, ClientError> {
        self.ask(option, data).await?;
        for _ in 0..MOST_REPLIES {
            let reply = self.reply(option).await?;
            match reply.kind {
                option_reply::ACK => return Ok(Ok(())),
                error if error & ERROR != 0 => return Ok(Err(error)),
                _ => each(&reply)?,
            }
        }
        Err(Breach::TooManyReplies.into())
    }

    /// Whether replies are structured from now on.
    async fn structured(&self) -> Result<bool, ClientError> {
        let ended = self.option(option::STRUCTURED_REPLY, &[], |_| Err(Breach::OptionReply)).await?;
        Ok(ended.is_ok())
    }

    /// The number that stands for `base:allocation`, if the server has it.
    async fn allocation(&self, export: &str) -> Result<Option<u32>, ClientError> {
        let one = 1u32.to_be_bytes();
        let data = [&counted(export.as_bytes())[..], &one, &counted(ALLOCATION.as_bytes())].concat();
        let mut selected = None;
        let each = |reply: &Reply| {
            let mut fields = Fields(&reply.data);
            let id = fields.u32().ok_or(Breach::OptionReply)?;
            if reply.kind != option_reply::META_CONTEXT || fields.0 != ALLOCATION.as_bytes() || selected.is_some() {
                return Err(Breach::OptionReply);
            }
            selected = Some(id);
            Ok(())
        };
        let ended = self.option(option::SET_META_CONTEXT, &data, each).await?;
        Ok(ended.ok().and(selected))
    }

    async fn go(&self, export: &str, claims: &mut Claims) -> Result<(), ClientError> {
        let wanted = [1u16.to_be_bytes(), info::BLOCK_SIZE.to_be_bytes()];
        let data = [&counted(export.as_bytes())[..], wanted.as_flattened()].concat();
        let ended = self.option(option::GO, &data, |reply| claims.learn(reply.kind, &reply.data)).await?;
        let refused = match ended {
            Ok(()) => return Ok(()),
            Err(option_reply::ERR_UNKNOWN) => Refused::Unknown,
            Err(option_reply::ERR_TLS_REQD) => Refused::Encryption,
            Err(option_reply::ERR_POLICY) => Refused::Policy,
            Err(option_reply::ERR_SHUTDOWN) => Refused::ShuttingDown,
            Err(option_reply::ERR_UNSUP) => Refused::TooOld,
            Err(other) => Refused::Other(other),
        };
        Err(refused.into())
    }
}
