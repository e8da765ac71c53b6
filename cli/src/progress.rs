//! Progress of steps that may take over a second: bars and spinners on a terminal, elsewhere a line after a step that
//! did. None before it: a command that fails writes one line.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::text;

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// How long a step takes that a line is written about.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// Shows one step.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    label: String,
    began: Instant,
    /// Whether lines are printed in the place of a bar.
    lines: bool,
}

impl Step {
    /// A step that counts bytes. `quiet` shows nothing.
    pub fn bytes(label: &str, quiet: bool) -> Self {
        let step = Self::new(label, quiet);
        if !step.bar.is_hidden() {
            step.bar
                .set_style(style("{msg} {bar:30} {bytes}/{total_bytes} {elapsed}"));
        }
        step
    }

    /// A step that counts up to `total`; nothing is shown of it but on a terminal.
    pub fn counted(label: &str, total: u64) -> Self {
        let mut step = Self::new(label, false);
        step.lines = false;
        step.bar
            .set_style(style("{spinner} {msg} {pos} of {len} {elapsed}"));
        step.bar.set_length(total);
        step.bar.enable_steady_tick(TICK);
        step
    }

    /// A step of unknown length. Nothing is shown of it but on a terminal: what runs afterwards has standard error for
    /// itself.
    pub fn spinner(label: &str) -> Self {
        let mut step = Self::new(label, false);
        step.lines = false;
        step.turn();
        step
    }

    /// A step of unknown length that a line is written about when it took long.
    pub fn unknown(label: &str) -> Self {
        let step = Self::new(label, false);
        step.turn();
        step
    }

    /// Has the spinner turn, which takes a thread, where anyone sees it.
    fn turn(&self) {
        if !self.bar.is_hidden() {
            self.bar.set_style(style("{spinner} {msg} {elapsed}"));
            self.bar.enable_steady_tick(TICK);
        }
    }

    /// One more is done. `print` may write to the terminal meanwhile.
    pub fn count<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.inc(1);
        self.bar.suspend(print)
    }

    /// Writes a line in the middle of the step.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| eprintln!("brig: {line}"));
    }

    fn new(label: &str, quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let target = if terminal && !quiet {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target).with_message(label.to_owned());
        Self {
            bar,
            label: label.to_owned(),
            began: Instant::now(),
            lines: !terminal && !quiet,
        }
    }

    /// `done` of `total` bytes.
    pub fn advance(&self, done: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }

    /// The step is done.
    pub fn finish(self, bytes: Option<u64>) {
        if self.lines && self.began.elapsed() >= WORTH_A_LINE {
            let size = bytes
                .map(|bytes| format!(" {}", text::size(bytes)))
                .unwrap_or_default();
            eprintln!(
                "{}: done{size} in {:.1} s",
                self.label,
                self.began.elapsed().as_secs_f32()
            );
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [
            "{msg} {bar:30} {bytes}/{total_bytes} {elapsed}",
            "{spinner} {msg} {elapsed}",
            "{spinner} {msg} {pos} of {len} {elapsed}",
        ] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
