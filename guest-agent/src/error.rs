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
    /// There is no sandbox that another process could be started in.
    #[error("the sandbox's process does not run")]
    NotRunning,
    /// The number of a process is another one's.
    #[error("there is a process {0} already")]
    ProcessExists(u32),
    /// So many processes were started beside the first that no more are taken.
    #[error("too many processes were started in the sandbox and have not ended")]
    TooManyProcesses,
    /// What only an agent in a guest can do.
    #[error("only the agent of a guest can {0}")]
    NotHere(&'static str),
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
