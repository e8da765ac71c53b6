//! The zero page: `struct boot_params` of the x86 boot protocol, and the random seed that it points to.

use linux_loader::loader::bootparam::{SETUP_RNG_SEED, boot_params};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{BootError, kernel::Range};
use crate::{
    layout::{
        COMMAND_LINE, COMMAND_LINE_BYTES, DEVICE_HOLE_END, HIGH_RAM_START, LOW_RAM_END, SETUP_DATA, ZERO_PAGE,
    },
    memory::{self, Memory},
};

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
const PROTOCOL_VERSION: u16 = 0x020f;
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
const E820_RAM: u32 = 1;

/// Bytes of the seed: the key size of the guest's ChaCha20.
const SEED_BYTES: usize = 32;
/// Bytes of `struct setup_data` before its data: next, type, length.
const SETUP_DATA_HEADER_BYTES: u64 = 16;

/// Writes the zero page for a command line at [`COMMAND_LINE`] and an initrd at `initrd`, and a fresh random seed.
///
/// # Errors
/// [`BootError::Table`] when the memory is too small; [`BootError::Seed`].
pub fn write(memory: &Memory, initrd: Range) -> Result<(), BootError> {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL_VERSION;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = COMMAND_LINE_BYTES as u32 - 1;
    // Both are below the hole for devices, so below 4 GiB.
    params.hdr.ramdisk_image = initrd.start as u32;
    params.hdr.ramdisk_size = initrd.bytes as u32;
    params.hdr.setup_data = SETUP_DATA;
    for (entry, range) in ram(memory).into_iter().enumerate() {
        params.e820_table[entry].addr = range.start;
        params.e820_table[entry].size = range.bytes;
        params.e820_table[entry].r#type = E820_RAM;
        params.e820_entries = entry as u8 + 1;
    }
    memory.write_obj(params, GuestAddress(ZERO_PAGE))?;
    write_seed(memory)
}

/// The ranges that are RAM: below the BIOS area, above it, and above 4 GiB.
fn ram(memory: &Memory) -> Vec<Range> {
    let mut ranges = vec![
        Range {
            start: 0,
            bytes: LOW_RAM_END,
        },
        Range {
            start: HIGH_RAM_START,
            bytes: memory::low_end(memory) - HIGH_RAM_START,
        },
    ];
    if let Some(high) = memory.find_region(GuestAddress(DEVICE_HOLE_END)) {
        ranges.push(Range {
            start: DEVICE_HOLE_END,
            bytes: high.len(),
        });
    }
    ranges
}

/// Lets the guest's random number generator be ready from its first instruction on: it takes the seed at once and
/// wipes it (arch/x86/kernel/setup.c).
fn write_seed(memory: &Memory) -> Result<(), BootError> {
    let mut seed = [0; SEED_BYTES];
    // Up to 256 bytes are never cut short (getrandom(2)).
    getrandom(&mut seed, GetRandomFlags::empty()).map_err(|e| BootError::Seed(e.into()))?;
    memory.write_obj(0u64, GuestAddress(SETUP_DATA))?;
    memory.write_obj(SETUP_RNG_SEED, GuestAddress(SETUP_DATA + 8))?;
    memory.write_obj(SEED_BYTES as u32, GuestAddress(SETUP_DATA + 12))?;
    memory.write_slice(&seed, GuestAddress(SETUP_DATA + SETUP_DATA_HEADER_BYTES))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: u64) -> boot_params {
        let memory = memory::create(bytes).unwrap();
        let initrd = Range {
            start: 0x300_0000,
            bytes: 0x1234,
        };
        write(&memory, initrd).unwrap();
        memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap()
    }

    #[test]
    fn small_memory_is_two_ranges() {
        let params = written(64 << 20);
        assert_eq!(params.e820_entries, 2);
        let (address, size) = (params.e820_table[1].addr, params.e820_table[1].size);
        assert_eq!((address, size), (0x10_0000, (64 << 20) - 0x10_0000));
        let (image, bytes) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        assert_eq!((image, bytes), (0x300_0000, 0x1234));
    }

    #[test]
    fn large_memory_goes_on_above_the_hole() {
        let params = written(5 << 30);
        assert_eq!(params.e820_entries, 3);
        let (address, size) = (params.e820_table[2].addr, params.e820_table[2].size);
        assert_eq!((address, size), (1 << 32, (5 << 30) - 0xd000_0000));
    }

    #[test]
    fn each_guest_gets_a_seed_of_its_own() {
        let seed = || {
            let memory = memory::create(64 << 20).unwrap();
            write_seed(&memory).unwrap();
            let mut seed = [0u8; SEED_BYTES];
            memory
                .read_slice(&mut seed, GuestAddress(SETUP_DATA + 16))
                .unwrap();
            seed
        };
        assert_ne!(seed(), seed());
    }
}
