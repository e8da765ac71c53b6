//! What the targets of devices share: an input that is read piece by piece, and a guest that owns registers and memory.
#![allow(dead_code)]

use std::sync::{Arc, Mutex, Once};

use brig_vmm::{
    devices::virtio::{VirtioDevice, interrupt::Interrupt, mmio::MmioTransport},
    event_loop::EventLoop,
    lock::lock,
    memory::{self, Memory},
    pause::Gate,
};
use rustix::event::Timespec;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes of the guest's memory.
pub const MEMORY_BYTES: u64 = 1 << 20;

/// Registers (virtio 1.2, 4.2.2).
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_SIZE: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESC_LOW: u64 = 0x080;
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;

/// Where a driver that behaves puts queue `n`: its three rings, a page each at least.
pub const QUEUES: u64 = 0x1_0000;
pub const QUEUE_BYTES: u64 = 0x4000;
pub const RING_BYTES: u64 = 0x1000;

/// Events that are served at most for each step: none of them is to make a next one forever.
const ROUNDS_MAX: usize = 64;

/// Ignores the signal that a write to a closed socket sends, as every Rust program does whose `main` is its own.
pub fn ignore_broken_pipes() {
    static ONCE: Once = Once::new();
    // SAFETY: no handler is installed.
    ONCE.call_once(|| unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    });
}

/// The rest of an input. After its end it reads as zeros.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// An address or a length: mostly one that means something, sometimes any.
    pub fn number(&mut self) -> u64 {
        match self.u8() % 8 {
            0 => u64::from_le_bytes(self.array()),
            1 => MEMORY_BYTES - u64::from(self.u8()),
            2 => u64::MAX - u64::from(self.u8()),
            3 => u64::from(self.u8()),
            4 => u64::from(self.u8()) << 9,
            5 => QUEUES + u64::from(self.u16() & 0x3ff8),
            _ => u64::from(self.u32()) % MEMORY_BYTES,
        }
    }
}

/// A guest with one device.
pub struct Guest<D> {
    pub memory: Arc<Memory>,
    pub device: Arc<Mutex<D>>,
    pub transport: MmioTransport,
    pub events: EventLoop,
    pub notifications: Vec<EventFd>,
    gate: Gate,
}

