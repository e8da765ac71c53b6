//! Loads the ELF kernel at its link address and the initrd as high as the first mapping of the kernel reaches.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
};

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{BootError, source::Source};
use crate::{
    layout::HIGH_RAM_START,
    memory::{self, Memory},
};

const PAGE_BYTES: u64 = 4096;

/// Memory past the loaded segments that the kernel needs before it can make room for itself: its BSS and the first
/// page tables (`_end` and `brk` lie in the segments, the rest is slack).
const KERNEL_SLACK_BYTES: u64 = 4 << 20;

/// A loaded kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Physical address of the first instruction.
    pub entry: u64,
    /// First byte after its segments.
    pub end: u64,
}

/// A range of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Reads the segments of the ELF file `kernel` straight into `memory`.
///
/// # Errors
/// [`BootError::Kernel`] when it is no 64-bit ELF file, or a segment lies outside of the memory.
pub fn load_kernel(memory: &Memory, kernel: &mut File) -> Result<LoadedKernel, BootError> {
    let mut source = Source { file: kernel, memory };
    let lowest = GuestAddress(HIGH_RAM_START);
    let loaded = Elf::load(memory, None, &mut source, Some(lowest)).map_err(BootError::Kernel)?;
    Ok(LoadedKernel {
        entry: loaded.kernel_load.0,
        end: loaded.kernel_end,
    })
}

