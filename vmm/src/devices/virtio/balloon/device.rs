//! The device.
//!
//! The guest's kernel isolates blocks that have been free for a while, reports up to 32 of them, and waits for the answer before it
//! puts them back (mm/page_reporting.c). What they contain then is of no interest to it, unless it relies on free pages being zero or
//! poisoned: then it does not accept [`F_REPORTING`], as this device does not offer to be told of that (`virtballoon_validate`).

use std::sync::Arc;

use crate::{
    devices::virtio::{Activation, F_COMMON, VirtioDevice, chain::Chain, drain_queue, read_config_bytes},
    memory::{self, Memory},
};

const DEVICE_TYPE: u32 = 5;

/// `VIRTIO_BALLOON_F_REPORTING`.
const F_REPORTING: u64 = 1 << 5;

/// Inflate, deflate, and reports: without the queues of features that are not offered it is the third.
const QUEUE_SIZES: [u16; 3] = [64; 3];
const REPORTS: usize = 2;

/// `struct virtio_balloon_config`: `num_pages` and `actual`. No page is wanted, so the driver has none to put in.
const CONFIG: [u8; 8] = [0; 8];

/// Most blocks of one report (`PAGE_REPORTING_CAPACITY` of the driver); what is beyond is kept.
const BLOCKS_MAX: usize = 32;

/// The balloon device.
#[derive(Debug, Default)]
pub struct Balloon {
    active: Option<Activation>,
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_COMMON | F_REPORTING
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&CONFIG, offset, data);
    }

    fn active(&mut self) -> &mut Option<Activation> {
        &mut self.active
    }

    fn queue_notified(&mut self, queue: usize) {
        let Some(active) = &mut self.active else {
            return;
        };
        if queue >= QUEUE_SIZES.len() {
            return;
        }
        let memory = Arc::clone(&active.memory);
        drain_queue(active, queue, |chain| {
            // Pages that a driver puts into a balloon of no pages, or takes out of it, stay what they are.
            if let (REPORTS, Ok(chain)) = (queue, chain) {
                give_back(&memory, &chain);
            }
            // Nothing is written to what is reported.
            0
        });
    }
}

