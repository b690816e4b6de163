//! Events for programs. They tell of work, and must not hold it up: a reader that does not read gets fewer of them, or none.
//!
//! ```text
//!   post ──queue, dropped where full──▶ a thread of its own ──▶ standard output
//!   drain: waits until the queue is empty, so that a result comes after what led to it
//! ```

use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;

/// Events that may wait; some minutes of them.
const WAITING: usize = 256;

static QUEUE: OnceLock<SyncSender<Message>> = OnceLock::new();

enum Message {
    /// A line to be written.
    Line(Vec<u8>),
    /// Everything before this was written, or dropped.
    Drained(Sender<()>),
}

/// Has a line written by `write` on another thread, without waiting for it.
pub(crate) fn post(line: Vec<u8>, write: fn(&[u8])) {
    let queue = QUEUE.get_or_init(|| {
        let (queue, lines) = mpsc::sync_channel(WAITING);
        // Where there can be no thread the receiver is gone, and there are no events.
        let _ = thread::Builder::new().name("events".into()).spawn(move || take(&lines, write));
        queue
    });
    // Full: nobody reads as fast as things happen.
    let _ = queue.try_send(Message::Line(line));
}

/// Waits until every line that was posted was written or dropped. Nothing waits for whoever calls this any more.
pub(crate) fn drain() {
    let Some(queue) = QUEUE.get() else { return };
    let (drained, is_drained) = mpsc::channel();
    if queue.send(Message::Drained(drained)).is_ok() {
        // An error means that it is gone, and with it the queue.
        let _ = is_drained.recv();
    }
}

fn take(lines: &Receiver<Message>, write: fn(&[u8])) {
    for message in lines {
        match message {
            Message::Line(line) => write(&line),
            Message::Drained(to) => drop(to.send(())),
        }
    }
}
