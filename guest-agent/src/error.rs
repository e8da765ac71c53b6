//! Errors of the agent.

use std::{error::Error, fmt::Write, io};

use brig_launcher::LaunchError;
use brig_protocol::{agent::StartFailure, frame::FrameError};

/// What ends the agent, or keeps it from starting a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A disk could not be mounted.
    #[error("cannot mount {what} from {device}")]
    Disk {
        /// What is on it.
        what: &'static str,
        /// The device.
        device: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The launcher failed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The control connection failed.
    #[error("the control connection broke the protocol")]
    Control(#[from] FrameError),
    /// There is a sandbox already.
    #[error("the guest runs a sandbox already")]
    AlreadyStarted,
}

impl AgentError {
    /// The kind that a start fails with.
    pub fn start_failure(&self) -> StartFailure {
        match self {
            Self::Launch(error) => error.kind(),
            _ => StartFailure::Other,
        }
    }
}

/// Names the step that a system call failed in.
pub(crate) trait Context<T> {
    /// `cannot {action}`.
    fn step(self, action: &'static str) -> Result<T, AgentError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn step(self, action: &'static str) -> Result<T, AgentError> {
        self.map_err(|e| AgentError::System {
            action,
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
        let error = AgentError::Disk {
            what: "the image",
            device: "/dev/vda".into(),
            source: io::Error::other("bad\nmagic"),
        };
        assert_eq!(one_line(&error), "cannot mount the image from /dev/vda: badmagic");
    }
}
