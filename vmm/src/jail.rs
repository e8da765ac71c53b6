//! What this process gives up. [`at_start`] runs before anything is received, [`enter`] when every descriptor is in hand
//! and before the first instruction of the guest: whatever walls the process off further belongs there.

use std::io;

/// Closes every descriptor from `first` on: an inherited one is nobody's.
///
/// # Errors
/// Those of close_range(2).
pub fn at_start(first: u32) -> io::Result<()> {
    // SAFETY: nothing in this process has opened a descriptor yet, so nobody's is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    check(result)
}

/// Gives up gaining privileges by exec, and being traced or dumped: the memory is the guest's. Threads that are made later
/// inherit both.
///
/// # Errors
/// Those of prctl(2).
pub fn enter() -> io::Result<()> {
    for (option, value) in [(libc::PR_SET_NO_NEW_PRIVS, 1), (libc::PR_SET_DUMPABLE, 0)] {
        // SAFETY: these options take integers and touch no memory.
        let result = unsafe { libc::prctl(option, value as libc::c_ulong, 0, 0, 0) };
        check(result.into())?;
    }
    Ok(())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
