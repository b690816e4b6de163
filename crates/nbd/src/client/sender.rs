//! Requests on their way to the server. Pure: the socket is the driver's.
//!
//! All that waits leaves together, in as few system calls as possible; a payload is never copied.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Instant;

use tzero_io::Buffer;

use super::command::Command;
use super::table::Table;

/// Requests that one system call takes.
pub(crate) const BURST: usize = 64;

struct Outgoing {
    cookie: u64,
    head: [u8; Command::HEAD],
    payload: Option<Buffer>,
}

impl Outgoing {
    fn len(&self) -> usize {
        self.head.len() + self.payload.as_ref().map_or(0, |payload| payload.len())
    }
}

/// Requests that were begun to be sent.
#[derive(Default)]
pub(crate) struct Sender {
    burst: VecDeque<Outgoing>,
    /// Bytes of the first one that are sent.
    skip: usize,
}

impl Sender {
    pub(crate) fn is_empty(&self) -> bool {
        self.burst.is_empty()
    }

    /// Takes as many requests as one call sends; says whether there is anything to send.
    pub(crate) fn load(&mut self, table: &mut Table) -> bool {
        while self.burst.len() < BURST
            && let Some((cookie, command, payload)) = table.next_to_send()
        {
            self.burst.push_back(Outgoing { cookie, head: command.head(cookie), payload });
        }
        !self.burst.is_empty()
    }

    /// What to send, in order. Only the first slices, whose number is given too, hold anything.
    pub(crate) fn slices(&self) -> ([IoSlice<'_>; 2 * BURST], usize) {
        let mut slices = [IoSlice::new(&[]); 2 * BURST];
        let mut skip = self.skip;
        let mut count = 0;
        for outgoing in &self.burst {
            for part in [&outgoing.head[..], outgoing.payload.as_deref().unwrap_or_default()] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    slices[count] = IoSlice::new(&part[skipped..]);
                    count += 1;
                }
            }
        }
        (slices, count)
    }

    /// So many more bytes were sent.
    pub(crate) fn advance(&mut self, count: usize, table: &mut Table, now: Option<Instant>) {
        self.skip += count;
        while let Some(first) = self.burst.front()
            && self.skip >= first.len()
        {
            self.skip -= first.len();
            if let Some(outgoing) = self.burst.pop_front() {
                table.sent(outgoing.cookie, outgoing.payload, now);
            }
        }
    }

    /// Nothing more will be sent.
    pub(crate) fn end(&mut self, table: &mut Table) {
        self.burst.drain(..).for_each(|outgoing| table.give_back(outgoing.cookie, outgoing.payload));
        self.skip = 0;
    }
}
