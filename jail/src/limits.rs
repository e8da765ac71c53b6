//! Resource limits (getrlimit(2)) of a process that needs little.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Step, WallError};

/// What a process may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open descriptors. Not more than the starter's own limit, which only root could raise.
    pub descriptors: u64,
    /// Threads, all of them. Counted for each user in each user namespace since Linux 5.14; before that for the user on the
    /// whole host, so that it is only for a user of the process's own.
    pub threads: u64,
}

/// Limits this process for good. Locked memory, core dumps, message queues, real-time priorities: none.
///
/// # Errors
/// [`WallError`].
pub fn set(limits: Limits) -> Result<(), WallError> {
    let none = [
        Resource::Core,
        Resource::Memlock,
        Resource::Msgqueue,
        Resource::Rtprio,
        Resource::Nice,
    ];
    for resource in none {
        lower(resource, 0).step("set a resource limit")?;
    }
    lower(Resource::Nproc, limits.threads).step("limit the threads")?;
    lower(Resource::Nofile, limits.descriptors).step("limit the descriptors")
}

fn lower(resource: Resource, to: u64) -> rustix::io::Result<()> {
    let hard = getrlimit(resource).maximum;
    let value = Some(hard.map_or(to, |hard| hard.min(to)));
    setrlimit(
        resource,
        Rlimit {
            current: value,
            maximum: value,
        },
    )
}
