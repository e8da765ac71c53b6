//! Virtio devices (virtio 1.2) behind the MMIO transport.
//!
//! | room | does |
//! |---|---|
//! | [`mmio`] | the registers: negotiation, queue addresses, status; hands the device its queues when all is settled |
//! | [`interrupt`] | the way back: the status register and the interrupt line |
//! | [`wakers`] | how a device's thread is woken for a queue |
//! | [`chain`] | a descriptor chain as bounded lists of buffers |
//! | [`block`], [`vsock`], [`entropy`], [`balloon`] | the devices |
//!
//! A device belongs to a thread of [`crate::event_loop`], which calls it when the guest has notified a queue or a file
//! descriptor is ready. The vCPU that writes the status register calls `activate` and `reset`. A mutex about each
//! device keeps the two apart.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod entropy;
pub mod interrupt;
pub mod mmio;
pub mod vsock;
pub mod wakers;

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use rustix::event::epoll::EventFlags;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use self::{
    chain::{Chain, ChainError},
    interrupt::Interrupt,
    wakers::Wakers,
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
    /// How the device's thread is woken once more for what a turn was too short for.
    pub wakers: Arc<Wakers>,
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

    /// Where the device keeps what its driver has given it.
    fn active(&mut self) -> &mut Option<Activation>;

    /// The driver is ready: take the queues. Nothing is done about what is in them before [`Self::queue_notified`], which the
    /// device's own thread calls: this is called by a vCPU's.
    fn activate(&mut self, activation: Activation) {
        *self.active() = Some(activation);
    }

    /// The queues that the device works on, while it is active.
    fn queues(&mut self) -> Option<&[Queue]> {
        self.active().as_ref().map(|active| &*active.queues)
    }

    /// The driver has reset the device: forget the queues. Nothing of the guest's memory is touched afterwards.
    fn reset(&mut self) {
        *self.active() = None;
    }

    /// The driver has put buffers into queue `queue`. May be called when the device is not active.
    fn queue_notified(&mut self, queue: usize);

    /// Until when the device has put off what is in its first queue: that is notified then, unless it is earlier.
    fn put_off(&self) -> Option<Instant> {
        None
    }

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

/// The next chain of `queue`. When there is none, asks to be told of the next.
///
/// A driver whose index makes no sense has none: what it says next is looked at when it notifies the device again, so that it
/// keeps nobody busy.
pub(crate) fn next_chain<'m>(queue: &mut Queue, memory: &'m Memory) -> Option<DescriptorChain<&'m Memory>> {
    if let Some(chain) = queue.pop_descriptor_chain(memory) {
        return Some(chain);
    }
    if will_be_told(queue, memory) {
        return None;
    }
    // True when a chain has come meanwhile, or the index makes no sense; an error means that the rings are gone.
    match queue.enable_notification(memory) {
        Ok(true) => queue.pop_descriptor_chain(memory),
        _ => None,
    }
}

/// Whether the driver has been asked to tell of the chain after the last one. What it has said since was seen by who looked after
/// that. Nothing is written: a page of a restored guest that is only read is not copied.
fn will_be_told(queue: &Queue, memory: &Memory) -> bool {
    // `avail_event`, behind the used ring.
    let offset = 4 + 8 * u64::from(queue.size());
    let asked = queue
        .used_ring()
        .checked_add(offset)
        .and_then(|address| memory.read_obj::<u16>(GuestAddress(address)).ok());
    queue.event_idx_enabled() && asked.map(u16::from_le) == Some(queue.next_avail())
}

/// Serves the chains that the driver has put into queue `index`, and asks to be told of the next; then tells the driver. `serve`
/// returns how many bytes it wrote to the chain; a damaged chain comes as an error.
///
/// It is a turn: as many chains as the queue holds. A driver that goes on adding to it is served again after everybody else who
/// waits for the device's thread.
pub(crate) fn drain_queue(
    active: &mut Activation,
    index: usize,
    mut serve: impl FnMut(Result<Chain<'_>, ChainError>) -> u32,
) {
    let memory = &*active.memory;
    let queue = &mut active.queues[index];
    let mut left = queue.size();
    while let Some(descriptors) = next_chain(queue, memory) {
        let head = descriptors.head_index();
        let written = serve(Chain::new(memory, descriptors));
        // It fails only for a head outside of the queue: that queue is not served any more.
        if queue.add_used(memory, head, written).is_err() {
            break;
        }
        left -= 1;
        if left == 0 {
            active.wakers.wake(index);
            break;
        }
    }
    active.interrupt.signal_used(queue, memory);
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::memory;

    const SIZE: u16 = 16;
    const AVAILABLE: u32 = 0x2000;

    /// A device's side of a queue in memory of zeros: each chain is an empty buffer. And what wakes the device.
    fn active(memory: &Arc<Memory>) -> (Activation, EventFd) {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(AVAILABLE), None);
        queue.set_used_ring_address(Some(0x3000), None);
        queue.set_ready(true);
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let activation = Activation {
            memory: Arc::clone(memory),
            queues: vec![queue],
            interrupt: Arc::new(Interrupt::new().unwrap()),
            wakers: Arc::new(Wakers::new(vec![event.try_clone().unwrap()])),
        };
        (activation, event)
    }

    /// Says how many chains have been added so far.
    fn set_available(memory: &Memory, index: u16) {
        memory
            .write_obj(index, GuestAddress(u64::from(AVAILABLE) + 2))
            .unwrap();
    }

    #[test]
    fn an_index_that_makes_no_sense_keeps_nobody_busy() {
        let memory = memory::create(1 << 20).unwrap();
        let (mut active, event) = active(&memory);
        for index in [SIZE + 1, 0x8000, u16::MAX] {
            set_available(&memory, index);
            drain_queue(&mut active, 0, |_| panic!("there is no chain"));
        }
        assert!(event.read().is_err(), "it waits for the driver");
        // It has not lost its place.
        set_available(&memory, 1);
        let mut served = 0;
        drain_queue(&mut active, 0, |chain| {
            served += usize::from(chain.is_ok());
            0
        });
        assert_eq!(served, 1);
    }

    #[test]
    fn a_driver_is_asked_to_tell_of_the_next_chain_once() {
        let memory = memory::create(1 << 20).unwrap();
        let (mut active, _event) = active(&memory);
        active.queues[0].set_event_idx(true);
        let asked = GuestAddress(0x3000 + 4 + 8 * u64::from(SIZE));
        // It was, before it was saved.
        assert!(will_be_told(&active.queues[0], &memory));
        let mut served = 0;
        for index in [1, 1, 3, 3] {
            set_available(&memory, index);
            drain_queue(&mut active, 0, |_| {
                served += 1;
                0
            });
            assert_eq!(served, index);
            assert_eq!(memory.read_obj::<u16>(asked).unwrap(), index);
            assert!(will_be_told(&active.queues[0], &memory));
        }
        active.queues[0].set_event_idx(false);
        assert!(!will_be_told(&active.queues[0], &memory));
    }

    #[test]
    fn a_driver_that_adds_without_end_is_served_in_turns() {
        let memory = memory::create(1 << 20).unwrap();
        let (mut active, event) = active(&memory);
        set_available(&memory, 1);
        let mut served = 0;
        for turn in 1..=3 {
            drain_queue(&mut active, 0, |_| {
                served += 1;
                set_available(&memory, served + 1);
                0
            });
            assert_eq!(served, turn * SIZE);
            assert_eq!(event.read().unwrap(), 1, "it has another turn");
        }
    }
}
