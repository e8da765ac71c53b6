//! The device against a guest that is played by the test, packet by packet.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use brig_protocol::stream::GUEST_CID;
use rustix::event::Timespec;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{
    BUFFER_BYTES, CONNECTIONS_MAX, HOST_CID, Vsock,
    packet::{HEADER_BYTES, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op},
};
use crate::{
    devices::virtio::{Activation, VirtioDevice, interrupt::Interrupt},
    event_loop::EventLoop,
    lock::lock,
    memory::{self, Memory},
    pause::Gate,
};

const RING_SIZE: u16 = 256;
const BUFFER: u64 = 4096;
const WRITE: u16 = 2;
const PORT: u32 = 1025;

/// The driver's side of one queue, whose buffers are one page each.
struct Ring {
    base: u64,
    added: u16,
    seen: u16,
}

impl Ring {
    fn new(index: u64) -> Self {
        Self {
            base: index * 0x20_0000,
            added: 0,
            seen: 0,
        }
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(RING_SIZE).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.base as u32 + 0x2000), Some(0));
        queue.set_used_ring_address(Some(self.base as u32 + 0x4000), Some(0));
        queue.set_ready(true);
        queue
    }

    fn buffer(&self, slot: u16) -> GuestAddress {
        GuestAddress(self.base + 0x10_0000 + u64::from(slot) * BUFFER)
    }

    /// Makes the next slot's buffer available.
    fn add(&mut self, memory: &Memory, bytes: u32, flags: u16) {
        let slot = self.added % RING_SIZE;
        let descriptor = (self.buffer(slot).0, u64::from(bytes) | u64::from(flags) << 32);
        let at = GuestAddress(self.base + 16 * u64::from(slot));
        memory.write_obj(descriptor.0, at).unwrap();
        memory.write_obj(descriptor.1, GuestAddress(at.0 + 8)).unwrap();
        let available = self.base + 0x2000;
        memory
            .write_obj(slot, GuestAddress(available + 4 + 2 * u64::from(slot)))
            .unwrap();
        self.added = self.added.wrapping_add(1);
        memory.write_obj(self.added, GuestAddress(available + 2)).unwrap();
    }

    /// The next used buffer and the bytes in it.
    fn used(&mut self, memory: &Memory) -> Option<(u16, u32)> {
        let used = self.base + 0x4000;
        let index: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
        if index == self.seen {
            return None;
        }
        let entry = used + 4 + 8 * u64::from(self.seen % RING_SIZE);
        self.seen = self.seen.wrapping_add(1);
        let id: u32 = memory.read_obj(GuestAddress(entry)).unwrap();
        Some((id as u16, memory.read_obj(GuestAddress(entry + 4)).unwrap()))
    }
}

