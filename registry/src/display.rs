//! Progress: a bar a layer on a terminal, elsewhere lines in Docker's words, or JSON for a program.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};

use brig_registry::progress::{BlobState, Event, JsonEvent, Sink};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arguments::{Progress, Show};

/// Bars that a terminal has room for in any case; further layers are shown as lines when they are done.
const BARS_MAX: usize = 40;

/// Where the progress of one command goes.
#[derive(Clone)]
pub struct Display(Arc<Kind>);

enum Kind {
    Quiet,
    /// Standard error in the place of standard output.
    Lines(bool),
    Json,
    Bars(Mutex<Bars>),
}

struct Bars {
    multi: MultiProgress,
    bars: BTreeMap<String, ProgressBar>,
}

impl Display {
    /// As the user wants it and the streams allow.
    pub fn new(show: &Show) -> Self {
        let stderr = show.progress == Progress::Stderr;
        let terminal = if stderr {
            io::stderr().is_terminal()
        } else {
            io::stdout().is_terminal()
        };
        Self(Arc::new(match show.progress {
            _ if show.quiet => Kind::Quiet,
            Progress::Json => Kind::Json,
            _ if !terminal => Kind::Lines(stderr),
            _ => Kind::Bars(Mutex::new(Bars {
                multi: MultiProgress::with_draw_target(if stderr {
                    ProgressDrawTarget::stderr()
                } else {
                    ProgressDrawTarget::stdout()
                }),
                bars: BTreeMap::new(),
            })),
        }))
    }

    /// A function that shows events.
    pub fn sink(&self) -> Sink {
        let display = self.clone();
        Arc::new(move |event| display.show(&event))
    }

    /// Shows a line.
    pub fn line(&self, text: &str) {
        self.show(&Event::Line {
            id: String::new(),
            text: text.to_owned(),
        });
    }

    /// The bars stay as they are.
    pub fn finish(&self) {
        if let Kind::Bars(bars) = &*self.0 {
            let bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            for bar in bars.bars.values().filter(|bar| !bar.is_finished()) {
                bar.abandon();
            }
        }
    }

    fn show(&self, event: &Event) {
        match &*self.0 {
            Kind::Quiet => {}
            Kind::Json => {
                let line = serde_json::to_string(&JsonEvent::from(event)).unwrap_or_default();
                print(false, &line);
            }
            Kind::Lines(stderr) => {
                if let Some(line) = line(event) {
                    print(*stderr, &line);
                }
            }
            Kind::Bars(bars) => bars.lock().unwrap_or_else(PoisonError::into_inner).show(event),
        }
    }
}

/// A reader that has gone away is none of progress's business.
fn print(stderr: bool, line: &str) {
    let _ = if stderr {
        writeln!(io::stderr(), "{line}")
    } else {
        writeln!(io::stdout(), "{line}")
    };
}

/// An event as a line; how far a transfer is, is none.
fn line(event: &Event) -> Option<String> {
    match event {
        Event::Line { id, text } if id.is_empty() => Some(text.clone()),
        Event::Line { id, text } => Some(format!("{id}: {text}")),
        Event::Blob { state, .. } if state.bytes().is_some() => None,
        Event::Blob { id, state } => Some(format!("{id}: {}", state.words())),
    }
}

impl Bars {
    fn show(&mut self, event: &Event) {
        let Event::Blob { id, state } = event else {
            if let Some(line) = line(event) {
                let _ = self.multi.println(line);
            }
            return;
        };
        let room = self.bars.len() < BARS_MAX;
        if !self.bars.contains_key(id) && !room {
            if state.is_end()
                && let Some(line) = line(event)
            {
                let _ = self.multi.println(line);
            }
            return;
        }
        let multi = &self.multi;
        let bar = self.bars.entry(id.clone()).or_insert_with(|| {
            let bar = multi.add(ProgressBar::no_length());
            bar.set_prefix(id.clone());
            bar.set_style(style("{prefix}: {msg}"));
            bar
        });
        match state.bytes() {
            Some((current, total)) => {
                bar.set_style(style(
                    "{prefix}: {msg} [{bar:40.=> }] {decimal_bytes}/{decimal_total_bytes}",
                ));
                bar.set_length(total);
                bar.set_position(current);
            }
            None => bar.set_style(style("{prefix}: {msg}")),
        }
        match state {
            state if state.is_end() => bar.finish_with_message(state.words()),
            BlobState::Retrying { .. } | BlobState::Waiting => bar.set_message(state.words()),
            state => bar.set_message(state.words()),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_dockers() {
        let blob = |state| Event::Blob {
            id: "abc".into(),
            state,
        };
        assert_eq!(
            line(&blob(BlobState::Complete)).as_deref(),
            Some("abc: Pull complete")
        );
        assert_eq!(line(&blob(BlobState::Downloading { current: 1, total: 2 })), None);
        let event = Event::Line {
            id: "latest".into(),
            text: "Pulling from a".into(),
        };
        assert_eq!(line(&event).as_deref(), Some("latest: Pulling from a"));
    }

    #[test]
    fn the_templates_are_valid() {
        for template in [
            "{prefix}: {msg}",
            "{prefix}: {msg} [{bar:40}] {decimal_bytes}/{decimal_total_bytes}",
        ] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
