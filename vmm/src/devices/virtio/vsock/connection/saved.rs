//! A connection of a saved guest, and how it goes on with a new host end.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Connection, State};
use crate::devices::virtio::vsock::{BUFFER_BYTES, packet::op, stream::Stream};

/// What the guest knows of a connection, and what it sent that its host end has not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionState {
    established: bool,
    greeting_waits: bool,
    prefix: Vec<u8>,
    host_sent_all: bool,
    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    guest_receives_no_more: bool,
    buffer: Vec<u8>,
    received: u32,
    forwarded: u32,
    forwarded_told: u32,
    credit_asked: bool,
    guest_sent_all: bool,
    host_receives_no_more: bool,
    shutdown_told: u32,
}

impl Connection {
    /// The connection as a restored guest will know it; `None` for one that the guest has already forgotten.
    pub fn save(&self) -> Option<ConnectionState> {
        let established = match self.state {
            State::Requested => false,
            State::Established => true,
            State::Draining | State::Lingering | State::Over => return None,
        };
        Some(ConnectionState {
            established,
            greeting_waits: self.greeting.is_some(),
            prefix: self.prefix.clone(),
            host_sent_all: self.host_sent_all,
            sent: self.sent,
            guest_buf_alloc: self.guest_buf_alloc,
            guest_fwd_cnt: self.guest_fwd_cnt,
            guest_receives_no_more: self.guest_receives_no_more,
            buffer: self.buffer.iter().copied().collect(),
            received: self.received,
            forwarded: self.forwarded,
            forwarded_told: self.forwarded_told,
            credit_asked: self.credit_asked,
            guest_sent_all: self.guest_sent_all,
            host_receives_no_more: self.host_receives_no_more,
            shutdown_told: self.shutdown_told,
        })
    }

    /// A saved connection whose host end is `stream` from now on. What had ended before stays ended. `None` for a state that
    /// no connection can have.
    pub fn restore(state: ConnectionState, stream: Stream) -> Option<Self> {
        let held = state.received.wrapping_sub(state.forwarded);
        if held > BUFFER_BYTES || held as usize != state.buffer.len() {
            return None;
        }
        let (phase, greeting) = if state.established {
            (State::Established, op::RESPONSE)
        } else {
            (State::Requested, op::REQUEST)
        };
        Some(Self {
            state: phase,
            greeting: state.greeting_waits.then_some(greeting),
            prefix: state.prefix,
            host_sent_all: state.host_sent_all || !stream.can_read(),
            sent: state.sent,
            guest_buf_alloc: state.guest_buf_alloc,
            guest_fwd_cnt: state.guest_fwd_cnt,
            guest_receives_no_more: state.guest_receives_no_more,
            buffer: VecDeque::from(state.buffer),
            received: state.received,
            forwarded: state.forwarded,
            forwarded_told: state.forwarded_told,
            credit_asked: state.credit_asked,
            guest_sent_all: state.guest_sent_all,
            host_receives_no_more: state.host_receives_no_more || !stream.can_write(),
            shutdown_told: state.shutdown_told,
            stream: Some(stream),
        })
    }
}