/// A guest with a driver, and the device's thread, which runs when the test says so.
struct Guest {
    memory: Arc<Memory>,
    rx: Ring,
    tx: Ring,
    device: Arc<Mutex<Vsock>>,
    events: EventLoop,
    /// What the guest says of its buffers.
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Guest {
    fn new(listeners: Vec<(u32, OwnedFd)>) -> Self {
        let mut guest = Self::without_driver(listeners);
        guest.load_driver();
        guest
    }

    fn without_driver(listeners: Vec<(u32, OwnedFd)>) -> Self {
        let mut events = EventLoop::new().unwrap();
        let device = Arc::new(Mutex::new(Vsock::new(events.streams_of_next(), listeners)));
        events.add(device.clone(), Vec::new()).unwrap();
        Self {
            memory: memory::create(8 << 20).unwrap(),
            rx: Ring::new(0),
            tx: Ring::new(1),
            device,
            events,
            buf_alloc: 1 << 18,
            fwd_cnt: 0,
        }
    }

    fn load_driver(&mut self) {
        for _ in 0..RING_SIZE {
            self.rx.add(&self.memory, BUFFER as u32, WRITE);
        }
        self.activate();
    }

    fn activate(&mut self) {
        lock(&*self.device).activate(Activation {
            memory: Arc::clone(&self.memory),
            queues: vec![self.rx.queue(), self.tx.queue(), Ring::new(3).queue()],
            interrupt: Arc::new(Interrupt::new().unwrap()),
            wakers: Arc::default(),
        });
        for queue in 0..2 {
            lock(&*self.device).queue_notified(queue);
        }
    }

    fn send_from(&mut self, guest_port: u32, host_port: u32, op: u16, flags: u32, data: &[u8]) {
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: data.len() as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        };
        self.send_raw(&header, data);
    }

    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        let buffer = self.tx.buffer(self.tx.added % RING_SIZE);
        self.memory.write_slice(&header.encode(), buffer).unwrap();
        let after = GuestAddress(buffer.0 + HEADER_BYTES as u64);
        self.memory.write_slice(data, after).unwrap();
        self.tx.add(&self.memory, (HEADER_BYTES + data.len()) as u32, 0);
        lock(&*self.device).queue_notified(1);
        assert!(
            self.tx.used(&self.memory).is_some(),
            "the transmit queue is emptied"
        );
    }

    /// Answers `to`, a packet of the host.
    fn reply(&mut self, to: &Header, op: u16, flags: u32, data: &[u8]) {
        self.send_from(to.dst_port, to.src_port, op, flags, data);
    }

    /// Lets the device's thread do what there is to do.
    fn run(&self) {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        while self.events.serve(Some(&zero), &Gate::default()) {}
    }

    /// The next packet from the host, if any; its buffer is given back.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.run();
        let (slot, bytes) = self.rx.used(&self.memory)?;
        let mut packet = vec![0; bytes as usize];
        self.memory.read_slice(&mut packet, self.rx.buffer(slot)).unwrap();
        let header = Header::decode(packet[..HEADER_BYTES].try_into().unwrap());
        assert_eq!(header.len as usize, packet.len() - HEADER_BYTES);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
        self.rx.add(&self.memory, BUFFER as u32, WRITE);
        lock(&*self.device).queue_notified(0);
        Some((header, packet.split_off(HEADER_BYTES)))
    }

    fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.receive().expect("a packet");
        assert_eq!(header.op, op, "{header:?}");
        (header, data)
    }

    fn expect_nothing(&mut self) {
        assert_eq!(self.receive(), None);
    }

    /// Opens a connection from the host to the guest and grants it; returns the host's end and the header to reply to.
    fn connect(&mut self) -> (UnixStream, Header) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        lock(&*self.device).connect(PORT, b"", theirs.into());
        let (request, _) = self.expect(op::REQUEST);
        self.reply(&request, op::RESPONSE, 0, b"");
        (ours, request)
    }

    fn connections(&self) -> usize {
        lock(&*self.device).connection_count()
    }
}

fn read_available(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let mut part = vec![0; 65536];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return all,
            Ok(bytes) => all.extend(&part[..bytes]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return all,
            Err(e) => panic!("{e}"),
        }
    }
}

fn is_at_end(stream: &mut impl Read) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

#[test]
fn the_header_arrives_before_the_bytes_of_the_stream() {
    let mut guest = Guest::new(Vec::new());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"body").unwrap();
    lock(&*guest.device).connect(PORT, b"header!!", theirs.into());
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!((request.dst_port, request.buf_alloc), (PORT, BUFFER_BYTES));
    guest.expect_nothing();
    guest.reply(&request, op::RESPONSE, 0, b"");
    assert_eq!(guest.expect(op::RW).1, b"header!!");
    assert_eq!(guest.expect(op::RW).1, b"body");
    guest.reply(&request, op::RW, 0, b"answer");
    let mut answer = [0; 6];
    ours.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn a_connection_waits_for_the_driver_and_outlives_its_reset() {
    let mut guest = Guest::without_driver(Vec::new());
    let (_ours, theirs) = UnixStream::pair().unwrap();
    lock(&*guest.device).connect(PORT, b"", theirs.into());
    lock(&*guest.device).reset();
    guest.load_driver();
    guest.expect(op::REQUEST);
    lock(&*guest.device).reset();
    guest.rx = Ring::new(0);
    guest.tx = Ring::new(1);
    guest.memory = memory::create(8 << 20).unwrap();
    guest.load_driver();
    guest.expect(op::REQUEST);
}

