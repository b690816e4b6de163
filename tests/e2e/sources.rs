//! Plain sources: what protects them while they are read, and what is none.

use std::fs;
use std::path::Path;

use e2e::process::{Finished, Program};
use e2e::scratch::assert_same;
use e2e::tzero::{binary, result, sentence};
use e2e::{MIB, Scratch, Tzero};

const SIZE: u64 = 16 * MIB;

/// A backup below `flock`, as a script would write it.
fn below_flock(scratch: &Scratch, how: &str, source: &Path, to: &Path) -> Finished {
    Program::new("flock")
        .env("TZERO_STATE", scratch.join("state"))
        .args([how])
        .arg(source)
        .arg(binary())
        .args(["backup", &source.display().to_string(), "--replace", "--json", "--to", &to.display().to_string()])
        .run()
}

#[test]
fn a_locked_file_is_protected() {
    let scratch = Scratch::new();
    let (source, to) = (scratch.random("source", SIZE, 1), scratch.join("copy.img"));
    for how in ["--exclusive", "--shared"] {
        let finished = below_flock(&scratch, how, &source, &to);
        finished.exited(0);
        let copy = &result(&finished)["copy"];
        assert_eq!((&copy["protection"], copy["reason"].is_null()), (&"locked".into(), true), "{copy}");
        assert_same(&to, &source);
    }
    let tzero = Tzero::at(&scratch.join("state"));
    assert_eq!(tzero.json(&format!("copy show {}", to.display()))["copy"]["protection"], "locked");
    tzero.run(&format!("backup {} --replace --to {}", source.display(), to.display())).exited(3);
}

#[test]
fn an_image_that_qemu_has_open_is_not_protected() {
    let scratch = Scratch::new();
    let (source, to) = (scratch.random("source", SIZE, 1), scratch.join("copy.img"));
    let socket = scratch.join("qemu.sock");
    let mut qemu = Program::new("qemu-nbd")
        .args(["--format", "raw", "--persistent", "--socket", &socket.display().to_string()])
        .arg(&source)
        .start();
    qemu.until(|| e2e::nbd::Client::connect(&socket, "").is_ok());
    below_flock(&scratch, "--exclusive", &source, &to).exited(3);
    drop(qemu);
    below_flock(&scratch, "--exclusive", &source, &to).exited(0);
}

#[test]
fn what_cannot_be_copied_is_told_at_once() {
    let scratch = Scratch::new();
    let tzero = Tzero::at(&scratch.join("state"));
    let (fifo, to) = (scratch.join("fifo"), scratch.join("copy.img"));
    Program::new("mkfifo").arg(&fifo).ok();
    for source in [&fifo, scratch.path(), Path::new("/dev/zero"), Path::new("/proc/self/maps")] {
        let said = tzero.refuses(1, &format!("backup {} --to {}", source.display(), to.display()));
        assert!(said.contains("cannot be copied"), "{said}");
        let refused = tzero.run(&format!("copy verify {}", source.display()));
        refused.exited(1);
        assert!(!sentence(&refused).contains("written"), "{refused}");
    }
    assert!(!to.exists());
    // A manifest or a journal that is one.
    let source = scratch.random("source", SIZE, 1);
    tzero.run(&format!("backup {} --to {}", source.display(), to.display())).exited(3);
    let manifest = scratch.join("copy.img.tzero");
    fs::remove_file(&manifest).expect("it is there");
    Program::new("mkfifo").arg(&manifest).ok();
    tzero.refuses(1, &format!("copy verify {}", to.display()));
    tzero.refuses(1, &format!("copy show {}", manifest.display()));
    let journal = scratch.join("other.img.tzero-journal");
    Program::new("mkfifo").arg(&journal).ok();
    let said = tzero.refuses(1, &format!("copy remove {}", journal.display()));
    assert!(!said.contains("resume"), "{said}");
}
