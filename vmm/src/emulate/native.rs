//! The emulated instructions against the processor on which the tests run: the same bytes are executed by both, on the
//! same registers, and results and flags must agree.

use std::arch::is_x86_feature_detected;

use iced_x86::Instruction;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{
    bits::{AF, CF, OF, PF, SF, ZF},
    execute::{Stop, Then, execute},
    operands::{Operands, State},
    step::decode,
};
use crate::{
    boot::long_mode,
    memory::{self, Memory},
};

/// The registers that the tested instructions use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    rax: u64,
    rcx: u64,
    rdx: u64,
    flags: u64,
}

/// Where the memory operand of an instruction, `[rsi]`, lies in the guest.
const OPERAND: u64 = 0x8000;

/// Runs `$instruction` natively on `$registers`.
macro_rules! native {
    ($instruction:literal, $registers:expr, $memory:expr) => {{
        let (mut rax, mut rcx, mut rdx) = ($registers.rax, $registers.rcx, $registers.rdx);
        let mut flags = $registers.flags;
        let memory: *mut u64 = $memory;
        // SAFETY: the instruction is one of those below: it changes RAX, RCX, RDX, the arithmetic flags, and what RSI points
        // to, all of which are declared. Only arithmetic flags are loaded.
        unsafe {
            std::arch::asm!(
                "push {flags}",
                "popfq",
                $instruction,
                "pushfq",
                "pop {flags}",
                flags = inout(reg) flags,
                inout("rax") rax,
                inout("rcx") rcx,
                inout("rdx") rdx,
                in("rsi") memory,
            );
        }
        Registers { rax, rcx, rdx, flags }
    }};
}

/// An instruction under test.
struct Case {
    name: &'static str,
    bytes: &'static [u8],
    /// The flags that the manual defines after it.
    defined: u64,
    native: fn(Registers, *mut u64) -> Registers,
    available: fn() -> bool,
}

/// Assembles `$text` so that both sides have the same instruction: natively by asm, and as bytes between two labels.
macro_rules! case {
    ($name:ident, $text:literal, $defined:expr, $feature:tt) => {{
        fn bytes() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: the instruction is jumped over; only addresses are taken.
            unsafe {
                std::arch::asm!(
                    "lea {start}, [rip + 2f]",
                    "lea {end}, [rip + 3f]",
                    "jmp 3f",
                    "2:",
                    $text,
                    "3:",
                    start = out(reg) start,
                    end = out(reg) end,
                );
            }
            // SAFETY: the bytes between the labels are code of this program: readable, and never changed.
            unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
        }
        Case {
            name: stringify!($name),
            bytes: bytes(),
            defined: $defined,
            native: |registers, memory| native!($text, registers, memory),
            available: || is_x86_feature_detected!($feature),
        }
    }};
}