#[test]
fn a_refusal_closes_the_descriptor() {
    let mut guest = Guest::new(Vec::new());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    lock(&*guest.device).connect(PORT, b"header!!", theirs.into());
    let (request, _) = guest.expect(op::REQUEST);
    guest.reply(&request, op::RST, 0, b"");
    assert!(is_at_end(&mut ours));
    assert_eq!(guest.connections(), 0);
    guest.expect_nothing();
}

#[test]
fn the_guest_connects_to_a_listener_once_and_to_nothing_else() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut guest = Guest::new(vec![(1024, theirs.into())]);
    guest.send_from(5000, 1024, op::REQUEST, 0, b"");
    let (response, _) = guest.expect(op::RESPONSE);
    assert_eq!((response.src_port, response.dst_port), (1024, 5000));
    ours.write_all(b"hi").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"hi");
    for port in [1024, 1026] {
        guest.send_from(5001, port, op::REQUEST, 0, b"");
        let (reset, _) = guest.expect(op::RST);
        assert_eq!((reset.src_port, reset.dst_port), (port, 5001));
    }
}

#[test]
fn packets_that_belong_to_no_connection_are_refused_but_for_resets() {
    let mut guest = Guest::new(Vec::new());
    guest.send_from(1, 2, op::RW, 0, b"x");
    guest.expect(op::RST);
    guest.send_from(1, 2, op::RST, 0, b"");
    guest.expect_nothing();
    let (_ours, request) = guest.connect();
    for wrong in [
        Header {
            dst_cid: 7,
            ..Header::default()
        },
        Header {
            kind: 2,
            dst_cid: HOST_CID,
            ..Header::default()
        },
        Header {
            len: 100,
            kind: TYPE_STREAM,
            dst_cid: HOST_CID,
            ..Header::default()
        },
    ] {
        let header = Header {
            src_cid: GUEST_CID,
            src_port: request.dst_port,
            dst_port: request.src_port,
            op: op::RW,
            ..wrong
        };
        guest.send_raw(&header, b"short");
        let (slot, _) = guest.rx.used(&guest.memory).unwrap();
        let mut bytes = [0; HEADER_BYTES];
        guest
            .memory
            .read_slice(&mut bytes, guest.rx.buffer(slot))
            .unwrap();
        assert_eq!(Header::decode(&bytes).op, op::RST);
    }
    // A packet that claims to come from elsewhere gets no answer at all.
    guest.send_raw(&Header::default(), b"");
    guest.expect_nothing();
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new(Vec::new());
    guest.buf_alloc = 1000;
    let (mut ours, request) = guest.connect();
    ours.write_all(&[7; 2500]).unwrap();
    assert_eq!(guest.expect(op::RW).1.len(), 1000);
    guest.expect_nothing();
    guest.fwd_cnt = 600;
    guest.reply(&request, op::CREDIT_UPDATE, 0, b"");
    assert_eq!(guest.expect(op::RW).1.len(), 600);
    guest.expect_nothing();
    // A guest that has taken more than it was sent contradicts itself: it gets nothing.
    guest.fwd_cnt = 5000;
    guest.reply(&request, op::CREDIT_UPDATE, 0, b"");
    guest.expect_nothing();
    guest.fwd_cnt = 1600;
    guest.reply(&request, op::CREDIT_UPDATE, 0, b"");
    assert_eq!(guest.expect(op::RW).1.len(), 900);
}

#[test]
fn the_counters_wrap_around() {
    let mut guest = Guest::new(Vec::new());
    let (mut ours, request) = guest.connect();
    lock(&*guest.device).set_counters(request.src_port, PORT, u32::MAX - 10);
    guest.fwd_cnt = u32::MAX - 10;
    guest.reply(&request, op::CREDIT_UPDATE, 0, b"");
    for round in 0..20u8 {
        ours.write_all(&[round; 7]).unwrap();
        assert_eq!(guest.expect(op::RW).1, [round; 7]);
        guest.fwd_cnt = guest.fwd_cnt.wrapping_add(7);
        guest.reply(&request, op::RW, 0, &[round; 5]);
        assert_eq!(read_available(&mut ours), [round; 5]);
    }
    guest.reply(&request, op::CREDIT_REQUEST, 0, b"");
    let (update, _) = guest.expect(op::CREDIT_UPDATE);
    assert_eq!(update.fwd_cnt, (u32::MAX - 10).wrapping_add(100));
}

