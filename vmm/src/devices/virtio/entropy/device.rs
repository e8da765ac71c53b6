//! The device.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::devices::virtio::{Activation, F_COMMON, VirtioDevice, chain::Chain, drain_queue};

const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];

/// Most bytes of one request: getrandom(2) gives as many without a chance to be interrupted.
const REQUEST_BYTES: usize = 256;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Entropy {
    active: Option<Activation>,
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_COMMON
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn active(&mut self) -> &mut Option<Activation> {
        &mut self.active
    }

    fn queue_notified(&mut self, _queue: usize) {
        let Some(active) = &mut self.active else {
            return;
        };
        drain_queue(active, 0, |chain| chain.map_or(0, |chain| fill(&chain)));
    }
}

/// Fills the chain's buffers, up to the limit of a request.
fn fill(chain: &Chain<'_>) -> u32 {
    let mut bytes = [0; REQUEST_BYTES];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(read) => chain.writable.write(&bytes[..read]) as u32,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::{
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::{devices::virtio::interrupt::Interrupt, memory};

    #[test]
    fn writable_buffers_are_filled_and_readable_ones_are_given_back() {
        let memory = memory::create(1 << 20).unwrap();
        let ring = MockSplitQueue::new(&*memory, 16);
        let descriptors = [
            RawDescriptor::from(Descriptor::new(0x8000, 32, VRING_DESC_F_WRITE as u16, 0)),
            RawDescriptor::from(Descriptor::new(0x9000, 32, 0, 0)),
        ];
        ring.add_desc_chains(&descriptors, 0).unwrap();
        let mut device = Entropy::default();
        let interrupt = Arc::new(Interrupt::new().unwrap());
        device.activate(Activation {
            memory: Arc::clone(&memory),
            queues: vec![ring.create_queue().unwrap()],
            interrupt: Arc::clone(&interrupt),
            wakers: Arc::default(),
        });
        device.queue_notified(0);
        assert_eq!(ring.used().idx().load(), 2);
        assert_eq!(ring.used().ring().ref_at(0).unwrap().load().len(), 32);
        assert_eq!(ring.used().ring().ref_at(1).unwrap().load().len(), 0);
        let mut filled = [0u8; 32];
        memory.read_slice(&mut filled, GuestAddress(0x8000)).unwrap();
        assert_ne!(filled, [0; 32]);
        assert_eq!(interrupt.status(), 1);
    }

    #[test]
    fn a_device_that_is_not_active_ignores_notifications() {
        let mut device = Entropy::default();
        device.queue_notified(0);
        device.reset();
        device.queue_notified(7);
    }
}
