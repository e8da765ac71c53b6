//! The state in which the 64-bit boot protocol wants a processor: long mode, flat segments, memory mapped one to one.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryResult};

use crate::{
    layout::{BOOT_STACK, GDT, PAGE_TABLES, ZERO_PAGE},
    memory::Memory,
};

const PAGE_BYTES: u64 = 4096;
const ENTRIES: u64 = 512;

/// Present and writable (Intel SDM, volume 3, 4.5).
const TABLE_ENTRY: u64 = 0b11;
/// Present, writable, and a 2 MiB page.
const LARGE_PAGE: u64 = 0b1000_0011;

/// `__BOOT_CS` and `__BOOT_DS` of the protocol: entries 2 and 3 of the table.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Code: present, execute/read, 64-bit, 4 KiB granularity. Data: present, read/write, 32-bit.
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Protection enable, extension type, numeric error, write protect, paging.
const CR0: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// Physical address extension.
const CR4: u64 = 1 << 5;
/// Long mode enabled and active.
const EFER: u64 = 1 << 8 | 1 << 10;
/// The one flag that always reads as set.
const RFLAGS: u64 = 1 << 1;

/// Writes page tables that map the first GiB one to one by 2 MiB pages, and the GDT.
///
/// # Errors
/// When the memory ends below the tables.
pub fn write_tables(memory: &Memory) -> GuestMemoryResult<()> {
    let (pml4, pdpt, directory) = (
        PAGE_TABLES,
        PAGE_TABLES + PAGE_BYTES,
        PAGE_TABLES + 2 * PAGE_BYTES,
    );
    memory.write_obj(pdpt | TABLE_ENTRY, GuestAddress(pml4))?;
    memory.write_obj(directory | TABLE_ENTRY, GuestAddress(pdpt))?;
    for entry in 0..ENTRIES {
        memory.write_obj(entry << 21 | LARGE_PAGE, GuestAddress(directory + 8 * entry))?;
    }
    for (entry, descriptor) in (0..).zip(GDT_ENTRIES) {
        memory.write_obj(descriptor, GuestAddress(GDT + 8 * entry))?;
    }
    Ok(())
}

/// General registers at the kernel's first instruction, `entry`.
pub fn registers(entry: u64) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rsp: BOOT_STACK,
        rsi: ZERO_PAGE,
        rflags: RFLAGS,
        ..Default::default()
    }
}

/// Turns `sregs`, as a new vCPU has them, into those of long mode with [`write_tables`]'s tables.
pub fn special_registers(mut sregs: kvm_sregs) -> kvm_sregs {
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: BOOT_DS,
        type_: 0b0011,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: BOOT_CS,
        type_: 0b1011,
        db: 0,
        l: 1,
        ..data
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (GDT_ENTRIES.len() * 8 - 1) as u16;
    sregs.cr0 = CR0;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
    sregs
}

/// The floating-point unit as `fninit` and a reset leave it.
pub fn floating_point() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}
