//! What this process gives up. [`at_start`] runs before anything is received, [`enter`] when every descriptor is in hand
//! and before the first instruction of the guest.
//!
//! The supervisor starts this program in a user and a pid namespace of its own (`brig_jail::spawn`), with what it needs to build
//! the rest of its walls. There is no way to do without them.

pub mod filters;

use std::io;

use self::filters::Kind;
use brig_jail::{WallError, capabilities, landlock, limits, namespaces, root};

/// The exit code of a process that could not be walled off.
pub const EXIT_JAIL: i32 = 3;

/// First descriptor that is not a standard stream.
const FIRST_OTHER: libc::c_uint = 3;

/// Most descriptors: each connection of a guest has one (`vsock::CONNECTIONS_MAX`, and those that linger), each disk and each
/// layer of an image, each vCPU and each queue a few.
const DESCRIPTORS_MAX: u64 = 2048;

/// Most threads: one a vCPU (`VCPUS_MAX`), two for the devices, one that maps pages ahead, and the main one.
const THREADS_MAX: u64 = 40;

/// Why the process could not be walled off.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Someone else than brig has started this program.
    #[error("It is not the first process of a namespace: it is started by brig")]
    NoNamespace,
    /// A wall could not be built.
    #[error(transparent)]
    Wall(#[from] WallError),
    /// A wall has no effect.
    #[error("Capabilities are left")]
    Capabilities,
    /// Something about the process itself could not be changed.
    #[error("Cannot {action}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Builds the walls, [`build`], and puts the process under the first of its filters of system calls.
///
/// # Errors
/// [`JailError`]; the process is to end then.
pub fn at_start() -> Result<(), JailError> {
    build()?;
    Ok(Kind::Setup.filter()?.install()?)
}

/// Everything of it but the filter: what is left where that has a hole, which a test looks at.
///
/// Closes every descriptor but the standard streams, as an inherited one is nobody's; leaves the host's namespaces, its files and
/// every privilege; and ends this process with the thread that started it, should it not heed the end of its channel. Where that
/// has ended already, the channel has too.
///
/// # Errors
/// [`JailError`]; the process is to end then.
pub fn build() -> Result<(), JailError> {
    // SAFETY: nothing in this process has opened a descriptor yet, so nobody's is closed.
    check(unsafe { libc::syscall(libc::SYS_close_range, FIRST_OTHER, libc::c_uint::MAX, 0) })
        .map_err(failed("close inherited descriptors"))?;
    if !namespaces::is_first_process() {
        return Err(JailError::NoNamespace);
    }
    // A program that is executed from a descriptor is called after its number.
    rustix::thread::set_name(c"brig-vmm").map_err(failed("take the name"))?;
    namespaces::unshare()?;
    root::enter_empty()?;
    limits::set(limits::Limits {
        descriptors: DESCRIPTORS_MAX,
        threads: THREADS_MAX,
    })?;
    capabilities::drop_all()?;
    if capabilities::has_any()? {
        return Err(JailError::Capabilities);
    }
    set(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(failed("give up gaining privileges"))?;
    landlock::deny_all()?;
    // After every change of credentials, which may clear it.
    set(libc::PR_SET_PDEATHSIG, libc::SIGKILL).map_err(failed("end with the supervisor"))
}

/// Gives up being traced or dumped: the memory is the guest's from now on.
///
/// # Errors
/// [`JailError::Process`].
pub fn enter() -> Result<(), JailError> {
    set(libc::PR_SET_DUMPABLE, 0).map_err(failed("close the memory to others"))
}

fn set(option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the options that are set here take integers and touch no memory.
    let result = unsafe { libc::prctl(option, value as libc::c_ulong, 0, 0, 0) };
    check(result.into())
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError::Process {
        action,
        source: source.into(),
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
