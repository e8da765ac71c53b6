//! Connections between a host and a guest that keep to the shape of packets and to nothing else. What each side reads is what the
//! other has written, in order; and no more goes to the guest than it has room for.
#![no_main]

mod common;

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use brig_vmm::{
    devices::virtio::vsock::{
        FIRST_LOCAL_PORT, HOST_CID, Vsock,
        packet::{HEADER_BYTES, Header, TYPE_STREAM, op},
    },
    lock::lock,
};
use common::{Guest, Input, MEMORY_BYTES, QUEUE_BYTES, QUEUES, RING_BYTES};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const RX: u64 = 0;
const TX: u64 = 1;
const SIZE: u16 = 16;
const GUEST_CID: u64 = 3;
const GUEST_PORT: u32 = 99;
const PREFIX: &[u8] = b"prefix!!";

/// Buffers of the two queues, a page each.
const BUFFERS: u64 = 0x8_0000;
const BUFFER_BYTES: u64 = 4096;
const _: () = assert!(BUFFERS + 2 * SIZE as u64 * BUFFER_BYTES <= MEMORY_BYTES);

/// The byte at `position` of a stream.
fn pattern(port: u32, position: u64) -> u8 {
    (position as u32).wrapping_mul(31).wrapping_add(port) as u8
}

/// The driver's side of one queue.
#[derive(Default)]
struct Ring {
    added: u16,
    seen: u16,
}

/// What the guest and the host know of one connection.
struct End {
    /// The host's, until it is closed.
    socket: Option<UnixStream>,
    /// Bytes that were written by the host, and those of them that the guest has read; the prefix counts.
    written: u64,
    arrived: u64,
    /// Bytes that the guest has sent, and those of them that the host has read.
    sent: u64,
    read: u64,
    /// The guest's credit as it said last, and before that.
    credit: [(u32, u32); 2],
}

