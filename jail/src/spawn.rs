//! Starts a program in a new user and pid namespace.
//!
//! The child is a fork: it must wait until its ids are mapped, which only its parent can do, so that it cannot borrow the
//! parent's memory as a child of vfork(2) does. What the parent does meanwhile is a matter of microseconds; it does not wait
//! for the program. The new process is the first of its pid namespace: it sees no other process, and all that it might start
//! ends with it.

use std::{
    ffi::{CString, c_long},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    process::ExitStatus,
};

use rustix::{
    io::retry_on_intr,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid},
};

use crate::{
    child::{self, Plan},
    identity::Identity,
};

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The kernel makes no user namespace for this user.
    #[error(
        "this kernel makes no user namespaces for this user, and nothing runs without them: see the sysctls \
         user.max_user_namespaces (not 0), kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns (0 on Ubuntu, or an AppArmor profile that allows userns), or use root"
    )]
    Forbidden(#[source] io::Error),
    /// The process could not be made.
    #[error("cannot make a process in new namespaces")]
    Clone(#[source] io::Error),
    /// Its ids could not be set.
    #[error("cannot map the user of a new user namespace")]
    Map(#[source] io::Error),
    /// Something else failed.
    #[error("cannot prepare a new process")]
    Prepare(#[source] io::Error),
}

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// The program, opened: it is started from this descriptor, by a user who may have no way to its path.
    pub file: BorrowedFd<'a>,
    /// Its arguments, the name first. It has no environment.
    pub arguments: &'a [CString],
    /// Its standard streams: it has no other descriptors. None of them may be a standard stream of this process.
    pub streams: [BorrowedFd<'a>; 3],
}

/// A process that was started. Dropping it neither ends nor collects the process.
#[derive(Debug)]
pub struct Process {
    /// Its pid here; inside it is 1.
    pub pid: Pid,
    /// What it is known by: becomes readable when it ends.
    pub pidfd: OwnedFd,
    /// Whom it runs as.
    pub identity: Identity,
}

impl Process {
    /// Kills it, if it has not ended.
    pub fn kill(&self) {
        // It fails when it has ended and is collected: then there is nothing to kill.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Collects it if it has ended.
    ///
    /// # Errors
    /// Those of waitpid(2): it has been collected already.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(WaitOptions::NOHANG)
    }

    /// Waits for its end and collects it.
    ///
    /// # Errors
    /// As [`Self::try_wait`].
    pub fn wait(&self) -> io::Result<ExitStatus> {
        let status = self.wait_with(WaitOptions::empty())?;
        status.ok_or_else(|| io::ErrorKind::Other.into())
    }

    fn wait_with(&self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        let ended = retry_on_intr(|| waitpid(Some(self.pid), options))?;
        Ok(ended.map(|(_, status)| std::os::unix::process::ExitStatusExt::from_raw(status.as_raw())))
    }
}

/// `struct clone_args` of clone3(2), the first version.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// The namespaces that a process must be born in. The rest it makes itself, see [`crate::namespaces`].
const NAMESPACES: u64 = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID) as u64;

/// Resets signals that the parent handles (linux/sched.h).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Whose child a new process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parent {
    /// This process.
    This,
    /// The parent of this process.
    Its,
}

/// Starts `program`. What goes wrong after the process has been made is told by itself on its standard error; it ends with
/// status 127 then.
///
/// # Errors
/// [`SpawnError`]; no process is left then.
pub fn spawn(program: &Program<'_>) -> Result<Process, SpawnError> {
    start(program, Parent::This)
        .inspect_err(|(_, left)| {
            if let Some(process) = left {
                let _ = process.wait();
            }
        })
        .map_err(|(e, _)| e)
}

/// Starts `program` as a child of this process's parent, which collects it, and with whom it ends. For that one, which may not be
/// able to start it by itself.
///
/// # Errors
/// As [`spawn`]; a process that is left is killed, and the parent has it to collect.
pub fn spawn_sibling(program: &Program<'_>) -> Result<Process, SpawnError> {
    start(program, Parent::Its).map_err(|(e, _)| e)
}

/// What goes wrong comes with a process that is left to be collected.
fn start(program: &Program<'_>, parent: Parent) -> Result<Process, (SpawnError, Option<Process>)> {
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| (SpawnError::Prepare(e.into()), None))?;
    let arguments: Vec<_> = program
        .arguments
        .iter()
        .map(|argument| argument.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let plan = Plan {
        program: program.file.as_raw_fd(),
        arguments: &arguments,
        streams: program.streams.map(|stream| stream.as_raw_fd()),
        told: told.as_raw_fd(),
        tell: tell.as_raw_fd(),
    };
    let mut pidfd: RawFd = -1;
    // A sibling's end is told by the signal that this process's own is told by (clone(2), CLONE_PARENT).
    let (flags, exit_signal) = match parent {
        Parent::This => (0, libc::SIGCHLD as u64),
        Parent::Its => (libc::CLONE_PARENT as u64, 0),
    };
    let arguments = CloneArgs {
        flags: NAMESPACES | CLONE_CLEAR_SIGHAND | libc::CLONE_PIDFD as u64 | flags,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM and with no stack this is fork(2): the child goes on with a copy of this memory. It calls
    // `child::run` and nothing else, which does what is allowed after a fork and never returns. `arguments` is a clone_args of
    // the length that is said, and `pidfd` an int for the kernel to fill in the parent.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArgs>()) };
    if pid == 0 {
        child::run(&plan);
    }
    let pid = made(pid).map_err(|e| (e, None))?;
    // SAFETY: the kernel has filled it with a new descriptor, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(told);
    let mut process = Process {
        pid,
        pidfd,
        identity: Identity {
            uid: 0,
            gid: 0,
            own: false,
        },
    };
    match release(pid, tell.as_fd()) {
        Ok(identity) => {
            process.identity = identity;
            Ok(process)
        }
        Err(e) => {
            process.kill();
            Err((SpawnError::Map(e), Some(process)))
        }
    }
}

fn made(pid: c_long) -> Result<Pid, SpawnError> {
    let error = match i32::try_from(pid)
        .ok()
        .filter(|&pid| pid > 0)
        .and_then(Pid::from_raw)
    {
        Some(pid) => return Ok(pid),
        None => io::Error::last_os_error(),
    };
    // clone(2): EPERM where an LSM or a sysctl forbids it, ENOSPC at the limit of namespaces, which may be 0, and EINVAL on a
    // kernel that has none.
    Err(match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSPC | libc::EUSERS | libc::EINVAL) => {
            SpawnError::Forbidden(error)
        }
        _ => SpawnError::Clone(error),
    })
}

