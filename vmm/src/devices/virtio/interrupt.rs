//! How a device tells its driver that something has happened: the interrupt status register, which every thread of the
//! device may set, and the interrupt line.

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::Memory;

/// Bits of the `InterruptStatus` register (virtio 1.2, 4.2.2).
const USED_BUFFERS: u32 = 1;
const CONFIGURATION: u32 = 2;

/// The bits of an interrupt that its driver has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptState(u32);

/// The interrupt of one device.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    event: EventFd,
}

impl Interrupt {
    /// An interrupt that is not pending.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    /// What raises the interrupt line when it is written to; KVM reads it.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// A write to the `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Tells the driver that `queue` has used buffers, unless it asked not to be told yet.
    pub fn signal_used(&self, queue: &mut Queue, memory: &Memory) {
        // When its wish cannot be read, telling it is the safe side.
        if queue.needs_notification(memory).unwrap_or(true) {
            self.raise(USED_BUFFERS);
        }
    }

    /// Tells the driver that the configuration or the status has changed.
    pub fn signal_configuration(&self) {
        self.raise(CONFIGURATION);
    }

    /// What is pending.
    pub fn save(&self) -> InterruptState {
        InterruptState(self.status())
    }

    /// Makes pending what was; the line is raised once more, should the first time have been lost with the guest that was
    /// saved.
    pub fn restore(&self, state: InterruptState) {
        let bits = state.0 & (USED_BUFFERS | CONFIGURATION);
        if bits != 0 {
            self.raise(bits);
        }
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
        // It fails only when 2^64 - 2 interrupts are pending.
        let _ = self.event.write(1);
    }
}
