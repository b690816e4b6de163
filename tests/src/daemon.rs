//! A daemon under test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::nbd::Client;
use crate::process::{Process, Program};
use crate::scratch::Scratch;
use crate::tzero::{Tzero, binary};

/// How a daemon is to be started.
#[derive(Clone, Debug)]
pub struct Setting {
    binary: PathBuf,
    state: PathBuf,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Setting {
    /// With a state directory.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { binary: binary(), state: state.to_path_buf(), environment: Vec::new(), arguments: Vec::new() }
    }

    /// With another binary.
    #[must_use]
    pub fn binary(mut self, binary: &Path) -> Self {
        self.binary = binary.to_path_buf();
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With arguments.
    #[must_use]
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Starts it, without waiting for anything.
    #[must_use]
    pub fn launch(&self) -> Daemon {
        let mut program = Program::new(&self.binary).arg("serve").env("TZERO_STATE", &self.state);
        program = program.args(&self.arguments);
        for (name, value) in &self.environment {
            program = program.env(name, value);
        }
        Daemon {
            process: Some(program.limit(Duration::from_secs(30)).start()),
            tzero: Tzero::with_binary(&self.state, &self.binary),
            announced: Vec::new(),
        }
    }

    /// Starts it and waits until it is ready.
    #[must_use]
    pub fn start(&self) -> Daemon {
        let daemon = self.launch();
        daemon.ready();
        daemon
    }
}

/// A running daemon. Dropping it kills it, and fails the test when it logged what nobody announced.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Process>,
    tzero: Tzero,
    announced: Vec<String>,
}

impl Daemon {
    /// Starts one with its state in `scratch` and waits until it is ready.
    #[must_use]
    pub fn start(scratch: &Scratch) -> Self {
        Setting::new(&scratch.join("state")).start()
    }

    /// Starts one that serves one volume named `vol`.
    #[must_use]
    pub fn serving(scratch: &Scratch, base: &Path) -> Self {
        let daemon = Self::start(scratch);
        daemon.add("vol", base);
        daemon
    }

    /// Waits for the line that says so.
    pub fn ready(&self) {
        let line = self.process().line(|_| true);
        assert_eq!(line, "ready", "the first line of `serve`");
    }

    /// Waits until it is ready or has ended; tells whether it is ready.
    #[must_use]
    pub fn comes_up(&self) -> bool {
        self.process().line_or_end(|line| line == "ready").is_some()
    }

    /// The command with this daemon's state directory.
    #[must_use]
    pub fn tzero(&self) -> &Tzero {
        &self.tzero
    }

    /// The running process.
    ///
    /// # Panics
    /// When it was stopped.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the daemon was not stopped")
    }

    /// Its NBD socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.tzero.state().join("nbd.sock")
    }

    /// The URI of an export.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// A connection of our own to an export.
    ///
    /// # Panics
    /// When it cannot be had.
    #[must_use]
    pub fn connect(&self, export: &str) -> Client {
        Client::connect(&self.socket(), export).unwrap_or_else(|failure| panic!("cannot use {export}: {failure}"))
    }

    /// Everything that an export holds.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn contents(&self, export: &str) -> Vec<u8> {
        self.connect(export).read_all().unwrap_or_else(|failure| panic!("cannot read {export}: {failure}"))
    }

    /// Warnings and errors that contain `text` are what the test wants.
    pub fn announce(&mut self, text: &str) {
        self.announced.push(text.to_owned());
    }

    /// Asks it to end, which it must do well and within ten seconds, and checks its log.
    ///
    /// # Panics
    /// When it does not.
    pub fn stop(mut self) {
        let process = self.process.take().expect("the daemon was not stopped");
        process.signal(Signal::TERM);
        let asked = std::time::Instant::now();
        let finished = process.wait();
        finished.exited(0);
        assert!(asked.elapsed() < Duration::from_secs(10), "SIGTERM took {:?}\n{finished}", asked.elapsed());
        assert_eq!(finished.stdout, "ready\n", "nothing but `ready` belongs on standard output");
        check(&finished.stderr, &self.announced);
    }

    /// Asks it to end, within ten seconds, however well it can; gives what it said. Its log is the test's affair.
    ///
    /// # Panics
    /// When it takes longer.
    #[must_use]
    pub fn ends(mut self) -> crate::Finished {
        let process = self.process.take().expect("the daemon was not stopped");
        process.signal(Signal::TERM);
        let asked = std::time::Instant::now();
        let finished = process.wait();
        assert!(asked.elapsed() < Duration::from_secs(10), "SIGTERM took {:?}\n{finished}", asked.elapsed());
        finished
    }

    /// Kills it without warning, and checks its log so far.
    pub fn kill(self) {
        self.process().signal(Signal::KILL);
        self.died();
    }

    /// Waits until it was killed (by itself, at a crash point), and checks its log.
    ///
    /// # Panics
    /// When it ends otherwise.
    pub fn died(mut self) {
        let finished = self.process.take().expect("the daemon was not stopped").wait();
        assert_eq!(finished.signal(), Some(9), "it should have been killed\n{finished}");
        check(&finished.stderr, &self.announced);
    }
}

impl std::ops::Deref for Daemon {
    type Target = Tzero;

    fn deref(&self) -> &Tzero {
        &self.tzero
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        let log = process.stderr();
        drop(process);
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{log}---");
        } else {
            check(&log, &self.announced);
        }
    }
}

/// A log in which nothing is wrong, but for what was announced.
fn check(log: &str, announced: &[String]) {
    let bad = log.lines().find(|line| {
        let loud = line.contains("panicked at") || line.split_whitespace().any(|word| matches!(word, "WARN" | "ERROR"));
        loud && !announced.iter().any(|text| line.contains(text))
    });
    assert!(bad.is_none(), "the daemon logged: {}\n--- log of the daemon\n{log}---", bad.unwrap_or_default());
}