fn cases() -> Vec<Case> {
    const LOGICAL: u64 = CF | ZF | SF | OF;
    const ALL: u64 = CF | PF | AF | ZF | SF | OF;
    const KEPT: u64 = ALL;
    vec![
        case!(popcnt64, "popcnt rax, rcx", ALL, "popcnt"),
        case!(popcnt32, "popcnt eax, ecx", ALL, "popcnt"),
        case!(popcnt16, "popcnt ax, cx", ALL, "popcnt"),
        case!(popcnt_memory, "popcnt rax, qword ptr [rsi]", ALL, "popcnt"),
        case!(lzcnt64, "lzcnt rax, rcx", CF | ZF, "lzcnt"),
        case!(lzcnt32, "lzcnt eax, ecx", CF | ZF, "lzcnt"),
        case!(lzcnt16, "lzcnt ax, cx", CF | ZF, "lzcnt"),
        case!(tzcnt64, "tzcnt rax, rcx", CF | ZF, "bmi1"),
        case!(tzcnt32, "tzcnt eax, ecx", CF | ZF, "bmi1"),
        case!(tzcnt16, "tzcnt ax, cx", CF | ZF, "bmi1"),
        case!(andn64, "andn rax, rcx, rdx", LOGICAL, "bmi1"),
        case!(andn32, "andn eax, ecx, edx", LOGICAL, "bmi1"),
        case!(bextr64, "bextr rax, rcx, rdx", CF | ZF | OF, "bmi1"),
        case!(bextr32, "bextr eax, ecx, edx", CF | ZF | OF, "bmi1"),
        case!(bextr_memory, "bextr rax, [rsi], rdx", CF | ZF | OF, "bmi1"),
        case!(blsi64, "blsi rax, rcx", LOGICAL, "bmi1"),
        case!(blsi32, "blsi eax, ecx", LOGICAL, "bmi1"),
        case!(blsmsk64, "blsmsk rax, rcx", LOGICAL, "bmi1"),
        case!(blsmsk32, "blsmsk eax, ecx", LOGICAL, "bmi1"),
        case!(blsr64, "blsr rax, rcx", LOGICAL, "bmi1"),
        case!(blsr32, "blsr eax, ecx", LOGICAL, "bmi1"),
        case!(bzhi64, "bzhi rax, rcx, rdx", LOGICAL, "bmi2"),
        case!(bzhi32, "bzhi eax, ecx, edx", LOGICAL, "bmi2"),
        case!(pdep64, "pdep rax, rcx, rdx", KEPT, "bmi2"),
        case!(pdep32, "pdep eax, ecx, edx", KEPT, "bmi2"),
        case!(pext64, "pext rax, rcx, rdx", KEPT, "bmi2"),
        case!(pext32, "pext eax, ecx, edx", KEPT, "bmi2"),
        case!(rorx64, "rorx rax, rcx, 13", KEPT, "bmi2"),
        case!(rorx64_whole, "rorx rax, rcx, 64", KEPT, "bmi2"),
        case!(rorx32, "rorx eax, ecx, 45", KEPT, "bmi2"),
        case!(sarx64, "sarx rax, rcx, rdx", KEPT, "bmi2"),
        case!(sarx32, "sarx eax, ecx, edx", KEPT, "bmi2"),
        case!(shlx64, "shlx rax, rcx, rdx", KEPT, "bmi2"),
        case!(shlx32, "shlx eax, ecx, edx", KEPT, "bmi2"),
        case!(shrx64, "shrx rax, rcx, rdx", KEPT, "bmi2"),
        case!(shrx32, "shrx eax, [rsi], edx", KEPT, "bmi2"),
        case!(mulx64, "mulx rax, rcx, rcx", KEPT, "bmi2"),
        case!(mulx32, "mulx eax, ecx, ecx", KEPT, "bmi2"),
        case!(mulx_same, "mulx rax, rax, rcx", KEPT, "bmi2"),
        case!(adcx64, "adcx rax, rcx", KEPT, "adx"),
        case!(adcx32, "adcx eax, ecx", KEPT, "adx"),
        case!(adox64, "adox rax, rcx", KEPT, "adx"),
        case!(adox32, "adox eax, dword ptr [rsi]", KEPT, "adx"),
        case!(movbe_load64, "movbe rax, [rsi]", KEPT, "movbe"),
        case!(movbe_load16, "movbe ax, [rsi]", KEPT, "movbe"),
        case!(movbe_store32, "movbe [rsi], ecx", KEPT, "movbe"),
        case!(fwait, "fwait", KEPT, "sse2"),
    ]
}

/// A guest in 64-bit kernel mode.
fn guest() -> (std::sync::Arc<Memory>, State) {
    let memory = memory::create(1 << 20).unwrap();
    long_mode::write_tables(&memory).unwrap();
    let mut state = State {
        general: long_mode::registers(0x1000),
        ..State::default()
    };
    state.special = long_mode::special_registers(state.special);
    state.general.rsi = OPERAND;
    (memory, state)
}

