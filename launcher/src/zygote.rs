//! A process made in advance: in its namespaces, with its mounts ready, waiting for the image and the rest of the spec.
//!
//! Unlike the child of [`crate::namespaces`] it outlives the call that makes it, so it is a forked copy of the caller with
//! memory of its own. It takes one order and either becomes the sandbox's first process or says why not.

use std::{
    convert::Infallible,
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
};

use brig_protocol::spec::SandboxSpec;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Launch,
    cgroup::Cgroup,
    channel::{self, OrderReader, OrderRef, Verdict},
    child,
    error::{Context, LaunchError},
    files,
    namespaces::{self, FAILED, NAMESPACES},
    rootfs::Root,
    trees::Trees,
};

/// A process that waits. Dropping it ends it; its exit is the caller's to collect.
#[derive(Debug)]
pub struct Zygote {
    pid: Pid,
    channel: UnixStream,
    spec: SandboxSpec,
    /// Whether there is no waiting process any more: it has become the sandbox's, or has been collected.
    is_gone: bool,
}

impl Zygote {
    /// Makes one for a spec like `spec`. It inherits the network namespace of the calling thread, which must be the only
    /// one of its process. `root` is the root filesystem as it will be, but for the image, in whose place there is an empty
    /// directory; `files` is the directory that [`Launch::files`] will be, and `cgroup` the one with the limits of the spec.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing is left then.
    pub fn make(
        spec: &SandboxSpec,
        root: &Root,
        files: &Path,
        cgroup: Option<&Cgroup>,
    ) -> Result<Self, LaunchError> {
        let (channel, theirs) = UnixStream::pair().step("create a socket pair")?;
        let Some(pid) = fork().step("create the sandbox's namespaces")? else {
            wait_and_become(
                theirs,
                &Preparation {
                    spec,
                    root,
                    files,
                    cgroup,
                },
            )
        };
        drop(theirs);
        let failure = match channel::receive_verdict(&channel) {
            Ok(Some(Verdict::Ready)) => {
                return Ok(Self {
                    pid,
                    channel,
                    spec: spec.clone(),
                    is_gone: false,
                });
            }
            Ok(Some(Verdict::Failed { kind, message })) => LaunchError::Reported { kind, message },
            Ok(None) => ended(),
            Err(e) => unheard(e),
        };
        namespaces::collect(pid);
        Err(failure)
    }

    /// Its pid, as the caller sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Says that its exit has been collected: its pid may be another process's from now on.
    pub fn has_ended(mut self) {
        self.is_gone = true;
    }

    /// Whether it can become what `spec` says: its mounts and their hidden and read-only paths have been made already, its
    /// cgroup has been joined, and what is out of its bounding set cannot come back.
    pub fn suits(&self, spec: &SandboxSpec) -> bool {
        let (had, wanted) = (self.spec.process.capabilities.0, spec.process.capabilities.0);
        self.spec.mounts == spec.mounts
            && self.spec.masked_paths == spec.masked_paths
            && self.spec.readonly_paths == spec.readonly_paths
            && self.spec.cgroup == spec.cgroup
            && had & wanted == wanted
    }

    /// Makes it the first process of a sandbox that it suits; returns its pid once the exec has succeeded. `None` when it had
    /// died before. The root filesystem's disks are mounted as seen from where [`Zygote::make`] was called: what the
    /// caller has mounted since has to be in [`Overlay::disks`](crate::rootfs::Overlay::disks).
    ///
    /// # Errors
    /// As those of [`crate::start`].
    pub(crate) fn start(mut self, launch: &Launch<'_>) -> Result<Option<Pid>, LaunchError> {
        let order = OrderRef {
            spec: launch.spec,
            root: launch.root,
        };
        match channel::send_order(&self.channel, &order, &launch.stdio) {
            Err(e) if is_death(&e) => return Ok(None),
            result => result.step("tell the waiting process what to become")?,
        }
        let failure = match channel::receive_verdict(&self.channel) {
            // It is the sandbox's process now: its channel was closed by the exec.
            Ok(None) => {
                self.is_gone = true;
                return Ok(Some(self.pid));
            }
            Ok(Some(Verdict::Failed { kind, message })) => LaunchError::Reported { kind, message },
            Ok(Some(Verdict::Ready)) => unheard(io::ErrorKind::InvalidData.into()),
            // It ended before it had read the order.
            Err(e) if is_death(&e) => return Ok(None),
            Err(e) => unheard(e),
        };
        let pid = self.pid;
        drop(self);
        namespaces::collect(pid);
        Err(failure)
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if !self.is_gone {
            // Whoever collects children drops this first, see `Zygote::has_ended`: the pid is its own still.
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

/// Whether an error of a Unix socket says that the peer was closed, or was closed with bytes left unread (unix(7)).
fn is_death(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn ended() -> LaunchError {
    unheard(io::ErrorKind::UnexpectedEof.into())
}

fn unheard(source: io::Error) -> LaunchError {
    LaunchError::Step {
        action: "hear from the waiting process".to_owned(),
        source,
    }
}

/// clone(2) as a fork into new namespaces; `None` in the child.
fn fork() -> io::Result<Option<Pid>> {
    let flags = NAMESPACES | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack the child goes on with a copy of this memory, as after fork(2). Its other
    // threads do not exist there: the caller has none, see `Zygote::make`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(pid as i32))
}

/// What a zygote begins with.
struct Preparation<'a> {
    spec: &'a SandboxSpec,
    root: &'a Root,
    files: &'a Path,
    cgroup: Option<&'a Cgroup>,
}

/// The zygote's life.
fn wait_and_become(channel: UnixStream, preparation: &Preparation<'_>) -> ! {
    let error = namespaces::run_caught(&|| live(&channel, preparation));
    channel::send_verdict(&channel, &Verdict::failed(&error));
    end()
}

/// Ends the calling process and nothing else: no handler of the program's runs.
fn end() -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(FAILED) }
}

fn live(channel: &UnixStream, preparation: &Preparation<'_>) -> Result<Infallible, LaunchError> {
    let Preparation {
        spec,
        root,
        files,
        cgroup,
    } = *preparation;
    let capabilities = spec.process.capabilities;
    child::begin(capabilities, cgroup)?;
    // After it has joined its cgroup: a descriptor of the caller's may be needed for that.
    close_all_but(channel)?;
    root.rehearse()?;
    let prepared_files = files::prepare(&spec.files, files, Vec::new())?;
    child::rehearse(&spec.process);
    let reader = OrderReader::new();
    let trees = Trees::build(spec)?;
    channel::send_verdict(channel, &Verdict::Ready);
    let Some((order, stdio)) = reader.receive(channel).step("read what to become")? else {
        end();
    };
    let plan = child::Plan {
        spec: &order.spec,
        root: &order.root,
        files,
        stdio: &stdio,
    };
    child::complete(&plan, capabilities, Some(trees), prepared_files)
}

/// Closes what the caller had open: a copy of a connection's descriptor would keep it open.
fn close_all_but(channel: &UnixStream) -> Result<(), LaunchError> {
    let kept = channel.as_raw_fd().unsigned_abs();
    let ranges = [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: the descriptors belong to values of the caller's, whose copies in this process are never used or dropped: it
        // ends by exec or _exit.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error()).step("close the caller's descriptors");
        }
    }
    Ok(())
}
