//! Starts a process in namespaces of its own from a [`brig_protocol::spec::SandboxSpec`]. The same code runs in the
//! guest, called by the agent, and on the host for `--isolation container`.
//!
//! [`start`] reads in the order in which the kernel does it; each step has a file:
//!
//! | step | file |
//! |---|---|
//! | the caller makes the network namespace, the cgroup and the root filesystem's parts | [`network`], [`cgroup`] |
//! | the process is made in advance, when there is time: [`start`] then goes on at the root filesystem | [`zygote`], `trees`, `channel` |
//! | the process is made in its mount, pid, uts and ipc namespaces | [`namespaces`] |
//! | it joins its cgroup and takes that for the root of its cgroup namespace | [`cgroup`] |
//! | it enters the root filesystem and lets go of the old one | [`rootfs`] |
//! | mounts, device nodes, kernel settings, the engine's files, hidden and read-only paths | [`mounts`], [`devices`], [`sysctls`], [`files`], [`masked`] |
//! | what only some want: further mounts, settings, devices; a root filesystem that can only be read | `extras`, `volume` |
//! | user and groups are looked up in the image's own files | [`user`] |
//! | working directory, standard streams, limits, signals, capabilities, identity | `child`, [`rlimits`], [`signals`], [`capabilities`] |
//! | a terminal of the sandbox's own in the place of the three streams | [`terminal`] |
//! | the filter of system calls | [`filter`] |
//! | the program is found and executed, by an init where one is wanted | [`exec`], [`init`] |
//!
//! A further process of a sandbox that runs enters by [`enter`], and goes the last three steps. A process of the caller's own
//! that works on the sandbox's files goes the way of `visit`.
//!
//! **Paths of an image are hostile.** Everything that comes from the image is touched only after pivot_root(2): from
//! then on the root of path resolution is the image itself and no mount of the old tree is left in the mount
//! namespace, so that no symbolic link and no `..` can name anything outside. No process of the image runs before
//! the exec, so nothing changes underneath. What remains is that a link could move one of our mounts to another
//! place *inside*; `proc` and `sysfs`, on whose place the hidden paths depend, refuse links in their paths.

pub mod capabilities;
pub mod cgroup;
mod channel;
mod child;
pub mod devices;
pub mod enter;
pub mod error;
pub mod exec;
mod extras;
pub mod files;
pub mod filter;
pub mod init;
pub mod masked;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod rlimits;
pub mod rootfs;
pub mod running;
pub mod signals;
pub mod sysctls;
pub mod terminal;
mod trees;
pub mod user;
mod visit;
mod volume;
pub mod zygote;

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
};

use brig_protocol::spec::SandboxSpec;
use rustix::process::Pid;

use crate::error::Context;
pub use crate::{error::LaunchError, rootfs::Root, visit::visit_root, zygote::Zygote};

/// Whose kernel runs the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kernel {
    /// A guest's, which is there for the sandbox alone; the caller is its root.
    Own,
    /// The host's, which runs everything else too; the caller is root of a user namespace (user_namespaces(7)). It cannot
    /// make device nodes: those of its own `/dev` are the sandbox's. And `proc` and `sysfs` are mounted while its own are still
    /// to be seen, as the kernel shows nobody more of them than before.
    Shared,
}

/// What [`start`] needs besides the spec: what the caller has made ready.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What to run. Its `root` is not read: [`Launch::root`] is what the caller made of it.
    pub spec: &'a SandboxSpec,
    /// The root filesystem.
    pub root: &'a Root,
    /// An existing directory of the caller's where the engine's files are written, to be bound over the image's. They
    /// stay there as long as the sandbox runs, and are overwritten by the next start.
    pub files: &'a Path,
    /// The cgroup that the process joins, when it has one of its own.
    pub cgroup: Option<&'a cgroup::Cgroup>,
    /// Whose kernel this is.
    pub kernel: Kernel,
    /// What the process may ask of it; `None` for everything.
    pub filter: Option<filter::Filter>,
    /// The process's streams.
    pub stdio: Stdio,
}

/// The streams of a process.
#[derive(Debug)]
pub enum Stdio {
    /// Standard input, output and error.
    Given([OwnedFd; 3]),
    /// A terminal, which is made in the sandbox.
    Terminal,
}

impl Stdio {
    /// What the master of a terminal comes through, when there is to be one: the near end and the far end.
    fn terminal_channel(&self) -> Result<Option<(UnixStream, UnixStream)>, LaunchError> {
        match self {
            Self::Given(_) => Ok(None),
            Self::Terminal => UnixStream::pair().map(Some).step("create a socket pair"),
        }
    }
}

/// A process that was started.
#[derive(Debug)]
pub struct Started {
    /// Its pid as the caller sees it; inside it is pid 1.
    pub pid: Pid,
    /// Its mount namespace, where that can be had, see [`running::mount_namespace`]. A process may have ended before this can
    /// be opened, unless it waited first.
    pub mounts: Option<OwnedFd>,
    /// The master of its terminal, when it has one; non-blocking.
    pub terminal: Option<OwnedFd>,
}

/// Starts the first process of a sandbox and returns once the exec has succeeded. It inherits the network namespace of the calling thread, see [`network::enter_new`].
///
/// With a `zygote` that [suits](Zygote::suits) the spec and is alive it is that; another one is ended.
///
/// The calling thread is suspended meanwhile. The process is the caller's child: its exit is the caller's to collect.
/// A process that could not be started has been collected already, and its mounts and namespaces are gone.
///
/// # Errors
/// [`LaunchError`]; its [`kind`](LaunchError::kind) decides the exit code.
pub fn start(launch: Launch<'_>, zygote: Option<Zygote>) -> Result<Started, LaunchError> {
    if let Some(zygote) = zygote.filter(|zygote| zygote.suits(launch.spec))
        && let Some(started) = zygote.start(&launch)?
    {
        return Ok(started);
    }
    let Launch {
        spec,
        root,
        files,
        cgroup,
        kernel,
        filter,
        stdio,
    } = &launch;
    let pair = stdio.terminal_channel()?;
    let channel = pair.as_ref().map(|(_, far)| far);
    let pid = namespaces::run_in_new(&|kept| {
        let plan = child::Plan {
            spec,
            root,
            files,
            filter: *filter,
            streams: child::Streams::new(stdio, spec.process.tty, channel)?,
        };
        child::become_process(plan, *cgroup, *kernel, kept)
    })?;
    Ok(Started {
        pid,
        mounts: running::mount_namespace(pid).ok(),
        terminal: pair.and_then(|(near, _)| channel::take_terminal(&near)),
    })
}
