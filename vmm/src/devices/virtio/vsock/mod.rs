//! The socket device (virtio 1.2, section 5.10): byte streams between the guest and descriptors of the host.
//!
//! | room | does |
//! |---|---|
//! | [`packet`] | the header of a packet |
//! | [`stream`] | the host's end of a connection: a socket, or one end of a pipe |
//! | [`connection`] | the state machine of one connection: credit, half-close, what is still to be delivered |
//! | [`device`] | the queues, the table of connections, whose turn it is |
//!
//! Nothing blocks, and nothing waits for another: the transmit queue is always emptied, each connection holds at most
//! the credit that it gave, and the receive queue goes round robin.

pub mod connection;
mod device;
pub mod packet;
pub mod stream;

#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockState};

/// The host's context id (`VMADDR_CID_HOST`).
pub const HOST_CID: u64 = 2;

/// Most connections at a time, those that only deliver their last bytes among them.
pub const CONNECTIONS_MAX: usize = 1024;

/// Bytes that a connection holds for its host end when that reads too slowly: the credit given to the guest.
pub const BUFFER_BYTES: u32 = 128 << 10;

/// Most data of a packet to the guest.
pub const PACKET_DATA_BYTES: usize = 64 << 10;

/// Most refusals that wait for room in the receive queue. A guest that provokes more loses them.
pub const REFUSALS_MAX: usize = 1024;

/// Most sockets that wait for their peer's end of stream after everything is delivered.
pub const LINGERING_MAX: usize = 64;

/// The host's port of the first connection that the host opens; the next has the next.
pub const FIRST_LOCAL_PORT: u32 = 1 << 30;