/// Maps the ids of the child and lets it go on.
fn release(pid: Pid, tell: BorrowedFd<'_>) -> io::Result<Identity> {
    let identity = Identity::assign(pid)?;
    rustix::io::write(tell, &child::message(identity))?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::{PipeReader, Read, Write},
    };

    use super::*;

    /// Runs a shell script in the namespaces, which reads from `input` and writes to the reader that is returned.
    fn shell(script: &str) -> (Process, io::PipeWriter, PipeReader) {
        let (stdin, input) = io::pipe().unwrap();
        let (output, stdout) = io::pipe().unwrap();
        let sh = File::open("/bin/sh").unwrap();
        let arguments = ["sh", "-c", script].map(|word| CString::new(word).unwrap());
        let program = Program {
            file: sh.as_fd(),
            arguments: &arguments,
            streams: [stdin.as_fd(), stdout.as_fd(), stdout.as_fd()],
        };
        (spawn(&program).unwrap(), input, output)
    }

    fn says(script: &str) -> String {
        let (process, _input, mut output) = shell(script);
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        assert!(process.wait().unwrap().success(), "{said}");
        said
    }

    #[test]
    fn it_is_the_first_process_of_its_namespace_and_has_no_descriptor_of_this_one() {
        let _ours = File::open("/dev/null").unwrap();
        // The listing's own descriptor is closed by the time of the loop.
        let said =
            says("echo $$; set -- /proc/self/fd/*; for fd; do [ -e $fd ] && echo ${fd##*/}; done; exit 0");
        assert_eq!(said.lines().collect::<Vec<_>>(), ["1", "0", "1", "2"], "{said}");
    }

    #[test]
    fn it_has_one_user_and_one_group_and_the_capabilities_to_build_walls() {
        let (process, input, mut output) = shell("read x; cat /proc/self/status /proc/self/uid_map");
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid.as_raw_nonzero())).unwrap();
        // Before exec as well as after it.
        drop(input);
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        process.wait().unwrap();
        let field = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        let uid = process.identity.uid.to_string();
        assert_eq!(field("Uid:"), vec![uid.clone(); 4]);
        assert_eq!(field("Gid:"), vec![process.identity.gid.to_string(); 4]);
        let building: u64 = crate::capabilities::BUILDING
            .iter()
            .map(rustix::thread::CapabilitySet::bits)
            .sum();
        for set in ["CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), [format!("{building:016x}")], "{set}");
        }
        assert!(
            said.lines()
                .last()
                .unwrap()
                .split_whitespace()
                .eq([uid.as_str(), &uid, "1"])
        );
        if geteuid_is_root() {
            assert!(process.identity.own);
            assert_eq!(field("Groups:"), Vec::<String>::new());
        }
        assert!(status.contains("NSpid:"), "{status}");
    }

    fn geteuid_is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn two_at_once_are_not_of_one_user_when_root_starts_them() {
        let (first, ..) = shell("read x");
        let (second, ..) = shell("read x");
        assert_eq!(first.identity.own, geteuid_is_root());
        if first.identity.own {
            assert_ne!(first.identity.uid, second.identity.uid);
        }
        first.wait().unwrap();
        second.wait().unwrap();
    }

    #[test]
    fn its_end_is_seen_and_told() {
        let (process, mut input, _output) = shell("read x; exit $x");
        assert!(process.try_wait().unwrap().is_none());
        input.write_all(b"7\n").unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(7));
        let (process, _input, _output) = shell("read x");
        process.kill();
        let status = process.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(libc::SIGKILL)
        );
    }

    #[test]
    fn a_sibling_is_the_parents_to_collect_and_ends_with_it() {
        let (mut told, tell) = io::pipe().unwrap();
        let sleep = File::open("/bin/sleep").unwrap();
        let arguments = ["sleep", "1000"].map(|word| CString::new(word).unwrap());
        let null = [(); 3].map(|()| File::options().read(true).write(true).open("/dev/null").unwrap());
        // A parent with a child that starts a sibling of its own; each ends by _exit.
        // SAFETY: the child makes processes and ends by _exit. It allocates, which glibc allows after a fork of a process with threads.
        let parent = unsafe { libc::fork() };
        if parent == 0 {
            // SAFETY: as above.
            let helper = unsafe { libc::fork() };
            if helper == 0 {
                let program = Program {
                    file: sleep.as_fd(),
                    arguments: &arguments,
                    streams: null.each_ref().map(AsFd::as_fd),
                };
                let pid = spawn_sibling(&program).map_or(0, |process| process.pid.as_raw_nonzero().get());
                let _ = (&tell).write_all(&pid.to_ne_bytes());
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(0) };
            }
            let mut bytes = [0; 4];
            let _ = told.read_exact(&mut bytes);
            let pid = Pid::from_raw(i32::from_ne_bytes(bytes));
            // It runs, and is this process's.
            let runs = pid.is_some_and(|pid| matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)));
            let _ = (&tell).write_all(&bytes);
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(i32::from(!runs)) };
        }
        drop(tell);
        let (_, status) = waitpid(Pid::from_raw(parent), WaitOptions::empty())
            .unwrap()
            .unwrap();
        assert_eq!(status.exit_status(), Some(0));
        let mut bytes = [0; 4];
        told.read_exact(&mut bytes).unwrap();
        let pid = i32::from_ne_bytes(bytes);
        let running = || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.contains("(sleep)") && !state.contains(") Z")
        };
        for _ in 0..500 {
            if !running() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("it goes on without its parent");
    }

    #[test]
    fn a_program_that_cannot_be_executed_says_so() {
        let file = File::open("/proc/self/status").unwrap();
        let (mut said, stderr) = io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let arguments = [c"nothing".to_owned()];
        let program = Program {
            file: file.as_fd(),
            arguments: &arguments,
            streams: [null.as_fd(), null.as_fd(), stderr.as_fd()],
        };
        let process = spawn(&program).unwrap();
        drop(stderr);
        let mut text = String::new();
        said.read_to_string(&mut text).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(127));
        assert_eq!(text, "cannot execute the program: errno 13\n");
    }
}
