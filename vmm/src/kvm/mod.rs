//! Everything that talks to KVM (Documentation/virt/kvm/api.rst).
//!
//! | room | does |
//! |---|---|
//! | [`Vm`] | the virtual machine: memory slots, interrupt controllers, notifications |
//! | [`vcpu`] | one virtual processor: its first state, its run loop |
//! | [`vcpu_state`], [`vm_state`] | what KVM knows of a guest, saved and restored |
//! | [`stats`] | what KVM counts |
//! | [`cpuid`] | what the guest is told about its processor |
//! | [`probe`] | tells a standard KVM from an emulated one |

pub mod cpuid;
pub mod probe;
pub mod stats;
pub mod vcpu;
pub mod vcpu_state;
pub mod vm_state;

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    layout::{KVM_IDENTITY_MAP, KVM_TSS},
    memory::Memory,
};

/// The version that KVM has had since Linux 2.6.22 and always will.
const API_VERSION: i32 = 12;

/// A request to KVM that failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is not `/dev/kvm`, or that of another system.
    #[error("The descriptor is no KVM of version 12")]
    Version,
    /// An ioctl failed.
    #[error("KVM refused {what}")]
    Ioctl {
        /// The ioctl, as the API's documentation calls it.
        what: &'static str,
        /// errno.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The list of CPUID leaves does not fit into KVM's limit.
    #[error("Too many CPUID leaves")]
    Cpuid,
    /// A saved register has a value that this KVM does not take.
    #[error("KVM does not take the value {value:#x} of MSR {index:#x}")]
    Msr {
        /// Number of the MSR.
        index: u32,
        /// The saved value.
        value: u64,
    },
}

/// Names the ioctl of a failed request.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { what, source }
}

/// Checks that `kvm` is what it should be, before anything else is asked of it.
///
/// # Errors
/// [`KvmError::Version`].
pub fn check(kvm: &Kvm) -> Result<(), KvmError> {
    if kvm.get_api_version() == API_VERSION {
        Ok(())
    } else {
        Err(KvmError::Version)
    }
}

/// A virtual machine and the memory that its slots point to: neither can outlive the other.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    memory: Arc<Memory>,
}

impl Vm {
    /// Makes a machine with `memory` and nothing else.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn new(kvm: &Kvm, memory: Arc<Memory>) -> Result<Self, KvmError> {
        let fd = create_vm(kvm)?;
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(KVM_TSS).map_err(failed("KVM_SET_TSS_ADDR"))?;
        for (slot, region) in memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.get_mmap().as_ptr() as u64,
            };
            // SAFETY: the range is a live mapping of exactly `memory_size` bytes. It is unmapped after `fd` and every
            // vCPU are closed: `Self` owns a reference to it, drops it after `fd`, and each vCPU owns a reference to
            // `Self`.
            unsafe { fd.set_user_memory_region(slot) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(Self { fd, memory })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Makes the interrupt controllers: PICs, I/O APIC, and a local APIC with each vCPU that is made after it.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn create_interrupt_controllers(&self) -> Result<(), KvmError> {
        self.fd.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))
    }

    /// Makes the vCPU with this index.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(u64::from(index))
            .map_err(failed("KVM_CREATE_VCPU"))
    }

    /// Lets a write to `event` raise interrupt line `irq` for an instant.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn connect_interrupt(&self, event: &EventFd, irq: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, irq).map_err(failed("KVM_IRQFD"))
    }

    /// Lets the guest's write of `value` to the 32-bit register at `address` signal `event`, without an exit.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn connect_notification(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(failed("KVM_IOEVENTFD"))
    }
}

/// `KVM_CREATE_VM`, which a signal may interrupt.
fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR => {}
            result => return result.map_err(failed("KVM_CREATE_VM")),
        }
    }
}