/// Reads `bytes` of `initrd` to the top of the memory below the hole for devices.
///
/// # Errors
/// [`BootError::TooLittleMemory`] when it would touch the kernel, which ends at `kernel_end`.
pub fn load_initrd(
    memory: &Memory,
    initrd: &mut File,
    bytes: u64,
    kernel_end: u64,
) -> Result<Range, BootError> {
    let too_little = BootError::TooLittleMemory { initrd: bytes };
    let Some(start) = memory::low_end(memory).checked_sub(bytes) else {
        return Err(too_little);
    };
    let start = start / PAGE_BYTES * PAGE_BYTES;
    if start < kernel_end.saturating_add(KERNEL_SLACK_BYTES) {
        return Err(too_little);
    }
    initrd
        .seek(SeekFrom::Start(0))
        .map_err(|e| BootError::Initrd(GuestMemoryError::IOError(e)))?;
    memory
        .read_exact_volatile_from(
            GuestAddress(start),
            &mut Source { file: initrd, memory },
            bytes as usize,
        )
        .map_err(BootError::Initrd)?;
    Ok(Range { start, bytes })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    /// An ELF file with one segment at `address` and its entry there.
    fn elf(address: u64, segment: &[u8]) -> Vec<u8> {
        let mut elf = Vec::new();
        elf.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        elf.extend_from_slice(&2u16.to_le_bytes()); // ET_EXEC
        elf.extend_from_slice(&62u16.to_le_bytes()); // EM_X86_64
        elf.extend_from_slice(&1u32.to_le_bytes());
        for word in [address, 64, 0] {
            elf.extend_from_slice(&word.to_le_bytes()); // entry, program headers, section headers
        }
        elf.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, 1, 0, 0, 0] {
            elf.extend_from_slice(&half.to_le_bytes());
        }
        elf.extend_from_slice(&1u32.to_le_bytes()); // PT_LOAD
        elf.extend_from_slice(&5u32.to_le_bytes());
        let bytes = segment.len() as u64;
        for word in [120, address, address, bytes, bytes, 0] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        elf.extend_from_slice(segment);
        elf
    }

    #[test]
    fn a_kernel_lands_at_its_link_address() {
        let memory = memory::create(64 << 20).unwrap();
        let kernel = load_kernel(&memory, &mut file(&elf(0x100_0000, b"kernel"))).unwrap();
        assert_eq!(
            kernel,
            LoadedKernel {
                entry: 0x100_0000,
                end: 0x100_0006
            }
        );
        let mut read = [0; 6];
        memory.read_slice(&mut read, GuestAddress(0x100_0000)).unwrap();
        assert_eq!(&read, b"kernel");
    }

    #[test]
    fn a_kernel_that_is_damaged_or_lies_outside_of_memory_is_refused() {
        let memory = memory::create(64 << 20).unwrap();
        for bytes in [
            Vec::new(),
            b"#!/bin/sh\n".to_vec(),
            elf(0x100_0000, b"kernel")[..100].to_vec(),
            elf(0x100_0000, b"kernel")[..122].to_vec(),
            elf(u64::MAX - 2, b"kernel"),
            elf(64 << 20, b"kernel"),
        ] {
            assert!(matches!(
                load_kernel(&memory, &mut file(&bytes)),
                Err(BootError::Kernel(_))
            ));
        }
    }

    /// GHSA-52h2-m2cf-9jh6, a loader that goes around without end: notes, which say themselves where the next is, and more program
    /// headers than the file has.
    #[test]
    fn a_kernel_whose_notes_or_headers_lead_nowhere_is_read_to_an_end() {
        let memory = memory::create(64 << 20).unwrap();
        for sizes in [
            [0u32, 0],
            [u32::MAX, 0],
            [0, u32::MAX],
            [u32::MAX, u32::MAX],
            [0xffff_fff4, 0xffff_fffc],
        ] {
            for bytes in [0u64, 12, 4096, u64::MAX] {
                let mut notes = Vec::new();
                for _ in 0..64 {
                    notes.extend(sizes[0].to_le_bytes());
                    notes.extend(sizes[1].to_le_bytes());
                    notes.extend(18u32.to_le_bytes()); // XEN_ELFNOTE_PHYS32_ENTRY
                }
                let mut elf = elf(0x100_0000, &notes);
                elf[64..68].copy_from_slice(&4u32.to_le_bytes()); // PT_NOTE
                elf[96..104].copy_from_slice(&bytes.to_le_bytes()); // p_filesz
                // It comes back, whatever it says.
                let _ = load_kernel(&memory, &mut file(&elf));
            }
        }
        let mut elf = elf(0x100_0000, b"kernel");
        elf[56..58].copy_from_slice(&u16::MAX.to_le_bytes()); // e_phnum
        assert!(matches!(
            load_kernel(&memory, &mut file(&elf)),
            Err(BootError::Kernel(_))
        ));
        // The headers are the headers of themselves.
        elf[32..40].copy_from_slice(&0u64.to_le_bytes()); // e_phoff
        assert!(matches!(
            load_kernel(&memory, &mut file(&elf)),
            Err(BootError::Kernel(_))
        ));
    }

    #[test]
    fn an_initrd_lands_at_the_top_of_memory_on_a_page() {
        let memory = memory::create(64 << 20).unwrap();
        let range = load_initrd(&memory, &mut file(b"cpio!"), 5, 0x200_0000).unwrap();
        assert_eq!(
            range,
            Range {
                start: (64 << 20) - 4096,
                bytes: 5
            }
        );
        let mut read = [0; 5];
        memory.read_slice(&mut read, GuestAddress(range.start)).unwrap();
        assert_eq!(&read, b"cpio!");
    }

    #[test]
    fn an_initrd_that_would_touch_the_kernel_is_refused() {
        let memory = memory::create(64 << 20).unwrap();
        for (bytes, kernel_end) in [(65 << 20, 0x200_0000), (u64::MAX, 0), (30 << 20, 32 << 20)] {
            assert!(matches!(
                load_initrd(&memory, &mut file(b""), bytes, kernel_end),
                Err(BootError::TooLittleMemory { .. })
            ));
        }
    }

    #[test]
    fn an_initrd_shorter_than_announced_is_an_error() {
        let memory = memory::create(64 << 20).unwrap();
        assert!(matches!(
            load_initrd(&memory, &mut file(b"cpio"), 5, 0),
            Err(BootError::Initrd(_))
        ));
    }
}
