//! Why a process could not be started, in one line for the user, as Docker words it where Docker has words.

use std::{fmt::Display, io};

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
