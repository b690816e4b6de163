//! What the user of an export decides.

use std::time::Duration;

/// How to connect, and what to do when the connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Connections at most. Threads are spread over them; a server that does not say that its connections see each other's changes gets
    /// one. At least 1.
    pub connections: usize,
    /// Longest time for connecting and negotiating together.
    pub connect: Duration,
    /// A connection that leaves a request unanswered for so long counts as broken. `None`: it may take for ever. A machine that is gone is noticed
    /// without it: TCP says so within half a minute.
    ///
    /// It has to be far above what the server ever needs, flushes included. A server that was only slow may carry out a write of the old
    /// connection after a newer one of the new connection, and nothing in the protocol can prevent it.
    pub request: Option<Duration>,
    /// What happens to requests when the connection breaks.
    pub reconnect: Reconnect,
    /// Whether changes that the server acknowledged outlive its crash although they were not flushed. Only the one who runs the server can know:
    /// a process on this machine that writes through the page cache and dies alone, for one. If not, a flush fails after such
    /// a break: see [`crate::client`].
    pub keeps_acknowledged: bool,
}

/// For how long to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// A request fails when it is not done so long after its connection first broke. As long as that there are new attempts; afterwards
    /// a request causes one attempt, and fails with it. Zero: requests in flight fail at once.
    pub within: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connections: 1,
            connect: Duration::from_secs(10),
            request: None,
            reconnect: Reconnect { within: Duration::from_secs(30) },
            keeps_acknowledged: false,
        }
    }
}
