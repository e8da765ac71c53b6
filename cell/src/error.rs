//! What can go wrong before the agent's code has taken over.

use std::io;

use brig_agent::error::AgentError;
use brig_launcher::LaunchError;
use brig_protocol::channel::ChannelError;

/// Why there is no cell.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// A system call failed.
    #[error("cannot {action}")]
    Step {
        /// What was attempted, on what.
        action: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// newuidmap or newgidmap failed.
    #[error("{program} failed: {message}")]
    Helper {
        /// The program.
        program: String,
        /// What it said.
        message: String,
    },
    /// The kernel lets nobody but root make user namespaces.
    #[error(
        "this kernel lets only root make user namespaces: allow them \
         (sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000, or an AppArmor profile for brig-cell)"
    )]
    NoUserNamespaces(#[source] io::Error),
    /// A message lacks what it must have.
    #[error("the supervisor broke the protocol")]
    Protocol,
    /// The channel failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The launcher failed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Says what was attempted when a system call fails.
pub trait Context<T> {
    /// Names the step: `cannot {action}`.
    fn step(self, action: impl Into<String>) -> Result<T, CellError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn step(self, action: impl Into<String>) -> Result<T, CellError> {
        self.map_err(|e| CellError::Step {
            action: action.into(),
            source: e.into(),
        })
    }
}
