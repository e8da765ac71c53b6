//! The namespaces of a sandbox's process that runs, by its pid descriptor (`ioctl_pidfd(2)`, Linux 6.11): `/proc` need not be
//! mounted for that.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use rustix::{
    process::{Pid, PidfdFlags, getpid, pidfd_open},
    system::sethostname,
    thread::{
        LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
    },
};

/// `PIDFD_GET_MNT_NAMESPACE` and `PIDFD_GET_UTS_NAMESPACE` (include/uapi/linux/pidfd.h).
const GET_MOUNT_NAMESPACE: libc::Ioctl = 0xff03;
const GET_UTS_NAMESPACE: libc::Ioctl = 0xff0a;

/// The mount namespace of a process. As long as the descriptor is open, the end of the process does not unmount anything:
/// that takes the kernel longer than all the rest of an exit, and nobody who waits for the process has to wait for that.
///
/// # Errors
/// Those of pidfd_open(2) and ioctl(2); kernels before 6.11 do not have the latter.
pub fn mount_namespace(pid: Pid) -> io::Result<OwnedFd> {
    namespace(pid, GET_MOUNT_NAMESPACE)
}

/// Sets the hostname in the UTS namespace of a process. The calling thread is in its own again when this returns.
///
/// # Errors
/// Those of pidfd_open(2), ioctl(2), setns(2) and sethostname(2).
pub fn set_hostname(pid: Pid, hostname: &str) -> io::Result<()> {
    let home = namespace(getpid(), GET_UTS_NAMESPACE)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    move_into_thread_name_spaces(
        process.as_fd(),
        ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
    )?;
    let set = sethostname(hostname.as_bytes());
    move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::HostNameAndNISDomainName))?;
    Ok(set?)
}

fn namespace(pid: Pid, request: libc::Ioctl) -> io::Result<OwnedFd> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    // SAFETY: these requests take no argument and return a new descriptor.
    match unsafe { libc::ioctl(process.as_raw_fd(), request, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made the descriptor for this call: nothing else owns it.
        descriptor => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
    }
}
