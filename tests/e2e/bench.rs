//! The bench: that it runs and that its data is right. What it measures is nobody's business here.

use std::collections::BTreeSet;

use e2e::scratch::names;
use e2e::tzero::binary;
use e2e::{Program, Scratch};
use serde_json::Value;

/// Runs it on a small volume; gives the last line's rows by name.
fn rows(dir: &std::path::Path, arguments: &[&str]) -> Vec<(String, Value)> {
    let said = Program::new(binary())
        .args(["bench", "--json", "--size", "64M", "--rounds", "1", "--seconds", "1", "--dir"])
        .arg(dir)
        .args(arguments)
        .run();
    said.exited(0);
    let last: Value = said.stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).expect("a result");
    let rows = last["rows"].as_array().expect("rows").clone();
    rows.into_iter().map(|row| (row["name"].as_str().expect("a name").to_owned(), row)).collect()
}

#[test]
fn every_row_is_measured_and_its_data_is_right() {
    let scratch = Scratch::new();
    let dir = scratch.join("here");
    std::fs::create_dir(&dir).expect("a directory can be made");
    let rows =
        rows(&dir, &["--row", "buffered", "--row", "direct", "--row", "touch", "--row", "backup", "--row", "eight"]);
    assert_eq!(rows.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), rows.len());
    assert!(rows.len() >= 24, "{} rows", rows.len());
    for (name, row) in &rows {
        assert!(row["value"].as_f64().is_some_and(|value| value > 0.0), "{name}: {row}");
        assert_eq!(row["ratio"].is_null(), row["peer"].is_null(), "{name}: {row}");
        assert!(row["bar"].is_number() && row["met"].is_boolean() && row["unit"].is_string(), "{name}: {row}");
    }
    assert_eq!(names(&dir), [""; 0], "nothing is left behind");
}

#[test]
fn ten_thousand_originals_take_the_room_of_ten_thousand_blocks() {
    let scratch = Scratch::new();
    let rows = rows(scratch.path(), &["--row", "originals"]);
    let [(_, row)] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(row["met"], true, "{row}");
}

#[test]
fn what_is_missing_is_named() {
    let scratch = Scratch::new();
    let said = Program::new(binary())
        .args(["bench", "--size", "64M", "--rounds", "1", "--seconds", "1", "--row", "direct-write-4k-qd1", "--dir"])
        .arg(scratch.path())
        .env("PATH", "/nowhere")
        .run();
    said.exited(3);
    assert!(said.stderr.contains("qemu-storage-daemon is not on this machine"), "{}", said.stderr);
    assert!(said.stderr.contains("direct-write-4k-qd1"), "{}", said.stderr);
    for (arguments, word) in [(vec!["--size", "1M"], "64M"), (vec!["--row", "nothing"], "backup-idle")] {
        let said = Program::new(binary()).arg("bench").args(arguments).dir(scratch.path()).run();
        said.exited(2);
        assert!(said.stderr.contains(word), "{}", said.stderr);
    }
}
