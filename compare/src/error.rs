//! What can go wrong with a measurement.

use std::{fmt::Write, io, path::Path, process::Output};

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program said why.
    #[error("{what}: {reason}")]
    Program {
        /// What it was asked for.
        what: String,
        /// Its last line, or how it ended.
        reason: String,
    },
    /// The system said why.
    #[error("cannot {what}")]
    System {
        /// What could not be done.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was told makes no sense.
    #[error("{0}")]
    Told(String),
}

impl Error {
    /// For `map_err`: something could not be done.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// For `map_err`: something could not be done with a file.
    pub(crate) fn file(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::system(format!("{verb} {}", path.display()))
    }

    /// A program that did not succeed.
    pub(crate) fn ended(what: &str, output: &Output) -> Self {
        let complaints = String::from_utf8_lossy(&output.stderr);
        let last = complaints.lines().map(str::trim).rfind(|line| !line.is_empty());
        Self::Program {
            what: what.to_owned(),
            reason: last.map_or_else(
                || output.status.to_string(),
                |line| line.trim_start_matches("brig: ").to_owned(),
            ),
        }
    }

    /// One line, with what caused it.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let _ = write!(line, ": {error}");
            cause = error.source();
        }
        line
    }
}
