//! The agent's sockets in a guest (vsock(7)).

use std::{mem, os::fd::OwnedFd};

use brig_protocol::stream::{CONTROL_PORT, STREAM_PORT};
use rustix::{
    io::ioctl_fionbio,
    net::{
        AddressFamily, SocketFlags, SocketType,
        addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque},
        bind, connect, listen, socket_with,
    },
};

use crate::error::{AgentError, Context};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// An address: context id and port.
struct VsockAddress {
    cid: u32,
    port: u32,
}

// SAFETY: the closure gets a pointer to a whole sockaddr_vm that lives until the closure has returned, and its size.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        // SAFETY: a sockaddr_vm is plain data for which all zeros is a valid value.
        let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        f(
            (&raw const address).cast(),
            size_of_val(&address) as SocketAddrLen,
        )
    }
}

/// Listens for streams. Done before the control connection is made: who has heard the agent's hello can connect.
///
/// # Errors
/// [`AgentError::System`].
pub fn listen_for_streams() -> Result<OwnedFd, AgentError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None).step("create a vsock socket")?;
    bind(
        &socket,
        &VsockAddress {
            cid: libc::VMADDR_CID_ANY,
            port: STREAM_PORT,
        },
    )
    .step("bind the vsock port of streams")?;
    listen(&socket, BACKLOG).step("listen for streams")?;
    Ok(socket)
}

/// Connects to the supervisor.
///
/// # Errors
/// [`AgentError::System`].
pub fn connect_to_supervisor() -> Result<OwnedFd, AgentError> {
    let socket = socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .step("create a vsock socket")?;
    connect(
        &socket,
        &VsockAddress {
            cid: libc::VMADDR_CID_HOST,
            port: CONTROL_PORT,
        },
    )
    .step("connect to the supervisor")?;
    ioctl_fionbio(&socket, true).step("make the control connection non-blocking")?;
    Ok(socket)
}
