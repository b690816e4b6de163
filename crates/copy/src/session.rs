//! A mover's side of its conversation with the daemon (`tzero_api::mover`). Every step has a time limit.
//!
//! Deliberately absent: what is copied. A session only begins, reports and ends.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tzero_api::mover::{Begun, LONGEST_LINE, PROTOCOL, RANGES_PER_LINE, ReleasedPage, Reply, Request};
use tzero_block::ByteRange;
use tzero_io::descriptors;
use tzero_originals::RangeSet;

use crate::error::DaemonFault;

/// How long the daemon may take to accept a connection, and to take a line.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long it may take to answer. Taking a snapshot waits for requests in flight at T0, which a slow base may hold up.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// A connection whose snapshot stands as long as it is not finished or abandoned.
#[derive(Debug)]
pub(crate) struct Session {
    stream: UnixStream,
    /// Received and not yet used.
    pending: Vec<u8>,
}

/// What a begun session has.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) session: Session,
    pub(crate) begun: Begun,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// What the snapshot had released before; `None` where the daemon does not say.
    pub(crate) released: Option<RangeSet>,
}

impl Session {
    /// Connects to the daemon's mover socket and sends the first request, `Begin` or `Resume`.
    pub(crate) fn open(socket: &Path, request: &Request) -> Result<Opened, DaemonFault> {
        let stream = connect(socket)?;
        let mut session = Self { stream, pending: Vec::new() };
        session.send(request)?;
        match session.receive()? {
            (Reply::Begun(begun), _) if begun.protocol != PROTOCOL => Err(DaemonFault::Version(begun.protocol)),
            (Reply::Begun(mut begun), descriptors) if descriptors.len() == begun.descriptors() => {
                let released = begun.released.take().map(|page| session.released(page)).transpose()?;
                Ok(Opened { session, begun: *begun, descriptors, released })
            }
            (reply, _) => Err(unexpected(reply)),
        }
    }

