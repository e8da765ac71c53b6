//! Carries one instruction out on a copy of the registers.

use iced_x86::Mnemonic;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{
    bits::{self, ARITHMETIC, CF, OF, Outcome, ZF, add_with_carry},
    operands::Operands,
    paging::{Access, is_canonical, translate},
};

const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
pub(super) const CR0_TASK_SWITCHED: u64 = 1 << 3;
const CR4_FSGSBASE: u64 = 1 << 16;
pub(super) const CR4_OSXSAVE: u64 = 1 << 18;
const RFLAGS_AC: u64 = 1 << 18;

const VECTOR_DEBUG: u8 = 1;
const VECTOR_BREAKPOINT: u8 = 3;
const VECTOR_INVALID_OPCODE: u8 = 6;
const VECTOR_DEVICE_NOT_AVAILABLE: u8 = 7;
const VECTOR_GENERAL_PROTECTION: u8 = 13;
const VECTOR_PAGE_FAULT: u8 = 14;

/// Bytes of the operand of `cmpxchg16b`, and its alignment.
const PAIR_BYTES: u64 = 16;

/// An exception that the instruction raises in the guest, with RIP still at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception number.
    pub vector: u8,
    /// What is pushed with it, for those that have it.
    pub error_code: Option<u32>,
    /// The address of a page fault, for CR2.
    pub address: Option<u64>,
}

/// Why an instruction was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It raises an exception.
    Fault(Fault),
    /// It is none of those that are known here.
    Unsupported,
    /// It, or the page tables, refer to a physical address where no memory is.
    OutsideMemory(u64),
}

impl Stop {
    fn plain(vector: u8, error_code: Option<u32>) -> Self {
        Self::Fault(Fault {
            vector,
            error_code,
            address: None,
        })
    }

    /// #GP(0).
    pub fn general_protection() -> Self {
        Self::plain(VECTOR_GENERAL_PROTECTION, Some(0))
    }

    /// #PF.
    pub fn page_fault(address: u64, error_code: u32) -> Self {
        Self::Fault(Fault {
            vector: VECTOR_PAGE_FAULT,
            error_code: Some(error_code),
            address: Some(address),
        })
    }

    /// #NM.
    pub fn device_not_available() -> Self {
        Self::plain(VECTOR_DEVICE_NOT_AVAILABLE, None)
    }

    /// #UD.
    pub fn invalid_opcode() -> Self {
        Self::plain(VECTOR_INVALID_OPCODE, None)
    }
}

/// What is left to do after an instruction has been carried out and RIP is past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Continue,
    /// An exception or interrupt of this number.
    Interrupt(u8),
    /// Every cached translation is to be forgotten.
    FlushTranslations,
}

/// Carries the instruction of `operands` out. RIP is not moved.
///
/// # Errors
/// [`Stop`]; nothing has been changed then.
pub fn execute(operands: &mut Operands<'_>) -> Result<Then, Stop> {
    match operands.instruction.mnemonic() {
        Mnemonic::Wait => wait(operands)?,
        Mnemonic::Popcnt
        | Mnemonic::Lzcnt
        | Mnemonic::Tzcnt
        | Mnemonic::Blsi
        | Mnemonic::Blsmsk
        | Mnemonic::Blsr => unary(operands)?,
        Mnemonic::Andn | Mnemonic::Bextr | Mnemonic::Bzhi => binary(operands)?,
        Mnemonic::Pdep
        | Mnemonic::Pext
        | Mnemonic::Rorx
        | Mnemonic::Sarx
        | Mnemonic::Shlx
        | Mnemonic::Shrx => without_flags(operands)?,
        Mnemonic::Mulx => mulx(operands)?,
        Mnemonic::Adcx => add(operands, CF)?,
        Mnemonic::Adox => add(operands, OF)?,
        Mnemonic::Movbe => movbe(operands)?,
        Mnemonic::Movdiri => {
            let value = operands.read(1)?;
            operands.write(0, value)?;
        }
        Mnemonic::Cmpxchg16b => cmpxchg16b(operands)?,
        Mnemonic::Rdrand | Mnemonic::Rdseed => random(operands)?,
        Mnemonic::Stac => supervisor_flag(operands, true)?,
        Mnemonic::Clac => supervisor_flag(operands, false)?,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
            segment_base(operands)?;
        }
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => {
            translate(
                operands.memory,
                operands.state,
                operands.address(0)?,
                Access::Read,
            )?;
        }
        Mnemonic::Serialize
        | Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Endbr64
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchnta => {}
        Mnemonic::Int1 => return Ok(Then::Interrupt(VECTOR_DEBUG)),
        Mnemonic::Int3 => return Ok(Then::Interrupt(VECTOR_BREAKPOINT)),
        Mnemonic::Int => return Ok(Then::Interrupt(operands.instruction.immediate8())),
        Mnemonic::Invpcid => {
            invpcid(operands)?;
            return Ok(Then::FlushTranslations);
        }
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => return Err(Stop::invalid_opcode()),
        // A kernel that was told of no XSAVE has not enabled it.
        Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64
        | Mnemonic::Xsaves
        | Mnemonic::Xsaves64
        | Mnemonic::Xrstor
        | Mnemonic::Xrstor64
        | Mnemonic::Xrstors
        | Mnemonic::Xrstors64
        | Mnemonic::Xgetbv
        | Mnemonic::Xsetbv
            if operands.state.special.cr4 & CR4_OSXSAVE == 0 =>
        {
            return Err(Stop::invalid_opcode());
        }
        _ => return Err(Stop::Unsupported),
    }
    Ok(Then::Continue)
}

