//! What becomes of a backup's snapshot, and of what it released, when its mover goes away at odd moments.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use e2e::process::Until;
use e2e::scratch::{assert_same, bytes, read};
use e2e::tzero::sentence;
use e2e::{Daemon, MIB, Scratch};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::load::Load;

const SIZE: u64 = 64 * MIB;

/// A mover of our own, which says what it is told to.
struct Mover {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Mover {
    fn connect(daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(daemon.state().join("mover.sock")).expect("the daemon listens for movers");
        let lines = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
        Self { stream, lines }
    }

    /// Asks, and gives the answer. Descriptors that come with it are closed by the kernel.
    fn ask(&mut self, request: &Value) -> Value {
        self.stream.write_all(format!("{request}\n").as_bytes()).expect("the daemon takes a request");
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the daemon answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn begin(&mut self) -> Value {
        let to = json!({ "path": "/x/it's.img", "unfinished": "/x/it's.img.tzero-partial" });
        let begun = self
            .ask(&json!({ "request": "begin", "protocol": 3, "volume": "vol", "snapshot": null, "destination": to }));
        assert_eq!(begun["reply"], "begun", "{begun}");
        begun
    }

    fn resume(&mut self, begun: &Value) -> Value {
        let resume =
            json!({ "request": "resume", "protocol": 3, "volume": "vol", "snapshot_id": begun["snapshot_id"] });
        self.ask(&resume)
    }

    fn captured(&mut self, ranges: &[(u64, u64)]) {
        let reply = self.ask(&json!({ "request": "captured", "ranges": ranges }));
        assert_eq!(reply["reply"], "released", "{reply}");
    }
}

fn serving(scratch: &Scratch) -> Daemon {
    Daemon::serving(scratch, &scratch.random("base", SIZE, 1))
}

#[test]
fn a_mover_that_dies_before_it_has_a_journal_leaves_no_snapshot() {
    let scratch = Scratch::new();
    let daemon = serving(&scratch);
    let mut mover = Mover::connect(&daemon);
    let begun = mover.begin();
    assert_eq!(begun["released"]["ranges"], json!([]), "{begun}");
    assert_eq!(daemon.snapshots("vol").len(), 1);
    drop(mover);
    let mut waiting = daemon.command(["status", "--watch", "--json"]).start();
    let gone = waiting.until(|| daemon.snapshots("vol").is_empty());
    assert!(matches!(gone, Until::Held), "its snapshot stays behind");
    waiting.signal(Signal::KILL);
    let reply = Mover::connect(&daemon).resume(&begun);
    assert_eq!((&reply["reply"], &reply["code"]), (&json!("failed"), &json!("unknown")), "{reply}");
    daemon.stop();
}

#[test]
fn a_mover_and_a_daemon_that_die_before_there_is_a_journal_leave_no_snapshot() {
    let scratch = Scratch::new();
    let daemon = serving(&scratch);
    let mut mover = Mover::connect(&daemon);
    mover.begin();
    daemon.kill();
    drop(mover);
    let daemon = Daemon::start(&scratch);
    assert_eq!(daemon.snapshots("vol"), [""; 0]);
    daemon.stop();
}

#[test]
fn a_mover_that_dies_after_it_has_a_journal_leaves_its_snapshot() {
    let scratch = Scratch::new();
    for captured in [false, true] {
        let mut daemon = if captured { Daemon::start(&scratch) } else { serving(&scratch) };
        daemon.announce("a backup was interrupted");
        let mut mover = Mover::connect(&daemon);
        let begun = mover.begin();
        if captured {
            // What was captured is in a journal, whatever else was said.
            mover.captured(&[(0, 4 * MIB)]);
        } else {
            assert_eq!(mover.ask(&json!({ "request": "recorded" }))["reply"], "recorded");
        }
        drop(mover);
        let resume = |daemon: &Daemon| {
            // The session of the one that died may not have ended yet.
            loop {
                let mut mover = Mover::connect(daemon);
                let reply = mover.resume(&begun);
                if reply["code"] != "busy" {
                    assert_eq!(reply["reply"], "begun", "{reply}");
                    return (mover, reply);
                }
            }
        };
        drop(resume(&daemon));
        daemon.kill();
        let daemon = Daemon::start(&scratch);
        let (mut mover, resumed) = resume(&daemon);
        assert_eq!(resumed["t0_ns"], begun["t0_ns"]);
        let released = if captured { json!([[0, 4 * MIB]]) } else { json!([]) };
        assert_eq!(resumed["released"]["ranges"], released, "{resumed}");
        // Elsewhere than in the way of a shell's words, it would be another command.
        let status = daemon.json("status");
        let known = &status["status"]["snapshots"][0];
        assert_eq!(known["destination"]["path"], "/x/it's.img", "{status}");
        let finished = mover.ask(&json!({ "request": "abandon" }));
        assert_eq!(finished["reply"], "finished", "{finished}");
        assert_eq!(daemon.snapshots("vol"), [""; 0]);
        daemon.stop();
    }
}

#[test]
fn what_is_captured_again_is_recorded_once() {
    let scratch = Scratch::new();
    let mut daemon = serving(&scratch);
    daemon.announce("a backup was interrupted");
    let mut mover = Mover::connect(&daemon);
    let begun = mover.begin();
    let id = begun["snapshot_id"].as_str().expect("an id");
    let log = daemon.state().join(format!("volumes/vol/state/released-{id}"));
    let count = || {
        let mut word = [0; 8];
        File::open(&log).and_then(|file| file.read_exact_at(&mut word, 16)).expect("the released set can be read");
        u64::from_le_bytes(word)
    };
    mover.captured(&[(0, 4 * MIB), (8 * MIB, 4 * MIB)]);
    assert_eq!(count(), 2);
    for _ in 0..3 {
        mover.captured(&[(0, 4 * MIB), (8 * MIB, 4 * MIB)]);
        mover.captured(&[(MIB, MIB)]);
    }
    assert_eq!(count(), 2, "nothing new was captured");
    mover.captured(&[(0, 16 * MIB)]);
    assert!(count() <= 4, "{} records for what was missing", count());
    mover.ask(&json!({ "request": "finish" }));
    assert!(!log.exists());
    daemon.stop();
}

#[test]
fn a_released_set_of_many_parts_is_told_in_pages() {
    let scratch = Scratch::new();
    let daemon = Daemon::serving(&scratch, &scratch.sparse("base", SIZE));
    let mut mover = Mover::connect(&daemon);
    mover.begin();
    let all: Vec<(u64, u64)> = (0..SIZE / 8192).map(|index| (index * 8192, 4096)).collect();
    all.chunks(4096).for_each(|ranges| mover.captured(ranges));
    let (mut found, mut start) = (Vec::new(), json!(0));
    while !start.is_null() {
        let page = mover.ask(&json!({ "request": "released_from", "start": start }));
        assert_eq!(page["reply"], "released_ranges", "{page}");
        found.extend(page["ranges"].as_array().expect("a list").clone());
        start = page["next"].clone();
    }
    assert_eq!(Value::from(found), json!(all));
    mover.ask(&json!({ "request": "finish" }));
    daemon.stop();
}

/// Interrupts a backup of `vol` once it has captured something; gives the ways that `status` names.
fn interrupt(daemon: &mut Daemon, to: &Path) -> (String, String) {
    daemon.announce("a backup was interrupted");
    let to = format!("image:{}", to.display());
    let mut backup = daemon.backup(&["vol", "--json", "--to", &to]).start();
    backup.line(|line| line.contains("\"begun\""));
    let captured = |daemon: &Daemon| daemon.json("status")["status"]["snapshots"][0]["captured_bytes"].as_u64();
    assert!(matches!(backup.until(|| captured(daemon) > Some(0)), Until::Held), "it was over too soon");
    backup.signal(Signal::KILL);
    let _ = backup.wait();
    let status = loop {
        let status = daemon.json("status");
        if status["status"]["snapshots"][0]["mover"] == false {
            break status;
        }
    };
    let way = |name: &str| {
        let way = status["status"]["interrupted"][0][name].as_str().unwrap_or_else(|| panic!("no {name}: {status}"));
        way.strip_prefix("tzero ").expect("a command of ours").to_owned()
    };
    (way("resume"), way("discard"))
}

#[test]
fn the_ways_that_status_names_lead_on() {
    let load = Load::new(512 * MIB);
    let mut daemon = load.serve();
    let to = load.scratch.join("copy.img");
    let (go_on, _) = interrupt(&mut daemon, &to);
    assert!(!daemon.ok("status").contains("DEST"));
    daemon.connect("vol").write(0, &[1; 4096]).expect("writing works");
    daemon.command(go_on.split_whitespace()).limit(std::time::Duration::from_secs(60)).run().exited(0);
    assert!(daemon.snapshots("vol").is_empty());
    daemon.ok(&format!("copy verify {}", to.display()));

    let second = load.scratch.join("second.img");
    let (_, discard) = interrupt(&mut daemon, &second);
    daemon.ok(&discard);
    assert!(daemon.snapshots("vol").is_empty());
    let left = e2e::scratch::names(load.scratch.path());
    assert!(!left.iter().any(|name| name.contains("second")), "{left:?}");
    daemon.stop();
}

#[test]
fn a_copy_that_lost_what_was_released_says_so_and_can_be_started_over() {
    let load = Load::new(512 * MIB);
    let mut daemon = load.serve();
    let to = load.scratch.join("copy.img");
    let (go_on, _) = interrupt(&mut daemon, &to);
    // The host overwrites all of it, and the journal's second record is torn.
    let mut host = daemon.connect("vol");
    for at in (0..64).map(|index| index * MIB) {
        host.write(at, &bytes(MIB as usize, at)).expect("writing works");
    }
    let journal = load.scratch.join("copy.img.tzero-journal");
    let file = OpenOptions::new().write(true).open(journal).expect("a journal is left");
    file.write_all_at(&[0xFF; 8], 16_384 + 80 + 16).expect("it can be damaged");
    let refused = daemon.command(go_on.split_whitespace()).limit(std::time::Duration::from_secs(60)).run();
    refused.exited(1);
    let said = sentence(&refused);
    let again = said.split('`').nth(1).and_then(|text| text.strip_prefix("tzero ")).expect("a command").to_owned();
    assert!(!to.exists() && daemon.snapshots("vol").is_empty(), "nothing is left of it");
    daemon.command(again.split_whitespace()).limit(std::time::Duration::from_secs(60)).run().exited(0);
    assert_same(&to, &load.scratch.join("base"));
    assert!(read(&to)[..MIB as usize] == bytes(MIB as usize, 0));
    daemon.stop();
}
