//! What long work shows while it goes on: a bar on a terminal, events for programs, nothing otherwise.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tzero_copy::{Event, Phase};

use crate::output::{Output, bytes, clock, notice};

/// Least time between two progress events.
const EVENT_STEP: Duration = Duration::from_millis(250);
/// How long a phase goes on before its rate means anything.
const SETTLING: Duration = Duration::from_millis(500);
const BAR: &str = "{prefix:>8} [{wide_bar}] {msg}";

/// Shows the events of a copy, a verification or a restore.
pub(crate) struct Progress {
    output: Output,
    terminal: bool,
    phase: Option<Running>,
    /// The last event that programs got, and when.
    told: Option<(Instant, u64)>,
}

/// The phase that is going on.
struct Running {
    phase: Phase,
    since: Instant,
    /// Bytes that were done before: they say nothing about the rate.
    before: u64,
    /// Only on a terminal.
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(output: Output) -> Self {
        Self { output, terminal: !output.json && io::stderr().is_terminal(), phase: None, told: None }
    }

    /// Takes one event.
    pub(crate) fn show(&mut self, event: &Event) {
        match event {
            Event::Begun { copy, .. } => {
                let mut object = serde_json::to_value(event).unwrap_or_default();
                object["id"] = json!(copy);
                self.output.event(&object);
            }
            Event::Progress { phase, done, total } => self.advance(event, *phase, *done, *total),
            Event::Notice(text) => {
                self.suspended(|| notice(text));
                self.output.event(event);
            }
        }
    }

    fn advance(&mut self, event: &Event, phase: Phase, done: u64, total: u64) {
        let changed = self.phase.as_ref().is_none_or(|running| running.phase != phase);
        if changed {
            self.clear();
            let bar = self.terminal.then(|| bar(phase, done, total));
            self.phase = Some(Running { phase, since: Instant::now(), before: done, bar });
        } else if let Some(Running { since, before, bar: Some(bar), .. }) = &self.phase {
            bar.set_message(figures(done, total, done.saturating_sub(*before), since.elapsed()));
            bar.set_position(done);
        }
        let due = self.told.is_none_or(|(when, what)| when.elapsed() >= EVENT_STEP || (done == total && what != done));
        if changed || due {
            self.told = Some((Instant::now(), done));
            self.output.event(event);
        }
    }

    fn suspended(&self, print: impl FnOnce()) {
        match self.phase.as_ref().and_then(|running| running.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn clear(&self) {
        if let Some(bar) = self.phase.as_ref().and_then(|running| running.bar.as_ref()) {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A bar as a phase begins.
fn bar(phase: Phase, done: u64, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(BAR).expect("the template is valid").progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        .with_style(style)
        .with_prefix(phase.to_string())
        .with_message(figures(done, total, 0, Duration::ZERO))
        .with_position(done);
    bar.tick();
    bar
}

/// How far it is; once that means something, also how fast, and how long it will take. `here` are the bytes done in `elapsed`.
fn figures(done: u64, total: u64, here: u64, elapsed: Duration) -> String {
    let far = format!("{}/{}", bytes(done), bytes(total));
    if here == 0 || elapsed < SETTLING {
        return far;
    }
    let rate = here as f64 / elapsed.as_secs_f64();
    let left = (total.saturating_sub(done) as f64 / rate).ceil() as u64;
    format!("{far} {}/s, {} left", bytes(rate as u64), clock(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn nothing_is_said_of_a_rate_that_is_not_known() {
        assert_eq!(figures(0, 16 * MIB, 0, Duration::from_secs(9)), "0 B/16.0 MiB");
        assert_eq!(figures(8 * MIB, 16 * MIB, 8 * MIB, Duration::from_millis(3)), "8.0 MiB/16.0 MiB");
    }

    #[test]
    fn what_an_earlier_run_did_is_not_this_one_s_rate() {
        let shown = figures(90 * MIB, 100 * MIB, 10 * MIB, Duration::from_secs(5));
        assert_eq!(shown, "90.0 MiB/100.0 MiB 2.0 MiB/s, 5 s left");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(
            [0, 59, 60, 3599, 3600, 100_000].map(clock),
            ["0 s", "59 s", "1:00", "59:59", "1:00:00", "27:46:40"]
        );
    }
}
