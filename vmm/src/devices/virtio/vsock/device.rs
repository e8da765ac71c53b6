//! The device: moves packets between the queues and the connections.

mod saved;

use std::{
    collections::{HashMap, VecDeque},
    os::fd::OwnedFd,
    time::Instant,
};

use brig_protocol::{
    stream::{GUEST_CID, HEADER_BYTES as STREAM_HEADER_BYTES},
    vmm::SavedStream,
};
use rustix::event::{PollFd, PollFlags, Timespec, epoll::EventFlags, poll};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

pub use self::saved::VsockState;
use super::{
    CONNECTIONS_MAX, FIRST_LOCAL_PORT, HOST_CID, LINGERING_MAX, REFUSALS_MAX,
    connection::{Connection, State, Verdict},
    packet::{HEADER_BYTES, Header, TYPE_STREAM, op},
    stream::Stream,
};
use crate::{
    devices::virtio::{
        Activation, F_COMMON, VirtioDevice,
        chain::{Buffers, Chain},
        drain_queue, next_chain, read_config_bytes,
    },
    event_loop::StreamRegistry,
    memory::Memory,
};

const DEVICE_TYPE: u32 = 19;

const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;
const QUEUE_SIZES: [u16; 3] = [256, 256, 8];

/// The two ends of a connection: the host's port, the guest's port.
type Ports = (u32, u32);

/// A connection and what the device knows about it.
#[derive(Debug)]
struct Entry {
    ports: Ports,
    connection: Connection,
    /// What tells it from the others when the guest is restored.
    name: Option<SavedStream>,
    /// Whether it is in the line of those that want to send.
    in_line: bool,
}

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    streams: StreamRegistry,
    active: Option<Activation>,
    connections: HashMap<u32, Entry>,
    by_ports: HashMap<Ports, u32>,
    /// Ports that the guest may connect to, each once.
    listeners: HashMap<u32, OwnedFd>,
    /// Connections that want to send to the guest, in turn.
    line: VecDeque<u32>,
    /// Answers to packets that belong to no connection.
    refusals: VecDeque<Header>,
    /// Sockets whose peers have not closed yet, oldest first.
    lingering: VecDeque<u32>,
    next_token: u32,
    next_port: u32,
}

impl Vsock {
    /// A device whose streams are watched by `streams`; the guest may connect once to each of `listeners`.
    pub fn new(streams: StreamRegistry, listeners: impl IntoIterator<Item = (u32, OwnedFd)>) -> Self {
        Self {
            streams,
            active: None,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            listeners: listeners.into_iter().collect(),
            line: VecDeque::new(),
            refusals: VecDeque::new(),
            lingering: VecDeque::new(),
            next_token: 0,
            next_port: FIRST_LOCAL_PORT,
        }
    }

