//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): the registers through which a driver negotiates with
//! a device.
//!
//! Until `DRIVER_OK` the driver may change queues and features; at `DRIVER_OK` the queues are checked and handed to the
//! device, and from then on all of it is frozen until the driver resets the device. A number that makes no sense is
//! ignored, as a write to a read-only register is; a queue that makes no sense sets `DEVICE_NEEDS_RESET`.

use std::{fmt, sync::Arc};

use virtio_queue::{Queue, QueueT};

use super::{Activation, F_EVENT_IDX, F_VERSION_1, SharedDevice, interrupt::Interrupt, lock};
use crate::memory::Memory;

/// "virt" in little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Any number that is not zero says that the device exists.
const VENDOR: u32 = 0x4749_5242; // "BRIG"

/// Register offsets.
const MAGIC_VALUE: u64 = 0x000;
const DEVICE_VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
/// Writes of a queue's number here notify the device; KVM turns them into an event of their own.
pub const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_LEN_HIGH: u64 = 0x0b4;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

/// Device status bits (section 2.1), in the order in which a driver sets them.
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
const DEVICE_NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// The registers of one device.
pub struct MmioTransport {
    device: SharedDevice,
    device_type: u32,
    offered: u64,
    memory: Arc<Memory>,
    interrupt: Arc<Interrupt>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    accepted: u64,
    queue_select: u32,
    queues: Vec<Queue>,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_type", &self.device_type)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Registers for `device`, which raises `interrupt` and works on `memory`.
    ///
    /// # Errors
    /// When the device asks for a queue size that is no power of two.
    pub fn new(
        device: SharedDevice,
        memory: Arc<Memory>,
        interrupt: Arc<Interrupt>,
    ) -> Result<Self, virtio_queue::Error> {
        let (device_type, offered, queues) = {
            let device = lock(&*device);
            let queues = device
                .queue_sizes()
                .iter()
                .map(|&size| Queue::new(size))
                .collect::<Result<_, _>>()?;
            (device.device_type(), device.features(), queues)
        };
        Ok(Self {
            device,
            device_type,
            offered,
            memory,
            interrupt,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            accepted: 0,
            queue_select: 0,
            queues,
        })
    }

    /// Answers a read at `offset`. A read that is not one aligned word of a register leaves `data` as it is.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            lock(&*self.device).read_config(offset - CONFIG, data);
        } else if let (Ok(word), 0) = (<&mut [u8; 4]>::try_from(data), offset % 4) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue_select as usize);
        match offset {
            MAGIC_VALUE => MAGIC,
            DEVICE_VERSION => VERSION,
            DEVICE_ID => self.device_type,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.offered, self.device_features_select),
            QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            QUEUE_READY => queue.is_some_and(QueueT::ready).into(),
            INTERRUPT_STATUS => self.interrupt.status(),
            STATUS => self.status,
            // All ones: there is no shared memory region of that number.
            SHM_LEN_LOW | SHM_LEN_HIGH => u32::MAX,
            // The configuration of these devices never changes.
            CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// Carries out a write at `offset`. No device here has a writable configuration, so only aligned words count.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_select = value,
            DRIVER_FEATURES_SEL => self.driver_features_select = value,
            DRIVER_FEATURES => self.accept_features(value),
            QUEUE_SEL => self.queue_select = value,
            QUEUE_SIZE | QUEUE_READY | QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH => self.configure_queue(offset, value),
            // Reached only where KVM has no event for it.
            QUEUE_NOTIFY => lock(&*self.device).queue_notified(value as usize),
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            STATUS => self.set_status(value),
            _ => {}
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            return;
        }
        let shift = match self.driver_features_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.accepted = self.accepted & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
    }

    fn configure_queue(&mut self, offset: u64, value: u32) {
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else {
            return;
        };
        if offset == QUEUE_READY {
            queue.set_ready(value == 1);
            return;
        }
        if queue.ready() {
            return;
        }
        match offset {
            // Refuses what is no power of two or over the maximum; the size then stays as it was.
            QUEUE_SIZE => queue.set_size(u16::try_from(value).unwrap_or(0)),
            QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let old = self.status;
        if value & FAILED != 0 {
            self.status |= FAILED;
            return;
        }
        // The driver sets one bit after the other and takes none back; DEVICE_NEEDS_RESET is not its to set.
        match (old & !DEVICE_NEEDS_RESET, value & !DEVICE_NEEDS_RESET & !old) {
            (0, ACKNOWLEDGE) => self.status |= ACKNOWLEDGE,
            (ACKNOWLEDGE, DRIVER) => self.status |= DRIVER,
            (0, bits) if bits == ACKNOWLEDGE | DRIVER => self.status |= bits,
            (bits, FEATURES_OK) if bits == ACKNOWLEDGE | DRIVER && self.features_are_acceptable() => {
                self.status |= FEATURES_OK;
            }
            (bits, DRIVER_OK) if bits == ACKNOWLEDGE | DRIVER | FEATURES_OK => self.activate(),
            _ => {}
        }
    }

    fn features_are_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        self.status |= DRIVER_OK;
        for queue in &mut self.queues {
            queue.set_event_idx(self.accepted & F_EVENT_IDX != 0);
        }
        // Checks alignment and that all three rings lie in the guest's memory.
        if !self.queues.iter().all(|queue| queue.is_valid(&*self.memory)) {
            self.status |= DEVICE_NEEDS_RESET;
            self.interrupt.signal_configuration();
            return;
        }
        let queues = self.queues.iter().map(|queue| Queue::try_from(queue.state())).collect();
        let Ok(queues) = queues else {
            self.status |= DEVICE_NEEDS_RESET;
            self.interrupt.signal_configuration();
            return;
        };
        lock(&*self.device).activate(Activation {
            memory: Arc::clone(&self.memory),
            queues,
            interrupt: Arc::clone(&self.interrupt),
        });
    }

    fn reset(&mut self) {
        lock(&*self.device).reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        self.interrupt.acknowledge(u32::MAX);
        self.status = 0;
        self.accepted = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
    }
}

/// The lower or upper half of a feature word, as the selector says; other halves are empty.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
