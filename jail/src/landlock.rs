//! Landlock (Documentation/userspace-api/landlock.rst): a domain in which nothing is allowed that a kernel knows how to
//! forbid: to open, make, rename or remove a file, to bind or connect a TCP port, to connect to an abstract socket or to signal
//! a process outside. Descriptors that are handed over keep what they were opened with.
//!
//! The system calls themselves, and not a crate: no rule is ever added.

use std::io;

use crate::{Step, WallError};

const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;

/// Access rights to files by the version of the interface that knows them first (linux/landlock.h).
const FILE_RIGHTS: [(i64, u64); 4] = [
    (1, (1 << 13) - 1),
    // LANDLOCK_ACCESS_FS_REFER, _TRUNCATE, _IOCTL_DEV
    (2, 1 << 13),
    (3, 1 << 14),
    (5, 1 << 15),
];

/// LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP.
const NET_RIGHTS: (i64, u64) = (4, 0b11);

/// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and _SIGNAL.
const SCOPES: (i64, u64) = (6, 0b11);

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// Forbids all of it to this thread and those that it makes. False on a kernel without landlock. The process must have
/// no_new_privs.
///
/// # Errors
/// [`WallError`] when the kernel has it and does not do it.
pub fn deny_all() -> Result<bool, WallError> {
    // SAFETY: with this flag no attribute is read.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            0,
            0,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if version <= 0 {
        return Ok(false);
    }
    let known = |(since, rights): (i64, u64)| if version >= since { rights } else { 0 };
    let ruleset = Ruleset {
        handled_access_fs: FILE_RIGHTS.into_iter().map(known).fold(0, |all, some| all | some),
        handled_access_net: known(NET_RIGHTS),
        scoped: known(SCOPES),
    };
    // SAFETY: `ruleset` is as large as is said; a kernel that knows less of it demands that the rest is 0, which it is.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size_of::<Ruleset>(),
            0,
        )
    })
    .step("make a landlock ruleset")?;
    // SAFETY: takes numbers.
    let restricted = check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, 0) });
    // SAFETY: the descriptor was made here and nothing else has it.
    unsafe { libc::close(fd as libc::c_int) };
    restricted.step("enter the landlock domain")?;
    Ok(true)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
