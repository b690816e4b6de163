//! `tzero bench`: the data path of this machine, side by side with the NBD servers that it has.
//!
//! Every subject serves the same file to the same client, one after the other within each round, and the order turns from round to round.
//! Shown are medians, and medians of the rounds' ratios. What was written is read again, by sample; a figure of wrong data is none.

mod content;
mod copies;
mod load;
mod material;
mod pauses;
mod peers;
mod plain;
mod qmp;
mod rows;
mod session;
mod touches;

use std::collections::BTreeSet;
use std::env;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tzero_api::Exit;

use crate::bench::content::Content;
use crate::bench::material::Material;
use crate::bench::peers::Program;
use crate::bench::rows::{Figures, Key, NBDKIT, QSD, ROWS, Row};
use crate::cli;
use crate::ending::Ending;
use crate::interrupt;
use crate::output::{Output, bytes, notice};
use crate::paths::recorded;
use crate::stage::Stage;

/// Sizes that make sense.
const SMALLEST: u64 = 64 << 20;
const LARGEST: u64 = 1 << 40;
/// Room that is needed, in sizes of the volume: the volume, a copy, originals of all of it.
const ROOM: u64 = 3;
/// Rounds, where nothing else is said.
const ROUNDS: u32 = 3;
/// Seconds of a plain row, where nothing else is said.
const SECONDS: u32 = 3;

pub(crate) fn run(asked: &cli::Bench, output: Output) -> Result<Exit, Ending> {
    let rows = chosen(asked)?;
    let size = asked.size.0;
    if !size.is_multiple_of(1 << 20) || !(SMALLEST..=LARGEST).contains(&size) {
        let sentence = format!("the size {} does not suit a bench: give whole megabytes from 64M to 1T", asked.size);
        return Err(Ending::usage(sentence));
    }
    let parent = match &asked.dir {
        Some(dir) => dir.clone(),
        None => {
            env::current_dir().map_err(|error| Ending::failed(format!("there is no current directory: {error}")))?
        }
    };
    let parent = recorded(&parent, "the bench's own volume is below it")?;
    check_room(&parent, size)?;
    let stage = Stage::new("bench", &parent, interrupt::patient_flag()?)?;
    introduce(output);
    let material = Material::make(stage.path("volume.img"), size).map_err(failed("the file that is measured"))?;
    let mut bench = Bench {
        stage,
        material,
        rows,
        figures: Figures::default(),
        commands: BTreeSet::new(),
        round: 0,
        time: Duration::from_secs(u64::from(asked.seconds.unwrap_or(if asked.quick { 1 } else { SECONDS }))),
        quick: asked.quick,
        contents: 1,
        output,
    };
    for round in 0..asked.rounds.unwrap_or(if asked.quick { 1 } else { ROUNDS }) {
        bench.round = round;
        bench.buffered()?;
        bench.buffered_large()?;
        bench.direct()?;
        bench.touches()?;
        bench.space()?;
        bench.idle_copies()?;
        bench.offered_copies()?;
        bench.flat_out_copies()?;
        bench.pauses()?;
    }
    Ok(bench.report())
}

fn chosen(asked: &cli::Bench) -> Result<Vec<&'static Row>, Ending> {
    let is_named = |row: &&Row| asked.row.is_empty() || asked.row.iter().any(|text| row.name.contains(text.as_str()));
    let rows: Vec<_> = ROWS.iter().filter(|row| row.quick || !asked.quick).filter(is_named).collect();
    if rows.is_empty() {
        let names = ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        return Err(Ending::usage(format!("no row has such a name: there are {names}")));
    }
    Ok(rows)
}

fn check_room(parent: &Path, size: u64) -> Result<(), Ending> {
    let free = tzero_io::system::free_space(parent)
        .map_err(|error| Ending::failed(format!("{} cannot be used: {error}", parent.display())))?;
    if free < size * ROOM {
        return Err(Ending::failed(format!(
            "{} has {} free and the bench needs {}: name another place with --dir, or a smaller --size",
            parent.display(),
            bytes(free),
            bytes(size * ROOM)
        )));
    }
    Ok(())
}

