//! What long work shows while it goes on: a bar on a terminal, events for programs, nothing otherwise.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tzero_copy::{Event, Phase};

use crate::output::{Output, notice};

/// Least time between two progress events.
const EVENT_STEP: Duration = Duration::from_millis(250);
const BAR: &str = "{prefix:>8} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left";

/// Shows the events of a copy, a verification or a restore.
pub(crate) struct Progress {
    output: Output,
    bar: Option<ProgressBar>,
    phase: Option<Phase>,
    shown: Option<Instant>,
}

impl Progress {
    pub(crate) fn new(output: Output) -> Self {
        let bar = (!output.json && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(BAR).expect("the template is valid").progress_chars("=> ");
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
        });
        Self { output, bar, phase: None, shown: None }
    }

    /// Takes one event.
    pub(crate) fn show(&mut self, event: &Event) {
        match event {
            Event::Begun { .. } => self.output.object(event),
            Event::Progress { phase, done, total } => self.advance(event, *phase, *done, *total),
            Event::Notice(text) => {
                self.suspended(|| notice(text));
                self.output.object(event);
            }
        }
    }

    fn advance(&mut self, event: &Event, phase: Phase, done: u64, total: u64) {
        let changed = self.phase.replace(phase) != Some(phase);
        if let Some(bar) = &self.bar {
            if changed {
                bar.set_prefix(phase.to_string());
                bar.set_length(total);
                // What was there before this run says nothing about the rate.
                bar.reset_eta();
                bar.set_position(done);
                bar.reset_elapsed();
            }
            bar.set_position(done);
        }
        let due = self.shown.is_none_or(|shown| shown.elapsed() >= EVENT_STEP);
        if changed || due || done == total {
            self.shown = Some(Instant::now());
            self.output.object(event);
        }
    }

    fn suspended(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