#[test]
fn a_slow_reader_is_buffered_up_to_its_credit_and_told_of_new_room() {
    let mut guest = Guest::new(Vec::new());
    let (mut ours, request) = guest.connect();
    let (mut sent, mut credit) = (Vec::new(), BUFFER_BYTES as usize);
    // The socket takes some; then the device's buffer fills up to its credit.
    let mut byte = 0u8;
    while credit >= 4000 {
        let data = vec![byte; 4000];
        guest.reply(&request, op::RW, 0, &data);
        sent.extend(data);
        credit -= 4000;
        byte = byte.wrapping_add(1);
        while let Some((header, _)) = guest.receive() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            credit = BUFFER_BYTES as usize - (sent.len() - header.fwd_cnt as usize);
        }
    }
    let mut received = read_available(&mut ours);
    while received.len() < sent.len() {
        guest.run();
        received.extend(read_available(&mut ours));
    }
    assert!(received == sent);
    let (update, _) = guest.expect(op::CREDIT_UPDATE);
    assert!(BUFFER_BYTES as usize - (sent.len() - update.fwd_cnt as usize) >= BUFFER_BYTES as usize / 2);
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = Guest::new(Vec::new());
    let (_ours, request) = guest.connect();
    for _ in 0..10_000 {
        guest.reply(&request, op::RW, 0, &[1; 4000]);
        if let Some((header, _)) = guest.receive()
            && header.op == op::RST
        {
            return;
        }
    }
    panic!("it was never reset");
}

#[test]
fn a_stalled_reader_stalls_nobody_else() {
    let mut guest = Guest::new(Vec::new());
    let (_stalled, stalled_request) = guest.connect();
    let (mut other, other_request) = guest.connect();
    overfill(&mut guest, &stalled_request);
    for round in 0..100u8 {
        guest.reply(&other_request, op::RW, 0, &[round; 1000]);
        assert_eq!(read_available(&mut other), [round; 1000]);
        other.write_all(&[round; 100]).unwrap();
        let (header, data) = loop {
            let packet = guest.receive().unwrap();
            if packet.0.op == op::RW {
                break packet;
            }
        };
        assert_eq!((header.src_port, data.len()), (other_request.src_port, 100));
        guest.fwd_cnt = guest.fwd_cnt.wrapping_add(100);
    }
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new(Vec::new());
    let (mut first, first_request) = guest.connect();
    let (mut second, second_request) = guest.connect();
    first.write_all(&vec![1; 40_000]).unwrap();
    second.write_all(&vec![2; 40_000]).unwrap();
    let mut turns = Vec::new();
    while let Some((header, _)) = guest.receive() {
        turns.push(header.src_port);
    }
    let longest_row = turns
        .chunk_by(|a, b| a == b)
        .map(<[u32]>::len)
        .take(10)
        .skip(1)
        .max();
    assert!(turns.contains(&first_request.src_port) && turns.contains(&second_request.src_port));
    assert!(longest_row <= Some(12), "{turns:?}");
}

#[test]
fn the_hosts_end_of_stream_reaches_the_guest_after_the_data() {
    let mut guest = Guest::new(Vec::new());
    let (mut ours, request) = guest.connect();
    ours.write_all(b"last").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(op::RW).1, b"last");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    // The other direction is still open.
    guest.reply(&request, op::RW, 0, b"answer");
    assert_eq!(read_available(&mut ours), b"answer");
    guest.reply(&request, op::SHUTDOWN, SHUTDOWN_SEND, b"");
    assert!(is_at_end(&mut ours));
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_BOTH);
    guest.reply(&request, op::RST, 0, b"");
    assert_eq!(guest.connections(), 0);
}

