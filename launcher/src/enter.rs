//! Another process in a sandbox that runs: made by the caller, as its child, in the namespaces of the sandbox's first process.
//!
//! It is made as [`crate::namespaces`] makes the first: it shares the caller's memory, and the caller is suspended until it
//! has executed its program. It is in the sandbox's pid namespace from its first instruction on, as the caller's
//! children are born there, and joins the others by one setns(2). Until its exec it has the caller's memory and descriptors, so
//! the caller must not be dumpable ([`keep_to_oneself`]): nobody inside may look at it by ptrace(2) or `/proc` then.

use std::{
    cell::{Cell, RefCell},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use brig_protocol::spec::{CapabilitySet, ProcessSpec};
use rustix::{
    fs::Mode,
    process::{DumpableBehavior, Pid, PidfdFlags, getpid, pidfd_open, set_dumpable_behavior, setsid, umask},
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use crate::{
    Stdio,
    cgroup::Cgroup,
    channel,
    child::{self, Execution, Streams},
    error::{Context, LaunchError},
    filter::Filter,
    namespaces::{self, Kept, Stack},
    signals, visit,
};

/// What an entering process joins by itself.
const JOINED: ThreadNameSpaceType = ThreadNameSpaceType::MOUNT
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
    .union(ThreadNameSpaceType::CONTROL_GROUP);

/// Keeps everybody without `CAP_SYS_PTRACE` from looking into the calling process and its children until they execute
/// something (`PR_SET_DUMPABLE`).
///
/// # Errors
/// Those of prctl(2).
pub fn keep_to_oneself() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// The way into a sandbox that runs.
#[derive(Debug)]
pub struct Entrance {
    /// Its first process.
    first: OwnedFd,
    cgroup: Option<Cgroup>,
    filter: Option<Filter>,
    /// Signals that the calling process ignores, which an exec would hand on.
    ignored: Vec<i32>,
    /// Whether children of the calling thread are born in the sandbox's pid namespace.
    is_open: Cell<bool>,
    /// What entering processes run on, one after the other.
    stack: RefCell<Option<Stack>>,
}

/// A process that has entered.
#[derive(Debug)]
pub struct Entered {
    /// Its pid as the caller sees it.
    pub pid: Pid,
    /// Its pid inside.
    pub inner_pid: u32,
    /// The master of its terminal, when it has one; non-blocking.
    pub terminal: Option<OwnedFd>,
}

impl Entrance {
    /// The way into the sandbox whose first process is `first`, a child of the caller that has not been collected. Processes that
    /// enter join `cgroup`, and may ask what `filter` says of the kernel.
    ///
    /// # Errors
    /// Those of pidfd_open(2) and rt_sigaction(2).
    pub fn new(first: Pid, cgroup: Option<Cgroup>, filter: Option<Filter>) -> io::Result<Self> {
        Ok(Self {
            first: pidfd_open(first, PidfdFlags::empty())?,
            cgroup,
            filter,
            ignored: signals::ignored()?,
            is_open: Cell::new(false),
            stack: RefCell::new(None),
        })
    }

    /// Starts a process and returns once the exec has succeeded. The calling thread is the only one of its process, and in the
    /// sandbox's network namespace. From the first call on its children are born in the sandbox's pid namespace.
    ///
    /// The process is the caller's child: its exit is the caller's to collect. One that could not be started has been
    /// collected already.
    ///
    /// # Errors
    /// [`LaunchError`]; its [`kind`](LaunchError::kind) decides the exit code.
    pub fn start(&self, process: &ProcessSpec, stdio: &Stdio) -> Result<Entered, LaunchError> {
        if !self.is_open.get() {
            move_into_thread_name_spaces(self.first.as_fd(), ThreadNameSpaceType::PROCESS_ID)
                .step("enter the sandbox's pid namespace")?;
            self.is_open.set(true);
        }
        let pair = stdio.terminal_channel()?;
        let mut stack = match self.stack.take() {
            Some(stack) => stack,
            None => Stack::new().step("allocate a stack")?,
        };
        let body = |kept: &mut Kept| self.enter(process, stdio, pair.as_ref().map(|(_, far)| far), kept);
        let result = namespaces::run_on(0, &mut stack, &body);
        self.stack.replace(Some(stack));
        let (pid, kept) = result?;
        Ok(Entered {
            pid,
            inner_pid: kept.pid,
            terminal: pair.and_then(|(near, _)| channel::take_terminal(&near)),
        })
    }

    /// Makes a process of the caller's own in the sandbox's root filesystem, with these streams, that does `body` and ends with
    /// its exit code.
    ///
    /// # Errors
    /// Those of fork(2).
    pub fn visit(&self, stdio: &[OwnedFd; 3], body: impl FnOnce() -> i32) -> Result<Pid, LaunchError> {
        let enter = || {
            move_into_thread_name_spaces(self.first.as_fd(), ThreadNameSpaceType::MOUNT)
                .step("enter the sandbox")
        };
        visit::fork(stdio, self.filter, enter, body)
    }

    /// The way of the child. All signals are blocked until the dispositions are those of the program to come.
    fn enter(
        &self,
        process: &ProcessSpec,
        stdio: &Stdio,
        channel: Option<&UnixStream>,
        kept: &mut Kept,
    ) -> Result<std::convert::Infallible, LaunchError> {
        // By its path, which is one of the caller's mounts.
        if let Some(cgroup) = &self.cgroup {
            cgroup.join()?;
        }
        move_into_thread_name_spaces(self.first.as_fd(), JOINED).step("enter the sandbox")?;
        kept.pid = getpid().as_raw_nonzero().get().unsigned_abs();
        umask(Mode::from_raw_mode(0o022));
        setsid().step("start a session")?;
        signals::forget(&self.ignored).step("reset the signals")?;
        let execution = Execution {
            process,
            streams: Streams::new(stdio, process.tty, channel)?,
            bounding: CapabilitySet(u64::MAX),
            filter: self.filter,
            init: None,
            is_first: false,
        };
        child::execute(&execution, kept)
    }
}
