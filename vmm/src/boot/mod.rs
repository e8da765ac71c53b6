//! Puts a Linux kernel into guest memory and says where its first instruction is.
//!
//! The 64-bit boot protocol (Documentation/arch/x86/boot.rst) is used rather than PVH: the vCPU starts in long mode
//! with paging on, which spares the guest the 32-bit prologue and the conversion of PVH's tables.
//!
//! | room | writes |
//! |---|---|
//! | [`command_line`] | the kernel's parameters |
//! | [`kernel`] | the ELF segments and the initrd |
//! | [`source`] | moves files into guest memory |
//! | [`mp_table`] | processors and interrupt lines |
//! | [`zero_page`] | memory map, where initrd and command line are, the random seed |
//! | [`long_mode`] | page tables and GDT, and the registers that go with them |

pub mod command_line;
pub mod kernel;
pub mod long_mode;
pub mod mp_table;
pub mod source;
pub mod zero_page;

use std::{fs::File, io};

use vm_memory::GuestMemoryError;

use crate::memory::Memory;

/// Why a kernel could not be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel is no ELF file that fits.
    #[error("Cannot load the kernel")]
    Kernel(#[source] linux_loader::loader::Error),
    /// The initrd and the kernel do not both fit into the guest's memory.
    #[error("The guest's memory is too small for its initrd of {initrd} bytes")]
    TooLittleMemory {
        /// Bytes of the initrd.
        initrd: u64,
    },
    /// The initrd could not be read.
    #[error("Cannot read the initrd")]
    Initrd(#[source] GuestMemoryError),
    /// A table did not fit.
    #[error("Cannot write the boot tables")]
    Table(#[from] GuestMemoryError),
    /// More interrupt sources or processors than the MP table has room for.
    #[error("The MP table is too long")]
    MpTable,
    /// The command line is over the kernel's limit.
    #[error("The kernel command line is too long: {0} bytes")]
    CommandLine(usize),
    /// getrandom(2) failed.
    #[error("Cannot get a random seed")]
    Seed(#[source] io::Error),
}

/// What to boot.
#[derive(Debug)]
pub struct Payload<'a> {
    /// ELF vmlinux.
    pub kernel: &'a mut File,
    /// cpio archive.
    pub initrd: &'a mut File,
    /// Bytes of the initrd.
    pub initrd_bytes: u64,
    /// Complete command line, without the NUL.
    pub command_line: &'a str,
    /// vCPUs.
    pub vcpus: u8,
}

/// Puts everything into `memory`; returns the address of the kernel's first instruction.
///
/// # Errors
/// [`BootError`]; the memory is then partly written and good for nothing.
pub fn load(memory: &Memory, payload: Payload<'_>) -> Result<u64, BootError> {
    let kernel = kernel::load_kernel(memory, payload.kernel)?;
    let initrd = kernel::load_initrd(memory, payload.initrd, payload.initrd_bytes, kernel.end)?;
    command_line::write(memory, payload.command_line)?;
    mp_table::write(memory, payload.vcpus)?;
    zero_page::write(memory, initrd)?;
    long_mode::write_tables(memory)?;
    Ok(kernel.entry)
}
