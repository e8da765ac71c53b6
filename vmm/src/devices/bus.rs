//! Finds the device that owns a port or a memory-mapped register. What nobody owns reads as all ones and ignores
//! writes, as on a real bus.

use std::{
    ops::ControlFlow,
    sync::{Mutex, MutexGuard},
};

use super::{
    i8042::KeyboardController,
    serial::{SerialPort, SerialPortState},
    virtio::mmio::{MmioTransport, RestoreError, TransportState},
};
use crate::{
    layout::{VIRTIO_MMIO, VIRTIO_MMIO_BYTES},
    lock::lock,
};

/// Ports of the first serial port.
const SERIAL_FIRST: u16 = 0x3f8;
const SERIAL_LAST: u16 = 0x3ff;
/// Data and command ports of the keyboard controller.
const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_COMMAND: u16 = 0x64;

/// All registers of the machine that are emulated here rather than in KVM.
#[derive(Debug)]
pub struct Bus {
    serial: Mutex<SerialPort>,
    keyboard: KeyboardController,
    transports: Vec<Mutex<MmioTransport>>,
}

impl Bus {
    /// A bus with these devices; the transports are at [`VIRTIO_MMIO`], a page each, in order.
    pub fn new(serial: SerialPort, transports: Vec<MmioTransport>) -> Self {
        Self {
            serial: Mutex::new(serial),
            keyboard: KeyboardController,
            transports: transports.into_iter().map(Mutex::new).collect(),
        }
    }

    /// Answers a read of `port`.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        // Each of these registers is one byte wide.
        if let [byte] = data {
            match port {
                SERIAL_FIRST..=SERIAL_LAST => *byte = lock(&self.serial).read((port - SERIAL_FIRST) as u8),
                KEYBOARD_DATA | KEYBOARD_COMMAND => *byte = self.keyboard.read(),
                _ => {}
            }
        }
    }

    /// Carries out a write to `port`. `Break` when it resets the machine.
    pub fn port_write(&self, port: u16, data: &[u8]) -> ControlFlow<()> {
        match (port, data) {
            (SERIAL_FIRST..=SERIAL_LAST, &[byte]) => {
                lock(&self.serial).write((port - SERIAL_FIRST) as u8, byte);
                ControlFlow::Continue(())
            }
            (KEYBOARD_COMMAND, &[command]) => self.keyboard.command(command),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Answers a read of the register at `address`.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((mut transport, offset)) = self.transport(address) {
            transport.read(offset, data);
        }
    }

    /// Carries out a write to the register at `address`.
    pub fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some((mut transport, offset)) = self.transport(address) {
            transport.write(offset, data);
        }
    }

    /// The registers of all devices. Nobody works on any of them meanwhile.
    pub fn save(&self) -> (SerialPortState, Vec<TransportState>) {
        self.flush_console();
        let transports = self
            .transports
            .iter()
            .map(|transport| lock(transport).save())
            .collect();
        (lock(&self.serial).save(), transports)
    }

    /// Gives the virtio devices the registers of saved ones, see [`MmioTransport::restore`].
    ///
    /// # Errors
    /// [`RestoreError`], also when there were more or fewer.
    pub fn restore_transports(&self, states: &[TransportState]) -> Result<(), RestoreError> {
        if states.len() != self.transports.len() {
            return Err(RestoreError::Queues);
        }
        self.transports
            .iter()
            .zip(states)
            .try_for_each(|(transport, state)| lock(transport).restore(state))
    }

    /// Writes out what the kernel has printed of its last line.
    pub fn flush_console(&self) {
        lock(&self.serial).flush();
    }

    fn transport(&self, address: u64) -> Option<(MutexGuard<'_, MmioTransport>, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO)?;
        let transport = self
            .transports
            .get(usize::try_from(offset / VIRTIO_MMIO_BYTES).ok()?)?;
        Some((lock(transport), offset % VIRTIO_MMIO_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    fn bus() -> (Bus, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        let serial = SerialPort::new(EventFd::new(EFD_NONBLOCK).unwrap(), writer.into());
        (Bus::new(serial, Vec::new()), reader)
    }

    #[test]
    fn what_nobody_owns_reads_as_all_ones() {
        let (bus, _console) = bus();
        let mut data = [0; 4];
        bus.port_read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        for address in [0, VIRTIO_MMIO, u64::MAX] {
            data = [0; 4];
            bus.memory_read(address, &mut data);
            assert_eq!(data, [0xff; 4]);
            bus.memory_write(address, &data);
        }
    }

    #[test]
    fn the_keyboard_controller_resets_the_machine() {
        let (bus, _console) = bus();
        let mut status = [0xff];
        bus.port_read(0x64, &mut status);
        assert_eq!(status, [0]);
        assert!(bus.port_write(0x64, &[0xd4]).is_continue());
        assert!(bus.port_write(0x60, &[0xfe]).is_continue());
        assert!(bus.port_write(0x64, &[0xfe]).is_break());
    }

    #[test]
    fn what_the_guest_prints_reaches_the_console() {
        use std::io::Read;
        let (bus, mut console) = bus();
        for byte in b"hello" {
            assert!(bus.port_write(0x3f8, &[*byte]).is_continue());
        }
        bus.flush_console();
        drop(bus);
        let mut text = String::new();
        console.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
