//! Commands as programs and shells use them: what becomes of their output, which arguments they take, and what they say.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use e2e::daemon::Setting;
use e2e::scratch::{names, read};
use e2e::tzero::{binary, result, sentence};
use e2e::{Daemon, Finished, MIB, Program, Scratch, Tzero};
use serde_json::Value;

const SIZE: u64 = 16 * MIB;
/// Opens descriptor 3: a pipe that nobody reads any more.
const UNREAD: &str = "exec 3> >(:); wait $!; ";

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Runs a script of bash, in which `$T` is the command under test, in the scratch directory.
fn shell(scratch: &Scratch, script: &str) -> Finished {
    let program = Program::new("bash").args(["-c", script]).env("T", binary());
    program.env("TZERO_STATE", scratch.join("state")).dir(scratch.path()).run()
}

/// A copy of a plain file, with a byte of it changed.
fn damaged(tzero: &Tzero, scratch: &Scratch) {
    let plain = scratch.random("plain", SIZE, 1);
    tzero.run(&format!("backup {} --to {}", shown(&plain), shown(&scratch.join("damaged.img")))).exited(3);
    let mut bytes = read(&scratch.join("damaged.img"));
    bytes[5] ^= 1;
    std::fs::write(scratch.join("damaged.img"), bytes).expect("a file can be written");
}

#[test]
fn output_that_nobody_reads_changes_nothing() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 2);
    let daemon = Daemon::serving(&scratch, &base);
    damaged(&daemon, &scratch);
    daemon.ok("snapshot create s vol");
    for (line, code) in [
        ("backup vol --to a.img --json", 0),
        ("backup vol --to b.img", 0),
        ("backup ./plain --to c.img --json", 3),
        ("copy verify a.img --json", 0),
        ("copy verify damaged.img --json", 1),
        ("copy verify damaged.img", 1),
        ("restore a.img --to d.img --json", 0),
        ("restore damaged.img --to e.img --json", 1),
        ("volume list --json", 0),
        ("volume show nothing --json", 1),
        ("bogus --json", 2),
        ("--help", 0),
        ("snapshot map vol@s", 0),
        // It would go on for ever.
        ("status --watch", 0),
        ("status --watch --json", 0),
    ] {
        let finished = shell(&scratch, &format!("{UNREAD}$T {line} >&3"));
        finished.exited(code);
        match code {
            0 => assert_eq!(finished.stderr, "", "{line}"),
            _ => drop(sentence(&finished)),
        }
    }
    for copy in ["a.img", "b.img", "c.img"] {
        daemon.ok(&format!("copy verify {}", shown(&scratch.join(copy))));
    }
    assert!(read(&scratch.join("d.img")) == read(&base));
    let left = names(scratch.path());
    assert!(left.iter().all(|name| !name.contains("tzero-") && name != "e.img"), "{left:?}");
    assert_eq!(daemon.snapshots("vol"), ["s"], "no private snapshot is left");
    daemon.stop();
    shell(&scratch, &format!("{UNREAD}$T volume list --json >&3")).exited(1);
}

#[test]
fn a_reader_that_does_not_read_holds_no_backup_up() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 2);
    let daemon = Daemon::serving(&scratch, &base);
    // The pipe is full when the backup begins, and is read once the copy is declared.
    let script = "mkfifo pipe; exec 3<>pipe; dd if=/dev/zero of=pipe oflag=nonblock bs=4096 2>&-; \
        $T backup vol --to a.img --json >&3 3>&- & backup=$!; until [ -e a.img.tzero ]; do :; done; \
        exec 4<pipe 3>&-; tr -d '\\0' <&4; wait $backup";
    let finished = shell(&scratch, script);
    finished.exited(0);
    assert!(result(&finished)["copy"]["id"].is_string(), "{finished}");
    assert!(read(&scratch.join("a.img")) == read(&base));
    daemon.stop();
}

