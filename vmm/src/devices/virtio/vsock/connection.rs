//! One connection: its state, its credit both ways, and what is still to be delivered.

mod saved;

use std::collections::VecDeque;

pub use self::saved::ConnectionState;

use super::{
    BUFFER_BYTES, PACKET_DATA_BYTES,
    packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op},
    stream::{Stream, Transfer},
};
use crate::devices::virtio::chain::Buffers;

/// Reads that are thrown away for a peer that goes on talking to a closed connection, before it is cut off.
const DISCARDS_MAX: usize = 64;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host wants it; the guest has not answered.
    Requested,
    /// Bytes may flow. Each direction ends for itself.
    Established,
    /// The guest has reset or closed it. What it sent before is still being written to the host's end.
    Draining,
    /// Everything is written and the host's end knows that no more will come. What its peer still says is thrown away, so
    /// that closing the socket does not destroy what the peer has not read yet.
    Lingering,
    /// Nothing is left to do; the connection is to be forgotten.
    Over,
}

/// What becomes of a connection after a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// The guest is done with it and knows: nothing is to be sent.
    Ended,
    /// The guest is to be told by an RST that it is over: the guest has closed it, or broken the rules.
    Reset,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    state: State,
    /// Gone once both directions are done, while the guest has still to say goodbye.
    stream: Option<Stream>,

    /// REQUEST or RESPONSE, when it has still to be sent.
    greeting: Option<u16>,
    /// Bytes for the guest that go before those of the stream.
    prefix: Vec<u8>,
    /// The stream has ended, or never had this direction: nothing more goes to the guest.
    host_sent_all: bool,
    /// Data bytes sent to the guest, modulo 2^32.
    sent: u32,
    /// What the guest last said of its buffer.
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    /// The guest takes no more data.
    guest_receives_no_more: bool,

    /// Bytes of the guest that the stream has not taken yet.
    buffer: VecDeque<u8>,
    /// Data bytes received from the guest, and of these those that have left the buffer, modulo 2^32.
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest last heard of it.
    forwarded_told: u32,
    /// The guest has asked for its credit.
    credit_asked: bool,
    /// The guest sends no more data.
    guest_sent_all: bool,
    /// The stream takes no more data; what the guest sends is thrown away.
    host_receives_no_more: bool,

    /// SHUTDOWN flags that the guest has been told.
    shutdown_told: u32,
}

impl Connection {
    /// A connection that the host wants; `prefix` goes to the guest before what the stream has.
    pub fn request(stream: Stream, prefix: &[u8]) -> Self {
        Self::new(stream, State::Requested, op::REQUEST, prefix)
    }

    /// A connection that the guest has asked for by `request`.
    pub fn accept(stream: Stream, request: &Header) -> Self {
        let mut connection = Self::new(stream, State::Established, op::RESPONSE, &[]);
        connection.take_credit(request);
        connection
    }

