//! `tzero snapshot`.

use serde_json::{Map, Value, json};
use tzero_api::control::{self, CreateSnapshot, Originals, SnapshotState};
use tzero_api::{Client, Exit, Name, Size, SnapshotPath, StatePaths};
use tzero_copy::Timestamp;

use crate::arguments::Deleted;
use crate::cli::{self, Snapshot};
use crate::commands::client;
use crate::ending::Ending;
use crate::output::{Output, bytes};
use crate::scope;

/// First line of a map.
const MAP_HEAD: &str = "# unit\tblock\tstate\tcache_offset\n";

pub(crate) fn run(command: Snapshot, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let client = client(state)?;
    match command {
        Snapshot::Create { snapshot, volume, scope, originals, on_full } => {
            let [volume] = <[Name; 1]>::try_from(volume).map_err(|volumes| {
                Ending::usage(format!(
                    "one snapshot of {} volumes at once is not in this version: name one volume",
                    volumes.len()
                ))
            })?;
            let request = CreateSnapshot {
                name: snapshot,
                originals: originals.map(|originals| match originals {
                    cli::Originals::Keep => Originals::Keep,
                    cli::Originals::Release => Originals::Release,
                }),
                on_full,
                scope: scope::of(&scope, &volume)?,
            };
            let snapshot = client.create_snapshot_as(&volume, &request)?;
            let t0 = Timestamp(snapshot.t0_ns);
            output
                .line(format!("snapshot {}@{}: {t0}, pause {} µs", snapshot.volume, snapshot.name, snapshot.pause_us));
            output.result("snapshot", &object(&snapshot));
        }
        Snapshot::List => {
            let snapshots = client.snapshots()?;
            output.table(&table(&snapshots));
            output.result("snapshots", &snapshots.iter().map(object).collect::<Vec<_>>());
        }
        Snapshot::Show { snapshot } => {
            let snapshot = client.snapshot(&snapshot)?;
            show(&snapshot, output);
            output.result("snapshot", &object(&snapshot));
        }
        Snapshot::Map { snapshot } => map(&client, &snapshot, output)?,
        Snapshot::Delete { snapshot } => {
            let path = match snapshot {
                Deleted::Path(path) => path,
                Deleted::Name(name) => only_one(&client, &name)?,
            };
            let deleted = client.delete_snapshot(&path)?;
            output.line(format!("snapshot {path} deleted"));
            let object = json!({
                "id": deleted.id, "volume": deleted.volume, "volume_id": deleted.volume_id, "name": deleted.name,
                "deleted": true,
            });
            output.result("snapshot", &object);
        }
    }
    Ok(Exit::AsAsked)
}

/// The snapshot that a name without a volume means.
fn only_one(client: &Client, name: &Name) -> Result<SnapshotPath, Ending> {
    let mut found: Vec<_> = client.snapshots()?.into_iter().filter(|snapshot| snapshot.name == *name).collect();
    match (found.pop(), found.is_empty()) {
        (None, _) => Err(Ending::failed(format!("there is no snapshot {name}: `tzero snapshot list` shows them all"))),
        (Some(snapshot), true) => Ok(SnapshotPath { volume: snapshot.volume, snapshot: snapshot.name }),
        (Some(_), false) => Err(Ending::failed(format!(
            "{} volumes have a snapshot {name}: delete each with VOLUME@{name}",
            found.len() + 1
        ))),
    }
}

fn map(client: &Client, path: &SnapshotPath, output: Output) -> Result<(), Ending> {
    let lines = client.snapshot_map(path)?;
    if !output.json {
        output.raw(MAP_HEAD.as_bytes());
        output.raw(&lines);
        return Ok(());
    }
    let snapshot = client.snapshot(path)?;
    let text = String::from_utf8_lossy(&lines);
    let entries: Vec<Value> = text.lines().filter_map(entry).collect();
    let map = json!({
        "id": snapshot.id, "volume": snapshot.volume, "volume_id": snapshot.volume_id, "name": snapshot.name,
        "grain": snapshot.grain, "entries": entries,
    });
    output.result("map", &map);
    Ok(())
}

