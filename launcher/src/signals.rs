//! Signals of a new process: nothing blocked, every disposition the default (signal(7)).

use std::{io, mem::MaybeUninit, ptr};

use libc::{SIG_BLOCK, SIG_DFL, SIG_SETMASK, SIGKILL, SIGSTOP, c_int, sigset_t};

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
/// Those of sigprocmask(2).
pub fn reset() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // The C library keeps the first real-time signals to itself and refuses them, as the kernel refuses the two
        // that cannot be changed.
        if signal != SIGKILL && signal != SIGSTOP {
            set_default(signal);
        }
    }
    let none = empty();
    // SAFETY: `none` is a set of this function's own; a null pointer asks for no old set.
    match unsafe { libc::pthread_sigmask(SIG_SETMASK, &raw const none, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn set_default(signal: c_int) {
    // SAFETY: SIG_DFL installs no handler. The call changes the calling process alone, and a number that it does not
    // take it refuses.
    unsafe { libc::signal(signal, SIG_DFL) };
}

fn empty() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}
