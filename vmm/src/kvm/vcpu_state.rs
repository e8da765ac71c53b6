//! Everything that KVM knows of a vCPU, read and written in the order in which the pieces depend on each other
//! (Documentation/virt/kvm/api.rst; KVM's own order in `kvm_arch_vcpu_ioctl`).

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::{KvmError, failed};

/// Time stamp counter.
pub const MSR_IA32_TSC: u32 = 0x10;
/// When the local APIC's timer fires; counted by the time stamp counter, so written after it.
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

/// MSRs that KVM takes at once, well under the size of its list (`KVM_MAX_MSR_ENTRIES`).
const MSR_BATCH: usize = 64;

/// A vCPU that stands still.
// What is unsafe about a method is what KVM reads, not what the fields hold.
#[allow(clippy::unsafe_derive_deserialize)]
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Option<Box<kvm_xsave>>,
    xcrs: Option<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: Option<Box<kvm_lapic_state>>,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

/// The MSRs that this KVM has and that belong to a guest's state.
///
/// # Errors
/// [`KvmError`].
pub fn saved_msrs(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
    Ok(list.as_slice().to_vec())
}

impl VcpuState {
    /// Reads the state of a vCPU that is not running and has no unfinished exit. `msrs` are those of [`saved_msrs`], `cpuid`
    /// is what it was given: KVM itself tells some leaves as the guest's settings have changed them since.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn read(fd: &VcpuFd, msrs: &[u32], cpuid: &[kvm_cpuid_entry2]) -> Result<Self, KvmError> {
        // KVM_GET_MP_STATE takes pending INIT and SIPI events and KVM_GET_LAPIC brings the APIC's registers up to date: both
        // change what is read after them.
        let mp_state = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        let regs = fd.get_regs().map_err(failed("KVM_GET_REGS"))?;
        let sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let xsave = fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        let xcrs = fd.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
        let debug_regs = fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
        let lapic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        let msrs = read_msrs(fd, msrs)?;
        Ok(Self {
            cpuid: cpuid.to_vec(),
            tsc_khz: fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?,
            mp_state,
            regs,
            sregs,
            xsave: Some(Box::new(xsave)),
            xcrs: Some(xcrs),
            debug_regs,
            lapic: Some(Box::new(lapic)),
            msrs,
            events: fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Gives a new vCPU this state. Its interrupt controllers are those of the machine, which must exist.
    ///
    /// # Errors
    /// [`KvmError`]; [`KvmError::Msr`] when this KVM does not take one of the values.
    pub fn write(&self, fd: &VcpuFd) -> Result<(), KvmError> {
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| KvmError::Cpuid)?;
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        if fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))? != self.tsc_khz {
            fd.set_tsc_khz(self.tsc_khz).map_err(failed("KVM_SET_TSC_KHZ"))?;
        }
        fd.set_mp_state(self.mp_state)
            .map_err(failed("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(failed("KVM_SET_REGS"))?;
        fd.set_sregs(&self.sregs).map_err(failed("KVM_SET_SREGS"))?;
        if let Some(xsave) = &self.xsave {
            // SAFETY: KVM reads as many bytes as the guest's XSAVE area has. That is over the 4,096 of this structure only for
            // features that a process must ask for (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM), which this one never does.
            unsafe { fd.set_xsave(xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
        }
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs).map_err(failed("KVM_SET_XCRS"))?;
        }
        fd.set_debug_regs(&self.debug_regs)
            .map_err(failed("KVM_SET_DEBUGREGS"))?;
        if let Some(lapic) = &self.lapic {
            fd.set_lapic(lapic).map_err(failed("KVM_SET_LAPIC"))?;
        }
        write_msrs(fd, &self.msrs)?;
        fd.set_vcpu_events(&self.events)
            .map_err(failed("KVM_SET_VCPU_EVENTS"))
    }

    /// The CPUID leaves that the guest was given.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// A state that can be told from others, by its frequency.
    #[cfg(test)]
    pub(crate) fn numbered(tsc_khz: u32) -> Self {
        Self {
            tsc_khz,
            ..Self::default()
        }
    }

    /// Frequency of the time stamp counter.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }
}

/// The host's own time stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The time stamp counter of the guest.
///
/// # Errors
/// [`KvmError`].
pub fn read_tsc(fd: &VcpuFd) -> Result<u64, KvmError> {
    match read_msrs(fd, &[MSR_IA32_TSC])?[..] {
        [(_, tsc)] => Ok(tsc),
        _ => Err(KvmError::Msr {
            index: MSR_IA32_TSC,
            value: 0,
        }),
    }
}

/// Reads what can be read: KVM lists some MSRs that a guest with these CPUID leaves does not have.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let batch: Vec<_> = rest
            .iter()
            .take(MSR_BATCH)
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&batch).map_err(|_| KvmError::Cpuid)?;
        let count = fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        values.extend(
            msrs.as_slice()[..count]
                .iter()
                .map(|entry| (entry.index, entry.data)),
        );
        // KVM stops at the first that it cannot read.
        rest = &rest[(count + usize::from(count < batch.len())).min(rest.len())..];
    }
    // The deadline counts in units of the time stamp counter.
    values.sort_by_key(|&(index, _)| index == MSR_IA32_TSC_DEADLINE);
    Ok(values)
}

fn write_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), KvmError> {
    let mut rest = values;
    while !rest.is_empty() {
        let batch: Vec<_> = rest
            .iter()
            .take(MSR_BATCH)
            .map(|&(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        let msrs = Msrs::from_entries(&batch).map_err(|_| KvmError::Cpuid)?;
        let count = fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
        rest = &rest[count.min(rest.len())..];
        if let Some((&(index, value), others)) = rest.split_first()
            && count < batch.len()
        {
            // One that only says what the processor is cannot be written, and need not be when it says the same.
            if value != 0 && read_msrs(fd, &[index])? != [(index, value)] {
                return Err(KvmError::Msr { index, value });
            }
            rest = others;
        }
    }
    Ok(())
}
