//! All connections of a server, on whatever threads they run.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tzero_block::Exports;
use tzero_io::{Notify, Stream, timeout};

use crate::budget::Budget;
use crate::connection::Connection;
use crate::error::{End, Error};
use crate::handshake::{Agreed, negotiate};
use crate::inbox::Inbox;
use crate::memory::Memory;
use crate::outbox::Outbox;
use crate::stop::{Stop, Stopped};

/// What clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time. A further one takes the place of the one that has been shaking hands for the longest time, so that
    /// who says nothing keeps nobody out; where all others have an export, the further one is closed at once.
    pub connections: usize,
    /// Requests of one connection at one time, unsent replies included. Beyond it nothing is received.
    pub requests: usize,
    /// Payload that one connection may hold in memory, in bytes: of writes in flight, and of reads until they are sent. A
    /// lone request may exceed it, up to the largest payload of 32 MiB.
    pub bytes: usize,
    /// How much of that a connection may hold whatever the others do, in bytes.
    pub own: usize,
    /// Payload that all connections together may hold beyond [`Limits::own`] of each, in bytes. A connection gets no more of it than it leaves
    /// to others, but a lone request of a connection goes on in any case: it alone may exceed this.
    pub shared: usize,
    /// Time for the whole handshake.
    pub handshake: Duration,
    /// Time for requests in flight to finish and be answered when a connection ends.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            requests: 128,
            bytes: 64 << 20,
            own: 1 << 20,
            shared: 512 << 20,
            handshake: Duration::from_secs(30),
            grace: Duration::from_secs(5),
        }
    }
}

#[derive(Default)]
struct Registry {
    stopping: bool,
    next: u64,
    live: HashMap<u64, Arc<Stop>>,
    /// Those that have no export yet, the oldest first.
    shaking: BTreeSet<u64>,
}

/// Serves a set of exports to NBD clients. Listening, accepting and the choice of a thread are the caller's.
///
/// ```no_run
/// # use std::sync::Arc;
/// # async fn accept<E: tzero_block::Exports>(exports: E, listener: tzero_io::Listener, threads: Vec<tzero_io::Handle>) {
/// let server = Arc::new(tzero_nbd::Server::new(exports, tzero_nbd::Limits::default()));
/// for thread in threads.iter().cycle() {
///     let Ok(stream) = listener.accept().await else { break };
///     let server = Arc::clone(&server);
///     thread.spawn(move || async move { drop(server.serve_connection(stream).await) });
/// }
/// server.shut_down();
/// server.ended().await;
/// # }
/// ```
pub struct Server<E> {
    exports: E,
    limits: Limits,
    memory: Arc<Memory>,
    registry: Mutex<Registry>,
    gone: Notify,
}

impl<E: Exports> Server<E> {
    /// A server without connections.
    pub fn new(exports: E, limits: Limits) -> Self {
        let memory = Arc::new(Memory::new(limits.shared));
        Self { exports, limits, memory, registry: Mutex::default(), gone: Notify::default() }
    }

    /// What is served.
    pub fn exports(&self) -> &E {
        &self.exports
    }

    /// Serves one client to its end on the current runtime. Requests run there too.
    ///
    /// # Errors
    /// Why the connection was cut. It concerns this client alone; what to log is the caller's choice.
    pub async fn serve_connection(&self, stream: Stream) -> Result<End, Error> {
        let registration = match self.register() {
            Ok(registration) => registration,
            Err(refused) => return refused,
        };
        let mut stopped = Stopped::new(Arc::clone(&registration.stop));
        let mut inbox = Inbox::new();
        let handshake = timeout(self.limits.handshake, negotiate(&self.exports, &stream, &mut inbox));
        let (session, terms) = match stopped.or(handshake).await {
            None if registration.was_displaced() => return Err(Error::TooManyConnections),
            None => return Ok(End::Stopped),
            Some(None) => return Err(Error::HandshakeTimeout),
            Some(Some(agreed)) => match agreed? {
                Agreed::Transmit(session, terms) => (session, terms),
                Agreed::Aborted => return Ok(End::Aborted),
                Agreed::Left => return Ok(End::Left),
            },
        };
        if !registration.agree() {
            return Err(Error::TooManyConnections);
        }
        let outbox = Outbox::new(Budget::new(&self.limits, Arc::clone(&self.memory)));
        let connection = Connection::new(stream, session, terms, outbox);
        connection.serve(inbox, &mut stopped, self.limits.grace).await
    }

    /// Ends all connections, from any thread: requests that were started are finished and answered, within
    /// [`Limits::grace`], then the connection is closed. Nothing further is received, and new connections are closed at once.
    ///
    /// Requests that were received in part or not at all get no answer rather than `ESHUTDOWN`: a client that
    /// reconnects repeats them elsewhere, and its user sees a pause instead of an error.
    pub fn shut_down(&self) {
        let mut registry = self.registry();
        registry.stopping = true;
        let live: Vec<_> = registry.live.values().cloned().collect();
        drop(registry);
        live.iter().for_each(|stop| stop.ask());
    }

    /// Resolves when no connection is left.
    pub async fn ended(&self) {
        loop {
            let gone = self.gone.listen();
            if self.connections() == 0 {
                return;
            }
            gone.await;
        }
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.registry().live.len()
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().expect("nothing panics under this lock")
    }

    fn register(&self) -> Result<Registration<'_, E>, Result<End, Error>> {
        let mut registry = self.registry();
        if registry.stopping {
            return Err(Ok(End::Stopped));
        }
        let mut displaced = None;
        if registry.live.len() >= self.limits.connections {
            let oldest = registry.shaking.pop_first().ok_or(Err(Error::TooManyConnections))?;
            displaced = registry.live.remove(&oldest);
        }
        let id = registry.next;
        registry.next += 1;
        let stop = Arc::new(Stop::default());
        registry.live.insert(id, Arc::clone(&stop));
        registry.shaking.insert(id);
        drop(registry);
        if let Some(displaced) = displaced {
            displaced.ask();
        }
        Ok(Registration { server: self, id, stop })
    }
}

/// A connection's place in the registry.
struct Registration<'a, E: Exports> {
    server: &'a Server<E>,
    id: u64,
    stop: Arc<Stop>,
}

impl<E: Exports> Registration<'_, E> {
    /// The connection has an export: nobody takes its place, unless somebody has already.
    fn agree(&self) -> bool {
        self.server.registry().shaking.remove(&self.id)
    }

    /// Whether somebody else has its place.
    fn was_displaced(&self) -> bool {
        !self.server.registry().live.contains_key(&self.id)
    }
}

impl<E: Exports> Drop for Registration<'_, E> {
    fn drop(&mut self) {
        {
            let mut registry = self.server.registry();
            registry.live.remove(&self.id);
            registry.shaking.remove(&self.id);
        }
        self.server.gone.notify_all();
    }
}
