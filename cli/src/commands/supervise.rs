//! The hidden command by which the engine starts a supervisor: this program again.

use std::{ffi::OsStr, os::fd::FromRawFd, os::fd::OwnedFd};

use brig_engine::{Error, Paths, SandboxId, error::CODE_BRIG, host::Machine, supervisor};

/// Its name.
pub const COMMAND: &str = "supervise";

/// First descriptor that is not a standard stream.
const FIRST_OTHER: libc::c_uint = 3;

/// Runs the supervisor of the sandbox `id`; standard input is the socket to the one who starts it.
///
/// # Safety
/// The process has one thread, and nothing in it owns a descriptor.
pub unsafe fn run(id: &OsStr) -> i32 {
    // What the user's shell left open is not for a process that outlives it.
    // SAFETY: a system call without pointers; by the caller's promise nothing owns what it closes.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST_OTHER, libc::c_uint::MAX, 0) };
    // SAFETY: descriptor 0 is open, and by the caller's promise nothing else owns it. Standard input is not read in this
    // process.
    let starter = unsafe { OwnedFd::from_raw_fd(0) };
    match supervise(id, starter) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("brig: {}", brig_engine::error::chain(&e));
            CODE_BRIG
        }
    }
}

fn supervise(id: &OsStr, starter: OwnedFd) -> Result<(), Error> {
    let id: SandboxId = id.to_string_lossy().parse()?;
    let paths = Paths::from_environment()?;
    supervisor::main(&paths, &id, starter, &Machine::new(&paths))
}