    /// A session whose other side a test is.
    #[cfg(test)]
    pub(crate) fn over(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// All of a released set, given its first page.
    fn released(&mut self, mut page: ReleasedPage) -> Result<RangeSet, DaemonFault> {
        let mut released = RangeSet::default();
        let mut last = 0;
        loop {
            for (offset, len) in page.ranges {
                released.insert(ByteRange::checked(offset, len).ok_or(DaemonFault::Protocol)?);
            }
            let Some(start) = page.next else { return Ok(released) };
            if start <= last {
                return Err(DaemonFault::Protocol);
            }
            last = start;
            self.send(&Request::ReleasedFrom { start })?;
            page = match self.receive()?.0 {
                Reply::ReleasedRanges(page) => page,
                reply => return Err(unexpected(reply)),
            };
        }
    }

    /// The copy's journal is durable, so the snapshot must outlive this process.
    pub(crate) fn recorded(&mut self) -> Result<(), DaemonFault> {
        self.send(&Request::Recorded)?;
        match self.receive()?.0 {
            Reply::Recorded => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    /// Reports ranges that are safe in the destination and recorded in the journal. Says whether the daemon wants more soon.
    pub(crate) fn captured(&mut self, ranges: &[ByteRange]) -> Result<bool, DaemonFault> {
        self.report(ranges, |ranges| Request::Captured { ranges })
    }

    /// The same of a copy that gives up originals only. Of no range it asks how full the cache is.
    pub(crate) fn delivered(&mut self, ranges: &[ByteRange]) -> Result<bool, DaemonFault> {
        self.report(ranges, |ranges| Request::Delivered { ranges })
    }

    fn report(
        &mut self,
        ranges: &[ByteRange],
        request: impl Fn(Vec<(u64, u64)>) -> Request,
    ) -> Result<bool, DaemonFault> {
        let mut all = ranges;
        loop {
            let (now, later) = all.split_at(all.len().min(RANGES_PER_LINE));
            self.send(&request(now.iter().map(|range| (range.start(), range.len())).collect()))?;
            match self.receive()?.0 {
                Reply::Released { hurry } if later.is_empty() => return Ok(hurry),
                Reply::Released { .. } => all = later,
                reply => return Err(unexpected(reply)),
            }
        }
    }

    /// The sequence of the newest original. The last outboard read must have completed.
    pub(crate) fn marker(&mut self) -> Result<u64, DaemonFault> {
        self.boundary(&Request::Marker)
    }

    /// Ends the snapshot's copy-on-write; gives the sequence of the last original that it retains.
    pub(crate) fn terminate(&mut self) -> Result<u64, DaemonFault> {
        self.boundary(&Request::Terminate)
    }

    fn boundary(&mut self, request: &Request) -> Result<u64, DaemonFault> {
        self.send(request)?;
        match self.receive()?.0 {
            Reply::Boundary { up_to } => Ok(up_to),
            reply => Err(unexpected(reply)),
        }
    }

    /// Asks whether the snapshot still stands, unbroken.
    pub(crate) fn check(&mut self) -> Result<(), DaemonFault> {
        self.send(&Request::Check)?;
        match self.receive()?.0 {
            Reply::Good => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    /// The copy is declared.
    pub(crate) fn finish(self) -> Result<(), DaemonFault> {
        self.end(&Request::Finish)
    }

    /// The copy is given up.
    pub(crate) fn abandon(self) -> Result<(), DaemonFault> {
        self.end(&Request::Abandon)
    }

    fn end(mut self, request: &Request) -> Result<(), DaemonFault> {
        self.send(request)?;
        match self.receive()?.0 {
            Reply::Finished => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), DaemonFault> {
        let mut line = serde_json::to_vec(request).expect("a request has nothing that JSON cannot say");
        line.push(b'\n');
        self.stream.write_all(&line).map_err(fault)
    }

    /// The next line, and the descriptors that came with its bytes.
    fn receive(&mut self) -> Result<(Reply, Vec<OwnedFd>), DaemonFault> {
        let mut descriptors = Vec::new();
        let mut part = [0; 1 << 14];
        let end = loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if self.pending.len() > LONGEST_LINE {
                return Err(DaemonFault::Protocol);
            }
            let (count, received) = descriptors::recv(&self.stream, &mut part).map_err(fault)?;
            if count == 0 {
                return Err(DaemonFault::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
            descriptors.extend(received);
            self.pending.extend_from_slice(&part[..count]);
        };
        let line: Vec<u8> = self.pending.drain(..=end).collect();
        serde_json::from_slice(&line).map(|reply| (reply, descriptors)).map_err(|_| DaemonFault::Protocol)
    }
}

fn unexpected(reply: Reply) -> DaemonFault {
    match reply {
        Reply::Failed { code, message } => DaemonFault::Refused { code, message },
        _ => DaemonFault::Protocol,
    }
}

fn fault(source: io::Error) -> DaemonFault {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => DaemonFault::Silent,
        io::ErrorKind::InvalidData => DaemonFault::Protocol,
        _ => DaemonFault::Lost(source),
    }
}

/// A unix socket's connect waits as long as the listener's queue is full, so it happens on a thread that can be left
/// alone.
fn connect(socket: &Path) -> Result<UnixStream, DaemonFault> {
    let (sender, receiver) = mpsc::channel();
    let path = socket.to_owned();
    thread::Builder::new()
        .name("connect".into())
        .spawn(move || sender.send(UnixStream::connect(path)))
        .map_err(DaemonFault::Unreachable)?;
    let stream = receiver.recv_timeout(CONNECT_TIME).map_err(|_| DaemonFault::Silent)?;
    let stream = stream.map_err(DaemonFault::Unreachable)?;
    stream.set_read_timeout(Some(ANSWER_TIME)).map_err(DaemonFault::Unreachable)?;
    stream.set_write_timeout(Some(CONNECT_TIME)).map_err(DaemonFault::Unreachable)?;
    Ok(stream)
}