#[test]
fn the_guests_end_of_stream_reaches_the_host_and_the_other_way_stays_open() {
    let mut guest = Guest::new(Vec::new());
    let (mut ours, request) = guest.connect();
    guest.reply(&request, op::RW, 0, b"request");
    guest.reply(&request, op::SHUTDOWN, SHUTDOWN_SEND, b"");
    assert_eq!(read_available(&mut ours), b"request");
    assert!(is_at_end(&mut ours));
    ours.write_all(b"response").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"response");
    drop(ours);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_BOTH);
    guest.reply(&request, op::SHUTDOWN, SHUTDOWN_BOTH, b"");
    guest.expect(op::RST);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn data_after_the_guests_end_of_stream_is_a_violation() {
    let mut guest = Guest::new(Vec::new());
    let (_ours, request) = guest.connect();
    guest.reply(&request, op::SHUTDOWN, SHUTDOWN_SEND, b"");
    guest.reply(&request, op::RW, 0, b"more");
    guest.expect(op::RST);
}

/// Fills the socket and leaves `extra` bytes in the device's buffer; returns all that was sent.
fn overfill(guest: &mut Guest, request: &Header) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut told = 0;
    while sent.len() - told + 4000 <= BUFFER_BYTES as usize {
        let data = vec![sent.len() as u8; 4000];
        guest.reply(request, op::RW, 0, &data);
        sent.extend(data);
        while let Some((header, _)) = guest.receive() {
            told = header.fwd_cnt as usize;
        }
    }
    sent
}

#[test]
fn what_was_sent_before_a_reset_or_a_close_is_still_delivered() {
    for (op, flags) in [(op::RST, 0), (op::SHUTDOWN, SHUTDOWN_BOTH)] {
        let mut guest = Guest::new(Vec::new());
        let (mut ours, request) = guest.connect();
        let sent = overfill(&mut guest, &request);
        guest.reply(&request, op, flags, b"");
        if op == op::SHUTDOWN {
            guest.expect(op::RST);
        }
        guest.expect_nothing();
        let mut received = Vec::new();
        while received.len() < sent.len() {
            received.extend(read_available(&mut ours));
            guest.run();
        }
        assert!(received == sent);
        assert!(is_at_end(&mut ours));
        drop(ours);
        guest.run();
        assert_eq!(guest.connections(), 0);
    }
}

#[test]
fn a_client_that_still_talks_gets_everything_before_the_connection_is_cut() {
    let mut guest = Guest::new(Vec::new());
    let (mut ours, request) = guest.connect();
    guest.reply(&request, op::RW, 0, b"error: go away");
    ours.write_all(b"a long request").unwrap();
    guest.reply(&request, op::SHUTDOWN, SHUTDOWN_BOTH, b"");
    guest.run();
    assert_eq!(read_available(&mut ours), b"error: go away");
    assert_eq!(guest.connections(), 1, "it lingers");
    drop(ours);
    guest.run();
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_host_that_has_gone_away_is_told_to_the_guest() {
    let mut guest = Guest::new(Vec::new());
    let (ours, request) = guest.connect();
    drop(ours);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_BOTH);
    guest.reply(&request, op::RW, 0, b"into the void");
    guest.reply(&request, op::RST, 0, b"");
    assert_eq!(guest.connections(), 0);
}

#[test]
fn the_read_end_of_a_pipe_sends_to_the_guest_only() {
    let mut guest = Guest::new(Vec::new());
    let (reader, mut writer) = io::pipe().unwrap();
    lock(&*guest.device).connect(PORT, b"stdin   ", reader.into());
    let (request, _) = guest.expect(op::REQUEST);
    guest.reply(&request, op::RESPONSE, 0, b"");
    assert_eq!(guest.expect(op::RW).1, b"stdin   ");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_RECEIVE);
    writer.write_all(b"typed").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"typed");
    drop(writer);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_BOTH);
}

#[test]
fn the_writer_of_a_pipe_learns_that_the_guest_reads_no_more() {
    let mut guest = Guest::new(Vec::new());
    let (reader, mut writer) = io::pipe().unwrap();
    lock(&*guest.device).connect(PORT, b"", reader.into());
    let (request, _) = guest.expect(op::REQUEST);
    guest.reply(&request, op::RESPONSE, 0, b"");
    guest.reply(&request, op::SHUTDOWN, SHUTDOWN_BOTH, b"");
    let error = writer.write_all(b"typed").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn the_write_end_of_a_pipe_receives_from_the_guest_only() {
    let mut guest = Guest::new(Vec::new());
    let (mut reader, writer) = io::pipe().unwrap();
    lock(&*guest.device).connect(PORT, b"stdout  ", writer.into());
    let (request, _) = guest.expect(op::REQUEST);
    guest.reply(&request, op::RESPONSE, 0, b"");
    assert_eq!(guest.expect(op::RW).1, b"stdout  ");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.reply(&request, op::RW, 0, b"printed");
    guest.reply(&request, op::SHUTDOWN, SHUTDOWN_BOTH, b"");
    guest.expect(op::RST);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "printed");
    assert_eq!(guest.connections(), 0);
}

