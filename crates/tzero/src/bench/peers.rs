//! Other NBD servers of this machine: what they are called, how they are started, and what is asked of them.

use std::env;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::qmp::Qmp;
use crate::ending::Ending;

/// How long a server may take to listen.
const READY: Duration = Duration::from_secs(20);
/// Time between two looks at it.
const STEP: Duration = Duration::from_millis(5);

/// A program of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Nbdkit,
    Qsd,
    Nbdcopy,
}

impl Program {
    pub(super) const ALL: [Self; 3] = [Self::Nbdkit, Self::Qsd, Self::Nbdcopy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::Qsd => "qemu-storage-daemon",
            Self::Nbdcopy => "nbdcopy",
        }
    }

    /// Where it is, if it is on this machine.
    pub(super) fn find(self) -> Option<PathBuf> {
        let paths = env::var_os("PATH")?;
        env::split_paths(&paths).map(|path| path.join(self.name())).find(|path| path.is_file())
    }

    /// What it says of itself.
    pub(super) fn version(self) -> Option<String> {
        let output = Command::new(self.find()?).arg("--version").stdin(Stdio::null()).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
    }
}

/// How QEMU's storage daemon reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Io {
    /// Past the page cache, by the kernel's asynchronous calls.
    Direct,
    /// Through the page cache, by threads.
    Writeback,
}

impl Io {
    fn aio(self) -> &'static str {
        match self {
            Self::Direct => "native",
            Self::Writeback => "threads",
        }
    }

    fn node(self, path: &Path, name: &str) -> Value {
        json!({
            "driver": "file", "filename": path, "aio": self.aio(), "node-name": name,
            "cache": {"direct": self == Self::Direct, "no-flush": false},
        })
    }
}

/// A server that runs.
pub(super) struct Server {
    child: Child,
    pub(super) socket: PathBuf,
    pub(super) export: &'static str,
    /// How it was started.
    pub(super) command: String,
    pub(super) qmp: Option<Qmp>,
}

impl Server {
    /// nbdkit's file plugin.
    pub(super) fn nbdkit(directory: &Path, volume: &Path) -> Result<Self, Ending> {
        let socket = directory.join("nbdkit.sock");
        let mut command = Command::new(Program::Nbdkit.name());
        command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(format!("file={}", volume.display()));
        Self::start(command, directory, socket, "")
    }

    /// QEMU's storage daemon, with a node `disk` over the file, so that filters can be put between them.
    pub(super) fn qsd(directory: &Path, volume: &Path, io: Io) -> Result<Self, Ending> {
        let (socket, control) = (directory.join("qsd.sock"), directory.join("qsd.qmp"));
        let direct = io == Io::Direct;
        let mut command = Command::new(Program::Qsd.name());
        command
            .arg("--chardev")
            .arg(format!("socket,id=c,path={},server=on,wait=off", control.display()))
            .args(["--monitor", "chardev=c", "--blockdev"])
            .arg(io.node(volume, "src").to_string())
            .arg("--blockdev")
            .arg(json!({"driver": "raw", "node-name": "disk", "file": "src", "cache": {"direct": direct}}).to_string())
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={},max-connections=0", socket.display()))
            .args(["--export", "type=nbd,id=host,node-name=disk,name=host,writable=on"]);
        let mut server = Self::start(command, directory, socket, "host")?;
        server.qmp = Some(Qmp::connect(&control).map_err(|error| failed(Program::Qsd.name(), &error))?);
        Ok(server)
    }

    fn start(mut command: Command, directory: &Path, socket: PathBuf, export: &'static str) -> Result<Self, Ending> {
        let said = shown(&command);
        let name = command.get_program().to_string_lossy().into_owned();
        // One of a run before may be left.
        let _ = fs::remove_file(&socket);
        let log = File::create(directory.join(format!("{name}.log"))).map_err(|error| failed(&name, &error))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|error| failed(&name, &error))?;
        let mut server = Self { child, socket, export, command: said, qmp: None };
        let deadline = Instant::now() + READY;
        while UnixStream::connect(&server.socket).is_err() {
            if Instant::now() > deadline || !matches!(server.child.try_wait(), Ok(None)) {
                let log = fs::read_to_string(directory.join(format!("{name}.log"))).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing").to_owned();
                return Err(Ending::failed(format!("{name} does not listen: {last}")));
            }
            thread::sleep(STEP);
        }
        Ok(server)
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has a snapshot of QEMU's: originals go to `temporary`, and `fleece` is exported with what was.
    pub(super) fn copy_before_write(&mut self, temporary: &Path) -> Result<(), Ending> {
        let node = Io::Direct.node(temporary, "tmp");
        self.ask("blockdev-add", &node)?;
        self.ask(
            "blockdev-add",
            &json!({"driver": "copy-before-write", "node-name": "cbw", "file": "src", "target": "tmp"}),
        )?;
        let disk = json!({"driver": "raw", "node-name": "disk", "file": "cbw", "cache": {"direct": true}});
        self.ask("blockdev-reopen", &json!({"options": [disk]}))?;
        self.ask("blockdev-add", &json!({"driver": "snapshot-access", "node-name": "snap", "file": "cbw"}))?;
        self.ask("block-export-add", &json!({"type": "nbd", "id": "fleece", "node-name": "snap", "name": "fleece"}))
    }

    /// Runs a job that copies all of `disk` to `target`, to its end.
    pub(super) fn backup(&mut self, target: &Path, performance: Option<&Value>) -> Result<(), Ending> {
        self.ask("blockdev-add", &Io::Direct.node(target, "target"))?;
        let mut job = json!({"job-id": "copy", "device": "disk", "target": "target", "sync": "full"});
        if let Some(performance) = performance {
            job["x-perf"] = performance.clone();
        }
        self.ask("blockdev-backup", &job)?;
        let ended = self.control().wait("BLOCK_JOB_COMPLETED").map_err(|error| failed(Program::Qsd.name(), &error))?;
        match ended["error"].as_str() {
            Some(error) => Err(failed(Program::Qsd.name(), &error)),
            None => Ok(()),
        }
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<(), Ending> {
        self.control().ask(command, arguments).map_err(|error| failed(Program::Qsd.name(), &error))
    }

    fn control(&mut self) -> &mut Qmp {
        self.qmp.as_mut().expect("only QEMU's is asked")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failed(name: &str, error: &dyn std::fmt::Display) -> Ending {
    Ending::failed(format!("{name} does not do its part: {error}"))
}

/// A command as one would type it.
pub(super) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| tzero_api::quoted(&word.to_string_lossy()).into_owned()).collect::<Vec<_>>().join(" ")
}
