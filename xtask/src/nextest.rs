//! Running tests and counting them.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};

use crate::shell::{cargo, root, succeeds};

/// How many tests ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// A step that counts as one test.
    pub(crate) fn one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed) }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs `cargo nextest run` with a profile of `.config/nextest.toml` and counts from the report that it leaves behind.
/// A run that ends badly without one (nothing compiled, nothing started) counts as one failure.
pub(crate) fn run(profile: &str, arguments: &[&str]) -> Result<Tally> {
    let report = root().join("target/nextest").join(profile).join("junit.xml");
    match fs::remove_file(&report) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove the old {}", report.display()));
        }
        _ => {}
    }
    let mut command = cargo(&["nextest", "run", "--profile", profile, "--no-fail-fast"]);
    command.args(arguments);
    let good = succeeds(&mut command)?;
    let mut tally = fs::read_to_string(&report).ok().and_then(|text| count(&text)).unwrap_or_default();
    if !good && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

/// Reads the totals from the report's outermost element.
fn count(report: &str) -> Option<Tally> {
    let element = report.split("<testsuites").nth(1)?.split('>').next()?;
    let number =
        |name: &str| -> Option<u64> { element.split(&format!(" {name}=\"")).nth(1)?.split('"').next()?.parse().ok() };
    let failed = number("failures")? + number("errors")?;
    Some(Tally { passed: number("tests")?.checked_sub(failed)?, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_come_from_the_outermost_element() {
        let report = r#"<?xml version="1.0"?>
<testsuites name="nextest-run" tests="12" failures="2" errors="1" uuid="x" time="0.1">
    <testsuite name="io" tests="3" disabled="0" errors="0" failures="0"/>"#;
        assert_eq!(count(report), Some(Tally { passed: 9, failed: 3 }));
        assert_eq!(count("<html>"), None);
    }
}
