//! Takes a vCPU past the instruction at which KVM's emulator gave up.

use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use kvm_bindings::{KVM_VCPUEVENT_VALID_PAYLOAD, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::{
    execute::{Fault, Stop, Then, execute},
    extended,
    operands::{Operands, State, pages},
    paging::{Access, translate},
};
use crate::{
    kvm::{KvmError, failed},
    memory::Memory,
};

/// Longest instruction of x86.
const INSTRUCTION_BYTES: usize = 15;

/// Numbers below are exceptions, from here on interrupts.
const FIRST_INTERRUPT: u8 = 32;

/// Why a vCPU could not be taken past an instruction.
#[derive(Debug, thiserror::Error)]
pub enum EmulateError {
    /// The instruction is not known here either.
    #[error("cannot emulate {0}")]
    Unsupported(String),
    /// The vCPU is not in 64-bit mode.
    #[error("cannot emulate outside of 64-bit mode")]
    Mode,
    /// The instruction needs physical memory that is not there.
    #[error("no memory at {0:#x}")]
    OutsideMemory(u64),
    /// The registers could not be read or set.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Emulates instructions for one vCPU.
#[derive(Debug)]
pub struct Emulator {
    memory: Arc<Memory>,
}

impl Emulator {
    /// An emulator for a guest with this memory.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory }
    }

    /// Carries out the instruction at RIP of `vcpu`, or raises the exception that it causes.
    ///
    /// # Errors
    /// [`EmulateError`]: the vCPU cannot go on.
    pub fn step(&self, vcpu: &VcpuFd) -> Result<(), EmulateError> {
        let mut state = State {
            general: vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?,
            special: vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
        };
        if state.special.cs.l == 0 {
            return Err(EmulateError::Mode);
        }
        let special_before = state.special;
        let result = self.step_state(vcpu, &mut state);
        let (event, flush) = match result {
            Ok(Then::Continue) => (None, false),
            Ok(Then::FlushTranslations) => (None, true),
            Ok(Then::Interrupt(vector)) => (Some((vector, None)), false),
            Err(Failure::Fault(fault)) => {
                if let Some(address) = fault.address {
                    state.special.cr2 = address;
                }
                (Some((fault.vector, fault.error_code)), false)
            }
            Err(Failure::Error(error)) => return Err(error),
        };
        if flush {
            flush_translations(vcpu, &state.special)?;
        } else if state.special != special_before {
            vcpu.set_sregs(&state.special).map_err(failed("KVM_SET_SREGS"))?;
        }
        // Also takes back the exception that KVM has queued for the instruction that it could not emulate.
        vcpu.set_regs(&state.general).map_err(failed("KVM_SET_REGS"))?;
        event.map_or(Ok(()), |(vector, error_code)| inject(vcpu, vector, error_code))
    }

    /// Fetches, decodes and executes; RIP is past the instruction when that succeeds.
    fn step_state(&self, vcpu: &VcpuFd, state: &mut State) -> Result<Then, Failure> {
        let mut bytes = [0; INSTRUCTION_BYTES];
        let fetched = self.fetch(state, &mut bytes)?;
        let instruction = decode(&bytes[..fetched], state.general.rip);
        if instruction.is_invalid() {
            return Err(unsupported(&bytes[..fetched], &instruction));
        }
        let mut operands = Operands {
            state,
            memory: &self.memory,
            instruction: &instruction,
        };
        let carried_out = extended::execute(vcpu, &mut operands).map_err(EmulateError::from)?;
        let then = match carried_out {
            Some(result) => result.map(|()| Then::Continue),
            None => execute(&mut operands),
        };
        let then = then.map_err(|stop| match stop {
            Stop::Unsupported => unsupported(&bytes[..fetched], &instruction),
            stop => stop.into(),
        })?;
        state.general.rip = instruction.next_ip();
        Ok(then)
    }

    /// Reads the bytes from RIP on, as many as an instruction may have and as are mapped.
    fn fetch(&self, state: &State, bytes: &mut [u8; INSTRUCTION_BYTES]) -> Result<usize, Stop> {
        let mut fetched = 0;
        for (linear, length) in pages(state.general.rip, INSTRUCTION_BYTES) {
            let physical = match translate(&self.memory, state, linear, Access::Fetch) {
                Ok(physical) => physical,
                // The instruction may end before the next page.
                Err(_) if fetched > 0 => break,
                Err(stop) => return Err(stop),
            };
            self.memory
                .read_slice(&mut bytes[fetched..fetched + length], GuestAddress(physical))
                .map_err(|_| Stop::OutsideMemory(physical))?;
            fetched += length;
        }
        Ok(fetched)
    }
}

/// Why the instruction was not carried out.
enum Failure {
    Fault(Fault),
    Error(EmulateError),
}

impl From<EmulateError> for Failure {
    fn from(error: EmulateError) -> Self {
        Self::Error(error)
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Fault(fault) => Self::Fault(fault),
            Stop::OutsideMemory(address) => Self::Error(EmulateError::OutsideMemory(address)),
            Stop::Unsupported => Self::Error(EmulateError::Unsupported("this instruction".to_owned())),
        }
    }
}

fn unsupported(bytes: &[u8], instruction: &Instruction) -> Failure {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Failure::Error(EmulateError::Unsupported(format!(
        "{:?} ({})",
        instruction.mnemonic(),
        hex.join(" ")
    )))
}

/// The instruction at the start of `bytes`, which lie at `rip`, in 64-bit mode.
pub(super) fn decode(bytes: &[u8], rip: u64) -> Instruction {
    Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode()
}

/// Lets the vCPU forget every translation: KVM does so when the page table's address changes, so it is changed and
/// changed back.
fn flush_translations(vcpu: &VcpuFd, special: &kvm_sregs) -> Result<(), KvmError> {
    const OTHER_TABLE: u64 = 0x1000;
    let mut other = *special;
    other.cr3 ^= OTHER_TABLE;
    for sregs in [&other, special] {
        vcpu.set_sregs(sregs).map_err(failed("KVM_SET_SREGS"))?;
    }
    Ok(())
}

/// Raises an exception or interrupt before the next instruction of the guest.
fn inject(vcpu: &VcpuFd, vector: u8, error_code: Option<u32>) -> Result<(), EmulateError> {
    let mut events = vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
    events.flags &= !KVM_VCPUEVENT_VALID_PAYLOAD;
    if vector < FIRST_INTERRUPT {
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = vector;
        events.exception.has_error_code = error_code.is_some().into();
        events.exception.error_code = error_code.unwrap_or(0);
    } else {
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
        // RIP is past the instruction already, as it is for an interrupt from outside.
        events.interrupt.soft = 0;
    }
    vcpu.set_vcpu_events(&events)
        .map_err(failed("KVM_SET_VCPU_EVENTS"))?;
    Ok(())
}
