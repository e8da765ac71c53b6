//! The connections of a saved guest: some go on with new host ends, the others are reset.

use std::os::fd::OwnedFd;

use brig_protocol::vmm::SavedStream;
use serde::{Deserialize, Serialize};

use super::{
    CONNECTIONS_MAX, Connection, FIRST_LOCAL_PORT, GUEST_CID, HOST_CID, Header, Ports, REFUSALS_MAX, Stream,
    TYPE_STREAM, Vsock, op,
};
use crate::devices::virtio::vsock::connection::ConnectionState;

/// The device without its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    connections: Vec<SavedConnection>,
    next_port: u32,
    /// Connections that the guest is still to be told are over.
    refused: Vec<Ports>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedConnection {
    ports: Ports,
    name: Option<SavedStream>,
    state: ConnectionState,
}

impl Vsock {
    /// What the guest knows of its connections.
    pub fn save(&self) -> VsockState {
        let mut connections: Vec<_> = self
            .connections
            .iter()
            .filter_map(|(token, entry)| {
                let connection = SavedConnection {
                    ports: entry.ports,
                    name: entry.name,
                    state: entry.connection.save()?,
                };
                Some((*token, connection))
            })
            .collect();
        // In the order in which they were opened, so that "the first" of two with the same name is always the same.
        connections.sort_unstable_by_key(|&(token, _)| token);
        VsockState {
            connections: connections
                .into_iter()
                .map(|(_, connection)| connection)
                .collect(),
            next_port: self.next_port,
            refused: self
                .refusals
                .iter()
                .map(|refusal| (refusal.src_port, refusal.dst_port))
                .collect(),
        }
    }

    /// Takes up saved connections, before the device is active. Those that `streams` name go on; all others are over, which
    /// the guest is told as soon as it is active.
    pub fn restore(&mut self, state: VsockState, mut streams: Vec<(SavedStream, OwnedFd)>) {
        self.next_port = state.next_port.max(FIRST_LOCAL_PORT);
        for ports in state.refused {
            self.reset_saved(ports);
        }
        for saved in state.connections.into_iter().take(CONNECTIONS_MAX) {
            let stream = streams
                .iter()
                .position(|(name, _)| saved.name == Some(*name))
                .map(|index| streams.swap_remove(index).1);
            let connection = stream
                .and_then(|fd| Stream::new(fd).ok())
                .and_then(|stream| Connection::restore(saved.state, stream));
            match connection {
                Some(connection) if !self.by_ports.contains_key(&saved.ports) => {
                    self.insert(saved.ports, connection, saved.name);
                }
                _ => self.reset_saved(saved.ports),
            }
        }
    }

    /// Tells the guest that a connection which it knows is over.
    fn reset_saved(&mut self, (host, guest): Ports) {
        if self.refusals.len() < REFUSALS_MAX {
            self.refusals.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: GUEST_CID,
                src_port: host,
                dst_port: guest,
                kind: TYPE_STREAM,
                op: op::RST,
                ..Header::default()
            });
        }
    }
}
