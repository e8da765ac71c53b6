//! A driver of the socket device that does what it likes with registers, queues, packets and memory, while the host connects, reads,
//! writes and closes.
#![no_main]

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use brig_vmm::{
    devices::virtio::vsock::{
        HOST_CID, Vsock,
        packet::{HEADER_BYTES, Header, TYPE_STREAM},
    },
    lock::lock,
};
use common::{Guest, Input};
use libfuzzer_sys::fuzz_target;

/// The host's ports that there are: two with listeners, and the first that the device takes for a connection of its own.
const HOST_PORTS: [u32; 4] = [1024, 1025, 1 << 30, (1 << 30) + 1];
const GUEST_PORT: u32 = 99;
const GUEST_CID: u64 = 3;

/// Where the packets are.
const PACKETS: u64 = 0x4_0000;

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    (ours, theirs)
}

fuzz_target!(|bytes: &[u8]| {
    common::ignore_broken_pipes();
    let mut ends = Vec::new();
    let mut listeners = Vec::new();
    for port in [1024, 1025] {
        let (ours, theirs) = pair();
        ends.push(ours);
        listeners.push((port, theirs.into()));
    }
    let mut guest = Guest::new(|events| Vsock::new(events.streams_of_next(), listeners));
    let mut input = Input(bytes);
    let mut buffer = [0; 4096];
    while !input.is_empty() {
        match input.u8() % 8 {
            0 => {
                let (ours, theirs) = pair();
                if ends.len() < 16 {
                    ends.push(ours);
                }
                let prefix = input.bytes(8);
                lock(&*guest.device).connect(GUEST_PORT, prefix, theirs.into());
            }
            1 => {
                let which = usize::from(input.u8()) % ends.len().max(1);
                let bytes = usize::from(input.u16()) % buffer.len();
                if let Some(mut end) = ends.get(which) {
                    let _ = end.write(&buffer[..bytes]);
                }
            }
            2 => {
                let which = usize::from(input.u8()) % ends.len().max(1);
                if let Some(mut end) = ends.get(which) {
                    let _ = end.read(&mut buffer);
                }
            }
            3 if !ends.is_empty() => drop(ends.swap_remove(usize::from(input.u8()) % ends.len())),
            4 | 5 => {
                // A packet that is well formed lies where a chain may find it.
                let slot = u64::from(input.u8() % 16);
                let header = Header {
                    src_cid: GUEST_CID,
                    dst_cid: HOST_CID,
                    src_port: GUEST_PORT,
                    dst_port: HOST_PORTS[usize::from(input.u8() % 4)],
                    len: input.number() as u32,
                    kind: TYPE_STREAM,
                    op: u16::from(input.u8() % 9),
                    flags: u32::from(input.u8()),
                    buf_alloc: input.number() as u32,
                    fwd_cnt: input.number() as u32,
                };
                guest.store(PACKETS + slot * HEADER_BYTES as u64, &header.encode());
            }
            _ => guest.step(&mut input),
        }
    }
    guest.serve();
});
