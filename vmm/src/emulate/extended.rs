//! `xsave` and `xrstor` of the guest's kernel, on what KVM keeps of a vCPU's extended registers (Intel SDM, volume 1, chapter
//! 13). User mode runs natively and uses every vector register that the processor has, so the guest's kernel has to save
//! them all when it goes from one process to the next.

use std::arch::x86_64::__cpuid_count;

use iced_x86::Mnemonic;
use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;

use super::{
    execute::{CR0_TASK_SWITCHED, CR4_OSXSAVE, Stop},
    operands::Operands,
};
use crate::kvm::{KvmError, failed};

/// Bytes of the area as KVM has it.
const AREA_BYTES: usize = 4096;
const ALIGNMENT: u64 = 64;

/// State components: the bits of XCR0.
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// Components that this module knows: the above, mask registers and the two parts that AVX-512 adds to the vectors.
const KNOWN: u64 = X87 | SSE | AVX | 7 << 5;
const FIRST_EXTENDED: u32 = 2;
const COMPONENTS: u32 = 8;

/// Where the legacy area has what.
const X87_CONTROL: std::ops::Range<usize> = 0..24;
const MXCSR: std::ops::Range<usize> = 24..28;
const MXCSR_MASK: std::ops::Range<usize> = 28..32;
const X87_REGISTERS: std::ops::Range<usize> = 32..160;
const XMM: std::ops::Range<usize> = 160..416;
/// The header: XSTATE_BV, XCOMP_BV, 48 bytes of zeros.
const HEADER: std::ops::Range<usize> = 512..576;
const XSTATE_BV: std::ops::Range<usize> = 512..520;

/// x87 control word after `fninit`.
const INITIAL_CONTROL: [u8; 2] = 0x037f_u16.to_le_bytes();
/// Bits of MXCSR that every processor with AVX has.
const MXCSR_VALID: u32 = 0xffff;

const LEAF_XSAVE: u32 = 0xd;

/// What `xsave` writes and `xrstor` reads: an area, and which components of it are not in their first state.
type Area = [u8; AREA_BYTES];

/// Carries out `xsave`, `xrstor` or `xgetbv`; `None` when the instruction is none of them or the guest has not enabled them.
///
/// # Errors
/// The outer one when KVM fails, the inner one when the instruction does; nothing has changed then.
pub fn execute(vcpu: &VcpuFd, operands: &mut Operands<'_>) -> Result<Option<Result<(), Stop>>, KvmError> {
    let mnemonic = operands.instruction.mnemonic();
    let saves = matches!(mnemonic, Mnemonic::Xsave | Mnemonic::Xsave64);
    let restores = matches!(mnemonic, Mnemonic::Xrstor | Mnemonic::Xrstor64);
    let known = saves || restores || mnemonic == Mnemonic::Xgetbv;
    if !known || operands.state.special.cr4 & CR4_OSXSAVE == 0 {
        return Ok(None);
    }
    if operands.state.special.cr0 & CR0_TASK_SWITCHED != 0 && mnemonic != Mnemonic::Xgetbv {
        return Ok(Some(Err(Stop::device_not_available())));
    }
    let xcrs = vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
    let xcr0 = xcrs.xcrs[..xcrs.nr_xcrs as usize]
        .iter()
        .find(|xcr| xcr.xcr == 0)
        .map_or(X87, |xcr| xcr.value);
    if mnemonic == Mnemonic::Xgetbv {
        return Ok(Some(tell(operands, xcr0)));
    }
    let requested = xcr0 & (operands.state.general.rdx << 32 | operands.state.general.rax & 0xffff_ffff);
    if xcr0 & !KNOWN != 0 {
        return Ok(Some(Err(Stop::Unsupported)));
    }
    let kvm = vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
    let registers = area_of(&kvm);
    if saves {
        return Ok(Some(save(operands, &registers, requested)));
    }
    match restore(operands, registers, xcr0, requested) {
        Ok(area) => {
            // SAFETY: KVM reads as many bytes as the guest's XSAVE area has. That is over the 4,096 of this structure only for
            // features that a process must ask for (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM), which this one never does.
            unsafe { vcpu.set_xsave(&xsave_of(&area)) }.map_err(failed("KVM_SET_XSAVE"))?;
            Ok(Some(Ok(())))
        }
        Err(stop) => Ok(Some(Err(stop))),
    }
}

