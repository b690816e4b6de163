//! A mover that is killed within its first moments, and a copy whose journal is lost: nothing is left for ever.

use std::fs;

use e2e::process::Program;
use e2e::scratch::{allocated, assert_same, names};
use e2e::tzero::{binary, result, sentence};
use e2e::{Daemon, MIB, Scratch};
use rustix::process::Signal;
use serde_json::Value;

use crate::load::Load;

#[test]
fn a_mover_killed_within_its_first_moments_leaves_nothing_for_ever() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 64 * MIB, 1);
    let mut daemon = Daemon::serving(&scratch, &base);
    daemon.announce("a backup was interrupted");
    let dir = scratch.join("copies");
    fs::create_dir(&dir).expect("a directory can be made");
    let to = dir.join("copy.img");
    let image = format!("image:{}", to.display());
    let (mut resumed, mut anew) = (0, 0);
    for round in 0..80u32 {
        // Up to 20 ms.
        let mortal =
            Program::new("timeout").args(["--signal", "KILL", &format!("{:.5}", f64::from(round + 1) * 0.000_25)]);
        let mortal = mortal.arg(binary()).args(["backup", "vol", "--to", &image]);
        let _ = mortal.env("TZERO_STATE", daemon.state()).run();
        if !to.exists() {
            let resume = daemon.backup(&["vol", "--resume", "--to", &image]).run();
            if resume.code() == Some(0) {
                resumed += 1;
            } else {
                resume.exited(1);
                sentence(&resume);
                anew += 1;
                daemon.backup(&["vol", "--to", &image]).run().exited(0);
            }
        }
        // It may have died after the declaration.
        let left = names(&dir);
        if left != ["copy.img", "copy.img.tzero"] {
            daemon.backup(&["vol", "--replace", "--to", &image]).run().exited(0);
        }
        assert_eq!(names(&dir), ["copy.img", "copy.img.tzero"], "round {round}");
        let mut watch = daemon.command(["status", "--watch", "--json"]).start();
        watch.until(|| daemon.snapshots("vol").is_empty());
        watch.signal(Signal::KILL);
        assert!(daemon.snapshots("vol").is_empty(), "round {round}");
        assert_same(&to, &base);
        daemon.ok(&format!("copy remove {}", to.display()));
        assert_eq!(names(&dir), [""; 0]);
    }
    assert!(resumed > 0 && anew > 0, "{resumed} were resumed, {anew} begun anew");
    daemon.stop();
}

/// Kills a backup of `vol` once it has captured something.
fn interrupted(daemon: &mut Daemon, to: &str) {
    daemon.announce("a backup was interrupted");
    let mut backup = daemon.backup(&["vol", "--json", "--to", to]).start();
    let captured = |daemon: &Daemon| daemon.json("status")["status"]["snapshots"][0]["captured_bytes"].as_u64();
    backup.until(|| captured(daemon) > Some(0));
    backup.signal(Signal::KILL);
    let finished = backup.wait();
    assert_eq!(finished.signal(), Some(9), "it was over too soon\n{finished}");
    let mut watch = daemon.command(["status", "--watch", "--json"]).start();
    watch.until(|| daemon.json("status")["status"]["snapshots"][0]["mover"] == false);
    watch.signal(Signal::KILL);
}

#[test]
fn a_copy_whose_journal_is_lost_can_be_given_up() {
    let load = Load::new(512 * MIB);
    let mut daemon = load.serve();
    let to = load.scratch.join("copy.img");
    let (image, journal) = (format!("image:{}", to.display()), load.scratch.join("copy.img.tzero-journal"));
    for round in 0..3 {
        interrupted(&mut daemon, &image);
        match round {
            0 => fs::remove_file(&journal),
            1 => fs::write(&journal, b""),
            _ => fs::File::options().write(true).open(&journal).and_then(|file| file.set_len(100)),
        }
        .expect("the journal is there");
        let said = daemon.refuses(1, &format!("backup vol --resume --to {image}"));
        let way = said.split('`').nth(1).and_then(|text| text.strip_prefix("tzero ")).expect("a command").to_owned();
        let status = daemon.json("status");
        let discard = status["status"]["interrupted"][0]["discard"].as_str().expect("a way to discard it");
        assert_eq!(discard, format!("tzero {way}"), "{said}");
        daemon.ok(&way);
        assert!(daemon.snapshots("vol").is_empty(), "its snapshot goes with it");
        let left = names(load.scratch.path());
        assert!(!left.iter().any(|name| name.starts_with("copy")), "{left:?}");
    }
    // Without its files all that is left is the snapshot.
    interrupted(&mut daemon, &image);
    fs::remove_file(&journal)
        .and_then(|()| fs::remove_file(load.scratch.join("copy.img.tzero-partial")))
        .expect("both");
    let said = daemon.refuses(1, &format!("backup vol --resume --to {image}"));
    assert!(said.contains("tzero snapshot delete vol@backup-"), "{said}");
    daemon.ok(said.split('`').nth(1).and_then(|text| text.strip_prefix("tzero ")).expect("a command"));
    assert!(daemon.snapshots("vol").is_empty());
    daemon.stop();
}

#[test]
fn what_somebody_changed_in_an_unfinished_image_is_not_declared() {
    let load = Load::new(512 * MIB);
    let mut daemon = load.serve();
    let image = format!("image:{}", load.scratch.join("copy.img").display());
    daemon.ok("snapshot create s vol");
    daemon.announce("a backup was interrupted");
    let mut backup = daemon.backup(&["vol@s", "--json", "--to", &image]).start();
    let partial = load.scratch.join("copy.img.tzero-partial");
    backup.until(|| partial.exists() && allocated(&partial) > 32 * MIB);
    backup.signal(Signal::KILL);
    assert_eq!(backup.wait().signal(), Some(9), "it was over too soon");
    let partial = fs::File::options().write(true).open(&partial).expect("it is left");
    std::os::unix::fs::FileExt::write_all_at(&partial, &[0x55; 4096], MIB).expect("it can be changed");
    let resumed = daemon.backup(&["vol@s", "--resume", "--json", "--to", &image]).run();
    resumed.exited(0);
    let events: Vec<Value> = resumed.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(events.iter().any(|event| event["phase"] == "recheck"), "{resumed}");
    assert!(events.iter().any(|event| event["event"] == "notice"), "{resumed}");
    assert!(result(&resumed)["copy"]["id"].is_string());
    daemon.ok(&format!("copy verify {}", load.scratch.join("copy.img").display()));
    assert_same(&load.scratch.join("copy.img"), &load.scratch.join("base"));
    daemon.stop();
}
