//! The whole story in one command.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::scratch::names;
use e2e::tzero::binary;
use e2e::{Program, Scratch};

#[test]
fn the_demo_proves_itself_and_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let temporary = scratch.join("tmp");
    std::fs::create_dir(&temporary).expect("a directory can be made");
    let state = Path::new("/var/lib/tzero");
    let before = state.exists().then(|| names(state));
    let began = Instant::now();
    let said = Program::new(binary()).arg("demo").env("TMPDIR", &temporary).dir(&temporary).run();
    said.exited(0);
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    assert!(!said.stdout.is_empty(), "it shows figures");
    assert_eq!(names(&temporary), [""; 0], "files are left");
    assert_eq!(state.exists().then(|| names(state)), before, "the machine's own state is none of its business");
    nobody_works_in(&temporary);
}

#[test]
fn the_demo_works_where_and_as_large_as_it_is_told() {
    let scratch = Scratch::new();
    let dir = scratch.join("here");
    std::fs::create_dir(&dir).expect("a directory can be made");
    std::fs::write(dir.join("mine"), b"mine").expect("a file can be written");
    Program::new(binary()).args(["demo", "--size", "32M", "--dir"]).arg(&dir).run().exited(0);
    assert_eq!(names(&dir), ["mine"], "what was there stays, and nothing else");
    nobody_works_in(&dir);
}

/// No process has anything to do with a directory.
fn nobody_works_in(dir: &Path) {
    let wanted = dir.to_string_lossy();
    for entry in std::fs::read_dir("/proc").expect("there is /proc").flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(!line.contains(wanted.as_ref()), "a process is left: {line}");
    }
}
