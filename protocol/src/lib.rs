//! Messages between brig's processes, and how they are framed. Nothing else lives here.
//!
//! | module | between | carried by |
//! |---|---|---|
//! | [`agent`] | supervisor ↔ agent | one vsock connection, [`frame`]s |
//! | [`stream`] | supervisor → agent | the first bytes of every other vsock connection |
//! | [`vmm`] | supervisor ↔ brig-vmm | one `SOCK_SEQPACKET` pair, [`channel`] |
//! | [`cell`] | supervisor → brig-cell | the first message on the same |
//! | [`spec`] | what to run, as the launcher and the agent take it | inside of [`agent`] messages |
//! | [`tool`] | what a process of the agent's does in a sandbox, and what it says | the same, and its standard output |
//!
//! Every length is bounded by a named constant, and every message is untrusted input to its reader: decoding
//! never panics and never allocates more than the bound of its frame.

pub mod agent;
pub mod cell;
pub mod channel;
pub mod frame;
pub mod spec;
pub mod stream;
pub mod tool;
pub mod vmm;
