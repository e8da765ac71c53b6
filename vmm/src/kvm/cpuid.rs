//! What the guest is told about its processor: what KVM supports, less what the guest shall not use, plus where each
//! vCPU stands among the others (Intel SDM, volume 2, CPUID; AMD APM, volume 3, appendix E).

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, failed};

const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_PERFMON: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the leaf has subleaves.
const HAS_INDEX: u32 = 1;

/// Levels of leaf 0xb.
const LEVEL_THREADS: u32 = 1 << 8;
const LEVEL_CORES: u32 = 2 << 8;

/// The registers of one leaf in which feature bits are to be cleared: a mask a register.
#[derive(Clone, Copy, Debug)]
pub struct FeatureMask {
    /// EAX.
    pub leaf: u32,
    /// ECX.
    pub subleaf: u32,
    /// Bits of EAX to clear.
    pub eax: u32,
    /// Bits of EBX to clear.
    pub ebx: u32,
    /// Bits of ECX to clear.
    pub ecx: u32,
    /// Bits of EDX to clear.
    pub edx: u32,
}

/// The leaves that all vCPUs of a guest with `vcpus` processors share; [`for_vcpu`] makes the rest.
///
/// # Errors
/// [`KvmError`].
pub fn for_guest(kvm: &Kvm, vcpus: u8, masks: &[FeatureMask]) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2))
        .copied()
        .collect();
    for entry in &mut entries {
        for mask in masks {
            if (mask.leaf, mask.subleaf) == (entry.function, entry.index) {
                entry.eax &= !mask.eax;
                entry.ebx &= !mask.ebx;
                entry.ecx &= !mask.ecx;
                entry.edx &= !mask.edx;
            }
        }
        adjust_for_guest(entry, vcpus, tsc_deadline);
    }
    Ok(entries)
}

fn adjust_for_guest(entry: &mut kvm_cpuid_entry2, vcpus: u8, tsc_deadline: bool) {
    let others = u32::from(vcpus) - 1;
    match entry.function {
        LEAF_FEATURES => {
            entry.ecx |= ECX_HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            entry.ebx = entry.ebx & !0x00ff_0000 | u32::from(vcpus) << 16;
            if vcpus > 1 {
                entry.edx |= EDX_HYPER_THREADING;
            } else {
                entry.edx &= !EDX_HYPER_THREADING;
            }
        }
        LEAF_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharers = if level >= 3 { others } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharers << 14 | others << 26;
        }
        // No performance counters: a guest has no business with the host's, and they cost exits.
        LEAF_PERFMON => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | others | id_bits(vcpus) << 12,
        LEAF_AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharers = if level >= 3 { others } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharers << 14;
        }
        _ => {}
    }
}

/// The leaves of vCPU `index` of `vcpus`: each is a core of its own in one package.
///
/// # Errors
/// [`KvmError::Cpuid`] when there are more leaves than KVM takes.
pub fn for_vcpu(guest: &[kvm_cpuid_entry2], index: u8, vcpus: u8) -> Result<CpuId, KvmError> {
    let id = u32::from(index);
    let mut entries = guest.to_vec();
    for entry in &mut entries {
        match entry.function {
            LEAF_FEATURES => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            LEAF_AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    let level = |subleaf: u32, shift: u32, count: u32, level: u32| kvm_cpuid_entry2 {
        function: LEAF_TOPOLOGY,
        index: subleaf,
        flags: HAS_INDEX,
        eax: shift,
        ebx: count,
        ecx: subleaf | level,
        edx: id,
        ..Default::default()
    };
    entries.push(level(0, 0, 1, LEVEL_THREADS));
    entries.push(level(1, id_bits(vcpus), u32::from(vcpus), LEVEL_CORES));
    entries.push(level(2, 0, 0, 0));
    CpuId::from_entries(&entries).map_err(|_| KvmError::Cpuid)
}

/// Bits of an APIC id that tell `vcpus` processors apart.
fn id_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    #[test]
    fn each_vcpu_learns_its_own_id() {
        for index in [0, 1, 31] {
            let cpuid = for_vcpu(&[leaf(LEAF_FEATURES)], index, 32).unwrap();
            let entries = cpuid.as_slice();
            assert_eq!(entries[0].ebx >> 24, u32::from(index));
            for level in &entries[1..] {
                assert_eq!((level.function, level.edx), (LEAF_TOPOLOGY, u32::from(index)));
            }
            assert_eq!((entries[2].eax, entries[2].ebx), (5, 32));
        }
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let mut features = leaf(LEAF_FEATURES);
        adjust_for_guest(&mut features, 1, false);
        assert_eq!(features.edx & EDX_HYPER_THREADING, 0);
        assert_eq!(features.ebx >> 16 & 0xff, 1);
        assert_eq!(id_bits(1), 0);
    }

    #[test]
    fn performance_counters_are_hidden() {
        let mut perfmon = leaf(LEAF_PERFMON);
        adjust_for_guest(&mut perfmon, 4, true);
        assert_eq!((perfmon.eax, perfmon.ebx, perfmon.ecx, perfmon.edx), (0, 0, 0, 0));
    }
}