#[test]
fn the_guest_learns_that_nobody_reads_a_pipe_any_more() {
    let mut guest = Guest::new(Vec::new());
    let (reader, writer) = io::pipe().unwrap();
    lock(&*guest.device).connect(PORT, b"", writer.into());
    let (request, _) = guest.expect(op::REQUEST);
    guest.reply(&request, op::RESPONSE, 0, b"");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    drop(reader);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_BOTH);
}

#[test]
fn too_many_connections_are_closed_at_once() {
    let mut guest = Guest::new(Vec::new());
    let (keep, theirs) = UnixStream::pair().unwrap();
    for _ in 0..CONNECTIONS_MAX {
        lock(&*guest.device).connect(PORT, b"", theirs.try_clone().unwrap().into());
        guest.receive();
    }
    assert_eq!(guest.connections(), CONNECTIONS_MAX);
    let (mut ours, surplus) = UnixStream::pair().unwrap();
    lock(&*guest.device).connect(PORT, b"", surplus.into());
    assert!(is_at_end(&mut ours));
    assert_eq!(guest.connections(), CONNECTIONS_MAX);
    drop((keep, theirs));
}

/// CVE-2020-16843, a receive queue that stalls for good.
#[test]
fn nothing_is_lost_when_the_guest_gives_no_buffers_for_a_while() {
    let mut guest = Guest::without_driver(Vec::new());
    guest.activate();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"patience").unwrap();
    lock(&*guest.device).connect(PORT, b"", theirs.into());
    guest.expect_nothing();
    guest.rx.add(&guest.memory, BUFFER as u32, WRITE);
    lock(&*guest.device).queue_notified(0);
    let (request, _) = guest.expect(op::REQUEST);
    guest.reply(&request, op::RESPONSE, 0, b"");
    assert_eq!(guest.expect(op::RW).1, b"patience");
}

/// CVE-2019-18960, bounds of the descriptors of packets.
#[test]
fn buffers_too_small_for_header_and_data_are_given_back_empty() {
    let mut guest = Guest::without_driver(Vec::new());
    guest.activate();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    lock(&*guest.device).connect(PORT, b"", theirs.into());
    guest.rx.add(&guest.memory, HEADER_BYTES as u32 - 1, WRITE);
    guest.rx.add(&guest.memory, HEADER_BYTES as u32, WRITE);
    guest.rx.add(&guest.memory, 0, WRITE);
    guest.rx.add(&guest.memory, BUFFER as u32, 0);
    guest.rx.add(&guest.memory, BUFFER as u32, WRITE);
    lock(&*guest.device).queue_notified(0);
    for _ in 0..4 {
        assert_eq!(guest.rx.used(&guest.memory).unwrap().1, 0);
    }
    guest.expect(op::REQUEST);
}

#[test]
fn the_last_packets_before_the_end_of_the_guest_are_delivered() {
    let mut guest = Guest::new(Vec::new());
    let (mut ours, request) = guest.connect();
    let sent = overfill(&mut guest, &request);
    // One more is in the queue, not yet seen by the device, when the guest resets itself.
    let reader = std::thread::spawn(move || {
        ours.set_nonblocking(false).unwrap();
        let mut received = Vec::new();
        ours.read_to_end(&mut received).unwrap();
        received
    });
    lock(&*guest.device).finish(Instant::now() + Duration::from_secs(20));
    drop(guest);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn the_end_of_the_guest_waits_no_longer_than_its_deadline() {
    let mut guest = Guest::new(Vec::new());
    let (_ours, request) = guest.connect();
    overfill(&mut guest, &request);
    lock(&*guest.device).finish(Instant::now());
}