    fn new(stream: Stream, state: State, greeting: u16, prefix: &[u8]) -> Self {
        Self {
            state,
            greeting: Some(greeting),
            prefix: prefix.to_vec(),
            host_sent_all: !stream.can_read(),
            sent: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            guest_receives_no_more: false,
            buffer: VecDeque::new(),
            received: 0,
            forwarded: 0,
            forwarded_told: 0,
            credit_asked: false,
            guest_sent_all: false,
            host_receives_no_more: !stream.can_write(),
            shutdown_told: 0,
            stream: Some(stream),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// The host's end, while it is open.
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Whether bytes of the guest wait for the host's end to take them.
    pub fn has_undelivered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The event loop has seen a change of the stream; `hung_up`: nobody reads its other end any more.
    pub fn stream_changed(&mut self, readable: bool, writable: bool, hung_up: bool) {
        if let Some(stream) = &mut self.stream {
            stream.changed(readable, writable);
        }
        if hung_up && !self.host_receives_no_more {
            self.host_stops_receiving();
        }
    }

    /// Takes a packet of the guest.
    pub fn receive(&mut self, header: &Header, data: Buffers<'_>) -> Verdict {
        self.take_credit(header);
        match (self.state, header.op) {
            (State::Requested, op::RESPONSE) => {
                self.state = State::Established;
                Verdict::Keep
            }
            (_, op::RST) => Verdict::Ended,
            (State::Established, op::RW) => self.receive_data(data),
            (State::Established, op::SHUTDOWN) => self.receive_shutdown(header.flags),
            (State::Established, op::CREDIT_UPDATE) => Verdict::Keep,
            (State::Established, op::CREDIT_REQUEST) => {
                self.credit_asked = true;
                Verdict::Keep
            }
            _ => Verdict::Reset,
        }
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = header.fwd_cnt;
    }

    fn receive_data(&mut self, mut data: Buffers<'_>) -> Verdict {
        let held = self.received.wrapping_sub(self.forwarded);
        if self.guest_sent_all || data.len() > (BUFFER_BYTES - held) as usize {
            return Verdict::Reset;
        }
        self.received = self.received.wrapping_add(data.len() as u32);
        // The way without a copy: straight from guest memory to the stream, when nothing waits before it.
        while self.buffer.is_empty() && !data.is_empty() && !self.host_receives_no_more {
            let Some(stream) = self.stream.as_mut().filter(|stream| stream.is_writable()) else {
                break;
            };
            match stream.write_from(&data) {
                Transfer::Bytes(bytes) => {
                    self.forwarded = self.forwarded.wrapping_add(bytes as u32);
                    // The kernel writes no more than it was given.
                    if data.split_off_front(bytes).is_err() {
                        return Verdict::Reset;
                    }
                }
                Transfer::NotNow => {}
                Transfer::Ended | Transfer::Failed => self.host_stops_receiving(),
            }
        }
        if self.host_receives_no_more {
            self.forwarded = self.received;
        } else if !data.is_empty() {
            let mut bytes = vec![0; data.len()];
            data.read(&mut bytes);
            self.buffer.extend(bytes);
        }
        Verdict::Keep
    }

    fn receive_shutdown(&mut self, flags: u32) -> Verdict {
        self.guest_sent_all |= flags & SHUTDOWN_SEND != 0;
        self.guest_receives_no_more |= flags & SHUTDOWN_RECEIVE != 0;
        if self.guest_sent_all && self.guest_receives_no_more {
            // The guest waits for an RST to forget the connection; all that it sent is here already.
            Verdict::Reset
        } else {
            Verdict::Keep
        }
    }

    /// The guest is gone: delivers the rest without it.
    pub fn guest_gone(&mut self) {
        self.guest_sent_all = true;
        self.state = match self.state {
            // It was refused: the host's end is closed.
            State::Requested => State::Over,
            _ => State::Draining,
        };
    }

    /// The driver has forgotten everything: a request that is not granted yet will be made again.
    pub fn driver_reset(&mut self) {
        if self.state == State::Requested {
            self.greeting = Some(op::REQUEST);
        } else if self.state == State::Established {
            self.guest_gone();
        }
    }

    fn host_stops_receiving(&mut self) {
        self.host_receives_no_more = true;
        self.buffer = VecDeque::new();
        self.forwarded = self.received;
    }

    /// Moves what waits to the stream, and closes what has come to its end.
    pub fn advance(&mut self) {
        self.deliver();
        let delivered = self.buffer.is_empty();
        if delivered && (self.guest_sent_all || self.host_receives_no_more) {
            if let Some(stream) = &mut self.stream {
                stream.end_writing();
            }
            match self.state {
                State::Draining => self.state = State::Lingering,
                // Both directions are done: the host's end is of no more use.
                State::Established if self.host_sent_all || self.guest_receives_no_more => self.stream = None,
                _ => {}
            }
        }
        // The writer of a pipe is to learn at once that nobody reads it.
        if self.guest_receives_no_more && self.host_receives_no_more && self.state == State::Established {
            self.stream = None;
        }
        if self.state == State::Lingering {
            self.linger();
        }
    }

    fn deliver(&mut self) {
        while !self.buffer.is_empty() {
            let Some(stream) = self.stream.as_mut().filter(|stream| stream.is_writable()) else {
                return;
            };
            match stream.write_slices(self.buffer.as_slices()) {
                Transfer::Bytes(bytes) => {
                    self.buffer.drain(..bytes);
                    self.forwarded = self.forwarded.wrapping_add(bytes as u32);
                }
                Transfer::NotNow => return,
                Transfer::Ended | Transfer::Failed => self.host_stops_receiving(),
            }
        }
        // An idle connection holds no memory.
        self.buffer = VecDeque::new();
    }

    fn linger(&mut self) {
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.is_socket()) else {
            self.state = State::Over;
            return;
        };
        if self.host_sent_all {
            self.state = State::Over;
            return;
        }
        for _ in 0..DISCARDS_MAX {
            if !stream.is_readable() {
                return;
            }
            if matches!(stream.read_and_discard(), Transfer::Ended | Transfer::Failed) {
                break;
            }
        }
        self.state = State::Over;
    }

    /// Whether [`Connection::next_packet`] has something to try.
    pub fn wants_to_send(&self) -> bool {
        match self.state {
            State::Requested => self.greeting.is_some(),
            State::Established => {
                self.greeting.is_some()
                    || self.has_data()
                    || self.shutdown_to_tell() != 0
                    || self.credit_asked
                    || self.owes_credit()
            }
            State::Draining | State::Lingering | State::Over => false,
        }
    }

    /// Makes the next packet for the guest: writes its data to `room` and returns its header, in which ports and
    /// addresses are still missing. `None` when there is nothing to say after all.
    pub fn next_packet(&mut self, mut room: Buffers<'_>) -> Option<Header> {
        let (op, flags, len) = if let Some(greeting) = self.greeting.take() {
            (greeting, 0, 0)
        } else if self.state != State::Established {
            return None;
        } else {
            room.truncate(self.guest_credit().min(PACKET_DATA_BYTES));
            let len = self.next_data(&room);
            if len > 0 {
                self.sent = self.sent.wrapping_add(len);
                (op::RW, 0, len)
            } else if self.shutdown_to_tell() != 0 {
                self.shutdown_told |= self.shutdown_to_tell();
                (op::SHUTDOWN, self.shutdown_told, 0)
            } else if self.credit_asked || self.owes_credit() {
                (op::CREDIT_UPDATE, 0, 0)
            } else {
                return None;
            }
        };
        self.credit_asked = false;
        self.forwarded_told = self.forwarded;
        Some(Header {
            len,
            op,
            flags,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.forwarded,
            ..Header::default()
        })
    }

    /// Bytes that the guest has room for. A guest that contradicts itself has none.
    fn guest_credit(&self) -> usize {
        let in_flight = self.sent.wrapping_sub(self.guest_fwd_cnt);
        self.guest_buf_alloc.saturating_sub(in_flight) as usize
    }

    fn has_data(&self) -> bool {
        let waiting = !self.prefix.is_empty()
            || !self.host_sent_all && self.stream.as_ref().is_some_and(Stream::is_readable);
        waiting && !self.guest_receives_no_more && self.guest_credit() > 0
    }

    /// Writes data to `room`; returns how many bytes.
    fn next_data(&mut self, room: &Buffers<'_>) -> u32 {
        if room.is_empty() || !self.has_data() {
            return 0;
        }
        if !self.prefix.is_empty() {
            let written = room.write(&self.prefix);
            self.prefix.drain(..written);
            return written as u32;
        }
        let Some(stream) = &mut self.stream else {
            return 0;
        };
        match stream.read_into(room) {
            Transfer::Bytes(bytes) => bytes as u32,
            Transfer::NotNow => 0,
            Transfer::Ended => {
                self.host_sent_all = true;
                0
            }
            Transfer::Failed => {
                self.host_sent_all = true;
                self.host_stops_receiving();
                0
            }
        }
    }

    /// SHUTDOWN flags that the guest has still to hear.
    fn shutdown_to_tell(&self) -> u32 {
        let host_is_done = self.host_sent_all && self.prefix.is_empty();
        let mut flags = 0;
        if host_is_done {
            flags |= SHUTDOWN_SEND;
        }
        // When both sides have sent everything, the guest may forget the connection as soon as it has read the rest.
        if self.host_receives_no_more || host_is_done && self.guest_sent_all {
            flags |= SHUTDOWN_RECEIVE;
        }
        debug_assert_eq!(flags & !SHUTDOWN_BOTH, 0);
        flags & !self.shutdown_told
    }

    /// Whether the guest should hear of the room that has come free: it believes that less than half is left, and there
    /// is a good piece to tell of, or all.
    fn owes_credit(&self) -> bool {
        let untold = self.forwarded.wrapping_sub(self.forwarded_told);
        let believed_held = self.received.wrapping_sub(self.forwarded_told);
        believed_held > BUFFER_BYTES / 2
            && (untold >= BUFFER_BYTES / 4 || untold > 0 && self.buffer.is_empty())
    }
}

#[cfg(test)]
impl Connection {
    /// Pretends that this many bytes have gone each way.
    pub(super) fn set_counters(&mut self, value: u32) {
        (self.sent, self.received, self.forwarded, self.forwarded_told) = (value, value, value, value);
    }
}