#[test]
fn output_that_cannot_be_written_is_said_once_and_changes_nothing() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 2);
    let daemon = Daemon::serving(&scratch, &base);
    damaged(&daemon, &scratch);
    for (line, code) in [
        ("backup vol --to a.img --json", 3),
        ("backup vol --to b.img", 3),
        ("copy verify a.img --json", 3),
        ("restore a.img --to d.img --json", 3),
        ("volume list", 3),
        ("status --watch", 3),
        ("--help", 3),
        ("copy verify damaged.img --json", 1),
        ("restore damaged.img --to e.img --json", 1),
        ("volume show nothing --json", 1),
        ("bogus --json", 2),
    ] {
        let finished = shell(&scratch, &format!("$T {line} >/dev/full"));
        finished.exited(code);
        let said = sentence(&finished);
        assert_eq!(said.contains("standard output"), code == 3, "{line}: {said}");
        assert!(code != 3 || said.contains("No space left on device; make room"), "{line}: {said}");
    }
    for copy in ["a.img", "b.img"] {
        daemon.ok(&format!("copy verify {}", shown(&scratch.join(copy))));
    }
    assert!(read(&scratch.join("d.img")) == read(&base));
    assert!(daemon.snapshots("vol").is_empty(), "no private snapshot is left");
    daemon.stop();
}

#[test]
fn streams_that_are_closed_or_full_stop_nobody() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 2);
    let script = "$T serve 2>/dev/full & daemon=$!; until [ -S state/control.sock ] && $T volume list; do :; done; \
        $T volume add vol base >&- && $T backup vol --to a.img --json >&- 2>&- && $T backup vol --to b.img <&- >&- 2>&-; \
        did=$?; $T backup ./nothing --to c.img 2>/dev/full; refused=$?; $T bogus >&- 2>&-; bad=$?; \
        kill $daemon; wait $daemon; echo \"$did $refused $bad $?\"";
    let finished = shell(&scratch, script);
    assert_eq!(finished.stdout.lines().last(), Some("0 1 2 0"), "{finished}");
    assert!(finished.stdout.lines().any(|line| line == "ready"), "{finished}");
    for copy in ["a.img", "b.img"] {
        assert!(read(&scratch.join(copy)) == read(&base), "{copy}");
    }
}

#[test]
fn what_is_asked_wrongly_is_refused_before_anybody_is_asked() {
    let scratch = Scratch::new();
    let tzero = Tzero::at(&scratch.join("state"));
    let long = format!("/{}", "x".repeat(120));
    for line in [
        "backup v --to archive:x".into(),
        "backup v --to archive:-".into(),
        "backup v --to tape:x".into(),
        "backup v --to repo:x".into(),
        "backup v --to image:nbd+unix:///x".into(),
        "backup v --to image:".into(),
        "backup v w --to x".into(),
        "backup a@s@t --to x".into(),
        "backup a@ --to x".into(),
        "backup é --to x".into(),
        "restore x --to volume:v@s".into(),
        "restore x --to volume:".into(),
        "restore x --to y --range 0+0".into(),
        "restore x --to y --range 5".into(),
        "restore x --to y --range 0+16385P".into(),
        "restore - --to x".into(),
        "copy verify -".into(),
        "volume add v /b --grain 3K".into(),
        "volume add v /b --grain 2M".into(),
        "volume add v /b --cache-limit 0".into(),
        "volume add v /b --cache-limit 4095".into(),
        "volume add v /b --grain 64K --cache-limit 4K".into(),
        "snapshot create backup-0badcafe v".into(),
        "snapshot create s v w".into(),
        "snapshot delete a@s@t".into(),
        format!("status --state {long}"),
        format!("volume list --state {long}"),
        format!("serve --state {long}"),
        format!("serve --nbd unix:{long}"),
    ] {
        let said = tzero.refuses(2, &line);
        assert!(!said.contains("SUN_LEN") && !said.contains("not running"), "{line}: {said}");
    }
    for words in [
        ["backup", "", "--to", "x"],
        ["backup", "x", "--to", ""],
        ["restore", "", "--to", "x"],
        ["restore", "x", "--to", ""],
        ["volume", "add", "v", ""],
        ["copy", "show", "", "--json"],
        ["snapshot", "delete", "", "--json"],
        ["volume", "list", "--state", ""],
        ["demo", "--json", "--dir", ""],
    ] {
        let refused = tzero.command(words).run();
        refused.exited(2);
        assert!(sentence(&refused).contains("''"), "the argument is not named: {refused}");
    }
    let config = scratch.join("tzero.toml");
    std::fs::write(&config, format!("nbd = ['unix:{long}']")).expect("a file can be written");
    tzero.refuses(2, &format!("serve --config {}", shown(&config)));
    assert_eq!(names(scratch.path()), ["tzero.toml"], "nothing was made");
}

