//! Accesses to any port and any register, of any width: the serial port, the keyboard controller, the registers of a device of
//! each kind, and what nobody owns. The serial port holds no more input than it has room for.
#![no_main]

mod common;

use std::fs::File;

use brig_vmm::{
    devices::{
        bus::Bus,
        serial::SerialPort,
        virtio::{
            block::{Block, Disk},
            entropy::Entropy,
            vsock::Vsock,
        },
    },
    layout::VIRTIO_MMIO,
};
use common::{Guest, Input};
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most bytes of a saved serial port: its registers, and 64 bytes of input.
const SERIAL_BYTES_MAX: usize = 16 + 2 * 64;

fuzz_target!(|bytes: &[u8]| {
    let log = File::options().write(true).open("/dev/null").expect("/dev/null");
    let interrupt = EventFd::new(EFD_NONBLOCK).expect("an event");
    let disk = Guest::new(|_| Block::new(Disk::empty_slot()));
    let vsock = Guest::new(|events| Vsock::new(events.streams_of_next(), []));
    let entropy = Guest::new(|_| Entropy::default());
    let transports = vec![disk.transport, vsock.transport, entropy.transport];
    let bus = Bus::new(SerialPort::new(interrupt, log.into()), transports);
    let mut input = Input(bytes);
    while !input.is_empty() {
        let kind = input.u8();
        let port = match kind >> 4 & 3 {
            0 => input.u16(),
            1 => 0x60 + u16::from(input.u8() % 8),
            _ => 0x3f8 + u16::from(input.u8() % 8),
        };
        let address = match kind >> 6 {
            0 => input.number(),
            _ => VIRTIO_MMIO + u64::from(input.u16() % 0x4000),
        };
        let mut data = [0; 8];
        let width = [1, 2, 4, 8][usize::from(kind >> 2 & 3)];
        match kind & 3 {
            0 => bus.port_read(port, &mut data[..width]),
            1 => {
                data[..4].copy_from_slice(&input.u32().to_le_bytes());
                let _ = bus.port_write(port, &data[..width]);
            }
            2 => bus.memory_read(address, &mut data[..width]),
            _ => {
                data[..4].copy_from_slice(&input.u32().to_le_bytes());
                bus.memory_write(address, &data[..width]);
            }
        }
    }
    let (serial, _) = bus.save();
    let saved = postcard::to_stdvec(&serial).expect("a state");
    assert!(saved.len() <= SERIAL_BYTES_MAX, "{} bytes", saved.len());
});
