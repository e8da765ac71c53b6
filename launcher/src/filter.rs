//! The filter of system calls (seccomp(2)).

use std::io;

use crate::error::{Context, LaunchError};

/// A program of classic BPF that is asked about each system call.
pub type Filter = &'static [libc::sock_filter];

/// Sets the filter of the calling thread and of everything that it becomes and makes. It needs `CAP_SYS_ADMIN` in the user
/// namespace: a process that gives up new privileges for it would also lose what programs of the image may gain.
///
/// # Errors
/// [`LaunchError::Step`].
pub fn set(filter: Filter) -> Result<(), LaunchError> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads the program, which is as long as it says, and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error()).step("set the filter of system calls")
    }
}
