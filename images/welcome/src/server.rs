//! The loop: poll(2) over the listening socket and all clients.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::fd::AsRawFd,
};

use crate::{
    connection::{Connection, Wait},
    facts::Facts,
};

/// Most clients at a time; the one that has been silent for longest makes place for a new one.
const CLIENTS_MAX: usize = 256;

/// Bytes of the one buffer that is read into and sent from.
const SCRATCH_BYTES: usize = 64 << 10;

/// Listens on `port` of every address: on `[::]` with IPv4 included, or on `0.0.0.0` where the kernel has no IPv6.
///
/// # Errors
/// Those of bind(2).
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

struct Client {
    connection: Connection,
    wait: Wait,
    /// The turn of the loop in which it last did something.
    active: u64,
}

/// Serves until poll(2) fails, which it does not.
///
/// # Errors
/// Those of poll(2).
pub fn serve(listener: &TcpListener, facts: &Facts) -> io::Result<()> {
    let mut clients: Vec<Client> = Vec::new();
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut sockets = Vec::new();
    for turn in 0.. {
        sockets.clear();
        sockets.push(waiting(listener.as_raw_fd(), libc::POLLIN));
        sockets.extend(clients.iter().map(|client| {
            let events = match client.wait {
                Wait::Writable => libc::POLLOUT,
                Wait::Readable | Wait::Done => libc::POLLIN,
            };
            waiting(client.connection.stream().as_raw_fd(), events)
        }));
        poll(&mut sockets)?;

        for (client, socket) in clients.iter_mut().zip(&sockets[1..]) {
            if socket.revents != 0 {
                client.advance(turn, facts, &mut scratch);
            }
        }
        if sockets[0].revents != 0 {
            accept(listener, &mut clients, turn, facts, &mut scratch);
        }
        clients.retain(|client| client.wait != Wait::Done);
    }
    Ok(())
}

impl Client {
    fn advance(&mut self, turn: u64, facts: &Facts, scratch: &mut [u8]) {
        self.active = turn;
        // A client that resets its connection is gone, no more.
        self.wait = self.connection.advance(facts, scratch).unwrap_or(Wait::Done);
    }
}

/// Takes all the clients that wait, and serves each at once: its request is most often there already.
fn accept(listener: &TcpListener, clients: &mut Vec<Client>, turn: u64, facts: &Facts, scratch: &mut [u8]) {
    while let Ok((stream, _)) = listener.accept() {
        // Small answers go out at once; without this a second packet waits for the first one's acknowledgement.
        if stream.set_nonblocking(true).is_err() || stream.set_nodelay(true).is_err() {
            continue;
        }
        let mut client = Client {
            connection: Connection::new(stream),
            wait: Wait::Readable,
            active: turn,
        };
        client.advance(turn, facts, scratch);
        if client.wait == Wait::Done {
            continue;
        }
        if clients.len() >= CLIENTS_MAX {
            let idle = (0..clients.len()).min_by_key(|&index| clients[index].active);
            if let Some(index) = idle {
                clients.swap_remove(index);
            }
        }
        clients.push(client);
    }
}

fn waiting(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

fn poll(sockets: &mut [libc::pollfd]) -> io::Result<()> {
    loop {
        // SAFETY: the address and count are those of one live slice of pollfd, which the kernel may write to.
        let ready = unsafe { libc::poll(sockets.as_mut_ptr(), sockets.len() as libc::nfds_t, -1) };
        if ready >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
