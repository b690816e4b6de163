//! What has arrived on a connection and is not yet understood.
//!
//! One receive brings as many small messages as fit; a large payload goes past the inbox straight to its own buffer.

use std::io;

use tzero_io::{Buffer, Stream};

/// Bytes that one receive may bring.
const CAPACITY: usize = 128 << 10;

/// Bytes of a stream in order of arrival.
pub(crate) struct Inbox {
    buffer: Buffer,
    start: usize,
    end: usize,
    /// Messages that were taken out since bytes came last.
    taken: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { buffer: Buffer::uncleared(CAPACITY), start: 0, end: 0, taken: 0 }
    }

    fn held(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is held back.
    pub(crate) fn is_empty(&self) -> bool {
        self.held() == 0
    }

    /// The next `N` bytes, if they are all here.
    pub(crate) fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let next = *self.buffer[self.start..self.end].first_chunk::<N>()?;
        self.start += N;
        self.taken += 1;
        Some(next)
    }

    /// Receives up to `most` more bytes; 0 is the end of the stream. To be called when less than a message's start is held.
    pub(crate) async fn fill(&mut self, stream: &Stream, most: usize) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let until = self.buffer.len().min(self.end.saturating_add(most));
        // A client that sends one after the other waits for its reply first.
        let is_burst = std::mem::take(&mut self.taken) > 1;
        let count = if is_burst {
            stream.recv(&mut self.buffer[self.end..until]).await?
        } else {
            let (buffer, result) = stream.recv_later(std::mem::take(&mut self.buffer), self.end..until).await;
            self.buffer = buffer;
            result?
        };
        self.end += count;
        Ok(count)
    }

    /// Fills `into`, from what is held first.
    ///
    /// # Errors
    /// `UnexpectedEof` at the end of the stream.
    pub(crate) async fn exact(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<()> {
        let held = self.held().min(into.len());
        let (first, rest) = into.split_at_mut(held);
        first.copy_from_slice(&self.buffer[self.start..self.start + held]);
        self.start += held;
        if rest.is_empty() { Ok(()) } else { stream.recv_exact(rest).await }
    }

    /// Skips `count` bytes in constant memory.
    ///
    /// # Errors
    /// `UnexpectedEof` at the end of the stream.
    pub(crate) async fn discard(&mut self, stream: &Stream, count: u64) -> io::Result<()> {
        let mut left = count;
        loop {
            let held = left.min(self.held() as u64);
            self.start += held as usize;
            left -= held;
            if left == 0 {
                return Ok(());
            }
            if self.fill(stream, usize::MAX).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