struct World {
    guest: Guest<Vsock>,
    rx: Ring,
    tx: Ring,
    ends: HashMap<u32, End>,
    next_port: u32,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            guest: Guest::new(|events| Vsock::new(events.streams_of_next(), [])),
            rx: Ring::default(),
            tx: Ring::default(),
            ends: HashMap::new(),
            next_port: FIRST_LOCAL_PORT,
        };
        world.load_driver();
        world
    }

    fn load_driver(&mut self) {
        for queue in [RX, TX] {
            let base = QUEUES + queue * QUEUE_BYTES;
            self.guest.store(base, &[0; QUEUE_BYTES as usize]);
        }
        (self.rx, self.tx) = (Ring::default(), Ring::default());
        self.guest.set_up(1 << 32, u32::from(SIZE));
    }

    fn add(&mut self, queue: u64, bytes: u32) -> u64 {
        let ring = if queue == RX { &mut self.rx } else { &mut self.tx };
        let base = QUEUES + queue * QUEUE_BYTES;
        let slot = u64::from(ring.added % SIZE);
        let buffer = BUFFERS + (queue * u64::from(SIZE) + slot) * BUFFER_BYTES;
        let flags: u16 = if queue == RX { 2 } else { 0 };
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&buffer.to_le_bytes());
        descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        ring.added = ring.added.wrapping_add(1);
        let added = ring.added;
        self.guest.store(base + 16 * slot, &descriptor);
        self.guest
            .store(base + RING_BYTES + 4 + 2 * slot, &(slot as u16).to_le_bytes());
        self.guest.store(base + RING_BYTES + 2, &added.to_le_bytes());
        buffer
    }

    /// The next buffer that the device has used: its address, and the bytes in it.
    fn used(&mut self, queue: u64) -> Option<(u64, u32)> {
        let used = QUEUES + queue * QUEUE_BYTES + 2 * RING_BYTES;
        let ring = if queue == RX { &mut self.rx } else { &mut self.tx };
        let memory = &self.guest.memory;
        let index: u16 = memory.read_obj(GuestAddress(used + 2)).expect("memory");
        if index == ring.seen {
            return None;
        }
        let entry = used + 4 + 8 * u64::from(ring.seen % SIZE);
        ring.seen = ring.seen.wrapping_add(1);
        let slot: u32 = memory.read_obj(GuestAddress(entry)).expect("memory");
        let bytes: u32 = memory.read_obj(GuestAddress(entry + 4)).expect("memory");
        assert!(slot < u32::from(SIZE), "a buffer is given back that there is not");
        let buffer = BUFFERS + (queue * u64::from(SIZE) + u64::from(slot)) * BUFFER_BYTES;
        Some((buffer, bytes))
    }

    /// Serves the device and takes everything that it says.
    fn settle(&mut self) {
        self.guest.serve();
        while self.used(TX).is_some() {}
        while let Some((buffer, bytes)) = self.used(RX) {
            let mut packet = vec![0; bytes as usize];
            self.guest
                .memory
                .read_slice(&mut packet, GuestAddress(buffer))
                .expect("within the buffer");
            if let Some((header, data)) = packet.split_first_chunk::<HEADER_BYTES>() {
                self.hear(&Header::decode(header), data);
            }
        }
    }

    /// A packet for the guest.
    fn hear(&mut self, header: &Header, data: &[u8]) {
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
        assert_eq!(header.len as usize, data.len());
        let port = header.src_port;
        let Some(end) = self.ends.get_mut(&port) else {
            assert_eq!(
                header.op,
                op::RST,
                "the device speaks of a connection that there is not"
            );
            return;
        };
        if header.op != op::RW {
            return;
        }
        for &byte in data {
            let expected = match PREFIX.get(end.arrived as usize) {
                Some(&byte) => byte,
                None => pattern(port, end.arrived),
            };
            assert_eq!(byte, expected, "byte {} to the guest", end.arrived);
            end.arrived += 1;
        }
        assert!(end.arrived <= end.written, "bytes that nobody has written");
        let fits = |(buf_alloc, fwd_cnt): (u32, u32)| (end.arrived as u32).wrapping_sub(fwd_cnt) <= buf_alloc;
        assert!(
            end.credit.into_iter().any(fits),
            "more than the guest has room for"
        );
    }

    fn connect(&mut self) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        ours.set_nonblocking(true).expect("a socket");
        lock(&*self.guest.device).connect(GUEST_PORT, PREFIX, theirs.into());
        let end = End {
            socket: Some(ours),
            written: PREFIX.len() as u64,
            arrived: 0,
            sent: 0,
            read: 0,
            credit: [(0, 0); 2],
        };
        self.ends.insert(self.next_port, end);
        self.next_port += 1;
    }

    fn send(&mut self, port: u32, input: &mut Input<'_>) {
        // One packet at a time, and all that came before has been heard.
        self.settle();
        if self.tx.added.wrapping_sub(self.tx.seen) >= SIZE {
            return;
        }
        let operation = match input.u8() % 10 {
            0..=4 => op::RW,
            number => u16::from(number) - 3,
        };
        let bytes = if operation == op::RW {
            u32::from(input.u16() % 4000)
        } else {
            0
        };
        let Some(end) = self.ends.get_mut(&port) else {
            return;
        };
        let fwd_cnt = match input.u8() % 4 {
            0 => input.u32(),
            _ => end.arrived as u32,
        };
        let buf_alloc = match input.u8() % 4 {
            0 => input.u32(),
            1 => u32::from(input.u8()),
            _ => 1 << 16,
        };
        end.credit = [(buf_alloc, fwd_cnt), end.credit[0]];
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: GUEST_PORT,
            dst_port: port,
            len: bytes,
            kind: TYPE_STREAM,
            op: operation,
            flags: u32::from(input.u8() % 4),
            buf_alloc,
            fwd_cnt,
        };
        let data: Vec<u8> = (end.sent..)
            .take(bytes as usize)
            .map(|at| pattern(port, at))
            .collect();
        // Should the device refuse them, the connection is over, and it does not matter what comes next.
        end.sent += u64::from(bytes);
        let buffer = self.add(TX, HEADER_BYTES as u32 + bytes);
        self.guest.store(buffer, &header.encode());
        self.guest.store(buffer + HEADER_BYTES as u64, &data);
        self.guest.notify(TX as usize);
        self.settle();
    }

    fn write(&mut self, port: u32, bytes: u64) {
        let Some(end) = self.ends.get_mut(&port) else {
            return;
        };
        let data: Vec<u8> = (end.written..)
            .take(bytes as usize)
            .map(|at| pattern(port, at))
            .collect();
        if let Some(written) = end.socket.as_mut().and_then(|socket| socket.write(&data).ok()) {
            end.written += written as u64;
        }
    }

    fn read(&mut self, port: u32, bytes: usize) {
        let Some(end) = self.ends.get_mut(&port) else {
            return;
        };
        let mut data = vec![0; bytes];
        let Some(read) = end.socket.as_mut().and_then(|socket| socket.read(&mut data).ok()) else {
            return;
        };
        for &byte in &data[..read] {
            assert_eq!(byte, pattern(port, end.read), "byte {} to the host", end.read);
            end.read += 1;
        }
        assert!(end.read <= end.sent, "bytes that the guest has not sent");
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let ports = self.next_port - FIRST_LOCAL_PORT;
        let kind = input.u8() % 12;
        let port = FIRST_LOCAL_PORT + u32::from(input.u8()) % ports.max(1);
        match kind {
            0 if ports < 8 => self.connect(),
            1..=4 => self.send(port, input),
            5 => self.write(port, u64::from(input.u16())),
            6 => self.read(port, usize::from(input.u16())),
            7 => {
                let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(input.u8() % 3)];
                if let Some(socket) = self.ends.get(&port).and_then(|end| end.socket.as_ref()) {
                    let _ = socket.shutdown(how);
                }
            }
            8 => {
                if let Some(end) = self.ends.get_mut(&port) {
                    end.socket = None;
                }
            }
            9 | 10 => {
                for _ in 0..input.u8() % SIZE as u8 {
                    if self.rx.added.wrapping_sub(self.rx.seen) < SIZE {
                        self.add(RX, u32::from(input.u16()) % (BUFFER_BYTES as u32 + 1));
                    }
                }
                self.guest.notify(RX as usize);
            }
            _ => {
                self.settle();
                self.load_driver();
            }
        }
        self.settle();
    }
}

fuzz_target!(|bytes: &[u8]| {
    common::ignore_broken_pipes();
    let mut world = World::new();
    let mut input = Input(bytes);
    while !input.is_empty() {
        world.step(&mut input);
    }
});
