//! The control interface, asked as any program would: HTTP over a unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks and gives the status and what was said.
///
/// # Panics
/// When there is no answer, or it is no HTTP with JSON.
#[must_use]
pub fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = UnixStream::connect(socket).unwrap_or_else(|error| panic!("nobody listens: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has time limits");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: tzero\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap_or_else(|error| panic!("the request is not taken: {error}"));
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("no answer: {error}"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let said = serde_json::from_str(body).unwrap_or_else(|error| panic!("no JSON ({error}): {answer}"));
    (status.unwrap_or_else(|| panic!("no status: {head}")), said)
}
