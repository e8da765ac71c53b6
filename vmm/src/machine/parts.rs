//! What a new machine and a restored one have in common.

use std::sync::{Arc, Mutex};

use brig_protocol::vmm::IoLimits;
use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::MachineError;
use crate::{
    config::Slot,
    devices::virtio::{
        SharedDevice, VirtioDevice,
        balloon::Balloon,
        block::{Block, throttle::Throttle},
        entropy::Entropy,
        interrupt::Interrupt,
        mmio::{MmioTransport, QUEUE_NOTIFY},
        vsock::Vsock,
    },
    event_loop::EventLoop,
    jail::filters::Kind,
    kvm::{self, Vm},
    layout::{SERIAL_IRQ, VIRTIO_IRQ_FIRST, VIRTIO_MMIO, VIRTIO_MMIO_BYTES},
    lock::lock,
    memory::Memory,
    snapshot::DiskState,
};

/// A machine with memory and interrupt controllers.
pub(super) fn vm(kvm: &Kvm, memory: Arc<Memory>) -> Result<Arc<Vm>, MachineError> {
    kvm::check(kvm)?;
    let vm = Vm::new(kvm, memory)?;
    vm.create_interrupt_controllers()?;
    Ok(Arc::new(vm))
}

/// The virtio devices of a machine, connected to it.
pub(super) struct Devices {
    pub transports: Vec<MmioTransport>,
    pub vsock: Arc<Mutex<Vsock>>,
    pub disks: Vec<DiskState>,
    pub event_loops: Vec<(&'static str, Kind, EventLoop)>,
}

impl Devices {
    /// Makes them, in the order of their slots: `disks`, as fast as `io` says, vsock with `listeners`, entropy, balloon.
    pub fn new(
        vm: &Vm,
        disks: Vec<Slot>,
        io: &IoLimits,
        listeners: Vec<(u32, std::os::fd::OwnedFd)>,
    ) -> Result<Self, MachineError> {
        let mut attacher = Attacher {
            vm,
            transports: Vec::new(),
        };
        let throttle = Throttle::new(io);
        let mut disk_loop = EventLoop::new()?;
        let mut states = Vec::with_capacity(disks.len());
        for Slot { disk, shown } in disks {
            states.push(shown);
            attacher.attach(
                Arc::new(Mutex::new(
                    Block::showing(disk, shown).throttled(throttle.clone()),
                )),
                &mut disk_loop,
            )?;
        }
        let mut stream_loop = EventLoop::new()?;
        let vsock = Arc::new(Mutex::new(Vsock::new(stream_loop.streams_of_next(), listeners)));
        attacher.attach(vsock.clone(), &mut stream_loop)?;
        attacher.attach(Arc::new(Mutex::new(Entropy::default())), &mut stream_loop)?;
        // The guest can use what it has reported only when that is answered: it must not wait for a slow fdatasync(2).
        attacher.attach(Arc::new(Mutex::new(Balloon::default())), &mut stream_loop)?;
        Ok(Self {
            transports: attacher.transports,
            vsock,
            disks: states,
            event_loops: vec![
                ("disks", Kind::Disks, disk_loop),
                ("streams", Kind::Streams, stream_loop),
            ],
        })
    }
}

/// Connects devices to the machine, one after the other.
struct Attacher<'a> {
    vm: &'a Vm,
    transports: Vec<MmioTransport>,
}

impl Attacher<'_> {
    /// Puts `device` at the next free slot, its queues and interrupt connected, to be served by `event_loop`.
    fn attach<D: VirtioDevice + 'static>(
        &mut self,
        device: Arc<Mutex<D>>,
        event_loop: &mut EventLoop,
    ) -> Result<(), MachineError> {
        let slot = self.transports.len() as u64;
        let base = VIRTIO_MMIO + slot * VIRTIO_MMIO_BYTES;
        let interrupt = Arc::new(Interrupt::new()?);
        self.vm
            .connect_interrupt(interrupt.event(), VIRTIO_IRQ_FIRST + slot as u32)?;
        let queues = lock(&*device).queue_sizes().len() as u32;
        let (mut notifications, mut wakers) = (Vec::new(), Vec::new());
        for queue in 0..queues {
            let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
            self.vm.connect_notification(&event, base + QUEUE_NOTIFY, queue)?;
            wakers.push(event.try_clone()?);
            notifications.push(event);
        }
        let device: SharedDevice = device;
        let memory = Arc::clone(self.vm.memory());
        self.transports.push(MmioTransport::new(
            Arc::clone(&device),
            memory,
            interrupt,
            wakers,
        )?);
        event_loop.add(device, notifications)?;
        Ok(())
    }
}

/// The event that raises the serial port's interrupt.
pub(super) fn serial_interrupt(vm: &Vm) -> Result<EventFd, MachineError> {
    let interrupt = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
    vm.connect_interrupt(&interrupt, SERIAL_IRQ)?;
    Ok(interrupt)
}