#[test]
fn options_for_all_commands() {
    let scratch = Scratch::new();
    let (state, other) = (shown(&scratch.join("state")), shown(&scratch.join("other")));
    let daemon = Daemon::start(&scratch);
    let run = |line: &str| Program::new(binary()).args(line.split_whitespace()).env("TZERO_STATE", &other).run();
    for line in [
        format!("--state {other} volume list --state {state} --json"),
        format!("--json volume --state {other} --state {state} list --json"),
    ] {
        let finished = run(&line);
        finished.exited(0);
        assert!(result(&finished)["volumes"].is_array(), "{finished}");
    }
    run("volume list").exited(1);
    let said = Program::new(binary()).args(["volume", "list"]).env("TZERO_STATE", "").env("HOME", scratch.path()).run();
    said.exited(1);
    assert!(sentence(&said).contains("is not running"), "an empty variable is none: {said}");
    for line in ["--help", "--json --help", "--version --json", "volume --help", "backup --help --json"] {
        let finished = run(line);
        finished.exited(0);
        assert!(finished.stderr.is_empty() && finished.stdout.contains("tzero"), "{finished}");
    }
    daemon.stop();
}

#[test]
fn paths_of_other_bytes() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch);
    let odd = scratch.join(OsStr::from_bytes(b"n\xff.img"));
    std::fs::write(&odd, vec![1; MIB as usize]).expect("a file can be written");
    let plain = scratch.random("plain", MIB, 1);
    let to = scratch.join("copy.img");
    let refused = |program: Program| {
        let finished = program.run();
        finished.exited(2);
        let said = sentence(&finished);
        assert!(said.contains("\\xFF") && said.contains("UTF-8"), "{said}");
    };
    refused(daemon.command(["backup"]).arg(&odd).arg("--to").arg(&to));
    refused(daemon.command(["backup"]).arg(&plain).arg("--to").arg(&odd).arg("--replace"));
    refused(daemon.command(["volume", "add", "vol"]).arg(&odd));
    refused(daemon.command(["volume", "add", "vol"]).arg(&plain).arg("--cache-dir").arg(&odd));
    refused(daemon.command(["volume", "show"]).arg(OsStr::from_bytes(b"n\xff")));
    refused(daemon.command(["status", "--state"]).arg(&odd));
    assert!(!to.exists());
    // What nobody has to write down works.
    daemon.command(["backup"]).arg(&plain).arg("--to").arg(&to).run().exited(3);
    let moved = scratch.join(OsStr::from_bytes(b"moved\xff.img"));
    let suffixed = scratch.join(OsStr::from_bytes(b"moved\xff.img.tzero"));
    std::fs::rename(&to, &moved)
        .and_then(|()| std::fs::rename(scratch.join("copy.img.tzero"), suffixed))
        .expect("moved");
    let back = scratch.join(OsStr::from_bytes(b"back\xff"));
    daemon.command(["copy", "verify"]).arg(&moved).run().exited(0);
    daemon.command(["copy", "show"]).arg(&moved).run().exited(0);
    daemon.command(["restore"]).arg(&moved).arg("--to").arg(&back).run().exited(0);
    assert!(read(&back) == read(&plain));
    refused(daemon.command(["copy", "verify", "--json"]).arg(&moved));
    refused(daemon.command(["restore", "--json", "--force"]).arg(&moved).arg("--to").arg(&back));
    daemon.command(["copy", "remove"]).arg(&moved).run().exited(0);
    assert!(!moved.exists());
    daemon.stop();
}

/// Every object that names a thing says which it is for good.
fn identified(value: &Value, line: &str) {
    match value {
        Value::Object(fields) => {
            for name in ["name", "image", "target"] {
                assert!(!fields.contains_key(name) || fields.contains_key("id"), "{line}: no id: {value}");
            }
            for (name, id) in [("volume", "volume_id"), ("snapshot", "snapshot_id"), ("copy", "id")] {
                let named = fields.get(name).is_some_and(Value::is_string);
                assert!(!named || fields.get(id).is_some_and(Value::is_string), "{line}: no {id}: {value}");
            }
            fields.values().for_each(|value| identified(value, line));
        }
        Value::Array(values) => values.iter().for_each(|value| identified(value, line)),
        _ => {}
    }
}

