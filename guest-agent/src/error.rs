//! Errors of the agent.

use std::io;

pub use brig_launcher::error::{LINE_CHARS, one_line};

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
