//! The namespaces that a jailed process makes for itself (namespaces(7)).

use std::io;

use rustix::process::getpid;

use crate::{Step, WallError};

/// What is not shared with the host any more. The user and the pid namespace the process was born in.
const UNSHARED: libc::c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Whether this process is the first of a pid namespace, as [`crate::spawn`] makes it.
pub fn is_first_process() -> bool {
    getpid().is_init()
}

/// Makes new mount, network, IPC, UTS and cgroup namespaces for this process: a network without an interface that is up, no
/// System V objects and no message queues, a copy of the mounts that [`crate::root`] then leaves.
///
/// # Errors
/// [`WallError`]; `PermissionDenied` where the kernel gives a new user namespace no rights, as Ubuntu's AppArmor does.
pub fn unshare() -> Result<(), WallError> {
    // SAFETY: takes a number. Neither descriptors nor memory are unshared, so nothing that is in use changes.
    let result = unsafe { libc::unshare(UNSHARED) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
            .step("make namespaces (kernel.apparmor_restrict_unprivileged_userns must be 0)")
    }
}
