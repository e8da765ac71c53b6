//! Why a process could not be started, in one line for the user, as Docker words it where Docker has words.

use std::{
    error::Error,
    fmt::{Display, Write},
    io,
};

use brig_protocol::agent::StartFailure;

use crate::user::UserError;

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program has no slash and is in no directory of `PATH`.
    #[error("exec: {program:?}: executable file not found in $PATH")]
    NotInPath {
        /// The program, as the spec names it.
        program: String,
    },
    /// The program, or the interpreter that its first line names, does not exist.
    #[error("exec: {program:?}: no such file or directory")]
    NoSuchProgram {
        /// The program, as the spec names it.
        program: String,
    },
    /// The program exists and cannot be executed.
    #[error("exec: {program:?}: {reason}")]
    NotExecutable {
        /// The program, as the spec names it.
        program: String,
        /// `permission denied`, `is a directory`, `exec format error`, …
        reason: String,
    },
    /// The user or group is not in the image.
    #[error(transparent)]
    User(#[from] UserError),
    /// The spec holds something that no process can be started with.
    #[error("{what} {value:?} {problem}")]
    BadSpec {
        /// Which part of the spec.
        what: &'static str,
        /// What stands there.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// What another process said that was to become the sandbox's: a kind and a line.
    #[error("{message}")]
    Reported {
        /// The kind of its failure.
        kind: StartFailure,
        /// Its failure, causes included.
        message: String,
    },
    /// The kernel refused a step.
    #[error("cannot {action}")]
    Step {
        /// What was attempted, on what.
        action: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl LaunchError {
    /// The kind of failure, which decides the exit code.
    pub fn kind(&self) -> StartFailure {
        match self {
            Self::NotInPath { .. } | Self::NoSuchProgram { .. } => StartFailure::NotFound,
            Self::NotExecutable { .. } => StartFailure::NotExecutable,
            Self::Reported { kind, .. } => *kind,
            Self::User(error) if error.is_unknown() => StartFailure::UnknownUser,
            Self::User(_) | Self::BadSpec { .. } | Self::Step { .. } => StartFailure::Other,
        }
    }
}

/// Says what was attempted when a system call fails.
pub(crate) trait Context<T> {
    /// Names the step: `cannot {action}`.
    fn step(self, action: &str) -> Result<T, LaunchError>;

    /// Names the step and what it was done to: `cannot {action} {object}`.
    fn step_on(self, action: &str, object: impl Display) -> Result<T, LaunchError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn step(self, action: &str) -> Result<T, LaunchError> {
        self.map_err(|e| LaunchError::Step {
            action: action.to_owned(),
            source: e.into(),
        })
    }

    fn step_on(self, action: &str, object: impl Display) -> Result<T, LaunchError> {
        self.map_err(|e| LaunchError::Step {
            action: format!("{action} {object}"),
            source: e.into(),
        })
    }
}

/// Most characters of a line for the user.
pub const LINE_CHARS: usize = 1024;

/// An error and its causes in one line without control characters, at most [`LINE_CHARS`] long.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String does not fail.
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line.chars()
        .filter(|c| !c.is_control())
        .take(LINE_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_in_one_line() {
        let error = LaunchError::Step {
            action: "mount the image".into(),
            source: io::Error::other("bad\nmagic"),
        };
        assert_eq!(one_line(&error), "cannot mount the image: badmagic");
    }
}
