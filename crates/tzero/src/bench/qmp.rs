//! QEMU's control protocol, as far as it is needed: commands, and events that are waited for. Blocking, with a time limit.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long QEMU may be silent.
const SILENCE: Duration = Duration::from_secs(300);

/// A connection.
pub(super) struct Qmp {
    lines: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let mut qmp = Self { lines: BufReader::new(stream), events: Vec::new() };
        qmp.next()?;
        qmp.ask("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn next(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Has a command carried out.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> io::Result<()> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.lines.get_mut().write_all(line.as_bytes())?;
        loop {
            let answer = self.next()?;
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!("{command}: {}", error["desc"].as_str().unwrap_or("refused"))));
            } else {
                return Ok(());
            }
        }
    }

    /// Waits for an event; gives its data.
    pub(super) fn wait(&mut self, event: &str) -> io::Result<Value> {
        loop {
            if let Some(index) = self.events.iter().position(|seen| seen["event"] == event) {
                return Ok(self.events.remove(index)["data"].take());
            }
            let seen = self.next()?;
            self.events.push(seen);
        }
    }
}
