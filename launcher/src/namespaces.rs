//! A child process in new mount, pid, uts and ipc namespaces (namespaces(7)).
//!
//! The child is made as posix_spawn(3) makes its: it shares the caller's memory and the caller is suspended until the
//! child executes a program or ends (`CLONE_VM | CLONE_VFORK`, clone(2)). Page tables are not copied and no page is
//! copied on write, which is most of the price of a fork, and the child's error needs no pipe: it is a value that
//! the caller reads.

use std::{
    convert::Infallible,
    ffi::{c_int, c_void},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use rustix::{
    mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap},
    process::{Pid, WaitOptions, waitpid},
};

use crate::{
    error::{Context, LaunchError},
    exec::Program,
    signals,
};

/// Bytes of the child's stack, its guard page included. Only pages that are touched are ever made.
const STACK_BYTES: usize = 512 << 10;

/// Bytes of the guard page.
const GUARD_BYTES: usize = 4096;

/// The exit code of a child that could not become the process; nobody but whoever made it sees it.
pub(crate) const FAILED: c_int = 125;

/// The namespaces of a sandbox that its first process is made in. The network namespace exists already, and the cgroup
/// namespace follows when the cgroup has been joined.
pub(crate) const NAMESPACES: c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// What a child has allocated and still holds when it executes its program: the caller frees it.
#[derive(Default)]
pub(crate) struct Kept {
    /// What it executes.
    pub program: Option<Program>,
    /// The filter of its system calls, where it is not one of the caller's own.
    pub filter: Vec<libc::sock_filter>,
    /// Its pid, where it has looked at it.
    pub pid: u32,
}

/// Runs `body` as a child process in new namespaces until it executes a program; returns the child's pid then.
///
/// # Errors
/// As [`run_on`].
pub(crate) fn run_in_new(body: &Body<'_>) -> Result<Pid, LaunchError> {
    let mut stack = Stack::new().step("allocate a stack")?;
    let (pid, _kept) = run_on(NAMESPACES, &mut stack, body)?;
    Ok(pid)
}

/// The same in these new namespaces (`CLONE_NEW…`) and on this stack.
///
/// What `body` allocates and holds when it executes the program, other than in its [`Kept`], stays allocated in the caller:
/// nobody is left to free it. So it borrows the descriptors that it works on, which are the caller's to close.
///
/// # Errors
/// That of `body`, or of clone(2); the child has been collected in both cases.
pub(crate) fn run_on(
    namespaces: c_int,
    stack: &mut Stack,
    body: &Body<'_>,
) -> Result<(Pid, Kept), LaunchError> {
    let mut task = Task {
        body,
        kept: Kept::default(),
        error: None,
    };
    // A handler of the caller's must not run in the child, where it would act on the caller's memory.
    let blocked = signals::BlockedSignals::new();
    let flags = namespaces | libc::CLONE_VFORK;
    // SAFETY: `entry` takes a pointer to a `Task`, which is what it gets, and with CLONE_VFORK this thread, whose frames own
    // `task` and `stack`, does not run until the child has left that memory by exec or exit: the two never run at
    // the same time, so the child has the exclusive access that `&mut` promises.
    let pid = unsafe { clone_sharing_memory(flags, stack, entry, (&raw mut task).cast()) };
    drop(blocked);
    let pid = pid.step("create a process of the sandbox")?;
    match task.error.take() {
        None => Ok((pid, task.kept)),
        Some(error) => {
            collect(pid);
            Err(error)
        }
    }
}

/// What a child does.
pub(crate) type Body<'a> = dyn Fn(&mut Kept) -> Result<Infallible, LaunchError> + 'a;

/// What the child does, and what it says when it fails.
struct Task<'a> {
    body: &'a Body<'a>,
    kept: Kept,
    error: Option<LaunchError>,
}

/// clone(2) of a child that runs `entry` on `stack` in the caller's memory.
///
/// # Safety
/// `entry` may be called with `argument`, and `stack` is the child's until it has left this memory by exec or exit. The child
/// shares the memory and the thread-local storage of the calling thread: the two must never touch either at the
/// same time.
pub(crate) unsafe fn clone_sharing_memory(
    flags: c_int,
    stack: &mut Stack,
    entry: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> io::Result<Pid> {
    let flags = flags | libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: the stack is as large as `Stack` says, ends above a guard page and is aligned to a page; the rest is the
    // caller's promise.
    let pid = unsafe { libc::clone(entry, stack.top(), flags, argument) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::Other.into())
}

/// Where the child begins.
extern "C" fn entry(task: *mut c_void) -> c_int {
    // SAFETY: `run_in_new` passes a pointer to its `Task` and does not run meanwhile.
    let task = unsafe { &mut *task.cast::<Task<'_>>() };
    task.error = Some(run_caught(task.body, &mut task.kept));
    // The C library ends the child by the exit system call alone: no handler of the caller's runs.
    FAILED
}

/// Runs `body` to its error. A panic is one too: it must not unwind into the frames of the caller of clone(2).
pub(crate) fn run_caught(body: &Body<'_>, kept: &mut Kept) -> LaunchError {
    match catch_unwind(AssertUnwindSafe(|| body(kept))) {
        Ok(Err(error)) => error,
        Ok(Ok(never)) => match never {},
        Err(_) => LaunchError::Step {
            action: "set the sandbox up".to_owned(),
            source: io::Error::other("the launcher panicked"),
        },
    }
}

/// Collects a child that ends at once. Whoever else collects all children may have been faster (ECHILD).
pub(crate) fn collect(pid: Pid) {
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
}

/// An anonymous mapping with a guard page at its low end.
#[derive(Debug)]
pub(crate) struct Stack {
    base: *mut c_void,
}

impl Stack {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                STACK_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK,
            )
        }?;
        let stack = Self { base };
        // SAFETY: the page is the first of the mapping above, which nobody uses yet.
        unsafe { mprotect(base, GUARD_BYTES, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    /// The first byte above the stack, which grows down.
    fn top(&mut self) -> *mut c_void {
        self.base.wrapping_byte_add(STACK_BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and whoever ran on it has left, as its user promised `clone_sharing_memory`.
        let _ = unsafe { munmap(self.base, STACK_BYTES) };
    }
}