/// `xgetbv`: only XCR0 is known.
fn tell(operands: &mut Operands<'_>, xcr0: u64) -> Result<(), Stop> {
    if operands.state.general.rcx as u32 != 0 {
        return Err(Stop::general_protection());
    }
    operands.state.general.rax = xcr0 & 0xffff_ffff;
    operands.state.general.rdx = xcr0 >> 32;
    Ok(())
}

/// Writes the `requested` components of `registers` to the operand, and says in its header which are in use.
fn save(operands: &mut Operands<'_>, registers: &Area, requested: u64) -> Result<(), Stop> {
    let address = aligned_address(operands)?;
    let bytes = area_bytes(requested);
    let mut area = vec![0; bytes];
    operands.read_memory(address, &mut area)?;
    for part in parts(requested) {
        area[part.clone()].copy_from_slice(&registers[part]);
    }
    let in_use = word(&area[XSTATE_BV]) & !requested | word(&registers[XSTATE_BV]) & requested;
    area[XSTATE_BV].copy_from_slice(&in_use.to_le_bytes());
    operands.write_memory(address, &area)
}

/// The registers with the `requested` components as the operand has them, or in their first state where it says so.
fn restore(operands: &Operands<'_>, mut registers: Area, xcr0: u64, requested: u64) -> Result<Area, Stop> {
    let address = aligned_address(operands)?;
    let mut area = vec![0; area_bytes(requested)];
    operands.read_memory(address, &mut area)?;
    let in_use = word(&area[XSTATE_BV]);
    // No compacted form, and nothing that is not enabled.
    if in_use & !xcr0 != 0 || area[XSTATE_BV.end..HEADER.end].iter().any(|&byte| byte != 0) {
        return Err(Stop::general_protection());
    }
    if requested & (SSE | AVX) != 0 {
        let mxcsr = u32::from_le_bytes(area[MXCSR].try_into().unwrap_or_default());
        if mxcsr & !MXCSR_VALID != 0 {
            return Err(Stop::general_protection());
        }
    }
    for component in 0..u64::from(COMPONENTS) {
        let bit = 1 << component;
        // Which bits of MXCSR there are is not the guest's to say.
        for part in parts(requested & bit)
            .into_iter()
            .filter(|part| *part != MXCSR_MASK)
        {
            // MXCSR does not go with a component.
            if in_use & bit != 0 || part == MXCSR {
                registers[part.clone()].copy_from_slice(&area[part]);
            } else {
                registers[part.clone()].fill(0);
                if part == X87_CONTROL {
                    registers[..INITIAL_CONTROL.len()].copy_from_slice(&INITIAL_CONTROL);
                }
            }
        }
    }
    // KVM takes MXCSR only with these two, whose first state stands in the area.
    let in_use = word(&registers[XSTATE_BV]) & !requested | in_use & requested | X87 | SSE;
    registers[HEADER].fill(0);
    registers[XSTATE_BV].copy_from_slice(&in_use.to_le_bytes());
    Ok(registers)
}

fn aligned_address(operands: &Operands<'_>) -> Result<u64, Stop> {
    let address = operands.address(0)?;
    if address % ALIGNMENT == 0 {
        Ok(address)
    } else {
        Err(Stop::general_protection())
    }
}

