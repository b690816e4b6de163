//! Child processes that cannot outlive their test.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Time limit of a client that has none of its own.
const LIMIT: Duration = Duration::from_secs(50);

/// A program to be started, with its arguments.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    words: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    user: Option<String>,
    limit: Duration,
    stdin: bool,
}

impl Program {
    /// The program of that name, or at that path.
    ///
    /// # Panics
    /// When it is nowhere: the test names what it needs.
    #[must_use]
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        let path = find(name.as_ref());
        let short = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self {
            name: short,
            words: vec![path.into_os_string()],
            environment: Vec::new(),
            dir: None,
            user: None,
            limit: LIMIT,
            stdin: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.words.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_path_buf());
        self
    }

    /// Runs it as another user.
    #[must_use]
    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.to_owned());
        self
    }

    /// Sets the time limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Gives it a pipe as standard input ([`Process::say`]).
    #[must_use]
    pub fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self) -> Process {
        // `setpriv` becomes the program: same process, which the kernel then kills when its parent dies.
        let mut command = Command::new(find(OsStr::new("setpriv")));
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = &self.user {
            command.args(["--reuid", user, "--regid", &group_of(user), "--init-groups"]);
        }
        command.arg("--").args(&self.words).process_group(0);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.stdin(if self.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", self.name));
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .unwrap_or_else(|error| panic!("cannot watch {} (pidfd_open): {error}", self.name));
        Process {
            name: self.name.clone(),
            line: self.words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "),
            pid,
            pidfd,
            limit: self.limit,
            stdin: child.stdin.take(),
            stdout: Capture::of(child.stdout.take().expect("stdout is piped")),
            stderr: Capture::of(child.stderr.take().expect("stderr is piped")),
            child,
            status: None,
        }
    }

    /// Starts it and waits for its end.
    ///
    /// # Panics
    /// When it cannot be started or its time runs out.
    #[must_use]
    pub fn run(&self) -> Finished {
        self.start().wait()
    }

    /// Runs it and expects success; gives its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(&self) -> String {
        self.run().ok()
    }
}

/// Finds a program, also where only administrators look.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn find(name: &OsStr) -> PathBuf {
    if Path::new(name).components().count() > 1 {
        assert!(Path::new(name).is_file(), "{} does not exist", Path::new(name).display());
        return PathBuf::from(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("this test needs `{}`: run `cargo xtask setup`", name.to_string_lossy()))
}

