//! The device: takes requests from its one queue and carries each out before the next.

use std::time::Instant;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_queue::{QueueOwnedT, QueueT};

use super::{
    disk::{Disk, SECTOR_BYTES, SEGMENT_ALIGNMENT},
    request::{RANGE_SECTORS_MAX, RANGES_MAX, Request},
    throttle::Throttle,
};
use crate::{
    devices::virtio::{Activation, F_COMMON, VirtioDevice, chain::Chain, next_chain, read_config_bytes},
    snapshot::DiskState,
};

const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZE: u16 = 256;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];

/// Most data buffers of a request: a full table less header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes of `struct virtio_blk_config` up to and with `write_zeroes_may_unmap`.
const CONFIG_BYTES: usize = 60;

/// A block device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    /// What the guest is told of it.
    shown: DiskState,
    throttle: Option<Throttle>,
    /// When the queue is to be looked into again: its next request is above what the guest may do.
    put_off: Option<Instant>,
    active: Option<Activation>,
}

impl Block {
    /// A device for `disk`.
    pub fn new(disk: Disk) -> Self {
        let shown = DiskState {
            shown_bytes: disk.bytes(),
            writable: disk.is_writable(),
        };
        Self::showing(disk, shown)
    }

    /// A device for `disk`, of which the guest is told what `shown` says: more bytes than it has for a slot whose disk may be
    /// replaced by a larger one while the guest is saved, and that it can be written to for a slot that may get either kind.
    /// What the disk cannot do fails.
    pub fn showing(disk: Disk, shown: DiskState) -> Self {
        Self {
            disk,
            shown,
            throttle: None,
            put_off: None,
            active: None,
        }
    }

    /// The same, no faster than `throttle` lets it be.
    #[must_use]
    pub fn throttled(self, throttle: Option<Throttle>) -> Self {
        Self { throttle, ..self }
    }

