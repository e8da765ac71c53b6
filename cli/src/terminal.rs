//! The terminal that the command runs on: its size, and its raw mode, which must not outlive the command.
//!
//! In raw mode every key goes to the sandbox's own terminal, which makes of it what a terminal makes: echo, lines, signals. The
//! mode is put back by [`Raw`] when that goes, by a handler when a signal is about to end the process (a panic ends by
//! `SIGABRT`), and by nobody after SIGKILL.

use std::{
    io::{self, IsTerminal},
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use brig_engine::control::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Signals by which a program dies of its own mistakes.
const DEADLY: [libc::c_int; 7] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGTRAP,
];

/// What the terminal was before, for [`put_back_and_die`]; null when there is nothing to put back.
static BEFORE: AtomicPtr<libc::termios> = AtomicPtr::new(ptr::null_mut());

/// Whether standard input is a terminal.
pub fn has_input() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal that is written to, or else read from; `None` without one.
pub fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(rustix::stdio::stdout())
        .or_else(|_| tcgetwinsize(rustix::stdio::stdin()))
        .ok()?;
    Some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Raw mode of the terminal that is standard input, as long as this lives.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Turns it on. `None` when standard input is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !has_input() {
            return Ok(None);
        }
        let before = tcgetattr(rustix::stdio::stdin())?;
        remember()?;
        let raw = Self { before };
        raw.again()?;
        Ok(Some(raw))
    }

    /// Turns it on again, after the process was stopped and somebody else had the terminal.
    pub fn again(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        // What has been typed ahead stays.
        Ok(tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
        BEFORE.store(ptr::null_mut(), Ordering::Relaxed);
    }
}

/// Has the present mode put back when the process dies of a signal.
fn remember() -> io::Result<()> {
    let mut mode = std::mem::MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills in the termios that it is given, or fails.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, mode.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has succeeded.
    let mode = unsafe { mode.assume_init() };
    // Never freed, as a handler may be reading it: once or twice in the life of a command.
    BEFORE.store(Box::leak(Box::new(mode)), Ordering::Relaxed);
    for signal in DEADLY {
        // SAFETY: a sigaction of zeros is a valid one; the handler makes only calls that a handler may make, and the C
        // library writes no old action through a null pointer.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = put_back_and_die as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER;
            libc::sigaction(signal, &raw const action, ptr::null_mut())
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A handler: signal-safety(7) allows both calls. The action has been reset, so the signal now does what it does by default.
extern "C" fn put_back_and_die(signal: libc::c_int) {
    let before = BEFORE.load(Ordering::Relaxed);
    if !before.is_null() {
        // SAFETY: the pointer is one that `remember` has leaked.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
    }
    // SAFETY: raise takes a number.
    unsafe { libc::raise(signal) };
}
