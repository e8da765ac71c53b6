//! A process made in advance: in its namespaces, with its mounts ready, waiting for the image and the rest of the spec. It takes
//! one order and either becomes the sandbox's first process or says why not.
//!
//! As the child of [`crate::namespaces`] it shares the caller's memory: nothing is copied at a write, and its exec has no memory
//! to take apart. Unlike that child it outlives the call that makes it, with a stack of its own. So **the two take
//! turns**: one of them waits on their socket while the other runs. Whoever has sent something touches nothing but its own
//! stack until it has received the answer, no heap and no thread-local storage, as the other may be running by then.
//! That is why the functions of `channel` free nothing in between.

use std::{
    convert::Infallible,
    ffi::{c_int, c_void},
    io,
    mem::ManuallyDrop,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use brig_protocol::spec::SandboxSpec;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Launch, Started,
    cgroup::Cgroup,
    channel::{self, OrderReader, OrderRef, Outcome, Verdict},
    child::{self, Streams},
    devices::Nodes,
    error::{Context, LaunchError},
    files,
    namespaces::{self, FAILED, Kept, NAMESPACES, Stack},
    rootfs::Root,
    running,
    signals::BlockedSignals,
    trees::Trees,
};

/// A process that waits. Dropping it ends it; its exit is the caller's to collect.
#[derive(Debug)]
pub struct Zygote {
    pid: Pid,
    channel: UnixStream,
    spec: SandboxSpec,
    mounts: Option<OwnedFd>,
    /// Whether there is no waiting process any more: it has become the sandbox's, or has been collected.
    is_gone: bool,
}

impl Zygote {
    /// Makes one for a spec like `spec`. It inherits the network namespace of the calling thread, which must be the only
    /// one of its process as long as the zygote waits. `root` is the root filesystem as it will be, but for the image, in whose place there is an empty
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
        // Never unmapped: that the zygote has left it is known too late, or unmapping does not pay.
        let mut stack = ManuallyDrop::new(Stack::new().step("allocate a stack")?);
        let (channel, theirs) = UnixStream::pair().step("create a socket pair")?;
        let number = theirs.as_raw_fd();
        let life = Box::into_raw(Box::new(Life {
            channel: theirs,
            spec: spec.clone(),
            root: root.clone(),
            files: files.to_owned(),
            cgroup: cgroup.cloned(),
        }));
        let blocked = BlockedSignals::new();
        // SAFETY: `entry` takes a pointer to a `Life` out of a box, which is what it gets, and the stack is never unmapped. The two
        // take turns as the module says: up to the verdict that is waited for below, this thread makes system calls
        // on values of its own stack.
        let pid = unsafe { namespaces::clone_sharing_memory(NAMESPACES, &mut stack, entry, life.cast()) };
        drop(blocked);
        // SAFETY: the zygote has a table of descriptors of its own; in this one nothing else closes the number, as the value that
        // owned it is the zygote's now.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        let pid = pid.step("create the sandbox's namespaces")?;
        let failure = match channel::receive_verdict(&channel) {
            Ok(Some(Verdict::Ready)) => {
                return Ok(Self {
                    pid,
                    channel,
                    spec: spec.clone(),
                    mounts: running::mount_namespace(pid).ok(),
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

    /// Makes it the first process of a sandbox that it suits; returns once the exec has succeeded. `None` when it had
    /// died before. The root filesystem's disks are mounted as seen from where [`Zygote::make`] was called: what the
    /// caller has mounted since has to be in [`Overlay::disks`](crate::rootfs::Overlay::disks).
    ///
    /// # Errors
    /// As those of [`crate::start`].
    pub(crate) fn start(mut self, launch: &Launch<'_>) -> Result<Option<Started>, LaunchError> {
        let order = OrderRef {
            spec: launch.spec,
            root: launch.root,
        };
        let failure = match channel::give_order(&self.channel, &order, &launch.stdio) {
            // It is the sandbox's process now: its channel was closed by the exec.
            Ok(Outcome {
                verdict: None,
                terminal,
            }) => {
                self.is_gone = true;
                return Ok(Some(Started {
                    pid: self.pid,
                    mounts: self.mounts.take(),
                    terminal,
                }));
            }
            Ok(Outcome { verdict, .. }) => match verdict {
                Some(Verdict::Failed { kind, message }) => LaunchError::Reported { kind, message },
                _ => unheard(io::ErrorKind::InvalidData.into()),
            },
            // It has not read the order.
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

/// What a zygote begins with; all its own.
struct Life {
    channel: UnixStream,
    spec: SandboxSpec,
    root: Root,
    files: PathBuf,
    cgroup: Option<Cgroup>,
}

/// Where a zygote begins.
extern "C" fn entry(life: *mut c_void) -> c_int {
    // SAFETY: `Zygote::make` passes a pointer out of a box, once.
    let life = unsafe { Box::from_raw(life.cast::<Life>()) };
    let mut kept = Kept::default();
    let error = namespaces::run_caught(&|kept| live(&life, kept), &mut kept);
    let verdict = Verdict::failed(&error);
    channel::send_verdict(&life.channel, &verdict);
    // Nothing is dropped any more.
    end()
}

/// Ends the calling process and nothing else: no handler of the program's runs.
fn end() -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(FAILED) }
}

fn live(life: &Life, kept: &mut Kept) -> Result<Infallible, LaunchError> {
    let Life {
        channel,
        spec,
        root,
        files,
        cgroup,
    } = life;
    let capabilities = spec.process.capabilities;
    child::begin(capabilities, cgroup.as_ref())?;
    // After it has joined its cgroup: a descriptor of the caller's may be needed for that.
    close_all_but(channel)?;
    root.rehearse()?;
    let prepared_files = files::prepare(&spec.files, files)?;
    let reader = OrderReader::new();
    let trees = Trees::build(spec, &Nodes::Make)?;
    channel::send_verdict(channel, &Verdict::Ready);
    let Some((order, stdio)) = reader.receive(channel).step("read what to become")? else {
        end();
    };
    let plan = child::Plan {
        spec: &order.spec,
        root: &order.root,
        files,
        filter: None,
        streams: Streams::new(&stdio, order.spec.process.tty, Some(channel))?,
    };
    child::complete(plan, capabilities, Some(trees), prepared_files, kept)
}

/// Closes what the caller had open: a copy of a connection's descriptor would keep it open.
fn close_all_but(channel: &UnixStream) -> Result<(), LaunchError> {
    let kept = channel.as_raw_fd().unsigned_abs();
    let ranges = [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: this process has a table of descriptors of its own, and values of the caller's are not used in it.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error()).step("close the caller's descriptors");
        }
    }
    Ok(())
}
