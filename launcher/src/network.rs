//! The sandbox's network namespace (network_namespaces(7)): nothing in it but the loopback interface.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::UnshareFlags,
};

use crate::error::{Context, LaunchError};

/// Where connections to published ports come from, as servers in the sandbox see them. It is no loopback address, as many
/// a server lets in without a password whoever comes from one. The address is a dummy that no host has (RFC 7600).
pub const PEER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// As [`PEER_V4`], to servers that listen at `::1` only: an address that is routed nowhere (RFC 6666).
pub const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8);

/// The loopback interface's number, which is the first in each namespace (net/core/net_namespace.c).
const LOOPBACK_INDEX: libc::c_int = 1;

/// Moves the calling thread into a new network namespace whose loopback interface is up, with 127.0.0.1, `::1`,
/// [`PEER_V4`] and [`PEER_V6`]. Processes and threads that it makes from then on are in it as well, so the caller can
/// connect to the sandbox's ports by itself.
///
/// # Errors
/// [`LaunchError::Step`].
pub fn enter_new() -> Result<(), LaunchError> {
    // SAFETY: CLONE_NEWNET changes which network the thread's later sockets belong to; no file descriptor is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.step("create a network namespace")?;
    bring_loopback_up().step("bring the loopback interface up")
}

/// Sets `IFF_UP` on `lo` (netdevice(7)), for which the kernel adds 127.0.0.1 and `::1` by itself (net/ipv4/devinet.c
/// `inetdev_event`, net/ipv6/addrconf.c `init_loopback`), and adds the addresses of peers.
fn bring_loopback_up() -> io::Result<()> {
    let socket = datagram(AddressFamily::INET)?;
    let mut flags = loopback(b"lo");
    flags.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    set(&socket, libc::SIOCSIFFLAGS, &flags)?;
    // A label makes it one more address; without one it would replace 127.0.0.1.
    let mut address = loopback(b"lo:peer");
    address.ifr_ifru.ifru_addr = internet(PEER_V4);
    set(&socket, libc::SIOCSIFADDR, &address)?;
    address.ifr_ifru.ifru_netmask = internet(Ipv4Addr::BROADCAST);
    set(&socket, libc::SIOCSIFNETMASK, &address)?;
    // A kernel without IPv6 has no server at ::1 either.
    if let Ok(socket) = datagram(AddressFamily::INET6) {
        let address = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr {
                s6_addr: PEER_V6.octets(),
            },
            ifr6_prefixlen: 128,
            ifr6_ifindex: LOOPBACK_INDEX,
        };
        // Nor has a namespace for which it is switched off (net.ipv6.conf.default.disable_ipv6).
        let _ = set(&socket, libc::SIOCSIFADDR, &address);
    }
    Ok(())
}

fn datagram(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(
        family,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A request for an interface, or for an address of it that has a label.
fn loopback(name: &[u8]) -> libc::ifreq {
    // SAFETY: an ifreq is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request
}

/// An IPv4 address as interface requests have it: a `sockaddr_in` (ip(7)) in the bytes of a `sockaddr`.
fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let mut bytes = [0 as libc::c_char; 14];
    for (to, from) in bytes[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: bytes,
    }
}

/// One of the requests of netdevice(7) that set something: `T` is the struct that the socket's family has for it.
fn set<T>(socket: &OwnedFd, request: libc::c_ulong, argument: &T) -> io::Result<()> {
    // SAFETY: the callers' requests read an ifreq, or of an AF_INET6 socket an in6_ifreq; `argument` is that one, and
    // outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request as _, std::ptr::from_ref(argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
