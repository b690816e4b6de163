//! Restores on request. The daemon moves no bulk data: a job is a process of its own, `tzero restore … --json`, that the daemon starts, listens to
//! and ends.
//!
//! ```text
//!   asked for ─▶ running ──── ends by itself ────▶ done | failed | incomplete ─▶ forgotten: on request, or when many are newer
//!                   └─▶ stopping ──▶ the same        (its standard input is closed; after [`PATIENCE`] it is killed)
//! ```
//!
//! # Invariants
//! 1. A job's process does not outlive the daemon's use for it: its standard input is a pipe that only the daemon holds, and it stops in good order
//!    when that ends, whatever ended it. One that does not stop in time is killed.
//! 2. What a job says is bounded: a line of its output by [`LONGEST_LINE`], jobs that run by [`MOST_RUNNING`], those that are remembered by [`MOST_KEPT`].
//! 3. Nothing here waits on a data thread or on the thread that answers commands: each job has a thread that waits for its process.
//!
//! Jobs are remembered as long as the daemon runs. A restore that overwrites in place and did not end is on record beyond that (`restores`).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tzero_api::Exit;
use tzero_api::jobs::{Job, JobProgress, JobState, StartRestore};
use tzero_io::system;

use crate::refusal::Refusal;
use crate::volumes::hex;

/// Jobs that run at one time.
const MOST_RUNNING: usize = 4;
/// Jobs that are over and still told of.
const MOST_KEPT: usize = 64;
/// Longest line of a job's output that is read, in bytes: a result with as many ranges as there may be fits.
const LONGEST_LINE: u64 = 1 << 20;
/// How long a job may take to stop in good order when the daemon ends.
const PATIENCE: Duration = Duration::from_millis(2000);
/// Names the job to its process.
const JOB: &str = "TZERO_JOB";
const STATE: &str = "TZERO_STATE";

/// All jobs.
pub(crate) struct Jobs {
    /// What is run.
    program: PathBuf,
    state: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    all: Mutex<All>,
    /// A job is over.
    ended: Condvar,
}

#[derive(Default)]
struct All {
    jobs: BTreeMap<String, Entry>,
    stopping: bool,
}

struct Entry {
    job: Job,
    /// Its process; none when it is over.
    child: Option<Child>,
    /// Ends the job when it is dropped.
    stdin: Option<ChildStdin>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, id: &str, then: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().jobs.get_mut(id) {
            then(entry);
        }
    }
}

impl Jobs {
    /// None yet. `program` is this daemon's own.
    pub(crate) fn new(program: PathBuf, state: &Path) -> Self {
        Self { program, state: state.to_owned(), shared: Arc::default() }
    }

    /// All of them, oldest first.
    pub(crate) fn list(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.shared.lock().jobs.values().map(|entry| entry.job.clone()).collect();
        jobs.sort_by(|one, other| (one.begun_ns, &one.id).cmp(&(other.begun_ns, &other.id)));
        jobs
    }

    /// One of them.
    pub(crate) fn get(&self, id: &str) -> Result<Job, Refusal> {
        let all = self.shared.lock();
        all.jobs.get(id).map(|entry| entry.job.clone()).ok_or_else(|| Refusal::NoJob(id.into()))
    }

    /// Starts one. Blocking for as long as starting a process takes.
    pub(crate) fn start(&self, restore: StartRestore) -> Result<Job, Refusal> {
        restore.check()?;
        let mut all = self.shared.lock();
        if all.stopping {
            return Err(Refusal::Stopping);
        }
        let running = all.jobs.values().filter(|entry| !entry.job.state.is_over()).count();
        if running >= MOST_RUNNING {
            return Err(Refusal::TooManyJobs(running));
        }
        let id = hex(system::random_id());
        let mut child = self.command(&restore, &id).spawn().map_err(Refusal::JobNotStarted)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let job = Job {
            id: id.clone(),
            restore,
            state: JobState::Running,
            begun_ns: system::wall_ns(),
            ended_ns: None,
            pid: Some(child.id()),
            progress: None,
            result: None,
            error: None,
            exit: None,
        };
        all.jobs.insert(id.clone(), Entry { job: job.clone(), child: Some(child), stdin });
        forget_old(&mut all);
        drop(all);
        let theirs = Arc::clone(&self.shared);
        let listener = thread::Builder::new().name("job".into());
        let started = listener.spawn(move || listen(&theirs, &id, stdout.expect("it is piped")));
        if let Err(source) = started {
            // Nobody would hear of its end.
            let entry = self.shared.lock().jobs.remove(&job.id);
            if let Some(mut child) = entry.and_then(|entry| entry.child) {
                let _ = child.kill().and_then(|()| child.wait());
            }
            return Err(Refusal::JobNotStarted(source));
        }
        Ok(job)
    }

