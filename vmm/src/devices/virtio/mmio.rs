//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): the registers through which a driver negotiates with
//! a device.
//!
//! Until `DRIVER_OK` the driver may change queues and features; at `DRIVER_OK` the queues are checked and handed to the
//! device, and from then on all of it is frozen until the driver resets the device. A number that makes no sense is
//! ignored, as a write to a read-only register is; a queue that makes no sense sets `DEVICE_NEEDS_RESET`.

mod state;

use std::{fmt, sync::Arc};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

pub use self::state::{RestoreError, TransportState};
use super::{Activation, F_EVENT_IDX, F_VERSION_1, SharedDevice, interrupt::Interrupt, wakers::Wakers};
use crate::{lock::lock, memory::Memory};

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
    /// All work on queues is done on the device's thread.
    wakers: Arc<Wakers>,
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
    /// Registers for `device`, which raises `interrupt` and works on `memory`. A write to one of `notifications`, which are as
    /// many as it has queues, has its thread look into that queue.
    ///
    /// # Errors
    /// When the device asks for a queue size that is no power of two.
    pub fn new(
        device: SharedDevice,
        memory: Arc<Memory>,
        interrupt: Arc<Interrupt>,
        notifications: Vec<EventFd>,
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
            wakers: Arc::new(Wakers::new(notifications)),
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
            QUEUE_SIZE | QUEUE_READY | QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH => {
                self.configure_queue(offset, value);
            }
            // Reached only where KVM has no event for it: not for a queue that exists.
            QUEUE_NOTIFY => self.wakers.wake(value as usize),
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
        let queues = self
            .queues
            .iter()
            .map(|queue| Queue::try_from(queue.state()))
            .collect();
        let Ok(queues) = queues else {
            self.status |= DEVICE_NEEDS_RESET;
            self.interrupt.signal_configuration();
            return;
        };
        lock(&*self.device).activate(Activation {
            memory: Arc::clone(&self.memory),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            wakers: Arc::clone(&self.wakers),
        });
        // A device that has just become active does not know what is in its queues.
        self.wakers.wake_all();
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::{
        devices::virtio::{F_COMMON, VirtioDevice},
        memory,
    };

    /// A device that only remembers what it was told.
    #[derive(Default)]
    struct Recorder {
        active: Option<Activation>,
        resets: usize,
    }

    impl VirtioDevice for Recorder {
        fn device_type(&self) -> u32 {
            42
        }

        fn features(&self) -> u64 {
            F_COMMON | 1
        }

        fn queue_sizes(&self) -> &'static [u16] {
            &[16, 8]
        }

        fn read_config(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn active(&mut self) -> &mut Option<Activation> {
            &mut self.active
        }

        fn reset(&mut self) {
            self.active = None;
            self.resets += 1;
        }

        fn queue_notified(&mut self, _queue: usize) {}
    }

    struct Driver {
        transport: MmioTransport,
        device: Arc<Mutex<Recorder>>,
        woken: Vec<EventFd>,
    }

    impl Driver {
        fn new() -> Self {
            let device = Arc::new(Mutex::new(Recorder::default()));
            let memory = memory::create(1 << 20).unwrap();
            let interrupt = Arc::new(Interrupt::new().unwrap());
            let notifications: Vec<_> = (0..2).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
            let woken = notifications
                .iter()
                .map(|event| event.try_clone().unwrap())
                .collect();
            let transport = MmioTransport::new(device.clone(), memory, interrupt, notifications).unwrap();
            Self {
                transport,
                device,
                woken,
            }
        }

        fn read(&mut self, offset: u64) -> u32 {
            let mut word = [0; 4];
            self.transport.read(offset, &mut word);
            u32::from_le_bytes(word)
        }

        fn write(&mut self, offset: u64, value: u32) {
            self.transport.write(offset, &value.to_le_bytes());
        }

        /// The queues for which the device's thread has been woken since the last call.
        fn woken(&self) -> Vec<bool> {
            self.woken.iter().map(|event| event.read().is_ok()).collect()
        }

        fn negotiate(&mut self, features: u64) {
            self.write(STATUS, ACKNOWLEDGE);
            self.write(STATUS, ACKNOWLEDGE | DRIVER);
            for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
                self.write(DRIVER_FEATURES_SEL, select);
                self.write(DRIVER_FEATURES, half);
            }
            self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        }

        fn set_up_queue(&mut self, queue: u32, address: u32) {
            self.write(QUEUE_SEL, queue);
            self.write(QUEUE_SIZE, 8);
            self.write(QUEUE_DESC_LOW, address);
            self.write(QUEUE_DRIVER_LOW, address + 0x1000);
            self.write(QUEUE_DEVICE_LOW, address + 0x2000);
            self.write(QUEUE_READY, 1);
        }

        fn finish(&mut self) {
            self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        }

        fn is_active(&self) -> bool {
            lock(&*self.device).active.is_some()
        }
    }

    #[test]
    fn a_driver_that_keeps_the_order_gets_its_device() {
        let mut driver = Driver::new();
        assert_eq!(driver.read(MAGIC_VALUE), MAGIC);
        assert_eq!(driver.read(DEVICE_VERSION), 2);
        assert_eq!(driver.read(DEVICE_ID), 42);
        driver.write(DEVICE_FEATURES_SEL, 1);
        assert_eq!(driver.read(DEVICE_FEATURES), 1);
        driver.write(DEVICE_FEATURES_SEL, 2);
        assert_eq!(driver.read(DEVICE_FEATURES), 0);
        driver.negotiate(F_COMMON);
        assert_eq!(driver.read(STATUS) & FEATURES_OK, FEATURES_OK);
        driver.set_up_queue(0, 0x1_0000);
        driver.set_up_queue(1, 0x2_0000);
        assert_eq!(driver.read(QUEUE_READY), 1);
        assert_eq!(driver.woken(), [false, false]);
        driver.finish();
        assert_eq!(driver.woken(), [true, true]);
        let device = lock(&*driver.device);
        let queues = &device.active.as_ref().unwrap().queues;
        assert_eq!(
            (queues[0].desc_table(), queues[1].used_ring()),
            (0x1_0000, 0x2_2000)
        );
        assert!(queues[0].event_idx_enabled());
    }

    #[test]
    fn a_notification_of_a_queue_that_does_not_exist_wakes_nobody() {
        let mut driver = Driver::new();
        for queue in [2, 7, u32::MAX] {
            driver.write(QUEUE_NOTIFY, queue);
        }
        assert_eq!(driver.woken(), [false, false]);
        driver.write(QUEUE_NOTIFY, 1);
        assert_eq!(driver.woken(), [false, true]);
    }

    #[test]
    fn steps_out_of_order_are_ignored() {
        let mut driver = Driver::new();
        for early in [DRIVER, FEATURES_OK, DRIVER_OK, DEVICE_NEEDS_RESET] {
            driver.write(STATUS, early);
            assert_eq!(driver.read(STATUS), 0);
        }
        driver.write(STATUS, ACKNOWLEDGE);
        driver.write(STATUS, ACKNOWLEDGE | FEATURES_OK);
        driver.finish();
        assert_eq!(driver.read(STATUS), ACKNOWLEDGE);
        driver.set_up_queue(0, 0x1_0000);
        assert_eq!(driver.read(QUEUE_READY), 0);
        assert!(!driver.is_active());
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        for features in [F_COMMON | 1 << 40, F_COMMON & !F_VERSION_1, 0] {
            let mut driver = Driver::new();
            driver.negotiate(features);
            assert_eq!(driver.read(STATUS), ACKNOWLEDGE | DRIVER);
        }
    }

    /// CVE-2026-5747, queue registers changed after activation.
    #[test]
    fn queues_and_features_are_frozen_while_the_device_is_active() {
        let mut driver = Driver::new();
        driver.negotiate(F_COMMON);
        driver.set_up_queue(0, 0x1_0000);
        driver.set_up_queue(1, 0x2_0000);
        driver.finish();
        driver.write(QUEUE_READY, 0);
        assert_eq!(driver.read(QUEUE_READY), 1);
        driver.set_up_queue(1, 0x3_0000);
        driver.write(DRIVER_FEATURES, 0);
        assert_eq!(driver.transport.queues[1].desc_table(), 0x2_0000);
        assert_eq!(driver.transport.accepted, F_COMMON);
        driver.write(STATUS, ACKNOWLEDGE);
        assert!(driver.is_active());
        driver.finish();
        assert_eq!(lock(&*driver.device).resets, 0);
    }

    #[test]
    fn queues_that_make_no_sense_need_a_reset() {
        // Missing, outside of the memory.
        for second in [None, Some(0x20_0000)] {
            let mut driver = Driver::new();
            driver.negotiate(F_COMMON);
            driver.set_up_queue(0, 0x1_0000);
            if let Some(address) = second {
                driver.set_up_queue(1, address);
            }
            driver.write(QUEUE_SEL, 7);
            assert_eq!(driver.read(QUEUE_SIZE_MAX), 0);
            driver.set_up_queue(7, 0x3_0000);
            driver.finish();
            assert_eq!(driver.read(STATUS) & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
            assert_eq!(driver.read(INTERRUPT_STATUS), 2);
            assert!(!driver.is_active());
        }
    }

    #[test]
    fn sizes_over_the_maximum_are_ignored() {
        let mut driver = Driver::new();
        driver.negotiate(F_COMMON);
        for size in [0, 3, 32, 65536, u32::MAX] {
            driver.write(QUEUE_SIZE, size);
            assert_eq!(driver.transport.queues[0].size(), 16);
        }
    }

    #[test]
    fn a_reset_starts_from_nothing() {
        let mut driver = Driver::new();
        driver.negotiate(F_COMMON);
        driver.set_up_queue(0, 0x1_0000);
        driver.set_up_queue(1, 0x2_0000);
        driver.finish();
        driver.write(STATUS, 0);
        assert!(!driver.is_active());
        assert_eq!((driver.read(STATUS), driver.read(QUEUE_READY)), (0, 0));
        driver.negotiate(F_COMMON);
        driver.set_up_queue(0, 0x3_0000);
        driver.set_up_queue(1, 0x2_0000);
        driver.finish();
        let device = lock(&*driver.device);
        assert_eq!(device.active.as_ref().unwrap().queues[0].desc_table(), 0x3_0000);
    }

    #[test]
    fn interrupts_stay_pending_until_they_are_acknowledged() {
        let mut driver = Driver::new();
        driver.transport.interrupt.signal_configuration();
        assert_eq!(driver.read(INTERRUPT_STATUS), 2);
        driver.write(INTERRUPT_ACK, 1);
        assert_eq!(driver.read(INTERRUPT_STATUS), 2);
        driver.write(INTERRUPT_ACK, 2);
        assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    }

    #[test]
    fn accesses_that_are_no_aligned_word_do_nothing() {
        let mut driver = Driver::new();
        for (offset, bytes) in [
            (MAGIC_VALUE, 1),
            (MAGIC_VALUE + 1, 4),
            (MAGIC_VALUE, 8),
            (STATUS, 2),
        ] {
            let mut data = vec![0xee; bytes];
            driver.transport.read(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0xee));
            driver.transport.write(offset, &vec![1; bytes]);
        }
        assert_eq!(driver.read(STATUS), 0);
        let mut byte = [0];
        driver.transport.read(CONFIG + 7, &mut byte);
        assert_eq!(byte, [7]);
    }
}
