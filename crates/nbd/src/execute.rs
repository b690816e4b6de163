//! One command carried out against the export, and its reply.

use std::rc::Rc;

use tzero_block::{ByteRange, Export, ExportError};
use tzero_io::Buffer;

use crate::connection::Connection;
use crate::contexts;
use crate::request::{Command, Refusal};
use crate::wire::Errno;

/// What an export's error is to a client. `ENOTSUP` is an answer only to a request to be `fast`.
fn refusal_of(error: ExportError, fast: bool) -> Refusal {
    let (errno, reason) = match error {
        ExportError::Unknown => (Errno::Inval, "there is no such export"),
        ExportError::ReadOnly => (Errno::Perm, "the export is read-only"),
        ExportError::Io => (Errno::Io, "the bytes cannot be had or kept"),
        ExportError::NoSpace => (Errno::NoSpc, "no space is left, on the base or for an original that must be kept"),
        ExportError::Busy => (Errno::Io, "the export has another client"),
        ExportError::Invalid => (Errno::Inval, "the request is invalid"),
        ExportError::Unsupported if fast => (Errno::NotSup, "this cannot be done fast"),
        ExportError::Unsupported => (Errno::Inval, "this cannot be done"),
        ExportError::ShuttingDown => (Errno::Shutdown, "the server is ending"),
    };
    Refusal { errno, reason }
}

/// Carries out `command`, which was charged with its cost; `payload` holds the bytes of a write.
pub(crate) async fn execute<S: Export>(
    connection: Rc<Connection<S>>,
    cookie: u64,
    command: Command,
    payload: Option<Buffer>,
) {
    let session = &connection.session;
    let cost = command.cost();
    let done = match command {
        Command::Read(range) => return read(&connection, cookie, range).await,
        Command::BlockStatus { range, one } => return block_status(&connection, cookie, range, one, cost).await,
        Command::Write { range, fua } => {
            let (buffer, result) = session.write(range.start(), payload.unwrap_or_default(), fua).await;
            drop(buffer);
            result
        }
        Command::Flush => session.flush().await,
        Command::Trim { range, fua } => session.trim(range, fua).await,
        Command::Cache(range) => session.prefetch(range).await,
        Command::WriteZeroes { range, zeroes } => session.write_zeroes(range, zeroes).await,
        Command::Disconnect => Ok(()),
    };
    let fast = matches!(command, Command::WriteZeroes { zeroes, .. } if zeroes.fast);
    match done {
        Ok(()) => connection.succeed(cookie, cost),
        Err(error) => connection.refuse(cookie, cost, refusal_of(error, fast)),
    }
}

async fn read<S: Export>(connection: &Connection<S>, cookie: u64, range: ByteRange) {
    let cost = range.len() as usize;
    match connection.session.read(range.start(), Buffer::uncleared(cost)).await {
        (buffer, Ok(())) => connection.deliver(cookie, range, buffer),
        (_, Err(error)) => connection.refuse(cookie, cost, refusal_of(error, false)),
    }
}

async fn block_status<S: Export>(connection: &Connection<S>, cookie: u64, range: ByteRange, one: bool, cost: usize) {
    match connection.session.block_status(range).await {
        Ok(extents) => connection.describe(cookie, cost, &contexts::descriptors(range, &extents, one)),
        Err(error) => connection.refuse(cookie, cost, refusal_of(error, false)),
    }
}