#[test]
fn every_object_that_names_a_thing_has_its_id() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let path = |name: &str| shown(&scratch.join(name));
    daemon.connect("vol").write(0, &[1; 4096]).expect("writing works");
    for line in [
        "snapshot create s vol",
        "snapshot list",
        "snapshot show vol@s",
        "snapshot map vol@s",
        "volume list",
        "volume show vol",
        "status",
        &format!("backup vol --to {}", path("a.img")),
        &format!("backup vol@s --to {} --verify", path("b.img")),
        &format!("copy show {}", path("a.img")),
        &format!("copy verify {}", path("a.img")),
        "copy list",
        &format!("restore {} --to {}", path("a.img"), path("c.img")),
        &format!("copy remove {}", path("a.img")),
        "snapshot delete vol@s",
        "volume remove vol",
    ] {
        let finished = daemon.command(line.split_whitespace()).arg("--json").run();
        finished.exited(0);
        let objects: Vec<Value> =
            finished.stdout.lines().map(|line| serde_json::from_str(line).expect("a line is an object")).collect();
        objects.iter().for_each(|object| identified(object, line));
        if line.starts_with("backup") {
            let begun = &objects[0];
            assert_eq!(begun["event"], "begun", "{begun}");
            assert_eq!(begun["id"], objects.last().expect("a result")["copy"]["id"], "{begun}");
        }
        if line.starts_with("restore") {
            let restored = &result(&finished)["restored"];
            assert_eq!(restored["id"], restored["copy"], "{restored}");
        }
    }
    daemon.stop();
}

#[test]
fn a_terminal_is_shown_figures_and_not_steered() {
    let scratch = Scratch::new();
    let odd = scratch.random("a\x1b[2Jb\n.img", SIZE, 1);
    assert!(odd.exists());
    let finished = shell(&scratch, "script -qec '$T backup ./a* --to copy.img' /dev/null");
    finished.exited(3);
    let text = finished.stdout;
    assert!(text.contains("/16.0 MiB"), "there is a bar: {text:?}");
    assert!(!text.contains("0 B/0 B") && !text.contains("TiB/s") && !text.contains("NaN"), "{text:?}");
    for line in ["copy list", "copy show copy.img", "copy verify copy.img"] {
        let finished = shell(&scratch, &format!("$T {line}"));
        finished.exited(0);
        assert!(!finished.stdout.contains('\x1b') && !finished.stdout.contains("b\n.img"), "{finished}");
    }
    let listed = shell(&scratch, "$T copy list").stdout;
    assert!(listed.contains(r"a\u{1b}[2Jb\n.img"), "{listed}");
    let refused = shell(&scratch, "$T backup $'./c\\x1b[2J\\n' --to d.img");
    refused.exited(1);
    let said = sentence(&refused);
    assert!(said.contains(r"c\u{1b}[2J\n") && !said.contains('\x1b'), "{said:?}");
}

#[test]
fn the_system_s_words_come_with_what_to_do() {
    let scratch = Scratch::new();
    let plain = scratch.random("plain", MIB, 1);
    let tzero = Tzero::at(&scratch.join("state"));
    let long = "x".repeat(250);
    for line in [
        format!("backup {} --to /no/such/directory/x", shown(&plain)),
        "backup ./no-such-file --to x".into(),
        format!("backup {} --to /dev/null/x", shown(&plain)),
        format!("backup {} --to {}", shown(&plain), shown(&scratch.join(&long))),
        "copy verify ./no-such-copy".into(),
        "demo --dir /dev/full".into(),
        "demo --dir /no/such/directory".into(),
        "status --state /dev/null".into(),
    ] {
        let said = tzero.refuses(1, &line);
        let ends = ["such file or directory", "too long", "a directory", "device", "denied"];
        assert!(ends.iter().all(|end| !said.ends_with(end)), "nothing says what to do: {said}");
        assert!(said.contains(';') || said.contains("--dir") || said.contains("no manifest"), "{said}");
    }
    assert_eq!(names(scratch.path()), ["plain"], "nothing was made");
}

#[test]
fn a_log_that_cannot_be_written_stops_no_daemon() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 2);
    // The daemon says at length what it does, and nothing of it is taken.
    let script = "TZERO_LOG=trace $T serve 2>/dev/full & daemon=$!; until $T volume list 2>&-; do :; done; \
        $T volume add vol base && $T snapshot create s vol && $T backup vol --to a.img && \
        $T snapshot delete vol@s && $T volume remove vol; did=$?; kill $daemon; wait $daemon; echo \"$did $?\"";
    let finished = shell(&scratch, script);
    assert_eq!(finished.stdout.lines().last(), Some("0 0"), "{finished}");
    assert!(read(&scratch.join("a.img")) == read(&base));
    // The directory is as a clean stop leaves it.
    Setting::new(&scratch.join("state")).start().stop();
}