fn run(memory: &Memory, state: &mut State, instruction: &Instruction) -> Result<Then, Stop> {
    execute(&mut Operands {
        state,
        memory,
        instruction,
    })
}

fn compare(memory: &Memory, mut state: State, case: &Case, registers: Registers, operand: u64) {
    let mut native_operand = operand;
    let expected = (case.native)(registers, &raw mut native_operand);

    memory.write_obj(operand, GuestAddress(OPERAND)).unwrap();
    (state.general.rax, state.general.rcx, state.general.rdx) = (registers.rax, registers.rcx, registers.rdx);
    state.general.rflags = registers.flags;
    let instruction = decode(case.bytes, 0x1000);
    assert_eq!(
        run(memory, &mut state, &instruction),
        Ok(Then::Continue),
        "{}",
        case.name
    );
    let got = Registers {
        rax: state.general.rax,
        rcx: state.general.rcx,
        rdx: state.general.rdx,
        flags: state.general.rflags & case.defined,
    };
    let expected = Registers {
        flags: expected.flags & case.defined,
        ..expected
    };
    assert_eq!(got, expected, "{} on {registers:x?}, {operand:#x}", case.name);
    let stored: u64 = memory.read_obj(GuestAddress(OPERAND)).unwrap();
    assert_eq!(stored, native_operand, "{}", case.name);
}

/// Any number, with those more often at which something changes.
fn operand() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u64..300),
        Just(u64::MAX),
        Just(0),
    ]
}

proptest! {
    #[test]
    fn every_instruction_does_what_the_processor_does(
        rax in operand(), rcx in operand(), rdx in operand(), operand in operand(), flags in any::<u64>(),
    ) {
        const ALL: u64 = CF | PF | AF | ZF | SF | OF;
        let registers = Registers { rax, rcx, rdx, flags: flags & ALL | 2 };
        let (memory, state) = guest();
        for case in cases().iter().filter(|case| (case.available)()) {
            compare(&memory, state, case, registers, operand);
        }
    }

    #[test]
    fn cmpxchg16b_does_what_the_processor_does(
        old in any::<(u64, u64)>(), new in any::<(u64, u64)>(), equal in any::<bool>(),
    ) {
        let expected = if equal { old } else { (old.0 ^ 1, old.1) };
        let (memory, mut state) = guest();
        memory.write_obj([old.0, old.1], GuestAddress(OPERAND)).unwrap();
        (state.general.rax, state.general.rdx) = expected;
        (state.general.rbx, state.general.rcx) = new;
        let instruction = decode(&[0xf0, 0x48, 0x0f, 0xc7, 0x0e], 0x1000); // lock cmpxchg16b [rsi]
        prop_assert_eq!(run(&memory, &mut state, &instruction), Ok(Then::Continue));
        let stored: [u64; 2] = memory.read_obj(GuestAddress(OPERAND)).unwrap();
        prop_assert_eq!(stored, if equal { [new.0, new.1] } else { [old.0, old.1] });
        prop_assert_eq!((state.general.rax, state.general.rdx), old);
        prop_assert_eq!(state.general.rflags & ZF != 0, equal);
    }

    #[test]
    fn no_bytes_make_the_emulator_panic(bytes in any::<[u8; 15]>(), registers in any::<[u64; 4]>()) {
        let (memory, mut state) = guest();
        (state.general.rax, state.general.rcx) = (registers[0], registers[1]);
        (state.general.rsi, state.general.rdi) = (registers[2], registers[3]);
        let _ = run(&memory, &mut state, &decode(&bytes, 0x1000));
    }
}

#[test]
fn software_interrupts_are_raised_past_the_instruction() {
    let (memory, mut state) = guest();
    for (bytes, vector) in [(&[0xcc][..], 3), (&[0xcd, 0x80], 0x80), (&[0xf1], 1)] {
        assert_eq!(
            run(&memory, &mut state, &decode(bytes, 0x1000)),
            Ok(Then::Interrupt(vector))
        );
    }
}

