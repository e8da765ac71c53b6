//! The walls around a process of brig's own that may be taken over: brig-vmm.
//!
//! ```text
//!  whoever starts it                         the process itself
//!  spawn: new user and pid namespace,   ──►  namespaces: mount, net, ipc, uts, cgroup
//!  ids of its own, three descriptors         root: an empty one
//!                                            limits, keyring, capabilities, landlock
//! ```
//!
//! | room | does |
//! |---|---|
//! | [`spawn`] | starts a program in a new user and pid namespace, from a descriptor |
//! | [`identity`] | which user it becomes there |
//! | [`namespaces`] | the other namespaces, which the process makes itself while its starter does other things |
//! | [`root`] | an empty root in place of the host's |
//! | [`limits`] | resource limits |
//! | [`capabilities`] | gives up what the process needed to build its walls |
//! | [`seccomp`] | the system calls that are left, compiled from a list |
//! | [`landlock`] | forbids what can be forbidden about files and ports, all of it or all but some directories |
//!
//! What a process must be able to do to itself to build them is [`capabilities::BUILDING`]: it is given those and no other.

pub mod capabilities;
mod child;
pub mod identity;
pub mod landlock;
pub mod limits;
pub mod namespaces;
pub mod root;
pub mod seccomp;
pub mod spawn;

use std::io;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {action}")]
pub struct WallError {
    /// What was tried.
    pub action: &'static str,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Names what failed.
pub(crate) trait Step<T> {
    /// The result, or an error that says that `action` failed.
    fn step(self, action: &'static str) -> Result<T, WallError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, action: &'static str) -> Result<T, WallError> {
        self.map_err(|source| WallError {
            action,
            source: source.into(),
        })
    }
}