/// `fwait`: the emulator's own x87 instructions leave no exception pending, so that only the check of the task switch
/// flag is left.
fn wait(operands: &Operands<'_>) -> Result<(), Stop> {
    let both = CR0_MONITOR_COPROCESSOR | CR0_TASK_SWITCHED;
    if operands.state.special.cr0 & both == both {
        return Err(Stop::device_not_available());
    }
    Ok(())
}

fn finish(operands: &mut Operands<'_>, outcome: Outcome) -> Result<(), Stop> {
    operands.write(0, outcome.result)?;
    set_flags(operands, outcome.changed, outcome.set);
    Ok(())
}

fn set_flags(operands: &mut Operands<'_>, changed: u64, set: u64) {
    let flags = &mut operands.state.general.rflags;
    *flags = *flags & !changed | set;
}

fn unary(operands: &mut Operands<'_>) -> Result<(), Stop> {
    let (source, width) = (operands.read(1)?, operands.bits(0)?);
    let outcome = match operands.instruction.mnemonic() {
        Mnemonic::Popcnt => bits::popcnt(source),
        Mnemonic::Lzcnt => bits::lzcnt(source, width),
        Mnemonic::Tzcnt => bits::tzcnt(source, width),
        Mnemonic::Blsi => bits::blsi(source, width),
        Mnemonic::Blsmsk => bits::blsmsk(source, width),
        Mnemonic::Blsr => bits::blsr(source, width),
        _ => return Err(Stop::Unsupported),
    };
    finish(operands, outcome)
}

fn binary(operands: &mut Operands<'_>) -> Result<(), Stop> {
    let (first, second, width) = (operands.read(1)?, operands.read(2)?, operands.bits(0)?);
    let outcome = match operands.instruction.mnemonic() {
        Mnemonic::Andn => bits::andn(first, second, width),
        Mnemonic::Bextr => bits::bextr(first, second, width),
        Mnemonic::Bzhi => bits::bzhi(first, second, width),
        _ => return Err(Stop::Unsupported),
    };
    finish(operands, outcome)
}

fn without_flags(operands: &mut Operands<'_>) -> Result<(), Stop> {
    let (first, second, width) = (operands.read(1)?, operands.read(2)?, operands.bits(0)?);
    let result = match operands.instruction.mnemonic() {
        Mnemonic::Pdep => bits::pdep(first, second),
        Mnemonic::Pext => bits::pext(first, second),
        Mnemonic::Rorx => bits::rorx(first, second, width),
        Mnemonic::Sarx => bits::sarx(first, second, width),
        Mnemonic::Shlx => bits::shlx(first, second, width),
        Mnemonic::Shrx => bits::shrx(first, second, width),
        _ => return Err(Stop::Unsupported),
    };
    operands.write(0, result)
}

fn mulx(operands: &mut Operands<'_>) -> Result<(), Stop> {
    let width = operands.bits(0)?;
    let factor = operands.state.general.rdx & bits::mask(width);
    let (high, low) = bits::mulx(factor, operands.read(2)?, width);
    // In this order: when both are the same register, it holds the high half.
    operands.write(1, low)?;
    operands.write(0, high)
}

