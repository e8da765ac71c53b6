//! Signals of a new process: nothing blocked, every disposition the default (signal(7)).

use std::{io, mem::MaybeUninit, ptr};

use libc::{SIG_BLOCK, SIG_DFL, SIG_IGN, SIG_SETMASK, SIGKILL, SIGSTOP, c_int, sigset_t};

/// Signals that the kernel has (`_NSIG`).
const SIGNALS: c_int = 64;

/// Blocks every signal of the calling thread until it is dropped.
#[derive(Debug)]
pub struct BlockedSignals {
    before: sigset_t,
}

impl BlockedSignals {
    /// Blocks them.
    pub fn new() -> Self {
        let mut all = empty();
        let mut before = empty();
        // SAFETY: both point to sets of this function's own.
        unsafe {
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(SIG_BLOCK, &raw const all, &raw mut before);
        }
        Self { before }
    }
}

impl Default for BlockedSignals {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled in by pthread_sigmask; a null pointer asks for no old set.
        unsafe { libc::pthread_sigmask(SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

/// Gives the calling process, which is about to execute a program, the default disposition of every signal and an
/// empty mask. What is *ignored* survives an exec, and Rust's runtime, nohup(1) and many a parent ignore something.
///
/// # Errors
/// Those of rt_sigaction(2) and sigprocmask(2).
pub fn reset() -> io::Result<()> {
    for signal in 1..=SIGNALS {
        // The kernel refuses two of them, which are never anything but the default.
        if signal != SIGKILL && signal != SIGSTOP {
            set_default(signal)?;
        }
    }
    unblock_all()
}

fn unblock_all() -> io::Result<()> {
    let none = empty();
    // SAFETY: `none` is a set of this function's own; a null pointer asks for no old set.
    match unsafe { libc::pthread_sigmask(SIG_SETMASK, &raw const none, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The signals that the calling process ignores.
///
/// # Errors
/// Those of rt_sigaction(2).
pub fn ignored() -> io::Result<Vec<c_int>> {
    let mut ignored = Vec::new();
    for signal in 1..=SIGNALS {
        let mut present = [0u64; 4];
        // SAFETY: nothing is changed through a null pointer, and the kernel writes as many bytes as its sigaction has, 32 on
        // x86-64, all of them in `present`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                ptr::null::<u64>(),
                present.as_mut_ptr(),
                size_of::<u64>(),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // The handler comes first.
        if present[0] == SIG_IGN as u64 {
            ignored.push(signal);
        }
    }
    Ok(ignored)
}

/// As [`reset`], for a process that ignores no signal but these: handlers do not survive an exec.
pub(crate) fn forget(ignored: &[c_int]) -> io::Result<()> {
    for &signal in ignored {
        set_default(signal)?;
    }
    unblock_all()
}

/// rt_sigaction(2) itself: the C library refuses the signals that it keeps for its own threads, which are another
/// program's own after the exec.
fn set_default(signal: c_int) -> io::Result<()> {
    /// `struct kernel_sigaction`, the default disposition: all of it zero (SIG_DFL, no flags, an empty mask).
    const DEFAULT: [u64; 4] = [SIG_DFL as u64; 4];
    // SAFETY: the kernel reads as many bytes as its sigaction has, 32 on x86-64, all within `DEFAULT`, installs no handler, and
    // writes no old value through a null pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            DEFAULT.as_ptr(),
            ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn empty() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}
