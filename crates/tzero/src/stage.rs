//! Where the demo and the bench play: a directory and a daemon of their own, both gone afterwards.

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
    /// What plays there.
    play: &'static str,
    directory: tempfile::TempDir,
    program: PathBuf,
    interrupted: Arc<AtomicBool>,
    daemon: Option<Child>,
}

/// How long a command took, and how much of a processor's time, in seconds.
pub(crate) struct Timed {
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
}

impl Stage {
    /// Makes the directory.
    pub(crate) fn new(play: &'static str, parent: &Path, interrupted: Arc<AtomicBool>) -> Result<Self, Ending> {
        let prefix = format!("tzero-{play}-");
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(|error| {
            // The error itself names the place once more.
            Ending::failed(format!("no directory can be made in {}: {}", parent.display(), error.kind()))
        })?;
        let program = env::current_exe()
            .map_err(|error| Ending::failed(format!("the program itself cannot be found: {error}")))?;
        Ok(Self { play, directory, program, interrupted, daemon: None })
    }

    /// A place in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the daemon's NBD clients connect.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("state/nbd.sock")
    }

    /// An error where the play was interrupted.
    pub(crate) fn go_on(&self) -> Result<(), Ending> {
        if self.interrupted.load(Ordering::Acquire) {
            return Err(Ending::failed(format!("the {} was interrupted; nothing is left behind", self.play)));
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

    /// The daemon's process; none where it does not run.
    pub(crate) fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Ends the daemon as a failure would: `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Errors mean that it is gone already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Runs a command of this program to its end, and says how long it took.
    pub(crate) fn timed(&self, arguments: &[&str]) -> Result<Timed, Ending> {
        let failed =
            |error: io::Error| Ending::failed(format!("`tzero {}` cannot be run: {error}", arguments.join(" ")));
        let said = self.path("said");
        let begun = Instant::now();
        let log = File::create(&said).map_err(failed)?;
        let mut child = self.command().args(arguments).stdout(Stdio::null()).stderr(log).spawn().map_err(failed)?;
        tzero_io::system::wait_ended(child.id()).map_err(failed)?;
        let seconds = begun.elapsed().as_secs_f64();
        let cpu = cpu_of(child.id()).map_err(failed)?;
        let status = child.wait().map_err(failed)?;
        self.go_on()?;
        if !status.success() {
            let said = fs::read_to_string(&said).unwrap_or_default();
            let said = said.lines().last().unwrap_or_default();
            return Err(Ending::failed(format!("`tzero {}` failed: {said}", arguments.join(" "))));
        }
        Ok(Timed { seconds, cpu })
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
        // Its state goes with the directory: there is nothing to save.
        self.kill();
    }
}

/// User and system time that a process has used, in seconds. One that has ended counts until it is reaped.
pub(crate) fn cpu_of(process: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // Linux counts hundredths of a second here, whatever its own clock.
    Ok((ticks(11) + ticks(12)) / 100.0)
}
