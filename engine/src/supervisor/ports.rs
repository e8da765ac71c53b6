//! Published ports: bound before the guest boots, then every accepted socket is handed to the VMM. The supervisor sees
//! none of the bytes.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::fd::AsFd,
    rc::Rc,
    time::Duration,
};

use brig_protocol::stream::StreamHeader;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    Error, guest,
    port::{BoundPort, PublishedPort},
    vmm::VmmChannel,
};

/// Connections that may wait until the guest is up (listen(2); the kernel's own limit is 4,096).
const BACKLOG: i32 = 1024;

/// How long to rest when the process has run out of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    /// What is bound to what.
    pub port: BoundPort,
    socket: StdTcpListener,
}

/// Binds all of `ports`.
///
/// # Errors
/// [`Error::PortInUse`] or [`Error::Bind`]; none is bound then.
pub fn bind_all(ports: &[PublishedPort]) -> Result<Vec<Listener>, Error> {
    ports.iter().map(bind).collect()
}

fn bind(port: &PublishedPort) -> Result<Listener, Error> {
    let mut candidate = port.host_port;
    loop {
        let address = SocketAddr::new(port.host_ip, candidate);
        match listen(address) {
            Ok(socket) => {
                let host = socket.local_addr().map_err(|source| Error::Bind {
                    address: address.to_string(),
                    source,
                })?;
                return Ok(Listener {
                    port: BoundPort {
                        host,
                        container_port: port.container_port,
                    },
                    socket,
                });
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && candidate < port.host_port_last => {
                candidate += 1;
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                return Err(Error::PortInUse { address: range(port) });
            }
            Err(source) => {
                return Err(Error::Bind {
                    address: address.to_string(),
                    source,
                });
            }
        }
    }
}

fn range(port: &PublishedPort) -> String {
    let first = SocketAddr::new(port.host_ip, port.host_port);
    if port.host_port == port.host_port_last {
        first.to_string()
    } else {
        format!("{first}-{}", port.host_port_last)
    }
}

/// A listening, non-blocking socket. An IPv6 address is bound for IPv6 only, so that `0.0.0.0` stays free for others.
fn listen(address: SocketAddr) -> io::Result<StdTcpListener> {
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Serves bound ports until it is dropped, which closes them.
#[derive(Debug)]
pub struct Forwarding(Vec<JoinHandle<()>>);

impl Forwarding {
    /// Hands every connection to `listeners` to the VMM.
    ///
    /// # Errors
    /// [`Error::Bind`] when a socket cannot be waited for.
    pub fn start(listeners: Vec<Listener>, vmm: &Rc<VmmChannel>) -> Result<Self, Error> {
        let mut forwarding = Self(Vec::with_capacity(listeners.len()));
        for listener in listeners {
            let socket = TcpListener::from_std(listener.socket).map_err(|source| Error::Bind {
                address: listener.port.host.to_string(),
                source,
            })?;
            let header = StreamHeader::Tcp {
                port: listener.port.container_port,
            };
            forwarding
                .0
                .push(tokio::task::spawn_local(accept(socket, header, Rc::clone(vmm))));
        }
        Ok(forwarding)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, header: StreamHeader, vmm: Rc<VmmChannel>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                // The guest's bytes come in pieces of its own choice; none shall wait for the next.
                let _ = socket.set_nodelay(true);
                if guest::connect(&vmm, header, socket.as_fd()).await.is_err() {
                    return;
                }
            }
            // A connection that was reset before it was accepted is no reason to rest, but nothing tells these errors
            // from those that would make this loop spin (accept(2)).
            Err(_) => tokio::time::sleep(ACCEPT_REST).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::parse_all;

    #[test]
    fn a_free_port_is_picked_and_told() {
        let bound = bind_all(&parse_all(&["127.0.0.1::80", "127.0.0.1:0:81"]).unwrap()).unwrap();
        assert!(bound.iter().all(|listener| listener.port.host.port() != 0));
        assert_eq!(bound[1].port.container_port, 81);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind_all(&parse_all(&[format!("127.0.0.1:{port}:80")]).unwrap()).unwrap_err();
        assert!(matches!(&error, Error::PortInUse { address } if *address == format!("127.0.0.1:{port}")));
    }

    #[test]
    fn the_next_of_a_range_is_taken_when_one_is_in_use() {
        let taken = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let last = port.saturating_add(20);
        let bound = bind_all(&parse_all(&[format!("127.0.0.1:{port}-{last}:80")]).unwrap()).unwrap();
        assert!(bound[0].port.host.port() > port);
    }

    #[test]
    fn an_address_that_is_not_the_hosts_is_an_error() {
        let error = bind_all(&parse_all(&["192.0.2.1:0:80"]).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Bind { .. }), "{error}");
    }
}