    /// Connects `fd` to a port of the guest, where `prefix` arrives first. May be called before the guest has a driver.
    /// When the guest refuses, when `fd` cannot be watched, or with too many connections, `fd` is closed.
    pub fn connect(&mut self, port: u32, prefix: &[u8], fd: OwnedFd) {
        let local = loop {
            let local = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_LOCAL_PORT);
            if !self.by_ports.contains_key(&(local, port)) {
                break local;
            }
            // There are more ports than connections: one is free.
        };
        if let Ok(stream) = Stream::new(fd) {
            let name = <[u8; STREAM_HEADER_BYTES]>::try_from(prefix)
                .ok()
                .map(|header| SavedStream::ToGuest { header });
            self.insert((local, port), Connection::request(stream, prefix), name);
            self.fill_rx();
        }
    }

    /// The guest has stopped: takes the last packets that it sent, and writes what waits for slow readers, until
    /// `deadline` at the latest.
    pub fn finish(&mut self, deadline: Instant) {
        self.empty_tx();
        self.active = None;
        let tokens: Vec<u32> = self.connections.keys().copied().collect();
        for token in tokens {
            self.update(token, Connection::guest_gone);
        }
        while self.wait_for_slow_readers(deadline) {
            let slow: Vec<u32> = self.undelivered().map(|(token, _)| token).collect();
            for token in slow {
                self.update(token, |connection| connection.stream_changed(false, true, false));
            }
        }
    }

    fn undelivered(&self) -> impl Iterator<Item = (u32, &Connection)> {
        self.connections
            .iter()
            .map(|(token, entry)| (*token, &entry.connection))
            .filter(|(_, connection)| connection.has_undelivered())
    }

    /// Waits until a stream with undelivered bytes takes some. False when there is none, or no time left.
    fn wait_for_slow_readers(&self, deadline: Instant) -> bool {
        let mut fds: Vec<_> = self
            .undelivered()
            .filter_map(|(_, connection)| connection.stream())
            .map(|stream| PollFd::new(stream, PollFlags::OUT))
            .collect();
        let left = deadline.saturating_duration_since(Instant::now());
        if fds.is_empty() || left.is_zero() {
            return false;
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => ready > 0,
            Err(e) => e == rustix::io::Errno::INTR,
        }
    }

    fn insert(&mut self, ports: Ports, connection: Connection, name: Option<SavedStream>) {
        let Some(stream) = connection.stream() else {
            return;
        };
        let token = self.next_token;
        if self.connections.len() >= CONNECTIONS_MAX || self.connections.contains_key(&token) {
            return;
        }
        if self.streams.add(stream, token).is_err() {
            return;
        }
        self.next_token = self.next_token.wrapping_add(1);
        self.by_ports.insert(ports, token);
        let entry = Entry {
            ports,
            connection,
            name,
            in_line: false,
        };
        self.connections.insert(token, entry);
        self.update(token, |_| ());
    }

    /// Changes a connection, moves on what can move, and puts it where it belongs then.
    fn update<R>(&mut self, token: u32, change: impl FnOnce(&mut Connection) -> R) -> Option<R> {
        let entry = self.connections.get_mut(&token)?;
        let before = entry.connection.state();
        let result = change(&mut entry.connection);
        entry.connection.advance();
        let (ports, state) = (entry.ports, entry.connection.state());
        if !entry.in_line && entry.connection.wants_to_send() {
            entry.in_line = true;
            self.line.push_back(token);
        }
        if matches!(state, State::Draining | State::Lingering | State::Over)
            && self.by_ports.get(&ports) == Some(&token)
        {
            self.by_ports.remove(&ports);
        }
        if state == State::Over {
            self.forget(token);
        } else if state == State::Lingering && before != State::Lingering {
            self.lingering.retain(|other| *other != token);
            self.lingering.push_back(token);
            if self.lingering.len() > LINGERING_MAX
                && let Some(oldest) = self.lingering.pop_front()
            {
                self.forget(oldest);
            }
        }
        Some(result)
    }

    fn forget(&mut self, token: u32) {
        self.lingering.retain(|other| *other != token);
        if let Some(entry) = self.connections.remove(&token)
            && let Some(stream) = entry.connection.stream()
        {
            self.streams.remove(stream);
        }
    }

    /// Takes the packets that the guest has sent: a turn of them.
    fn empty_tx(&mut self) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        drain_queue(&mut active, TX_QUEUE, |chain| {
            if let Ok(chain) = chain {
                self.receive(chain.readable);
            }
            0
        });
        self.active = Some(active);
    }

    fn receive(&mut self, mut packet: Buffers<'_>) {
        let Ok(header) = packet.split_off_front(HEADER_BYTES) else {
            return;
        };
        let mut bytes = [0; HEADER_BYTES];
        header.read(&mut bytes);
        let header = Header::decode(&bytes);
        if header.src_cid != GUEST_CID {
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM || header.len as usize > packet.len() {
            self.refuse(&header);
            return;
        }
        packet.truncate(header.len as usize);
        let ports = (header.dst_port, header.src_port);
        match self.by_ports.get(&ports) {
            Some(&token) => self.receive_for(token, &header, packet),
            None if header.op == op::REQUEST => self.accept(ports, &header),
            None => self.refuse(&header),
        }
    }

    fn receive_for(&mut self, token: u32, header: &Header, data: Buffers<'_>) {
        let verdict = self.update(token, |connection| {
            let verdict = connection.receive(header, data);
            if verdict != Verdict::Keep {
                connection.guest_gone();
            }
            verdict
        });
        if verdict == Some(Verdict::Reset) {
            self.refuse(header);
        }
    }

    fn accept(&mut self, ports: Ports, request: &Header) {
        let socket = self
            .listeners
            .remove(&ports.0)
            .and_then(|fd| Stream::new(fd).ok());
        if let Some(socket) = socket {
            let name = SavedStream::ToHost { port: ports.0 };
            self.insert(ports, Connection::accept(socket, request), Some(name));
        }
        if !self.by_ports.contains_key(&ports) {
            self.refuse(request);
        }
    }

    /// Answers a packet by an RST; an RST itself is never answered.
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST && self.refusals.len() < REFUSALS_MAX {
            self.refusals.push_back(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    /// Sends to the guest for as long as there is something to say and room in its queue: a turn, after which others who wait for
    /// the device's thread have theirs.
    fn fill_rx(&mut self) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        let Activation {
            memory,
            queues,
            interrupt,
            wakers,
        } = &mut active;
        let queue = &mut queues[RX_QUEUE];
        let mut left = queue.size();
        while self.wants_to_send() && self.fill_one(queue, memory) {
            left -= 1;
            if left == 0 {
                wakers.wake(RX_QUEUE);
                break;
            }
        }
        interrupt.signal_used(queue, memory);
        self.active = Some(active);
    }

    fn wants_to_send(&self) -> bool {
        !self.refusals.is_empty() || !self.line.is_empty()
    }

    /// Fills one chain of the receive queue. False when there is none, or the queue is broken.
    fn fill_one(&mut self, queue: &mut Queue, memory: &Memory) -> bool {
        let Some(descriptors) = next_chain(queue, memory) else {
            return false;
        };
        let head = descriptors.head_index();
        let room = Chain::new(memory, descriptors).map(|chain| chain.writable);
        let written = match room {
            Ok(room) => {
                let Some(bytes) = self.next_packet(room) else {
                    queue.go_to_previous_position();
                    return true;
                };
                bytes
            }
            Err(_) => 0,
        };
        queue.add_used(memory, head, written).is_ok()
    }

    /// Writes the next packet to `room`; returns its bytes, 0 when the room is too small for a
    /// header and data. `None` when nobody had
    /// anything to say after all.
    fn next_packet(&mut self, mut room: Buffers<'_>) -> Option<u32> {
        let Ok(header_room) = room.split_off_front(HEADER_BYTES) else {
            return Some(0);
        };
        if room.is_empty() {
            return Some(0);
        }
        if let Some(refusal) = self.refusals.pop_front() {
            header_room.write(&refusal.encode());
            return Some(HEADER_BYTES as u32);
        }
        let token = self.line.pop_front()?;
        let entry = self.connections.get_mut(&token)?;
        entry.in_line = false;
        let ports = entry.ports;
        let header = self.update(token, |connection| connection.next_packet(room))??;
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: ports.0,
            dst_port: ports.1,
            kind: TYPE_STREAM,
            ..header
        };
        header_room.write(&header.encode());
        Some(HEADER_BYTES as u32 + header.len)
    }
}

#[cfg(test)]
impl Vsock {
    pub(super) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn set_counters(&mut self, host_port: u32, guest_port: u32, value: u32) {
        let token = self.by_ports[&(host_port, guest_port)];
        self.update(token, |connection| connection.set_counters(value));
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_COMMON
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&GUEST_CID.to_le_bytes(), offset, data);
    }

    fn active(&mut self) -> &mut Option<Activation> {
        &mut self.active
    }

    fn reset(&mut self) {
        self.active = None;
        self.refusals.clear();
        let tokens: Vec<u32> = self.connections.keys().copied().collect();
        for token in tokens {
            self.update(token, Connection::driver_reset);
        }
    }

    fn queue_notified(&mut self, queue: usize) {
        if queue == TX_QUEUE {
            self.empty_tx();
        }
        self.fill_rx();
    }

    fn stream_ready(&mut self, token: u32, flags: EventFlags) {
        let ended = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let readable = ended || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        let writable = ended || flags.contains(EventFlags::OUT);
        self.update(token, |connection| {
            connection.stream_changed(readable, writable, ended);
        });
        self.fill_rx();
    }
}
