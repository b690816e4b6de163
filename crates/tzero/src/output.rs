//! What goes to standard output: lines for people, or JSON objects for programs.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;

use crate::ending::Ending;
use crate::printable::printable;
use crate::stdout;

/// Standard output in one of its two forms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// A line for people.
    pub(crate) fn line(&self, line: impl Display) {
        if !self.json {
            self.raw(format!("{}\n", printable(&line.to_string())).as_bytes());
        }
    }

    /// An object for programs about work that goes on.
    pub(crate) fn event(&self, event: &impl Serialize) {
        if let Some(line) = self.encoded(event) {
            stdout::event(line);
        }
    }

    /// The result: an object with one key for programs; people have had their lines.
    pub(crate) fn result(&self, key: &str, value: &impl Serialize) {
        if let Some(line) = self.encoded(&BTreeMap::from([(key, value)])) {
            self.raw(&line);
        }
    }

    fn encoded(&self, object: &impl Serialize) -> Option<Vec<u8>> {
        if !self.json {
            return None;
        }
        match serde_json::to_vec(object) {
            Ok(mut line) => {
                line.push(b'\n');
                Some(line)
            }
            Err(error) => {
                stdout::cannot_say(error);
                None
            }
        }
    }

    /// A table for people; the first row is its head.
    pub(crate) fn table(&self, rows: &[Vec<String>]) {
        if !self.json {
            self.raw(table(rows).as_bytes());
        }
    }

    /// Bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        stdout::write(bytes);
    }

    /// Reports how a command ended otherwise than asked.
    pub(crate) fn ending(&self, ending: &Ending) {
        notice(&ending.sentence);
        self.result("error", &json!({ "exit": ending.exit.code(), "message": ending.sentence }));
    }
}

/// A line on standard error.
pub(crate) fn notice(sentence: impl Display) {
    // Nobody is left to tell where standard error is gone.
    let _ = writeln!(io::stderr(), "tzero: {}", printable(&sentence.to_string()));
}

fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Bytes for people: three digits and a binary unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Seconds as people write them.
pub(crate) fn clock(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest} s"),
        (0, _) => format!("{minutes}:{rest:02}"),
        _ => format!("{hours}:{minutes:02}:{rest:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["NAME".into(), "STATE".into()],
            vec!["a-long-name".into(), "ok".into()],
            vec!["b".into(), String::new()],
        ];
        assert_eq!(table(&rows), "NAME         STATE\na-long-name  ok\nb\n");
        assert_eq!(table(&[]), "");
        assert_eq!(table(&[vec!["a\nb".into(), "c".into()]]), "a\\nb  c\n", "a name makes no line of its own");
    }

    #[test]
    fn bytes_have_a_unit() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
