//! A process of the caller's own in a sandbox: it executes nothing, but does the caller's work where every path is the sandbox's.
//!
//! It is a fork of the caller, which has one thread. It enters the sandbox's mount namespace, whose root becomes its own
//! (setns(2)), closes what it has of the caller's, and gives up what a process of the sandbox's root would not have either:
//! capabilities other than Docker's, and system calls that the filter refuses. As its caller it is not dumpable, so that
//! nobody inside looks into it. Links of the sandbox's lead it to where they would lead a process of the sandbox, and nowhere else.

use std::{io, os::fd::OwnedFd};

use brig_protocol::spec::CapabilitySet;
use rustix::{
    fs::Mode,
    process::{Pid, chdir, umask},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::{
    capabilities,
    error::{Context, LaunchError},
    filter::{self, Filter},
    namespaces::FAILED,
    rootfs::{self, Devices, Root},
};

/// As [`crate::enter::Entrance::visit`], in the root filesystem of a sandbox that does not run, which is mounted for this process
/// alone.
///
/// # Errors
/// Those of fork(2).
pub fn visit_root(
    root: &Root,
    stdio: &[OwnedFd; 3],
    filter: Option<Filter>,
    body: impl FnOnce() -> i32,
) -> Result<Pid, LaunchError> {
    let enter = || {
        // SAFETY: CLONE_NEWNS gives this process a mount namespace of its own; no file descriptor is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.step("create a mount namespace")?;
        rootfs::make_private()?;
        rootfs::enter(root.mount()?, Devices::Few)
    };
    fork(stdio, filter, enter, body)
}

/// Forks a process that does `enter` and then `body`, whose result is its exit code. What it cannot do is one line on its
/// standard error.
///
/// # Errors
/// Those of fork(2).
pub(crate) fn fork(
    stdio: &[OwnedFd; 3],
    filter: Option<Filter>,
    enter: impl FnOnce() -> Result<(), LaunchError>,
    body: impl FnOnce() -> i32,
) -> Result<Pid, LaunchError> {
    // SAFETY: this process has one thread, so that nothing in the copy is held by another one: the child may do whatever the
    // parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).step("create a process of the agent"),
        0 => {
            let code = match prepare(stdio, filter, enter) {
                Ok(()) => body(),
                Err(error) => {
                    eprintln!("brig: {error}");
                    FAILED
                }
            };
            // SAFETY: the call ends the process; nothing of the parent's is to be run or written at its end.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| LaunchError::Step {
            action: "create a process of the agent".to_owned(),
            source: io::ErrorKind::Other.into(),
        }),
    }
}

fn prepare(
    stdio: &[OwnedFd; 3],
    filter: Option<Filter>,
    enter: impl FnOnce() -> Result<(), LaunchError>,
) -> Result<(), LaunchError> {
    enter()?;
    let mut raised = Vec::with_capacity(stdio.len());
    for stream in stdio {
        // None is in the place of another then.
        raised.push(rustix::io::fcntl_dupfd_cloexec(stream, 3).step("duplicate a stream")?);
    }
    dup2_stdin(&raised[0]).step("set standard input")?;
    dup2_stdout(&raised[1]).step("set standard output")?;
    dup2_stderr(&raised[2]).step("set standard error")?;
    close_others()?;
    // Closed above.
    raised.into_iter().for_each(std::mem::forget);
    umask(Mode::empty());
    chdir("/").step("enter the sandbox's root")?;
    if let Some(filter) = filter {
        filter::set(filter)?;
    }
    capabilities::clear_ambient()?;
    capabilities::limit(CapabilitySet::DOCKER_DEFAULT)
}

/// Closes everything but the three streams: the caller's descriptors are in its memory only from here on.
fn close_others() -> Result<(), LaunchError> {
    // SAFETY: no value of this process that owns one of them is used or dropped any more: it does nothing but its work, which
    // opens what it needs, and ends without running destructors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error()).step("close the caller's descriptors")
    }
}