fn add(operands: &mut Operands<'_>, carry_flag: u64) -> Result<(), Stop> {
    let (left, right, width) = (operands.read(0)?, operands.read(1)?, operands.bits(0)?);
    let carry = operands.state.general.rflags & carry_flag != 0;
    let (sum, carry) = add_with_carry(left, right, carry, width);
    operands.write(0, sum)?;
    set_flags(operands, carry_flag, if carry { carry_flag } else { 0 });
    Ok(())
}

fn movbe(operands: &mut Operands<'_>) -> Result<(), Stop> {
    let (value, width) = (operands.read(1)?, operands.bits(0)?);
    operands.write(0, value.swap_bytes() >> (64 - width))
}

/// Atomically, against the other vCPUs and devices, as `lock` demands.
fn cmpxchg16b(operands: &mut Operands<'_>) -> Result<(), Stop> {
    let address = operands.address(0)?;
    if address % PAIR_BYTES != 0 {
        return Err(Stop::general_protection());
    }
    // Always a write, whatever the comparison says (Intel SDM).
    let physical = translate(operands.memory, operands.state, address, Access::Write)?;
    let slice = operands
        .memory
        .get_slice(GuestAddress(physical), PAIR_BYTES as usize)
        .map_err(|_| Stop::OutsideMemory(physical))?;
    let general = &mut operands.state.general;
    let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let (expected, new) = (pair(general.rdx, general.rax), pair(general.rcx, general.rbx));
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return Err(Stop::Unsupported);
    }
    // SAFETY: the processor has the instruction; the 16 bytes are guest memory, mapped for as long as `slice` lives, and
    // aligned, because pages are and the guest's address is. Nothing else in this process holds a reference to them.
    let found = unsafe { compare_exchange_pair(slice.ptr_guard_mut().as_ptr(), expected, new) };
    if found == expected {
        general.rflags |= ZF;
    } else {
        general.rflags &= !ZF;
        general.rdx = (found >> 64) as u64;
        general.rax = found as u64;
    }
    Ok(())
}

/// Replaces the pair at `place` by `new` if it is `expected`; returns what it was.
///
/// # Safety
/// `place` is aligned to 16 bytes and good for reading and writing 16 bytes, and the processor has `cmpxchg16b`.
unsafe fn compare_exchange_pair(place: *mut u8, expected: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller vouches for `place`. RBX, which the compiler keeps for itself, is exchanged for the low half of
    // `new` and put back; RSI is a scratch register.
    unsafe {
        std::arch::asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") place,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") expected as u64 => low,
            inout("rdx") (expected >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

fn random(operands: &mut Operands<'_>) -> Result<(), Stop> {
    let mut bytes = [0; 8];
    let filled = matches!(getrandom(&mut bytes, GetRandomFlags::empty()), Ok(8));
    let value = if filled { u64::from_le_bytes(bytes) } else { 0 };
    operands.write(0, value)?;
    set_flags(operands, ARITHMETIC, if filled { CF } else { 0 });
    Ok(())
}

fn supervisor_flag(operands: &mut Operands<'_>, set: bool) -> Result<(), Stop> {
    if operands.state.is_user() {
        return Err(Stop::invalid_opcode());
    }
    set_flags(operands, RFLAGS_AC, if set { RFLAGS_AC } else { 0 });
    Ok(())
}

fn segment_base(operands: &mut Operands<'_>) -> Result<(), Stop> {
    if operands.state.special.cr4 & CR4_FSGSBASE == 0 {
        return Err(Stop::invalid_opcode());
    }
    match operands.instruction.mnemonic() {
        Mnemonic::Rdfsbase => operands.write(0, operands.state.special.fs.base),
        Mnemonic::Rdgsbase => operands.write(0, operands.state.special.gs.base),
        mnemonic => {
            let base = operands.read(0)?;
            if !is_canonical(base, 4) {
                return Err(Stop::general_protection());
            }
            if mnemonic == Mnemonic::Wrfsbase {
                operands.state.special.fs.base = base;
            } else {
                operands.state.special.gs.base = base;
            }
            Ok(())
        }
    }
}

/// Checks the operands; the caller flushes everything, which covers each type of the instruction.
fn invpcid(operands: &Operands<'_>) -> Result<(), Stop> {
    const TYPES: u64 = 4;
    if operands.state.is_user() || operands.read(0)? >= TYPES {
        return Err(Stop::general_protection());
    }
    operands.read_memory(operands.address(1)?, &mut [0; 16])
}
