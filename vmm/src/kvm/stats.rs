//! KVM's own counters of a vCPU (Documentation/virt/kvm/api.rst, 4.133 `KVM_GET_STATS_FD`).
//!
//! The descriptor reads as a header, then descriptors that name the counters and say where their values are.

use std::{
    fs::File,
    io,
    os::{fd::FromRawFd, unix::fs::FileExt},
};

use brig_protocol::vmm::Counters;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

#[allow(missing_docs)]
mod request {
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);
}

/// `struct kvm_stats_header`: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
const HEADER_BYTES: usize = 24;

/// `struct kvm_stats_desc` without its name: flags, exponent, size, offset, bucket_size.
const DESCRIPTOR_BYTES: usize = 16;

/// More counters, or longer names, than KVM has.
const COUNTERS_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 256;

/// The counters of one vCPU.
#[derive(Debug)]
pub struct VcpuStats(File);

impl VcpuStats {
    /// Opens them; `None` for a KVM that does not count (before Linux 5.14).
    pub fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the descriptor is a vCPU's, and the ioctl takes no argument.
        let fd = unsafe { ioctl(vcpu, request::KVM_GET_STATS_FD()) };
        // SAFETY: a descriptor that is not negative has just been made and is nobody else's.
        (fd >= 0).then(|| Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Adds the present values to `sum`.
    ///
    /// # Errors
    /// Those of reading the descriptor; `InvalidData` when it reads as no counters.
    pub fn add_to(&self, sum: &mut Counters) -> io::Result<()> {
        let mut header = [0; HEADER_BYTES];
        self.0.read_exact_at(&mut header, 0)?;
        let word = |bytes: &[u8], index: usize| {
            let at = index * 4;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (name_bytes, count) = (word(&header, 1) as usize, word(&header, 2) as usize);
        let (descriptors_at, values_at) = (u64::from(word(&header, 4)), u64::from(word(&header, 5)));
        if count > COUNTERS_MAX || name_bytes > NAME_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let each = DESCRIPTOR_BYTES + name_bytes;
        let mut descriptors = vec![0; each * count];
        self.0.read_exact_at(&mut descriptors, descriptors_at)?;
        for descriptor in descriptors.chunks_exact(each) {
            let (fixed, name) = descriptor.split_at(DESCRIPTOR_BYTES);
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            let Some(counter) = counter(sum, name) else {
                continue;
            };
            let mut value = [0; 8];
            self.0
                .read_exact_at(&mut value, values_at + u64::from(word(fixed, 2)))?;
            *counter += u64::from_le_bytes(value);
        }
        Ok(())
    }
}

/// The member that a counter of KVM's goes to.
fn counter<'a>(sum: &'a mut Counters, name: &[u8]) -> Option<&'a mut u64> {
    Some(match name {
        b"exits" => &mut sum.exits,
        b"io_exits" => &mut sum.io_exits,
        b"mmio_exits" => &mut sum.mmio_exits,
        b"halt_exits" => &mut sum.halts,
        b"irq_injections" => &mut sum.interrupts,
        b"insn_emulation" => &mut sum.emulated_instructions,
        b"pf_taken" => &mut sum.guest_faults,
        _ => return None,
    })
}