#[test]
fn stac_and_clac_change_one_flag_in_kernel_mode_only() {
    const AC: u64 = 1 << 18;
    let (stac, clac) = (decode(&[0x0f, 0x01, 0xcb], 0), decode(&[0x0f, 0x01, 0xca], 0));
    let (memory, mut state) = guest();
    run(&memory, &mut state, &stac).unwrap();
    assert_eq!(state.general.rflags, AC | 2);
    run(&memory, &mut state, &clac).unwrap();
    assert_eq!(state.general.rflags, 2);
    state.special.ss.dpl = 3;
    assert_eq!(run(&memory, &mut state, &stac), Err(Stop::invalid_opcode()));
}

#[test]
fn segment_bases_need_their_feature_and_a_canonical_address() {
    let (memory, mut state) = guest();
    let write = decode(&[0xf3, 0x48, 0x0f, 0xae, 0xd8], 0); // wrgsbase rax
    let read = decode(&[0xf3, 0x48, 0x0f, 0xae, 0xc9], 0); // rdgsbase rcx
    assert_eq!(run(&memory, &mut state, &write), Err(Stop::invalid_opcode()));
    state.special.cr4 |= 1 << 16;
    state.general.rax = 1 << 63;
    assert_eq!(run(&memory, &mut state, &write), Err(Stop::general_protection()));
    state.general.rax = 0xffff_8000_1234_5678;
    run(&memory, &mut state, &write).unwrap();
    run(&memory, &mut state, &read).unwrap();
    assert_eq!(state.general.rcx, 0xffff_8000_1234_5678);
}

#[test]
fn a_wait_in_a_task_without_its_floating_point_state_faults() {
    let (memory, mut state) = guest();
    state.special.cr0 |= 1 << 1 | 1 << 3;
    assert!(matches!(
        run(&memory, &mut state, &decode(&[0x9b], 0)),
        Err(Stop::Fault(fault)) if fault.vector == 7
    ));
}

#[test]
fn xsave_that_the_kernel_has_not_enabled_is_an_invalid_opcode() {
    let (memory, mut state) = guest();
    let xsave = decode(&[0x0f, 0xae, 0x26], 0); // xsave [rsi]
    assert_eq!(run(&memory, &mut state, &xsave), Err(Stop::invalid_opcode()));
    state.special.cr4 |= 1 << 18;
    assert_eq!(run(&memory, &mut state, &xsave), Err(Stop::Unsupported));
}

#[test]
fn an_operand_may_cross_a_page() {
    let (memory, mut state) = guest();
    memory
        .write_obj(0x0123_4567_89ab_cdefu64, GuestAddress(0x1_0ffc))
        .unwrap();
    state.general.rsi = 0x1_0ffc;
    let load = decode(&[0x48, 0x0f, 0x38, 0xf0, 0x06], 0); // movbe rax, [rsi]
    run(&memory, &mut state, &load).unwrap();
    assert_eq!(state.general.rax, 0xefcd_ab89_6745_2301);
}

#[test]
fn a_misaligned_pair_is_refused() {
    let (memory, mut state) = guest();
    state.general.rsi = OPERAND + 8;
    let instruction = decode(&[0x48, 0x0f, 0xc7, 0x0e], 0);
    assert_eq!(
        run(&memory, &mut state, &instruction),
        Err(Stop::general_protection())
    );
}

#[test]
fn invpcid_flushes_and_checks_its_type() {
    let (memory, mut state) = guest();
    let instruction = decode(&[0x66, 0x0f, 0x38, 0x82, 0x06], 0); // invpcid rax, [rsi]
    state.general.rax = 2;
    assert_eq!(
        run(&memory, &mut state, &instruction),
        Ok(Then::FlushTranslations)
    );
    state.general.rax = 4;
    assert_eq!(
        run(&memory, &mut state, &instruction),
        Err(Stop::general_protection())
    );
}