/// Gives the blocks of a report back. One that is not whole pages stays as it is; the guest is not told, as it could do nothing
/// about it.
fn give_back(memory: &Memory, report: &Chain<'_>) {
    for block in report.writable.slices().iter().take(BLOCKS_MAX) {
        let _ = memory::give_back(memory, block);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::unix::fs::{FileExt, MetadataExt},
    };

    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::{
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::{
        devices::virtio::interrupt::Interrupt,
        layout::{DEVICE_HOLE_END, DEVICE_HOLE_START},
    };

    const BYTES: u64 = 4 << 20;
    const PAGE: u64 = 4096;

    /// The queues are below.
    const USED: u64 = 1 << 20;

    fn fill(memory: &Memory) {
        for page in (0..BYTES).step_by(PAGE as usize) {
            memory.write_obj(7u8, GuestAddress(page)).unwrap();
        }
    }

    /// That of a guest that was booted.
    fn booted() -> Arc<Memory> {
        let memory = memory::create(BYTES).unwrap();
        fill(&memory);
        memory
    }

    /// That of a guest that was restored, and the file that it shares with others. Each page had a 3 when it was saved.
    fn restored() -> (Arc<Memory>, File) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![3; BYTES as usize], 0).unwrap();
        let memory = memory::restore(file.try_clone().unwrap(), BYTES).unwrap();
        fill(&memory);
        (memory, file)
    }

    /// Has a new device answer one chain of a queue.
    fn answer(memory: &Arc<Memory>, queue: usize, buffers: &[(u64, u32)], flags: u32) {
        let rings = [0, 0x8000, 0x1_0000]
            .map(|start| MockSplitQueue::create(&**memory, GuestAddress(start), QUEUE_SIZES[0]));
        let descriptors: Vec<_> = (1..)
            .zip(buffers)
            .map(|(next, &(address, bytes))| {
                let more = if usize::from(next) < buffers.len() {
                    VRING_DESC_F_NEXT
                } else {
                    0
                };
                RawDescriptor::from(Descriptor::new(address, bytes, (flags | more) as u16, next))
            })
            .collect();
        rings[queue].add_desc_chains(&descriptors, 0).unwrap();
        let mut device = Balloon::default();
        let interrupt = Arc::new(Interrupt::new().unwrap());
        device.activate(Activation {
            memory: Arc::clone(memory),
            queues: rings.iter().map(|ring| ring.create_queue().unwrap()).collect(),
            interrupt: Arc::clone(&interrupt),
            wakers: Arc::default(),
        });
        device.queue_notified(queue);
        assert_eq!(rings[queue].used().idx().load(), 1);
        assert_eq!(rings[queue].used().ring().ref_at(0).unwrap().load().len(), 0);
        assert_eq!(interrupt.status(), 1);
    }

    fn report(memory: &Arc<Memory>, buffers: &[(u64, u32)]) {
        answer(memory, REPORTS, buffers, VRING_DESC_F_WRITE);
    }

    /// Which pages this process has mapped, of those that have no queues, as /proc/PID/pagemap tells without touching them.
    fn mapped(memory: &Memory) -> Vec<u64> {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let pages = (USED..BYTES).step_by(PAGE as usize);
        pages
            .filter(|&page| {
                let address = memory.get_host_address(GuestAddress(page)).unwrap() as u64;
                let mut entry = [0; 8];
                pagemap.read_exact_at(&mut entry, address / PAGE * 8).unwrap();
                u64::from_le_bytes(entry) >> 63 != 0
            })
            .collect()
    }

    fn all_but(gone: &[(u64, u32)]) -> Vec<u64> {
        let is_gone = |page: u64| {
            gone.iter()
                .any(|&(start, bytes)| (start..start + u64::from(bytes)).contains(&page))
        };
        let pages = (USED..BYTES).step_by(PAGE as usize);
        pages.filter(|&page| !is_gone(page)).collect()
    }

    /// KiB of the file behind the memory.
    fn file_kib(memory: &Memory) -> u64 {
        let region = memory.iter().next().unwrap();
        region.file_offset().unwrap().file().metadata().unwrap().blocks() / 2
    }

    const BLOCKS: [(u64, u32); 3] = [(USED, 4096), (USED + (1 << 20), 1 << 20), (BYTES - PAGE, 4096)];

    #[test]
    fn what_a_booted_guest_reports_leaves_its_file() {
        let memory = booted();
        let before = file_kib(&memory);
        report(&memory, &BLOCKS);
        assert_eq!(before - file_kib(&memory), 1024 + 2 * 4);
        assert_eq!(mapped(&memory), all_but(&BLOCKS));
        // It is still the guest's.
        for (block, _) in BLOCKS {
            assert_eq!(memory.read_obj::<u8>(GuestAddress(block)).unwrap(), 0);
            memory.write_obj(9u8, GuestAddress(block)).unwrap();
            assert_eq!(memory.read_obj::<u8>(GuestAddress(block)).unwrap(), 9);
        }
        assert_eq!(memory.read_obj::<u8>(GuestAddress(USED + PAGE)).unwrap(), 7);
    }

    #[test]
    fn what_a_restored_guest_reports_leaves_its_copies_and_no_file() {
        let (memory, file) = restored();
        report(&memory, &BLOCKS);
        assert_eq!(mapped(&memory), all_but(&BLOCKS));
        for (block, _) in BLOCKS {
            assert_eq!(memory.read_obj::<u8>(GuestAddress(block)).unwrap(), 3);
        }
        assert_eq!(memory.read_obj::<u8>(GuestAddress(USED + PAGE)).unwrap(), 7);
        let mut content = vec![0; BYTES as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(content.iter().all(|&byte| byte == 3));
    }

    #[test]
    fn what_is_not_whole_pages_in_memory_stays() {
        for memory in [booted(), restored().0] {
            for bad in [
                (USED + 1, 4096),
                (USED + 512, 512),
                (USED, 4095),
                (USED, 4097),
                (USED, 0),
                (BYTES - PAGE, 2 * 4096),
                (BYTES, 4096),
                (USED, u32::MAX),
                (u64::MAX - PAGE + 1, 4096),
                (!(PAGE - 1), 2 * 4096),
            ] {
                report(&memory, &[bad]);
                // A chain with a buffer outside of memory is refused as a whole, one with pieces of pages is not.
                report(&memory, &[bad, bad]);
            }
            assert_eq!(mapped(&memory), all_but(&[]));
        }
    }

    #[test]
    fn a_block_over_the_hole_for_devices_is_none() {
        let memory = memory::create(DEVICE_HOLE_START + (1 << 20)).unwrap();
        fill(&memory);
        for address in [DEVICE_HOLE_START - PAGE, DEVICE_HOLE_END] {
            memory.write_obj(7u8, GuestAddress(address)).unwrap();
        }
        report(&memory, &[(DEVICE_HOLE_START - PAGE, 2 * 4096)]);
        report(
            &memory,
            &[(
                DEVICE_HOLE_START - PAGE,
                (DEVICE_HOLE_END - DEVICE_HOLE_START + 2 * PAGE) as u32,
            )],
        );
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(DEVICE_HOLE_START - PAGE))
                .unwrap(),
            7
        );
        report(&memory, &[(DEVICE_HOLE_END, 1 << 20)]);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(DEVICE_HOLE_END)).unwrap(), 0);
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(DEVICE_HOLE_START - PAGE))
                .unwrap(),
            7
        );
    }

    #[test]
    fn a_report_has_as_many_blocks_as_a_driver_reports() {
        let memory = booted();
        let blocks: Vec<_> = (0..40).map(|block| (USED + block * 2 * PAGE, 4096)).collect();
        report(&memory, &blocks);
        assert_eq!(mapped(&memory), all_but(&blocks[..BLOCKS_MAX]));
    }

    #[test]
    fn only_reports_give_back_and_only_what_is_to_be_written() {
        let memory = booted();
        for queue in [0, 1] {
            answer(&memory, queue, &[(USED, 4096)], VRING_DESC_F_WRITE);
            answer(&memory, queue, &[(USED, 4096)], 0);
        }
        answer(&memory, REPORTS, &[(USED, 4096)], 0);
        assert_eq!(mapped(&memory), all_but(&[]));
    }

    #[test]
    fn no_page_is_wanted() {
        let device = Balloon::default();
        let mut config = [0xff; 12];
        device.read_config(0, &mut config);
        assert_eq!(config[..8], [0; 8]);
        device.read_config(u64::MAX, &mut config);
    }

    #[test]
    fn a_device_that_is_not_active_ignores_notifications() {
        let mut device = Balloon::default();
        device.queue_notified(REPORTS);
        device.reset();
        device.queue_notified(7);
    }
}