/// Says who takes part, and who does not.
fn introduce(output: Output) {
    let mut present = Vec::new();
    for program in Program::ALL {
        match program.version() {
            Some(version) => {
                output.line(format!("{}: {version}", program.name()));
                present.push(json!({"name": program.name(), "version": version}));
            }
            None => notice(format!("{} is not on this machine: its rows are left out", program.name())),
        }
    }
    output.event(&json!({"event": "begun", "peers": present}));
}

/// What a failure of the system is to the bench.
fn failed(what: &str) -> impl FnOnce(io::Error) -> Ending + use<> {
    let what = what.to_owned();
    move |error| Ending::failed(format!("{what} failed: {error}"))
}

/// A run of all rows.
struct Bench {
    stage: Stage,
    material: Material,
    rows: Vec<&'static Row>,
    figures: Figures,
    /// How the others were started.
    commands: BTreeSet<String>,
    round: u32,
    time: Duration,
    quick: bool,
    contents: u64,
    output: Output,
}

impl Bench {
    /// Whether a row needs a figure, and its subject is on this machine.
    fn wants(&self, key: Key) -> bool {
        let is_there = match key.0 {
            NBDKIT => Program::Nbdkit.find().is_some(),
            QSD => Program::Qsd.find().is_some(),
            _ => true,
        };
        is_there && self.rows.iter().any(|row| row.needs(key))
    }

    fn wants_any(&self, subject: &'static str, measures: &[&'static str]) -> bool {
        measures.iter().any(|measure| self.wants((subject, measure)))
    }

    /// The subjects of which a figure is needed, in this round's order.
    fn subjects(&self, all: &[&'static str], measures: &[&'static str]) -> Vec<&'static str> {
        let mut wanted: Vec<_> = all.iter().copied().filter(|subject| self.wants_any(subject, measures)).collect();
        let first = self.round as usize % wanted.len().max(1);
        wanted.rotate_left(first);
        wanted
    }

    /// Something to write that nobody has written before.
    fn content(&mut self) -> Content {
        self.contents += 1;
        Content(self.contents)
    }

    fn take(&mut self, key: Key, figure: f64) {
        if self.wants(key) {
            self.output.event(&json!({
                "event": "progress", "round": self.round + 1, "subject": key.0, "measure": key.1, "figure": figure,
            }));
        }
        self.figures.add(key, figure);
    }

    /// Prints the table.
    fn report(&self) -> Exit {
        let mut table = vec![["ROW", "TZERO", "", "PEER", "", "RATIO", "BAR", ""].map(String::from).to_vec()];
        let mut rows = Vec::new();
        let mut missing = Vec::new();
        for row in &self.rows {
            let value = self.figures.of(row.ours);
            let ratio = row.theirs.and_then(|theirs| self.figures.ratio(row.ours, theirs));
            let figure = if row.theirs.is_some() { ratio } else { value };
            let (Some(value), Some(figure)) = (value, figure) else {
                missing.push(row.name);
                continue;
            };
            let met = row.bar.is_met(figure);
            let theirs = row.theirs.and_then(|theirs| self.figures.of(theirs));
            table.push(vec![
                row.name.into(),
                shown(value),
                row.unit.into(),
                theirs.map(shown).unwrap_or_default(),
                row.peer().unwrap_or_default().into(),
                ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
                format!("{} {}", row.bar.sign(), row.bar.number()),
                if met { String::new() } else { "not met".into() },
            ]);
            rows.push(json!({
                "name": row.name, "value": value, "unit": row.unit, "peer": row.peer(), "peer_value": theirs,
                "ratio": ratio, "bar": row.bar.number(), "bar_is": row.bar.sign(), "met": met,
            }));
        }
        self.output.table(&table);
        for command in &self.commands {
            self.output.line(command);
        }
        self.output.event(&json!({"event": "commands", "commands": self.commands}));
        self.output.result("rows", &Value::Array(rows));
        if missing.is_empty() {
            return Exit::AsAsked;
        }
        notice(format!("not measured, for want of a peer: {}", missing.join(", ")));
        Exit::NotAsAsked
    }
}

/// Three digits and more.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
