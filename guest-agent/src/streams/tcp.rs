//! A stream that is joined with a TCP connection inside of the sandbox.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use brig_launcher::network;
use brig_protocol::agent::Traffic;
use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{
        AddressFamily, Shutdown, SocketFlags, SocketType, bind, connect, getpeername, shutdown, socket_with,
        sockopt,
    },
};

use crate::{
    reactor::End,
    relay::{Broken, SocketRelay, Turn},
};

/// A TCP connection and its relays.
pub(super) struct Tcp {
    socket: OwnedFd,
    phase: Phase,
}

enum Phase {
    /// It is being made: to 127.0.0.1, and where nobody listens there to `::1`.
    Connecting {
        port: u16,
        /// Whether `::1` is still to be tried.
        has_second: bool,
    },
    /// It is made; each direction has a relay until it has ended.
    Open {
        /// From the host to the sandbox.
        inward: Option<SocketRelay>,
        /// From the sandbox to the host.
        outward: Option<SocketRelay>,
    },
}

impl Tcp {
    /// Begins to connect to `port`.
    pub(super) fn connect(port: u16) -> io::Result<Self> {
        let (socket, has_second) = match begin((Ipv4Addr::LOCALHOST, port).into()) {
            Ok(socket) => (socket, true),
            Err(_) => (begin((Ipv6Addr::LOCALHOST, port).into())?, false),
        };
        Ok(Self {
            socket,
            phase: Phase::Connecting { port, has_second },
        })
    }

    /// The socket. While it connects it is reported writable when the attempt has succeeded or failed (connect(2),
    /// `EINPROGRESS`).
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Does what an event has made possible, and adds what has moved to `traffic`. An end of one direction is passed on and
    /// leaves the other open. `watch` is called with a socket that replaces the present one.
    ///
    /// # Errors
    /// The connection could not be made.
    pub(super) fn turn(
        &mut self,
        host: &OwnedFd,
        end: End,
        events: EventFlags,
        traffic: &mut Traffic,
        watch: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<Turn> {
        if let Phase::Connecting { port, has_second } = self.phase {
            return match is_connected(&self.socket) {
                Ok(true) => {
                    self.open()?;
                    Ok(self.relay(host, true, true, traffic))
                }
                Ok(false) => Ok(Turn::Blocked),
                Err(error) if !has_second => Err(error),
                Err(_) => {
                    self.phase = Phase::Connecting {
                        port,
                        has_second: false,
                    };
                    self.socket = begin((Ipv6Addr::LOCALHOST, port).into())?;
                    watch(&self.socket)?;
                    Ok(Turn::Blocked)
                }
            };
        }
        let readable =
            events.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        // An end that has become writable lets the relay go on that waits for it.
        let (inward_waits, outward_waits) = self.waiting_for_sinks();
        Ok(match end {
            End::Host => self.relay(host, readable, outward_waits, traffic),
            End::Sandbox => self.relay(host, inward_waits, readable, traffic),
        })
    }

    fn open(&mut self) -> io::Result<()> {
        // What the host sends in small pieces is passed on as it comes.
        sockopt::set_tcp_nodelay(&self.socket, true)?;
        self.phase = Phase::Open {
            inward: Some(SocketRelay::new()?),
            outward: Some(SocketRelay::new()?),
        };
        Ok(())
    }

    fn waiting_for_sinks(&self) -> (bool, bool) {
        match &self.phase {
            Phase::Connecting { .. } => (false, false),
            Phase::Open { inward, outward } => (
                inward.as_ref().is_some_and(SocketRelay::waits_for_sink),
                outward.as_ref().is_some_and(SocketRelay::waits_for_sink),
            ),
        }
    }

    /// Gives the directions that are asked for a turn.
    fn relay(
        &mut self,
        host: &OwnedFd,
        turn_inward: bool,
        turn_outward: bool,
        traffic: &mut Traffic,
    ) -> Turn {
        let Phase::Open { inward, outward } = &mut self.phase else {
            return Turn::Blocked;
        };
        let mut unfinished = false;
        let mut sink_is_gone = false;
        if turn_inward && let Some(relay) = inward {
            let turn = relay.turn(host, &self.socket);
            traffic.received += relay.take_moved();
            match turn {
                Ok(Turn::Blocked) => {}
                Ok(Turn::Unfinished) => unfinished = true,
                Ok(Turn::Ended) => {
                    *inward = None;
                    let _ = shutdown(&self.socket, Shutdown::Write);
                }
                // The server has closed without reading everything: what it said before is still to be passed on.
                Err(Broken::Sink(_)) => {
                    *inward = None;
                    sink_is_gone = true;
                }
                Err(Broken::Source(_)) => return self.abort(),
            }
        }
        if (turn_outward || sink_is_gone)
            && let Some(relay) = outward
        {
            let turn = relay.turn(&self.socket, host);
            traffic.sent += relay.take_moved();
            match turn {
                Ok(Turn::Blocked) => {}
                Ok(Turn::Unfinished) => unfinished = true,
                Ok(Turn::Ended) => {
                    *outward = None;
                    let _ = shutdown(host, Shutdown::Write);
                }
                Err(_) => return self.abort(),
            }
        }
        match (inward, outward) {
            (None, None) => Turn::Ended,
            _ if unfinished => Turn::Unfinished,
            _ => Turn::Blocked,
        }
    }

    /// Ends both directions; the server sees a reset, not an orderly end.
    fn abort(&self) -> Turn {
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        Turn::Ended
    }
}

/// A socket whose connect(2) is under way or done. It comes from where every client does, see [`network::PEER_V4`].
fn begin(address: SocketAddr) -> io::Result<OwnedFd> {
    let (family, source): (_, IpAddr) = if address.is_ipv4() {
        (AddressFamily::INET, network::PEER_V4.into())
    } else {
        (AddressFamily::INET6, network::PEER_V6.into())
    };
    let socket = socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    choose_port_late(&socket)?;
    bind(&socket, &SocketAddr::new(source, 0))?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

/// Has the port chosen by connect(2), which can use those of connections that have just ended, and not by bind(2).
fn choose_port_late(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: IP_BIND_ADDRESS_NO_PORT (ip(7)) reads an int, `on`, whose size is given. Sockets of both families take it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether an attempt has succeeded; an error when it has failed. The first event may come before either.
fn is_connected(socket: &OwnedFd) -> io::Result<bool> {
    sockopt::socket_error(socket)??;
    match getpeername(socket) {
        Ok(_) => Ok(true),
        Err(Errno::NOTCONN) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
