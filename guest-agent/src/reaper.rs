//! Collecting children: the one place of the agent that calls waitpid(2) for any child. It is called from the loop
//! alone, so a child that the loop has started is registered before its end can be collected.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use brig_protocol::agent::ExitStatus;
use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus, wait},
};

/// Wakes the loop when a child has ended, by a signal descriptor for `SIGCHLD` (signalfd(2)).
#[derive(Debug)]
pub struct Reaper {
    signals: OwnedFd,
}

impl Reaper {
    /// Blocks `SIGCHLD` in the calling thread and takes it by descriptor instead. No other thread of the process may have
    /// it unblocked.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before anything reads it, and all pointers are to it or null; signalfd
        // returns a new descriptor, which nothing else owns.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGCHLD);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => Ok(Self {
                    signals: OwnedFd::from_raw_fd(descriptor),
                }),
            }
        }
    }

    /// Collects every child that has ended: those of the loop, and orphans, for which PID 1 is responsible. Several ends
    /// may stand behind one signal.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub fn collect(&self, mut ended: impl FnMut(Pid, ExitStatus)) -> io::Result<()> {
        // What the descriptor says is not needed: only that it must be emptied, before the children are looked at.
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.signals, &mut info).is_ok() {}
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(status) = exit_status(status) {
                        ended(pid, status);
                    }
                }
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Reaper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl AsRawFd for Reaper {
    fn as_raw_fd(&self) -> i32 {
        self.signals.as_raw_fd()
    }
}

/// `None` for what is no end: a stop or continue, which are not asked for.
fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(ExitStatus::Code(code as u8)),
        (None, Some(signal)) => Some(ExitStatus::Signal(signal as u8)),
        (None, None) => None,
    }
}