impl<D: VirtioDevice + 'static> Guest<D> {
    /// `make` gets the loop that will serve the device.
    pub fn new(make: impl FnOnce(&EventLoop) -> D) -> Self {
        let memory = memory::create(MEMORY_BYTES).expect("memory");
        let mut events = EventLoop::new().expect("an event loop");
        let device = Arc::new(Mutex::new(make(&events)));
        let queues = lock(&*device).queue_sizes().len();
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("an event");
        let notifications: Vec<_> = (0..queues).map(|_| event()).collect();
        let copies = || {
            let copies = notifications
                .iter()
                .map(|event| event.try_clone().expect("a descriptor"));
            copies.collect()
        };
        let interrupt = Arc::new(Interrupt::new().expect("an interrupt"));
        let transport =
            MmioTransport::new(device.clone(), Arc::clone(&memory), interrupt, copies()).expect("registers");
        events.add(device.clone(), copies()).expect("a place in the loop");
        Self {
            memory,
            device,
            transport,
            events,
            notifications,
            gate: Gate::default(),
        }
    }

    pub fn write(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// Puts bytes into the guest's memory, as far as there is any.
    pub fn store(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(address));
    }

    /// Sets the device up as a driver does that knows how, with queues of `size`.
    pub fn set_up(&mut self, features: u64, size: u32) {
        self.write(STATUS, 0);
        self.write(STATUS, 1);
        self.write(STATUS, 1 | 2);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SEL, select);
            self.write(DRIVER_FEATURES, half);
        }
        self.write(STATUS, 1 | 2 | 8);
        for queue in 0..self.notifications.len() as u32 {
            let base = (QUEUES + u64::from(queue) * QUEUE_BYTES) as u32;
            self.write(QUEUE_SEL, queue);
            self.write(QUEUE_SIZE, size);
            self.write(QUEUE_DESC_LOW, base);
            self.write(QUEUE_DRIVER_LOW, base + RING_BYTES as u32);
            self.write(QUEUE_DEVICE_LOW, base + 2 * RING_BYTES as u32);
            self.write(QUEUE_READY, 1);
        }
        self.write(STATUS, 1 | 2 | 8 | 4);
    }

    /// Has the device's thread look into a queue.
    pub fn notify(&self, queue: usize) {
        if let Some(event) = self.notifications.get(queue) {
            let _ = event.write(1);
        }
    }

    /// Serves events until there are none.
    pub fn serve(&self) {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        for _ in 0..ROUNDS_MAX {
            if !self.events.serve(Some(&now), &self.gate) {
                return;
            }
        }
    }

    /// Where the queues of an active device are, and how large.
    pub fn rings(&self) -> Option<Vec<(u64, u64, u64, u16)>> {
        let mut device = lock(&*self.device);
        let rings = device.queues()?.iter().map(|queue| {
            let state = queue.state();
            (state.desc_table, state.avail_ring, state.used_ring, queue.size())
        });
        Some(rings.collect())
    }

    /// One step of a hostile driver.
    pub fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 => {
                let (register, value) = (u64::from(input.u16() % 0x200), input.u32());
                self.write_register(register, &value.to_le_bytes());
            }
            1 => {
                let register = u64::from(input.u16() % 0x200);
                let mut data = [0; 8];
                let bytes = usize::from(input.u8() % 9);
                self.transport.read(register, &mut data[..bytes]);
            }
            2 => {
                let features = 1 << 32 | u64::from(input.u8() & 3) << 28;
                let size = 1 << (input.u8() % 9);
                self.set_up(features, size);
            }
            3 => {
                let (address, bytes) = (input.number(), usize::from(input.u8()));
                self.store(address, input.bytes(bytes));
            }
            4 | 5 => self.add_chain(input),
            6 => self.notify(usize::from(input.u8() % 4)),
            _ => self.serve(),
        }
    }

    /// A write of any width to any register. What is active stays as it is, but for a reset.
    pub fn write_register(&mut self, register: u64, data: &[u8]) {
        let before = self.rings();
        self.transport.write(register, data);
        if let (Some(before), false) = (before, register == STATUS) {
            assert_eq!(
                self.rings(),
                Some(before),
                "a queue that is active has been changed"
            );
        }
    }

    /// Descriptors of any kind, in a table of their own at times, and an index that may be wrong.
    fn add_chain(&mut self, input: &mut Input<'_>) {
        let queue = u64::from(input.u8()) % self.notifications.len() as u64;
        let base = QUEUES + queue * QUEUE_BYTES;
        let shape = input.u8();
        let table = if shape & 1 == 0 { base } else { 0x8000 };
        let first = u16::from(input.u8() % 16);
        let count = u16::from(shape >> 4);
        for slot in 0..count {
            let (address, flags) = (input.number(), u16::from(input.u8() % 8));
            let bytes = input.number() as u32;
            let next = if flags & 4 != 0 {
                input.u16()
            } else {
                first + slot + 1
            };
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&next.to_le_bytes());
            self.store(table + 16 * u64::from(first + slot), &descriptor);
        }
        if table != base {
            // One descriptor that is the table.
            let flags: u16 = 4 | u16::from(shape >> 1 & 1);
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&(table + 16 * u64::from(first)).to_le_bytes());
            descriptor[8..12].copy_from_slice(&(16 * u32::from(count)).to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            self.store(base + 16 * u64::from(first), &descriptor);
        }
        let available = base + RING_BYTES;
        let mut index = [0; 2];
        let _ = self.memory.read(&mut index, GuestAddress(available + 2));
        let index = u16::from_le_bytes(index);
        self.store(available + 4 + 2 * u64::from(index % 256), &first.to_le_bytes());
        let by = if shape & 4 != 0 { input.u16() } else { 1 };
        self.store(available + 2, &index.wrapping_add(by).to_le_bytes());
        self.notify(queue as usize);
    }
}
