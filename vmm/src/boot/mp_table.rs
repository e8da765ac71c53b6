//! Describes processors and interrupt lines to a kernel without ACPI, by the MultiProcessor Specification 1.4.
//!
//! The floating pointer lies in the first KiB of memory, the first place where Linux looks, so that it scans nothing.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::{
    layout::{IO_APIC, IO_APIC_PINS, LOCAL_APIC, MP_TABLE, MP_TABLE_END},
    memory::Memory,
};

const FLOATING_POINTER_BYTES: u64 = 16;
const HEADER_BYTES: usize = 44;
const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOTSTRAP: u8 = 2;
/// On-chip APIC and floating-point unit.
const PROCESSOR_FEATURES: u32 = 0x201;

const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
const ALL_APICS: u8 = 0xff;

/// Writes the tables for `vcpus` processors.
///
/// # Errors
/// [`BootError::MpTable`] when they do not fit into their room, [`BootError::Table`].
pub fn write(memory: &Memory, vcpus: u8) -> Result<(), BootError> {
    let table = MP_TABLE + FLOATING_POINTER_BYTES;
    let configuration = configuration(vcpus);
    if table + configuration.len() as u64 > MP_TABLE_END {
        return Err(BootError::MpTable);
    }
    memory.write_slice(&floating_pointer(table as u32), GuestAddress(MP_TABLE))?;
    memory.write_slice(&configuration, GuestAddress(table))?;
    Ok(())
}

/// Section 4.1: the structure by which the table is found.
fn floating_pointer(table: u32) -> [u8; FLOATING_POINTER_BYTES as usize] {
    let mut bytes = [0; FLOATING_POINTER_BYTES as usize];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&table.to_le_bytes());
    bytes[8] = 1; // in units of 16 bytes
    bytes[9] = SPEC_REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

/// Sections 4.2 and 4.3: the header and, in the order of their types, the entries.
fn configuration(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut table = vec![0; HEADER_BYTES];
    let mut entries = 0u16;
    let mut push = |bytes: &[u8]| {
        table.extend_from_slice(bytes);
        entries += 1;
    };
    for id in 0..vcpus {
        let bootstrap = if id == 0 { PROCESSOR_BOOTSTRAP } else { 0 };
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[ENTRY_PROCESSOR, id, APIC_VERSION, PROCESSOR_ENABLED | bootstrap]);
        processor[8..12].copy_from_slice(&PROCESSOR_FEATURES.to_le_bytes());
        push(&processor);
    }
    push(b"\x01\x00ISA   ");
    let address = IO_APIC.to_le_bytes();
    push(&[
        ENTRY_IO_APIC,
        io_apic_id,
        APIC_VERSION,
        1,
        address[0],
        address[1],
        address[2],
        address[3],
    ]);
    // Each line of the "ISA bus" goes to the pin of its number, edge-triggered and active high, as that bus has it.
    for line in 0..IO_APIC_PINS as u8 {
        push(&[ENTRY_IO_INTERRUPT, INTERRUPT_INT, 0, 0, 0, line, io_apic_id, line]);
    }
    push(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, 0, 0, ALL_APICS, 0]);
    push(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, 0, 0, ALL_APICS, 1]);

    let bytes = table.len() as u16;
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&bytes.to_le_bytes());
    table[6] = SPEC_REVISION;
    table[8..16].copy_from_slice(b"BRIG    ");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&entries.to_le_bytes());
    table[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    table[7] = checksum(&table);
    debug_assert_eq!(table[HEADER_BYTES + 20 * usize::from(vcpus)], ENTRY_BUS);
    table
}

/// The byte that makes the sum of all zero, when its own place holds zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use brig_protocol::vmm::VCPUS_MAX;

    use super::*;
    use crate::memory;

    #[test]
    fn the_tables_fit_for_every_number_of_processors() {
        let memory = memory::create(64 << 20).unwrap();
        for vcpus in 1..=VCPUS_MAX {
            write(&memory, vcpus).unwrap();
        }
    }

    #[test]
    fn sums_are_zero_and_entries_are_counted() {
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum(&floating_pointer(0x20)), 0);
        let table = configuration(3);
        assert_eq!(sum(&table), 0);
        let count = u16::from_le_bytes([table[34], table[35]]);
        assert_eq!(count, 3 + 1 + 1 + 24 + 2);
        assert_eq!(table.len(), HEADER_BYTES + 3 * 20 + (1 + 1 + 24 + 2) * 8);
    }
}
