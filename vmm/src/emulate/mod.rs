//! What a KVM without hardware virtualization lacks. Such a KVM interprets the guest's kernel mode with the instruction
//! emulator of Linux (arch/x86/kvm/emulate.c), which does not know every instruction: it reports a failure, and the VMM
//! carries the instruction out and lets the vCPU go on. On a standard KVM no [`Emulator`] exists.
//!
//! | room | does |
//! |---|---|
//! | [`step`] | fetches and decodes the instruction at RIP, puts back what has changed |
//! | [`execute`] | carries it out on a copy of the registers |
//! | [`extended`] | `xsave` and `xrstor`, on what KVM keeps of the vector registers |
//! | [`operands`] | registers, memory operands, immediate values |
//! | [`paging`] | translates addresses as the processor does, with its permission checks |
//! | [`bits`] | the arithmetic, apart from everything else |

pub mod bits;
pub mod execute;
mod extended;
pub mod operands;
pub mod paging;
mod step;

#[cfg(test)]
mod native;

pub use step::{EmulateError, Emulator};

use crate::kvm::cpuid::FeatureMask;

/// Tells the guest's kernel to avoid what the emulator lacks and to use its workaround for `syscall` (kernel-config's
/// patches), and to spare itself the work of splitting its page tables for read-only text.
pub const KERNEL_PARAMETERS: &str = "brig_emulated_kvm rodata=off";

/// What user programs are not to use either: features of a processor that this KVM shows only in part (Intel SDM,
/// volume 2, CPUID). Such a KVM does not apply every bit, so the kernel clears them as well.
pub const CPUID_MASKS: &[FeatureMask] = &[
    FeatureMask {
        leaf: 1,
        subleaf: 0,
        eax: 0,
        ebx: 0,
        // FMA, CMPXCHG16B, MOVBE, POPCNT, AVX, F16C, RDRAND. Not XSAVE: programs see AVX
        // whatever is said here, so the kernel has to save it.
        ecx: 1 << 12 | 1 << 13 | 1 << 22 | 1 << 23 | 1 << 28 | 1 << 29 | 1 << 30,
        edx: 0,
    },
    FeatureMask {
        leaf: 7,
        subleaf: 0,
        // FSGSBASE, BMI1, HLE, AVX2, SMEP, BMI2, ERMS, INVPCID, RTM, AVX512F, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB
        eax: 0,
        ebx: 1
            | 1 << 3
            | 1 << 4
            | 1 << 5
            | 1 << 7
            | 1 << 8
            | 1 << 9
            | 1 << 10
            | 1 << 11
            | 1 << 16
            | 1 << 18
            | 1 << 19
            | 1 << 20
            | 1 << 23
            | 1 << 24,
        // UMIP, PKU, LA57, RDPID, MOVDIRI, MOVDIR64B
        ecx: 1 << 2 | 1 << 3 | 1 << 16 | 1 << 22 | 1 << 27 | 1 << 28,
        // FSRM, SERIALIZE
        edx: 1 << 4 | 1 << 14,
    },
    FeatureMask {
        leaf: 0x8000_0001,
        subleaf: 0,
        eax: 0,
        ebx: 0,
        // LZCNT, XOP, FMA4, TBM
        ecx: 1 << 5 | 1 << 11 | 1 << 16 | 1 << 21,
        edx: 0,
    },
    FeatureMask {
        leaf: 0x8000_0007,
        subleaf: 0,
        eax: 0,
        ebx: 0,
        ecx: 0,
        // The time stamp counter is the host's own and cannot be set, so it is no clock for a guest that is saved and
        // restored: the paravirtual clock can be set.
        edx: 1 << 8,
    },
    FeatureMask {
        leaf: 0x4000_0001,
        subleaf: 0,
        // Asynchronous page faults: each restore begins with the search of 256 locked lists for those that wait.
        eax: 1 << 4 | 1 << 14,
        ebx: 0,
        ecx: 0,
        edx: 0,
    },
];