    fn command(&self, restore: &StartRestore, id: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("restore").arg(format!("--to={}", restore.target));
        command.args(restore.ranges.iter().map(|part| format!("--range={}+{}", part.offset, part.length)));
        command.args(
            [("--differing", restore.differing), ("--force", restore.force)]
                .iter()
                .filter(|(_, is)| *is)
                .map(|(flag, _)| flag),
        );
        command.args(["--json", "--", &restore.copy]);
        command.env(STATE, &self.state).env(JOB, id).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    /// Stops a job that runs, in good order; one that is over is forgotten. Gives what it was.
    pub(crate) fn cancel(&self, id: &str) -> Result<Job, Refusal> {
        let mut all = self.shared.lock();
        let entry = all.jobs.get_mut(id).ok_or_else(|| Refusal::NoJob(id.into()))?;
        if entry.job.state.is_over() {
            let job = entry.job.clone();
            all.jobs.remove(id);
            return Ok(job);
        }
        entry.stop();
        Ok(entry.job.clone())
    }

    /// Ends all jobs: in good order, and those that are not over in time by force. Blocking.
    pub(crate) fn stop(&self) {
        let mut all = self.shared.lock();
        all.stopping = true;
        all.jobs.values_mut().filter(|entry| !entry.job.state.is_over()).for_each(Entry::stop);
        let run = |all: &mut All| all.jobs.values().any(|entry| !entry.job.state.is_over());
        let waited = self.shared.ended.wait_timeout_while(all, PATIENCE, run);
        let (mut all, _) = waited.unwrap_or_else(PoisonError::into_inner);
        for child in all.jobs.values_mut().filter_map(|entry| entry.child.as_mut()) {
            // Its thread reaps it. One that hangs in the kernel is left to whoever reaps the daemon's children.
            let _ = child.kill();
        }
    }
}

impl Entry {
    fn stop(&mut self) {
        self.job.state = JobState::Stopping;
        self.stdin = None;
    }

    /// Takes a line of its output.
    fn hear(&mut self, line: &[u8]) {
        let Ok(mut said) = serde_json::from_slice::<Value>(line) else { return };
        if said["event"] == "progress" {
            let number = |member: &str| said[member].as_u64().unwrap_or(0);
            let phase = said["phase"].as_str().unwrap_or_default().to_owned();
            self.job.progress = Some(JobProgress { phase, done: number("done"), total: number("total") });
        } else if !said["restored"].is_null() {
            self.job.result = Some(said["restored"].take());
        } else if let Some(message) = said["error"]["message"].as_str() {
            self.job.error = Some(message.to_owned());
        }
    }

    fn end(&mut self, status: Option<ExitStatus>) {
        let exit = status.and_then(|status| status.code());
        self.job.state = match exit {
            Some(code) if code == i32::from(Exit::AsAsked.code()) && self.job.result.is_some() => JobState::Done,
            Some(code) if code == i32::from(Exit::Incomplete.code()) => JobState::Incomplete,
            // Killed: what it has done is on record.
            None => JobState::Incomplete,
            Some(_) => JobState::Failed,
        };
        if self.job.state != JobState::Done && self.job.error.is_none() {
            let why =
                status.map_or("its end could not be seen".to_owned(), |status| format!("its process ended ({status})"));
            self.job.error =
                Some(format!("the restore to {} is not done: {why}; ask for it again", self.job.restore.target));
        }
        (self.job.exit, self.job.ended_ns, self.job.pid) = (exit, Some(system::wall_ns()), None);
        (self.child, self.stdin) = (None, None);
    }
}

/// Hears a job to its end. Runs on a thread of its own.
fn listen(shared: &Shared, id: &str, stdout: ChildStdout) {
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => shared.with(id, |entry| entry.hear(&line)),
        }
    }
    // It says nothing more. As long as it is not reaped it can be killed.
    let mut pid = None;
    shared.with(id, |entry| pid = entry.child.as_ref().map(Child::id));
    let _ = pid.map(system::wait_ended);
    shared.with(id, |entry| {
        let status = entry.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        entry.end(status);
        tracing::info!(job = id, target = entry.job.restore.target, state = ?entry.job.state, "restore ended");
    });
    shared.ended.notify_all();
}

fn forget_old(all: &mut All) {
    let mut over: Vec<_> =
        all.jobs.values().filter_map(|entry| Some((entry.job.ended_ns?, entry.job.id.clone()))).collect();
    over.sort();
    for (_, id) in over.iter().take(over.len().saturating_sub(MOST_KEPT)) {
        all.jobs.remove(id);
    }
}

#[cfg(test)]
mod tests;