/// Number of a user's own group.
fn group_of(user: &str) -> String {
    let output = Command::new("id").args(["-g", user]).output();
    let output = output.unwrap_or_else(|error| panic!("cannot ask for the group of {user}: {error}"));
    assert!(output.status.success(), "there is no user {user}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A running child. Dropping it kills its whole group and reaps it.
#[derive(Debug)]
pub struct Process {
    name: String,
    line: String,
    pid: Pid,
    pidfd: OwnedFd,
    limit: Duration,
    stdin: Option<ChildStdin>,
    stdout: Capture,
    stderr: Capture,
    child: Child,
    status: Option<ExitStatus>,
}

/// Why [`Process::until`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The condition holds.
    Held,
    /// The process ended first.
    Ended,
}

impl Process {
    /// Process id, which is its group's id too.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to its whole group.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            // Not reaped, so the number still means this group, even when everybody in it has ended.
            kill_process_group(self.pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
        }
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// When it has none, or does not read.
    pub fn say(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("started with a standard input");
        stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush())
            .unwrap_or_else(|error| panic!("{} does not read its input: {error}", self.name));
    }

    /// Ends its standard input.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Waits until it printed, on standard output, a line for which `wanted` holds, and gives that line.
    ///
    /// # Panics
    /// When it ends or its time runs out before.
    pub fn line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.line_or_end(wanted).unwrap_or_else(|| {
            panic!("{} did not print the line that was waited for\n{}", self.line, self.transcript())
        })
    }

    /// Waits for such a line, or for the end of its output.
    ///
    /// # Panics
    /// When its time runs out before.
    pub fn line_or_end(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        match self.stdout.find(Instant::now() + self.limit, wanted) {
            Ok(line) => line,
            Err(Late) => panic!("{} printed nothing of the kind in {:?}\n{}", self.line, self.limit, self.transcript()),
        }
    }

    /// Waits for its end or for a condition, whichever comes first. The condition is looked at again and again.
    ///
    /// # Panics
    /// When its time runs out.
    pub fn until(&mut self, mut condition: impl FnMut() -> bool) -> Until {
        let deadline = Instant::now() + self.limit;
        loop {
            if condition() {
                return Until::Held;
            }
            if self.ended_within(Duration::from_millis(1)) {
                return Until::Ended;
            }
            assert!(Instant::now() < deadline, "{}: neither its end nor the condition came\n{}", self.line, {
                self.transcript()
            });
        }
    }

    /// Whether it has ended by now.
    pub fn has_ended(&self) -> bool {
        self.status.is_some() || self.ended_within(Duration::ZERO)
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When its time runs out.
    #[must_use]
    pub fn wait(mut self) -> Finished {
        self.stdin = None;
        let ended = self.ended_within(self.limit);
        let status = self.reap();
        if !ended {
            panic!("{} was not over after {:?}\n{}", self.line, self.limit, self.transcript());
        }
        self.stdout.join();
        self.stderr.join();
        Finished { line: self.line.clone(), status, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }

    fn ended_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left)) {
                Ok(count) => return count > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("cannot wait for {}: {error}", self.name),
            }
        }
    }

    /// Kills what is left of the group, then takes the leader's status.
    fn reap(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        self.signal(Signal::KILL);
        let status = self.child.wait().unwrap_or_else(|error| panic!("cannot reap {}: {error}", self.name));
        self.status = Some(status);
        status
    }

    fn transcript(&self) -> String {
        format!("--- stdout\n{}--- stderr\n{}---", self.stdout.text(), self.stderr.text())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.reap();
    }
}

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    line: String,
    status: ExitStatus,
    /// Everything that it wrote to standard output.
    pub stdout: String,
    /// Everything that it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Exit code, or nothing when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Signal that ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Expects success; gives its standard output.
    ///
    /// # Panics
    /// When it failed.
    #[must_use]
    pub fn succeeded(&self) -> &Self {
        self.exited(0)
    }

    /// Expects success; gives its standard output.
    ///
    /// # Panics
    /// When it failed.
    pub fn ok(self) -> String {
        self.exited(0);
        self.stdout
    }

    /// Expects an exit code, and no panic.
    ///
    /// # Panics
    /// When it ended otherwise.
    pub fn exited(&self, code: i32) -> &Self {
        assert!(self.code() == Some(code), "expected exit code {code}\n{self}");
        assert!(!self.stderr.contains("panicked at"), "it panicked\n{self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "$ {}\n{}\n--- stdout\n{}--- stderr\n{}---", self.line, self.status, self.stdout, self.stderr)
    }
}

/// One stream of a child, read to its end by a thread.
#[derive(Debug)]
struct Capture {
    shared: Arc<(Mutex<Captured>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

/// Time has run out.
struct Late;

impl Capture {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Captured::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            loop {
                let count = stream.read(&mut chunk).unwrap_or(0);
                let mut captured = lock(&theirs.0);
                captured.bytes.extend_from_slice(&chunk[..count]);
                captured.ended = count == 0;
                theirs.1.notify_all();
                if captured.ended {
                    return;
                }
            }
        });
        Self { shared, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.shared.0).bytes).into_owned()
    }

    fn find(&self, deadline: Instant, wanted: impl Fn(&str) -> bool) -> Result<Option<String>, Late> {
        let mut captured = lock(&self.shared.0);
        loop {
            let text = String::from_utf8_lossy(&captured.bytes);
            let whole = if captured.ended { text.len() } else { text.rfind('\n').map_or(0, |end| end + 1) };
            if let Some(line) = text[..whole].lines().find(|line| wanted(line)) {
                return Ok(Some(line.to_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if captured.ended {
                return Ok(None);
            }
            if left.is_zero() {
                return Err(Late);
            }
            captured = self.shared.1.wait_timeout(captured, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of a stream does not panic");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
