//! Standard output, and what becomes of it.
//!
//! Nobody may read it (`| head`), or the file behind it may have no room. Neither changes what a command does: the rest of the output
//! is dropped, the work goes on, and the command ends with its own status. Only who asked for a result and could have had it, had
//! it been written, must hear of it: see [`settle`].

use std::io::{self, Write};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use tzero_api::{Exit, sentence};

use crate::advice;
use crate::events;
use crate::output::notice;

/// Set once, by the first bytes that were not taken. It is of the process, as its standard output is.
static LOST: OnceLock<Lost> = OnceLock::new();
/// Rest between two attempts where standard output was set not to wait.
const STEP: Duration = Duration::from_millis(5);

/// Why nothing more is written.
#[derive(Debug)]
enum Lost {
    /// Whoever read it has seen enough.
    Unread,
    /// It takes no more, and why.
    Unwritable(String),
}

/// Writes bytes after all events, or drops them where earlier ones were not taken.
pub(crate) fn write(bytes: &[u8]) {
    events::drain();
    put(bytes);
}

/// Writes a line about work that goes on, as soon as standard output takes it, and without waiting for that.
pub(crate) fn event(line: Vec<u8>) {
    events::post(line, put);
}

fn put(bytes: &[u8]) {
    if is_lost() {
        return;
    }
    match write_all(&mut io::stdout().lock(), bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => lose(Lost::Unread),
        Err(error) => lose(Lost::Unwritable(sentence(error))),
    }
}

/// What was to be written has no form that can be.
pub(crate) fn cannot_say(why: impl std::fmt::Display) {
    lose(Lost::Unwritable(why.to_string()));
}

fn lose(lost: Lost) {
    // The first reason stays.
    let _ = LOST.set(lost);
}

/// Whether what is written is dropped.
pub(crate) fn is_lost() -> bool {
    LOST.get().is_some()
}

/// How a command ends that would end with `exit` if all its output had been written. A failure has been reported on standard error
/// already, and is worse than a lost line.
pub(crate) fn settle(exit: Exit) -> Exit {
    events::drain();
    let (Exit::AsAsked | Exit::NotAsAsked, Some(Lost::Unwritable(why))) = (exit, LOST.get()) else { return exit };
    notice(advice::completed(format!(
        "the command was done, but its result cannot be written to standard output: {why}"
    )));
    Exit::NotAsAsked
}

/// All of `bytes`, also to a pipe that another program has set not to wait.
fn write_all(to: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) => rest(error)?,
        }
    }
    loop {
        match to.flush() {
            Ok(()) => return Ok(()),
            Err(error) => rest(error)?,
        }
    }
}

fn rest(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => {
            thread::sleep(STEP);
            Ok(())
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a byte at a time, and wants to be asked twice for each.
    struct Reluctant {
        taken: Vec<u8>,
        asked: bool,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.asked = !self.asked;
            if self.asked {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.taken.push(bytes[0]);
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_pipe_that_does_not_wait_is_waited_for() {
        let mut pipe = Reluctant { taken: Vec::new(), asked: false };
        write_all(&mut pipe, b"result").unwrap();
        assert_eq!(pipe.taken, b"result");
    }
}