/// The parts of an area that belong to `components`.
fn parts(components: u64) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::with_capacity(COMPONENTS as usize);
    if components & X87 != 0 {
        parts.extend([X87_CONTROL, X87_REGISTERS]);
    }
    if components & (SSE | AVX) != 0 {
        parts.extend([MXCSR, MXCSR_MASK]);
    }
    if components & SSE != 0 {
        parts.push(XMM);
    }
    let extended = (FIRST_EXTENDED..COMPONENTS).filter(|&component| components >> component & 1 != 0);
    parts.extend(extended.map(extended_part));
    parts
}

/// Where the standard form of an area has an extended component: the processor's, which is KVM's and the guest's too.
fn extended_part(component: u32) -> std::ops::Range<usize> {
    let leaf = __cpuid_count(LEAF_XSAVE, component);
    let start = (leaf.ebx as usize).min(AREA_BYTES);
    start..(start + leaf.eax as usize).min(AREA_BYTES)
}

/// How far the area reaches that has `components`.
fn area_bytes(components: u64) -> usize {
    parts(components)
        .into_iter()
        .map(|part| part.end)
        .fold(HEADER.end, usize::max)
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap_or_default())
}

fn area_of(kvm: &kvm_xsave) -> Area {
    let mut area = [0; AREA_BYTES];
    for (bytes, word) in area.chunks_exact_mut(4).zip(kvm.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    area
}

fn xsave_of(area: &Area) -> kvm_xsave {
    let mut kvm = kvm_xsave::default();
    for (word, bytes) in kvm.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    kvm
}

#[cfg(test)]
mod tests {
    use std::arch::asm;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::{
        boot::long_mode,
        emulate::{operands::State, step::decode},
        memory,
    };

    /// Where the operand, `[rsi]`, lies in the guest.
    const OPERAND: u64 = 0x1_0fc0;
    const XSAVE64: [u8; 4] = [0x48, 0x0f, 0xae, 0x26];
    const XRSTOR64: [u8; 4] = [0x48, 0x0f, 0xae, 0x2e];

    #[repr(C, align(64))]
    struct Aligned(Area);

    /// What this process may use of what is known here; `None` when that is nothing.
    fn enabled() -> Option<u64> {
        let features = std::arch::x86_64::__cpuid(1);
        if features.ecx >> 27 & 1 == 0 {
            return None;
        }
        // SAFETY: the processor has the instruction and the kernel has enabled it.
        let xcr0 = unsafe { std::arch::x86_64::_xgetbv(0) };
        Some(xcr0 & KNOWN)
    }

    /// What the processor has in its registers after `area` has been restored to them.
    fn through_the_processor(area: &Area, xcr0: u64) -> Area {
        let (mut own, mut result, area) =
            (Aligned([0; AREA_BYTES]), Aligned([0; AREA_BYTES]), Aligned(*area));
        // SAFETY: the areas are aligned and as large as `xcr0`, which is enabled, may need; nothing uses a register that they
        // hold between the first and the last instruction, after which all are as they were.
        unsafe {
            asm!(
                "xsave64 [{own}]", "xrstor64 [{area}]", "xsave64 [{result}]", "xrstor64 [{own}]",
                own = in(reg) &raw mut own.0, area = in(reg) &raw const area.0, result = in(reg) &raw mut result.0,
                in("eax") xcr0 as u32, in("edx") 0, options(nostack),
            );
        }
        result.0
    }

    fn run<T>(
        area: &Area,
        code: &[u8],
        requested: u64,
        work: impl FnOnce(&mut Operands<'_>) -> T,
    ) -> (T, Area) {
        let memory = memory::create(1 << 20).unwrap();
        long_mode::write_tables(&memory).unwrap();
        memory.write_slice(area, GuestAddress(OPERAND)).unwrap();
        let mut state = State {
            general: long_mode::registers(0x1000),
            ..State::default()
        };
        state.special = long_mode::special_registers(state.special);
        state.general.rsi = OPERAND;
        state.general.rax = requested;
        let instruction = decode(code, 0);
        let result = work(&mut Operands {
            state: &mut state,
            memory: &memory,
            instruction: &instruction,
        });
        let mut after = [0; AREA_BYTES];
        memory.read_slice(&mut after, GuestAddress(OPERAND)).unwrap();
        (result, after)
    }

    /// An area with random registers that `xrstor` takes.
    fn area(random: &[u8], in_use: u64) -> Area {
        let mut area = [0; AREA_BYTES];
        for (byte, random) in area.iter_mut().zip(random.iter().cycle()) {
            *byte = *random;
        }
        // No x87 exception that waits, and 16 bits of the exponent and sign that a register has.
        area[..8].copy_from_slice(&[0x7f, 3, 0, 0, 0xff, 0, 0, 0]);
        for register in area[X87_REGISTERS].chunks_exact_mut(16) {
            register[10..].fill(0);
        }
        area[MXCSR].copy_from_slice(&0x1f80_u32.to_le_bytes());
        area[MXCSR_MASK].fill(0);
        area[HEADER].fill(0);
        area[XSTATE_BV].copy_from_slice(&in_use.to_le_bytes());
        area
    }

    proptest! {
        #[test]
        fn registers_come_back_as_from_the_processor(
            random in proptest::collection::vec(any::<u8>(), 4096),
            in_use in any::<u64>(),
        ) {
            let Some(xcr0) = enabled() else { return Ok(()) };
            let area = area(&random, in_use & xcr0);
            let expected = through_the_processor(&area, xcr0);
            let before = [0; AREA_BYTES];
            let (restored, _) = run(&area, &XRSTOR64, xcr0, |operands| restore(operands, before, xcr0, xcr0));
            let restored = restored.unwrap();
            // Which mask of MXCSR a processor has is not the guest's to say, and the pointers of x87 are not kept by each.
            for part in parts(xcr0).into_iter().filter(|part| *part != MXCSR_MASK && *part != X87_CONTROL) {
                prop_assert_eq!(&restored[part.clone()], &expected[part]);
            }
            prop_assert_eq!(&restored[..4], &expected[..4]);
            // And to memory again.
            let (saved, after) = run(&[0; AREA_BYTES], &XSAVE64, xcr0, |operands| save(operands, &restored, xcr0));
            prop_assert_eq!(saved, Ok(()));
            for part in parts(xcr0) {
                prop_assert_eq!(&after[part.clone()], &restored[part]);
            }
        }
    }

    #[test]
    fn what_was_not_requested_stays() {
        let registers = area(&[0xab; 64], X87 | SSE);
        let old = area(&[0x11; 64], 0);
        let (saved, after) = run(&old, &XSAVE64, 0, |operands| save(operands, &registers, SSE));
        assert_eq!(saved, Ok(()));
        assert_eq!((after[XMM.start], after[X87_REGISTERS.start]), (0xab, 0x11));
        assert_eq!(word(&after[XSTATE_BV]), SSE);
        let (restored, _) = run(&old, &XRSTOR64, 0, |operands| {
            restore(operands, registers, X87 | SSE, SSE)
        });
        let restored = restored.unwrap();
        assert_eq!((restored[XMM.start], restored[X87_REGISTERS.start]), (0, 0xab));
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        let refused = |area: &Area, address: u64| {
            let (result, _) = run(area, &XRSTOR64, SSE, |operands| {
                operands.state.general.rsi = address;
                restore(operands, [0; AREA_BYTES], X87 | SSE, SSE)
            });
            result == Err(Stop::general_protection())
        };
        let good = area(&[7; 64], SSE);
        assert!(!refused(&good, OPERAND));
        assert!(refused(&good, OPERAND + 16));
        assert!(refused(&area(&[7; 64], AVX), OPERAND));
        let mut compacted = good;
        compacted[HEADER.start + 15] = 0x80;
        assert!(refused(&compacted, OPERAND));
        let mut control = good;
        control[MXCSR].fill(0xff);
        assert!(refused(&control, OPERAND));
    }
}
