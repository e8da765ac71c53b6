//! Virtio devices (virtio 1.2) behind the MMIO transport.
//!
//! | room | does |
//! |---|---|
//! | [`mmio`] | the registers: negotiation, queue addresses, status; hands the device its queues when all is settled |
//! | [`interrupt`] | the way back: the status register and the interrupt line |
//! | [`chain`] | a descriptor chain as bounded lists of buffers |
//! | [`block`], [`vsock`], [`entropy`] | the devices |
//!
//! A device belongs to a thread of [`crate::event_loop`], which calls it when the guest has notified a queue or a file
//! descriptor is ready. The vCPU that writes the status register calls `activate` and `reset`. A mutex about each
//! device keeps the two apart.

pub mod block;
pub mod chain;
pub mod entropy;
pub mod interrupt;
pub mod mmio;
pub mod vsock;

use std::sync::{Arc, Mutex};

use rustix::event::epoll::EventFlags;
use virtio_queue::{Queue, QueueT};

use self::{
    chain::{Chain, ChainError},
    interrupt::Interrupt,
};
use crate::memory::Memory;

/// `VIRTIO_F_RING_INDIRECT_DESC`: a chain may lie in a table of its own, so one slot of a queue holds a large request.
pub const F_INDIRECT: u64 = 1 << 28;

/// `VIRTIO_F_RING_EVENT_IDX`: each side says when it wants to be notified next.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// `VIRTIO_F_VERSION_1`: not a legacy device.
pub const F_VERSION_1: u64 = 1 << 32;

/// What every device of this VMM offers.
pub const F_COMMON: u64 = F_INDIRECT | F_EVENT_IDX | F_VERSION_1;

/// What a device gets when the driver has set it up.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// All queues of the device, checked, with their final addresses and sizes.
    pub queues: Vec<Queue>,
    /// How the driver is told of used buffers.
    pub interrupt: Arc<Interrupt>,
}

/// A device as the transport and the event loop see it.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// Feature bits that the device offers; [`F_COMMON`] among them.
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Fills `data` from the configuration space at `offset`; what lies outside of it stays as it is.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver is ready: take the queues. Nothing is done about what is in them before [`Self::queue_notified`], which the
    /// device's own thread calls: this is called by a vCPU's.
    fn activate(&mut self, activation: Activation);

    /// The queues that the device works on, while it is active.
    fn queues(&self) -> Option<&[Queue]>;

    /// The driver has reset the device: forget the queues. Nothing of the guest's memory is touched afterwards.
    fn reset(&mut self);

    /// The driver has put buffers into queue `queue`. May be called when the device is not active.
    fn queue_notified(&mut self, queue: usize);

    /// A descriptor that the device registered under `token` is ready. May be called late, when the device has already
    /// closed it.
    fn stream_ready(&mut self, _token: u32, _flags: EventFlags) {}
}

/// A device that is shared between the vCPUs and a thread of the event loop.
pub type SharedDevice = Arc<Mutex<dyn VirtioDevice>>;

/// Copies the part of `config` that a read of `data.len()` bytes at `offset` covers.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
    else {
        return;
    };
    let bytes = rest.len().min(data.len());
    data[..bytes].copy_from_slice(&rest[..bytes]);
}

/// Serves every chain that the driver has put into `queue`, and asks to be told of the next. `serve` returns how many bytes
/// it wrote to the chain; a damaged chain comes as an error.
pub(crate) fn drain_queue(
    queue: &mut Queue,
    memory: &Memory,
    mut serve: impl FnMut(Result<Chain<'_>, ChainError>) -> u32,
) {
    loop {
        while let Some(descriptors) = queue.pop_descriptor_chain(memory) {
            let head = descriptors.head_index();
            let written = serve(Chain::new(memory, descriptors));
            // It fails only for a head outside of the queue, which does not get here.
            if queue.add_used(memory, head, written).is_err() {
                return;
            }
        }
        // True when a chain has come meanwhile; an error means that the rings are gone.
        if !queue.enable_notification(memory).unwrap_or(false) {
            return;
        }
    }
}
