//! Where things are in the guest's physical address space.
//!
//! ```text
//! 0x0000_0010  MP tables (found in the first KiB, the first place where a kernel looks)
//! 0x0000_0500  GDT · 0x7000 zero page · 0x8000 setup data · 0x9000 page tables · 0x2_0000 command line
//! 0x0010_0000  RAM of the guest: the kernel at its link address, the initrd at the top of low memory
//! 0xd000_0000  virtio-mmio devices, a page each
//! 0xfec0_0000  I/O APIC · 0xfee0_0000 local APICs · 0xfffb_c000 pages that KVM needs on VMX
//! 1_0000_0000  the rest of the RAM
//! ```

/// MP floating pointer structure; the configuration table follows it.
pub const MP_TABLE: u64 = 0x10;

/// End of the room for the MP tables: the BIOS data area, which the kernel reads, starts here.
pub const MP_TABLE_END: u64 = 0x400;

/// Global descriptor table.
pub const GDT: u64 = 0x500;

/// The zero page, `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;

/// `struct setup_data` with the seed of the guest's random number generator.
pub const SETUP_DATA: u64 = 0x8000;

/// Identity-mapping page tables: PML4, then PDPT, then one page directory.
pub const PAGE_TABLES: u64 = 0x9000;

/// Stack pointer at entry; the kernel has one of its own after a few instructions.
pub const BOOT_STACK: u64 = 0x8ff0;

/// Kernel command line, NUL-terminated.
pub const COMMAND_LINE: u64 = 0x2_0000;

/// Bytes of a command line, its NUL included: `COMMAND_LINE_SIZE` of x86 kernels.
pub const COMMAND_LINE_BYTES: usize = 2048;

/// End of the RAM below the legacy video and BIOS area.
pub const LOW_RAM_END: u64 = 0x9_fc00;

/// First byte of RAM above the BIOS area.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Start of the hole for devices below 4 GiB.
pub const DEVICE_HOLE_START: u64 = 0xd000_0000;

/// End of the hole for devices.
pub const DEVICE_HOLE_END: u64 = 0x1_0000_0000;

/// The first virtio-mmio device.
pub const VIRTIO_MMIO: u64 = DEVICE_HOLE_START;

/// Bytes of a virtio-mmio device's registers.
pub const VIRTIO_MMIO_BYTES: u64 = 0x1000;

/// The I/O APIC that KVM emulates.
pub const IO_APIC: u32 = 0xfec0_0000;

/// The local APICs that KVM emulates.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// A page for KVM's identity map (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Three pages for KVM's task state segment (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: usize = 0xfffb_d000;

/// Interrupt line of the serial port.
pub const SERIAL_IRQ: u32 = 4;

/// Interrupt line of the first virtio-mmio device; each has one of its own.
pub const VIRTIO_IRQ_FIRST: u32 = 5;

/// Pins of the I/O APIC that KVM emulates.
pub const IO_APIC_PINS: u32 = 24;

/// Most virtio-mmio devices: one for each pin from the first up.
pub const VIRTIO_DEVICES_MAX: usize = (IO_APIC_PINS - VIRTIO_IRQ_FIRST) as usize;
