//! The daemon's own sockets, spoken to byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream
}

/// One request to the control socket; gives status and body.
///
/// # Panics
/// When the answer is no HTTP with JSON.
#[must_use]
pub fn control(state: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = connect(&state.join("control.sock"));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: tzero\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // The daemon may answer before it has taken in all of a request that is too long.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("no JSON ({error}): {body}"));
    (status.unwrap_or_else(|| panic!("no status: {head}")), body)
}

/// A mover's conversation. Descriptors that the daemon passes are lost on the way.
pub struct Mover {
    stream: BufReader<UnixStream>,
}

impl Mover {
    /// Connects.
    #[must_use]
    pub fn connect(state: &Path) -> Self {
        Self { stream: BufReader::new(connect(&state.join("mover.sock"))) }
    }

    /// Says a line and hears one.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn ask(&mut self, request: &Value) -> Value {
        let line = format!("{request}\n");
        self.stream.get_mut().write_all(line.as_bytes()).expect("the daemon listens");
        let mut answer = String::new();
        self.stream.read_line(&mut answer).expect("the daemon answers");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("no JSON ({error}): {answer}"))
    }
}
