//! What brig-cell is told: the one message that comes before all others on its channel, which is its standard input as
//! brig-vmm's is ([`crate::vmm::CHANNEL_FD`]).
//!
//! To run a sandbox it is what a VMM and an agent are together: of [`crate::vmm::Command`] it takes `Connect`, of
//! [`crate::vmm::Event`] it says `Failed`, and on the control connection it speaks as [`crate::agent`] says.

use serde::{Deserialize, Serialize};

use crate::{agent::UnpackSpec, vmm::FdIndex};

/// The first message to brig-cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The ids of its user namespace.
    pub ids: IdMap,
    /// What to do in it.
    pub job: Job,
}

/// Which ids of the host the ids of a user namespace are (user_namespaces(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdMap {
    /// Inside there is root alone, which is whoever runs brig.
    Single,
    /// Root and everybody else are of a range that is nobody's on the host. Only root may say so.
    Range {
        /// The host's uid and gid that root is.
        first: u32,
        /// Ids, from there on.
        count: u32,
    },
    /// Root is whoever runs brig, the others are the user's subordinate ids (subuid(5)).
    Subordinate {
        /// The program `newuidmap`.
        newuidmap: String,
        /// The program `newgidmap`.
        newgidmap: String,
        /// The first subordinate uid and how many there are.
        uids: (u32, u32),
        /// The same for gids.
        gids: (u32, u32),
    },
}

/// What brig-cell does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// Run a sandbox.
    Run(RunJob),
    /// Unpack an image into an empty directory. Answered by any number of
    /// [`FromAgent::Unpacking`](crate::agent::FromAgent::Unpacking), then `Unpacked` or `UnpackFailed`, in frames on the
    /// control connection.
    Unpack(UnpackJob),
    /// Remove everything in a directory, which stays. Answered by its end: exit code 0, or [`crate::vmm::Event::Failed`].
    Empty {
        /// The directory, which is the namespace's root's own.
        directory: String,
    },
}

/// A sandbox to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunJob {
    /// The connected stream socket that the supervisor speaks to the agent through.
    pub control: FdIndex,
    /// The directory of the unpacked image. A path, as a descriptor of another mount namespace cannot be mounted.
    pub image: String,
    /// The directory of the sandbox's writable layer, which belongs to the namespace's root.
    pub layer: String,
    /// Devices of the host's that the sandbox gets, by their paths.
    pub devices: Vec<String>,
    /// Volumes, and what the user binds, by their paths: directories or files.
    pub volumes: Vec<String>,
    /// The `cgroup.procs` of the cgroups that the sandbox is to be in, open for writing.
    pub cgroups: Vec<FdIndex>,
}

/// An image to unpack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackJob {
    /// The connected stream socket for the answers.
    pub control: FdIndex,
    /// The layers; the offsets mean nothing.
    pub spec: UnpackSpec,
    /// The layers' blobs, one each.
    pub blobs: Vec<FdIndex>,
    /// The empty directory, which belongs to the namespace's root.
    pub directory: String,
}
