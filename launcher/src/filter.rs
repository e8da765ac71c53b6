//! The filter of system calls (seccomp(2)).

use std::io;

use brig_protocol::spec::BpfInstruction;

use crate::error::{Context, LaunchError};

/// A program of classic BPF that is asked about each system call.
pub type Filter = &'static [libc::sock_filter];

/// A program as the kernel takes it.
pub(crate) fn program(instructions: &[BpfInstruction]) -> Vec<libc::sock_filter> {
    let instruction =
        |&BpfInstruction { code, jt, jf, k }: &BpfInstruction| libc::sock_filter { code, jt, jf, k };
    instructions.iter().map(instruction).collect()
}

/// Sets the filter of the calling thread and of everything that it becomes and makes. It needs `CAP_SYS_ADMIN` in the user
/// namespace, or that the process has given up new privileges: one that does so for this would also lose what programs of the
/// image may gain.
///
/// # Errors
/// [`LaunchError::Step`].
pub fn set(filter: &[libc::sock_filter]) -> Result<(), LaunchError> {
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