    /// `struct virtio_blk_config` (virtio 1.2, 5.2.4).
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put =
            |offset: usize, value: &[u8]| config[offset..offset + value.len()].copy_from_slice(value);
        put(0, &(self.shown.shown_bytes / SECTOR_BYTES).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        if self.shown.writable {
            let alignment = (SEGMENT_ALIGNMENT / SECTOR_BYTES) as u32;
            put(36, &RANGE_SECTORS_MAX.to_le_bytes()); // max_discard_sectors
            put(40, &RANGES_MAX.to_le_bytes()); // max_discard_seg
            put(44, &alignment.to_le_bytes()); // discard_sector_alignment
            put(48, &RANGE_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
            put(52, &RANGES_MAX.to_le_bytes()); // max_write_zeroes_seg
            put(56, &[1]); // write_zeroes_may_unmap
        }
        config
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let specific = if self.shown.writable {
            1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        } else {
            1 << VIRTIO_BLK_F_RO
        };
        F_COMMON | 1 << VIRTIO_BLK_F_SEG_MAX | specific
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn active(&mut self) -> &mut Option<Activation> {
        &mut self.active
    }

    fn reset(&mut self) {
        self.active = None;
        self.put_off = None;
    }

    fn put_off(&self) -> Option<Instant> {
        self.put_off
    }

    fn queue_notified(&mut self, _queue: usize) {
        self.put_off = None;
        let Some(active) = &mut self.active else {
            return;
        };
        let memory = &*active.memory;
        let queue = &mut active.queues[0];
        let mut left = queue.size();
        while let Some(descriptors) = next_chain(queue, memory) {
            let head = descriptors.head_index();
            let request = Chain::new(memory, descriptors).and_then(Request::new);
            if let (Some(throttle), Ok(request)) = (&self.throttle, &request)
                && let Some((direction, bytes)) = request.cost()
                && let Err(until) = throttle.take(direction, bytes, Instant::now())
            {
                // It stays in the queue, where a save finds it. Those behind it wait too.
                queue.go_to_previous_position();
                self.put_off = Some(until);
                break;
            }
            let written = request.map_or(0, |request| request.execute(&self.disk));
            if queue.add_used(memory, head, written).is_err() {
                break;
            }
            // Each request is told of at once: the driver may wait for just this one while the next takes long.
            active.interrupt.signal_used(queue, memory);
            // A driver that goes on adding requests waits for those of other disks.
            left -= 1;
            if left == 0 {
                active.wakers.wake(0);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, num::NonZeroU64, sync::Arc, time::Duration};

    use brig_protocol::vmm::IoLimits;
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::{
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::{
        devices::virtio::interrupt::Interrupt,
        memory::{self, Memory},
    };

    const HEADER: u64 = 0x1_0000;
    const DATA: u64 = 0x2_0000;
    const STATUS: u64 = 0x3_0000;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    /// Gives `device` one chain of `(address, bytes, flags)`; returns what it says it wrote, and the status byte.
    fn run(
        device: &mut Block,
        memory: &Arc<Memory>,
        header: [u64; 2],
        buffers: &[(u64, u32, u16)],
    ) -> (u32, u8) {
        memory.write_obj(header, GuestAddress(HEADER)).unwrap();
        memory.write_obj(0xaau8, GuestAddress(STATUS)).unwrap();
        let ring = MockSplitQueue::new(&**memory, 16);
        let descriptors: Vec<_> = buffers
            .iter()
            .map(|&(address, bytes, flags)| RawDescriptor::from(Descriptor::new(address, bytes, flags, 0)))
            .collect();
        ring.build_desc_chain(&descriptors).unwrap();
        device.activate(Activation {
            memory: Arc::clone(memory),
            queues: vec![ring.create_queue().unwrap()],
            interrupt: Arc::new(Interrupt::new().unwrap()),
            wakers: Arc::default(),
        });
        device.queue_notified(0);
        device.reset();
        assert_eq!(ring.used().idx().load(), 1, "the chain is given back");
        (
            ring.used().ring().ref_at(0).unwrap().load().len(),
            memory.read_obj(GuestAddress(STATUS)).unwrap(),
        )
    }

    const IN: u64 = 0;
    const OUT: u64 = 1;
    const OK: u8 = 0;
    const IOERR: u8 = 1;
    const UNSUPPORTED: u8 = 2;

    #[test]
    fn sectors_are_read() {
        let memory = memory::create(1 << 20).unwrap();
        let mut content = vec![1; 512];
        content.extend([2; 3584]);
        let mut device = Block::new(Disk::read_only(vec![(file(&content), 4096)]).unwrap());
        let chain = [(HEADER, 16, 0), (DATA, 1024, WRITE), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [IN, 0], &chain), (1025, OK));
        let mut read = [0; 1024];
        memory.read_slice(&mut read, GuestAddress(DATA)).unwrap();
        assert_eq!((read[0], read[511], read[512], read[1023]), (1, 1, 2, 2));
    }

    #[test]
    fn sectors_are_written_and_flushed() {
        let memory = memory::create(1 << 20).unwrap();
        let backing = file(&[0; 4096]);
        let mut device = Block::new(Disk::writable(backing.try_clone().unwrap(), 4096));
        memory.write_slice(&[5; 512], GuestAddress(DATA)).unwrap();
        let chain = [(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [OUT, 7], &chain), (1, OK));
        let chain = [(HEADER, 16, 0), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [4, 0], &chain), (1, OK));
        let mut read = [0; 512];
        std::os::unix::fs::FileExt::read_exact_at(&backing, &mut read, 7 * 512).unwrap();
        assert_eq!(read, [5; 512]);
    }

    /// CVE-2026-24834, read-only storage that the guest can write.
    #[test]
    fn a_read_only_disk_refuses_writes_and_discards() {
        let memory = memory::create(1 << 20).unwrap();
        let mut device = Block::new(Disk::read_only(vec![(file(&[3; 4096]), 4096)]).unwrap());
        let chain = [(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [OUT, 0], &chain), (1, IOERR));
        let chain = [(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [11, 0], &chain), (1, UNSUPPORTED));
        assert_ne!(device.features() & 1 << VIRTIO_BLK_F_RO, 0);
    }

    /// The same, of a disk in a slot that the guest was told it may write to.
    #[test]
    fn a_read_only_disk_in_a_writable_slot_is_not_written_to() {
        let memory = memory::create(1 << 20).unwrap();
        let backing = file(&[3; 4096]);
        let disk = Disk::read_only(vec![(backing.try_clone().unwrap(), 4096)]).unwrap();
        let shown = DiskState {
            shown_bytes: 1 << 30,
            writable: true,
        };
        let mut device = Block::showing(disk, shown);
        assert_eq!(device.features() & 1 << VIRTIO_BLK_F_RO, 0);
        let chain = [(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [OUT, 0], &chain), (1, IOERR));
        memory.write_obj([0u64, 8], GuestAddress(DATA)).unwrap();
        for request in [11, 13] {
            let chain = [(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, WRITE)];
            assert_ne!(run(&mut device, &memory, [request, 0], &chain), (1, OK));
        }
        let chain = [(HEADER, 16, 0), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [4, 0], &chain), (1, OK));
        let chain = [(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [IN, 0], &chain), (513, OK));
        let mut left = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&backing, &mut left, 0).unwrap();
        assert!(left == [3; 4096]);
    }

    #[test]
    fn requests_past_the_end_fail() {
        let memory = memory::create(1 << 20).unwrap();
        let mut device = Block::new(Disk::writable(file(&[0; 4096]), 4096));
        for sector in [8, 7, u64::MAX, u64::MAX / 512] {
            let chain = [(HEADER, 16, 0), (DATA, 1024, WRITE), (STATUS, 1, WRITE)];
            assert_eq!(run(&mut device, &memory, [IN, sector], &chain), (1, IOERR));
            let chain = [(HEADER, 16, 0), (DATA, 1024, 0), (STATUS, 1, WRITE)];
            assert_eq!(run(&mut device, &memory, [OUT, sector], &chain), (1, IOERR));
        }
    }

    #[test]
    fn data_that_is_no_whole_sector_fails() {
        let memory = memory::create(1 << 20).unwrap();
        let mut device = Block::new(Disk::writable(file(&[0; 4096]), 4096));
        let chain = [(HEADER, 16, 0), (DATA, 511, WRITE), (STATUS, 1, WRITE)];
        assert_eq!(run(&mut device, &memory, [IN, 0], &chain), (1, IOERR));
    }

    #[test]
    fn damaged_chains_are_given_back() {
        let memory = memory::create(1 << 20).unwrap();
        let mut device = Block::new(Disk::writable(file(&[0; 4096]), 4096));
        for chain in [
            &[(HEADER, 16, 0)][..],
            &[(HEADER, 8, 0), (STATUS, 1, WRITE)],
            &[(STATUS, 1, WRITE), (HEADER, 16, 0)],
            &[(HEADER, 16, 0), (u64::MAX - 100, 512, WRITE), (STATUS, 1, WRITE)],
            &[(HEADER, 16, 0), (1 << 20, 512, WRITE), (STATUS, 1, WRITE)],
        ] {
            let (_, status) = run(&mut device, &memory, [IN, 0], chain);
            assert_ne!(status, OK);
        }
    }

    #[test]
    fn a_range_can_be_discarded_and_zeroed() {
        let memory = memory::create(1 << 20).unwrap();
        let backing = file(&[9; 8192]);
        let mut device = Block::new(Disk::writable(backing.try_clone().unwrap(), 8192));
        let chain = [(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, WRITE)];
        memory.write_obj([0u64, 8], GuestAddress(DATA)).unwrap();
        assert_eq!(run(&mut device, &memory, [11, 0], &chain), (1, OK));
        let mut read = [1; 8192];
        std::os::unix::fs::FileExt::read_exact_at(&backing, &mut read, 0).unwrap();
        assert_eq!((read[0], read[4095], read[4096]), (0, 0, 9));
        memory.write_obj([16u64, 8], GuestAddress(DATA)).unwrap();
        assert_eq!(run(&mut device, &memory, [13, 0], &chain), (1, IOERR));
        memory.write_obj([0u64, 8 | 2 << 32], GuestAddress(DATA)).unwrap();
        assert_eq!(run(&mut device, &memory, [11, 0], &chain), (1, UNSUPPORTED));
    }

    #[test]
    fn a_request_above_the_limit_stays_in_the_queue_until_its_time() {
        let memory = memory::create(1 << 20).unwrap();
        let limits = IoLimits {
            read_operations: NonZeroU64::new(20),
            ..IoLimits::default()
        };
        let disk = Disk::writable(file(&[7; 4096]), 4096);
        let mut device = Block::new(disk).throttled(Throttle::new(&limits));
        memory.write_obj([IN, 0], GuestAddress(HEADER)).unwrap();
        let ring = MockSplitQueue::new(&*memory, 64);
        let next = VRING_DESC_F_NEXT as u16;
        let chain = [(HEADER, 16, next), (DATA, 512, WRITE | next), (STATUS, 1, WRITE)];
        let chains: Vec<_> = (0..10)
            .flat_map(|index| {
                chain
                    .into_iter()
                    .zip(1..)
                    .map(move |((address, bytes, flags), place)| {
                        RawDescriptor::from(Descriptor::new(address, bytes, flags, index * 3 + place))
                    })
            })
            .collect();
        ring.build_multiple_desc_chains(&chains).unwrap();
        device.activate(Activation {
            memory: Arc::clone(&memory),
            queues: vec![ring.create_queue().unwrap()],
            interrupt: Arc::new(Interrupt::new().unwrap()),
            wakers: Arc::default(),
        });
        let began = Instant::now();
        let mut rounds = 0;
        device.queue_notified(0);
        assert!(ring.used().idx().load() < 10);
        while let Some(until) = device.put_off() {
            // What has not been taken is where a save finds it.
            let taken = device.queues().unwrap()[0].next_avail();
            assert_eq!(taken, ring.used().idx().load());
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            device.queue_notified(0);
            rounds += 1;
        }
        assert_eq!(ring.used().idx().load(), 10);
        // Ten at 20 a second, of which those of 100 ms and one more were done at once.
        assert!(began.elapsed() >= Duration::from_millis(300), "{rounds}");
        device.reset();
    }

    #[test]
    fn the_configuration_tells_capacity_and_limits() {
        let device = Block::new(Disk::writable(file(&[0; 4096]), 4096));
        let mut capacity = [0; 8];
        device.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 8);
        let mut outside = [0xff; 4];
        device.read_config(u64::MAX, &mut outside);
        device.read_config(4000, &mut outside);
        assert_eq!(outside, [0xff; 4]);
    }
}
