//! Where the story plays: a directory and a daemon of its own, both gone afterwards.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ending::Ending;

/// How long the daemon may take to get ready.
const READY: Duration = Duration::from_secs(20);
/// Time between two looks at a child and at the interruption.
const STEP: Duration = Duration::from_millis(5);

/// The directory and the daemon.
pub(crate) struct Stage {
    directory: tempfile::TempDir,
    program: PathBuf,
    interrupted: Arc<AtomicBool>,
    daemon: Option<Child>,
}

impl Stage {
    /// Makes the directory.
    pub(crate) fn new(parent: &Path, interrupted: Arc<AtomicBool>) -> Result<Self, Ending> {
        let directory = tempfile::Builder::new().prefix("tzero-demo-").tempdir_in(parent).map_err(|error| {
            // The error itself names the place once more.
            Ending::failed(format!("no directory can be made in {}: {}", parent.display(), error.kind()))
        })?;
        let program = env::current_exe()
            .map_err(|error| Ending::failed(format!("the program itself cannot be found: {error}")))?;
        Ok(Self { directory, program, interrupted, daemon: None })
    }

    /// A place in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the daemon's NBD clients connect.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("state/nbd.sock")
    }

    /// An error where the story was interrupted.
    pub(crate) fn go_on(&self) -> Result<(), Ending> {
        if self.interrupted.load(Ordering::Acquire) {
            return Err(Ending::failed("the demo was interrupted; nothing is left behind"));
        }
        Ok(())
    }

    /// The interruption, for others to look at.
    pub(crate) fn interrupted(&self) -> &AtomicBool {
        &self.interrupted
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_remove("TZERO_STATE").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command.arg("--state").arg(self.path("state"));
        command
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn serve(&mut self) -> Result<(), Ending> {
        let failed = |error: io::Error| Ending::failed(format!("the daemon cannot be started: {error}"));
        let log = File::create(self.path("log")).map_err(failed)?;
        let mut daemon = self.command().arg("serve").stdout(Stdio::piped()).stderr(log).spawn().map_err(failed)?;
        let stdout = daemon.stdout.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        self.daemon = Some(daemon);
        let (line, first_line) = mpsc::channel();
        thread::spawn(move || {
            let mut first = String::new();
            let _ = BufReader::new(stdout).read_line(&mut first);
            // Nobody listens any more where it took too long.
            let _ = line.send(first);
        });
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            self.go_on()?;
            match first_line.recv_timeout(STEP) {
                Ok(line) if line.trim() == "ready" => return Ok(()),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                _ => break,
            }
        }
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        Err(Ending::failed(format!(
            "the daemon did not get ready: {}",
            log.lines().last().unwrap_or("it said nothing")
        )))
    }

    /// Runs a command of this program to its end; gives the last line of its JSON.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Value, Ending> {
        let failed =
            |error: io::Error| Ending::failed(format!("`tzero {}` cannot be run: {error}", arguments.join(" ")));
        let child = self.command().arg("--json").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let output = child.and_then(Child::wait_with_output).map_err(failed)?;
        self.go_on()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let result: Option<Value> = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        match result {
            Some(result) if output.status.success() => Ok(result),
            _ => {
                let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
                Err(Ending::failed(format!("`tzero {}` failed: {said}", arguments.join(" "))))
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // Its state goes with the directory: there is nothing to save. Errors mean that it is gone already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
