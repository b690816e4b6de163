//! The command under test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::process::{Finished, Program};

/// The release binary: `TZERO_BIN`, or what `cargo build --release` leaves.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TZERO_BIN") {
        return PathBuf::from(path);
    }
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), |dir| top.join(dir));
    let path = target.join("release/tzero");
    assert!(path.is_file(), "{} is not there: run `cargo build --release` first", path.display());
    path
}

/// `tzero` with a state directory.
#[derive(Clone, Debug)]
pub struct Tzero {
    binary: PathBuf,
    state: PathBuf,
}

impl Tzero {
    /// With the binary under test.
    #[must_use]
    pub fn at(state: &Path) -> Self {
        Self { binary: binary(), state: state.to_path_buf() }
    }

    /// With another binary.
    #[must_use]
    pub fn with_binary(state: &Path, binary: &Path) -> Self {
        Self { binary: binary.to_path_buf(), state: state.to_path_buf() }
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A command line, to be completed or started.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Program {
        Program::new(&self.binary).env("TZERO_STATE", &self.state).args(arguments)
    }

    /// Runs a command line given as words separated by blanks.
    #[must_use]
    pub fn run(&self, line: &str) -> Finished {
        self.command(line.split_whitespace()).run()
    }

    /// Runs it and expects success; gives what it printed.
    pub fn ok(&self, line: &str) -> String {
        self.run(line).ok()
    }

    /// Runs it with `--json` and expects success; gives the last line, which is the result.
    pub fn json(&self, line: &str) -> Value {
        let finished = self.command(line.split_whitespace()).arg("--json").run();
        finished.exited(0);
        result(&finished)
    }

    /// Runs it and expects to be refused in one good sentence; gives that sentence.
    pub fn refuses(&self, code: i32, line: &str) -> String {
        let finished = self.run(line);
        finished.exited(code);
        sentence(&finished)
    }

    /// Adds a volume.
    pub fn add(&self, name: &str, base: &Path) {
        self.command(["volume", "add", name]).arg(base).run().exited(0);
    }

    /// Names of the snapshots of a volume, without the volume's.
    ///
    /// # Panics
    /// When the list cannot be had or read.
    #[must_use]
    pub fn snapshots(&self, volume: &str) -> Vec<String> {
        let list = self.json("snapshot list");
        let list = list["snapshots"].as_array().unwrap_or_else(|| panic!("no list of snapshots: {list}"));
        let own = list.iter().filter(|snapshot| snapshot["volume"] == volume);
        own.map(|snapshot| snapshot["name"].as_str().expect("a snapshot has a name").to_owned()).collect()
    }

    /// Lines of `snapshot map`, header checked and dropped: (block, state, cache offset).
    ///
    /// # Panics
    /// When it is not as the manual says.
    #[must_use]
    pub fn map(&self, snapshot: &str) -> Vec<(u64, String, Option<u64>)> {
        self.lines(snapshot).into_iter().map(|(_, block, state, slot)| (block, state, slot)).collect()
    }

    /// The same: (unit, block, cache offset).
    ///
    /// # Panics
    /// When it is not as the manual says.
    #[must_use]
    pub fn places(&self, snapshot: &str) -> Vec<(u64, u64, Option<u64>)> {
        self.lines(snapshot).into_iter().map(|(unit, block, _, slot)| (unit, block, slot)).collect()
    }

    fn lines(&self, snapshot: &str) -> Vec<(u64, u64, String, Option<u64>)> {
        let text = self.ok(&format!("snapshot map {snapshot}"));
        let mut lines = text.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with('#')), "no header line: {text}");
        lines
            .map(|line| {
                let fields: Vec<&str> = line.split('\t').collect();
                let [unit, block, state, slot] = fields[..] else { panic!("not four fields: {line}") };
                let unit = u64::from_str_radix(unit.trim_start_matches("0x"), 16);
                let unit = unit.unwrap_or_else(|_| panic!("unit: {line}"));
                let slot = (slot != "-").then(|| slot.parse().unwrap_or_else(|_| panic!("cache offset: {line}")));
                assert!(matches!(state, "read" | "unread"), "state: {line}");
                (unit, block.parse().unwrap_or_else(|_| panic!("block: {line}")), state.to_owned(), slot)
            })
            .collect()
    }

    /// A backup, with room for large volumes.
    #[must_use]
    pub fn backup(&self, arguments: &[&str]) -> Program {
        self.command(["backup"]).args(arguments).limit(Duration::from_secs(60))
    }
}

/// The result of a `--json` command: its last line, every other being an object too.
///
/// # Panics
/// When a line is no JSON object.
#[must_use]
pub fn result(finished: &Finished) -> Value {
    let mut last = Value::Null;
    for line in finished.stdout.lines() {
        last = serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}\n{finished}"));
        assert!(last.is_object(), "no object: {line}\n{finished}");
    }
    assert!(last.is_object(), "no result\n{finished}");
    last
}

/// The one sentence that a refusal prints.
///
/// # Panics
/// When it is more, less, or a bare error number.
pub fn sentence(finished: &Finished) -> String {
    let text = finished.stderr.trim();
    assert!(!text.is_empty(), "no message\n{finished}");
    assert_eq!(text.lines().count(), 1, "more than one line\n{finished}");
    assert!(text.split_whitespace().count() >= 4, "too short to be a sentence\n{finished}");
    for bare in ["panicked", "os error", "Os {", "Error {", "Some(", "unwrap"] {
        assert!(!text.contains(bare), "not for a person: {bare}\n{finished}");
    }
    text.to_owned()
}
