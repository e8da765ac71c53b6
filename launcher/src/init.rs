//! The init of a sandbox that wants one (`--init`): it runs the program as its child, hands signals on to it, collects orphans, and
//! ends as the program does. What Docker takes tini for.
//!
//! The program that the caller is an instance of is executed for it, by a descriptor: it need not be in the sandbox's files. Whoever
//! has a `main` that the launcher is linked to calls [`run`] when its name is [`NAME`].

use std::{
    env,
    ffi::{CString, OsString, c_int},
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    ptr,
};

use brig_protocol::agent::StartFailure;
use rustix::{
    fs::{Mode, OFlags, open},
    process::{Pid, WaitOptions, WaitStatus, setpgid, wait},
    termios::{isatty, tcsetpgrp},
};

use crate::{
    error::{Context, LaunchError, one_line},
    exec::Program,
    signals,
};

/// The name that the init is executed with.
pub const NAME: &str = "/sbin/brig-init";

/// Where the calling program is: the second in a guest, whose agent has no `/proc`.
const PROGRAMS: [&str; 2] = ["/proc/self/exe", "/init"];

/// Signals that are not handed on: those that a process gets by its own doing, and those of a terminal whose foreground the program
/// has.
const OWN: [c_int; 9] = [
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Opens the calling program.
pub(crate) fn open_self() -> Result<OwnedFd, LaunchError> {
    let mut opened = Err(io::Error::from(io::ErrorKind::NotFound));
    for path in PROGRAMS {
        opened = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(Into::into);
        if opened.is_ok() {
            break;
        }
    }
    opened.step("open the init")
}

/// Runs the program `args` with the environment of the calling process, and gives its exit code; 126 and 127 say that it cannot be
/// executed, on standard error why.
pub fn run(args: impl Iterator<Item = OsString>) -> i32 {
    match supervise(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("brig-init: {}", one_line(&error));
            exit_code(&error)
        }
    }
}

fn exit_code(error: &LaunchError) -> i32 {
    match error.kind() {
        StartFailure::NotFound => 127,
        _ => 126,
    }
}

fn supervise(args: impl Iterator<Item = OsString>) -> Result<i32, LaunchError> {
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let environment = env::vars_os()
        .map(|(name, value)| {
            let entry = [name.into_vec(), value.into_vec()].join(&b'=');
            CString::new(entry).map_err(|_| io::ErrorKind::InvalidData)
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(io::Error::from)
        .step("read the environment")?;
    let program = Program::new(&args, environment)?;
    let awaited = block_signals();
    // SAFETY: this process has one thread, so that nothing in the copy is held by another one.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).step("create a process"),
        0 => {
            let error = become_program(&program);
            eprintln!("brig-init: {}", one_line(&error));
            // SAFETY: the call ends the process; nothing of the parent's is to be run at its end.
            unsafe { libc::_exit(exit_code(&error)) }
        }
        child => Ok(attend(child, &awaited)),
    }
}

/// The child, whose signals are blocked still.
fn become_program(program: &Program) -> LaunchError {
    let prepare = || -> Result<(), LaunchError> {
        // As the leader of a group of its own it gets what is typed at the terminal, and the init does not.
        setpgid(None, None).step("start a process group")?;
        let stdin = rustix::stdio::stdin();
        if isatty(stdin) {
            let group = rustix::process::getpid();
            // A terminal that is not this session's has no foreground to take.
            let _ = tcsetpgrp(stdin, group);
        }
        signals::reset().step("reset the signals")
    };
    match prepare() {
        Ok(()) => program.execute(),
        Err(error) => error,
    }
}

/// Blocks what is waited for, and gives it.
fn block_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set before anything reads it, all pointers are to it, and a null pointer asks for no old
    // set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in OWN {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
        // Stops of the terminal are not for the first process of a namespace.
        libc::signal(libc::SIGTTIN, libc::SIG_IGN);
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        set.assume_init()
    }
}

/// Hands signals on until the child has ended, and gives its exit code.
fn attend(child: c_int, awaited: &libc::sigset_t) -> i32 {
    loop {
        // SAFETY: the set is the caller's; a null pointer asks for no more than the number.
        let signal = unsafe { libc::sigwaitinfo(awaited, ptr::null_mut()) };
        if signal == libc::SIGCHLD {
            if let Some(code) = collect(child) {
                return code;
            }
        } else if signal > 0 {
            // SAFETY: kill takes two numbers; the child has not been collected, so its pid is its own.
            unsafe { libc::kill(child, signal) };
        }
    }
}

/// Collects all children that have ended; the exit code of `child` when it is among them.
fn collect(child: c_int) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if Some(pid) == Pid::from_raw(child) {
            code = Some(code_of(status));
        }
    }
    code
}

fn code_of(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::waitpid;

    use super::*;

    /// The init itself in a process of its own.
    fn code_of_init(args: &[&str]) -> i32 {
        // SAFETY: nothing of the other threads of the test is waited for in the copy: it does what follows, and ends.
        match unsafe { libc::fork() } {
            0 => {
                let code = run(args.iter().map(OsString::from));
                // SAFETY: the call ends the process.
                unsafe { libc::_exit(code) }
            }
            pid => {
                let status = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
                code_of(status.unwrap().1)
            }
        }
    }

    #[test]
    fn it_ends_as_the_program_does_however_many_orphans_end_before() {
        let script = "(sleep 0.1 & ); (true & ); sleep 0.3; exit 42";
        assert_eq!(code_of_init(&["/bin/sh", "-c", script]), 42);
        assert_eq!(code_of_init(&["/bin/sh", "-c", "kill -TERM $$"]), 143);
        assert_eq!(code_of_init(&["/no/such/program"]), 127);
        assert_eq!(code_of_init(&["/etc/passwd"]), 126);
    }

    #[test]
    fn it_hands_signals_on() {
        // The init is the parent of the shell that sends it a signal.
        let script = "trap 'exit 7' USR1; kill -USR1 $PPID; while :; do sleep 0.05; done";
        assert_eq!(code_of_init(&["/bin/sh", "-c", script]), 7);
    }
}
