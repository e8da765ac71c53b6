//! The sandbox's network namespace (network_namespaces(7)): nothing in it but the loopback interface.

use std::{io, os::fd::AsRawFd};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::UnshareFlags,
};

use crate::error::{Context, LaunchError};

/// Moves the calling thread into a new network namespace whose loopback interface is up, with 127.0.0.1 and `::1`.
/// Processes and threads that it makes from then on are in it as well, so the caller can connect to the sandbox's
/// ports by itself.
///
/// # Errors
/// [`LaunchError::Step`].
pub fn enter_new() -> Result<(), LaunchError> {
    // SAFETY: CLONE_NEWNET changes which network the thread's later sockets belong to; no file descriptor is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.step("create a network namespace")?;
    bring_loopback_up().step("bring the loopback interface up")
}

/// Sets `IFF_UP` on `lo` (netdevice(7)). The kernel adds both addresses by itself when the interface comes up
/// (net/ipv4/devinet.c `inetdev_event`, net/ipv6/addrconf.c `init_loopback`).
fn bring_loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an ifreq is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, and `request` is one that outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