/// A line of a map as an object.
fn entry(line: &str) -> Option<Value> {
    let mut fields = line.split('\t');
    let (unit, block, state, offset) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let block: u64 = block.parse().ok()?;
    Some(json!({ "unit": unit, "block": block, "state": state, "cache_offset": offset.parse::<u64>().ok() }))
}

/// A line a snapshot.
pub(crate) fn table(snapshots: &[control::Snapshot]) -> Vec<Vec<String>> {
    let head = ["SNAPSHOT", "STATE", "TIME ZERO", "PAUSE", "SIZE", "ORIGINALS", "UNIQUE", "READERS"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(snapshots.iter().map(|snapshot| {
        vec![
            format!("{}@{}", snapshot.volume, snapshot.name),
            state(snapshot.state).into(),
            Timestamp(snapshot.t0_ns).to_string(),
            format!("{} µs", snapshot.pause_us),
            Size(snapshot.size).to_string(),
            originals(snapshot.originals).into(),
            bytes(snapshot.unique_bytes),
            snapshot.readers.to_string(),
        ]
    }));
    rows
}

fn show(snapshot: &control::Snapshot, output: Output) {
    output.line(format!("snapshot   {}@{}", snapshot.volume, snapshot.name));
    output.line(format!("id         {}", snapshot.id));
    match &snapshot.reason {
        Some(reason) => output.line(format!("state      {}: {reason}", state(snapshot.state))),
        None => output.line(format!("state      {}", state(snapshot.state))),
    }
    if snapshot.outlives_power {
        output.line("survives   a loss of power");
    }
    output.line(format!("time zero  {}", Timestamp(snapshot.t0_ns)));
    output.line(format!("pause      {} µs", snapshot.pause_us));
    output.line(format!("size       {} ({} bytes)", Size(snapshot.size), snapshot.size));
    for part in snapshot.scope.iter().flatten() {
        output.line(format!("scope      {}+{}", part.offset, part.length));
    }
    output.line(format!("epoch      {}", snapshot.epoch));
    output.line(format!(
        "originals  {}, {} needed by this snapshot alone",
        originals(snapshot.originals),
        bytes(snapshot.unique_bytes)
    ));
    if snapshot.unreadable_bytes > 0 {
        let unreadable = bytes(snapshot.unreadable_bytes);
        output.line(format!("unreadable {unreadable}: the base gave an error when they were to be saved, or what was saved is damaged; the daemon's log says which"));
    }
    output.line(format!("when full  {}", snapshot.on_full));
    if snapshot.private {
        let mover = if snapshot.mover { "a mover is at work" } else { "no mover is at work" };
        output.line(format!("backup     private, {} captured, {mover}", bytes(snapshot.captured_bytes)));
    }
    output.line(format!("readers    {}", snapshot.readers));
}

/// The object that programs get: as the daemon says it, with the time in the common form.
pub(crate) fn object(snapshot: &control::Snapshot) -> Value {
    let value = serde_json::to_value(snapshot).expect("a snapshot is a JSON object");
    let Value::Object(fields) = value else { return value };
    let mut object = Map::new();
    for (key, field) in fields {
        match key.as_str() {
            "t0_ns" => object.insert("t0".into(), Timestamp(snapshot.t0_ns).to_string().into()),
            _ => object.insert(key, field),
        };
    }
    Value::Object(object)
}

fn state(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Live => "live",
        SnapshotState::Ended => "ended",
        SnapshotState::Broken => "broken",
        SnapshotState::Unavailable => "unavailable",
    }
}

fn originals(originals: Originals) -> &'static str {
    match originals {
        Originals::Keep => "keep",
        Originals::Release => "release",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_lines_become_objects() {
        assert_eq!(
            entry("0\t8\tunread\t4096"),
            Some(json!({ "unit": "0", "block": 8, "state": "unread", "cache_offset": 4096 }))
        );
        assert_eq!(entry("0\t8\tread\t-").unwrap()["cache_offset"], Value::Null);
        assert_eq!(entry("0\t8"), None);
    }
}
