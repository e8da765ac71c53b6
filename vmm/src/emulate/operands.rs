//! The state that an instruction works on, and its operands: registers, memory, immediate values.

use iced_x86::{Instruction, OpKind, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::{
    bits::mask,
    execute::Stop,
    paging::{Access, translate},
};
use crate::memory::Memory;

const PAGE_BYTES: u64 = 4096;

/// A copy of a vCPU's registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// General registers, RIP and RFLAGS.
    pub general: kvm_regs,
    /// Segments and control registers.
    pub special: kvm_sregs,
}

impl State {
    /// Whether the guest is in user mode.
    pub fn is_user(&self) -> bool {
        self.special.ss.dpl == 3
    }

    /// The value of a general register in its width, or the base of a segment register.
    pub fn register(&self, register: Register) -> Option<u64> {
        let bits = register.size() as u32 * 8;
        match register {
            Register::FS => Some(self.special.fs.base),
            Register::GS => Some(self.special.gs.base),
            // In 64-bit mode the bases of the others count as zero.
            Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
            Register::RIP => Some(self.general.rip),
            _ if bits < 16 => None,
            _ => {
                let mut general = self.general;
                general_register(&mut general, register).map(|value| *value & mask(bits))
            }
        }
    }

    /// Sets a general register of 16, 32 or 64 bits. One of 32 bits clears the upper half, as the processor does.
    pub fn set_register(&mut self, register: Register, value: u64) -> Result<(), Stop> {
        let bits = register.size() as u32 * 8;
        let slot = general_register(&mut self.general, register).ok_or(Stop::Unsupported)?;
        *slot = match bits {
            16 => *slot & !mask(16) | value & mask(16),
            32 | 64 => value & mask(bits),
            _ => return Err(Stop::Unsupported),
        };
        Ok(())
    }
}

fn general_register(general: &mut kvm_regs, register: Register) -> Option<&mut u64> {
    Some(match register.full_register() {
        Register::RAX => &mut general.rax,
        Register::RBX => &mut general.rbx,
        Register::RCX => &mut general.rcx,
        Register::RDX => &mut general.rdx,
        Register::RSI => &mut general.rsi,
        Register::RDI => &mut general.rdi,
        Register::RSP => &mut general.rsp,
        Register::RBP => &mut general.rbp,
        Register::R8 => &mut general.r8,
        Register::R9 => &mut general.r9,
        Register::R10 => &mut general.r10,
        Register::R11 => &mut general.r11,
        Register::R12 => &mut general.r12,
        Register::R13 => &mut general.r13,
        Register::R14 => &mut general.r14,
        Register::R15 => &mut general.r15,
        _ => return None,
    })
}

/// An instruction with what it works on.
#[derive(Debug)]
pub struct Operands<'a> {
    /// The registers, changed in place.
    pub state: &'a mut State,
    /// The guest's memory.
    pub memory: &'a Memory,
    /// The instruction.
    pub instruction: &'a Instruction,
}

impl Operands<'_> {
    /// Width of operand `index` in bits.
    pub fn bits(&self, index: u32) -> Result<u32, Stop> {
        let bytes = match self.instruction.op_kind(index) {
            OpKind::Register => self.instruction.op_register(index).size(),
            OpKind::Memory => self.instruction.memory_size().size(),
            _ => return Err(Stop::Unsupported),
        };
        match bytes {
            2 | 4 | 8 => Ok(bytes as u32 * 8),
            _ => Err(Stop::Unsupported),
        }
    }

    /// The value of operand `index`.
    pub fn read(&self, index: u32) -> Result<u64, Stop> {
        match self.instruction.op_kind(index) {
            OpKind::Register => {
                let register = self.instruction.op_register(index);
                self.state.register(register).ok_or(Stop::Unsupported)
            }
            OpKind::Memory => {
                let mut bytes = [0; 8];
                let width = self.bits(index)? as usize / 8;
                self.read_memory(self.address(index)?, &mut bytes[..width])?;
                Ok(u64::from_le_bytes(bytes))
            }
            OpKind::Immediate8 => Ok(self.instruction.immediate8().into()),
            _ => Err(Stop::Unsupported),
        }
    }

    /// Sets operand `index`.
    pub fn write(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        match self.instruction.op_kind(index) {
            OpKind::Register => self
                .state
                .set_register(self.instruction.op_register(index), value),
            OpKind::Memory => {
                let width = self.bits(index)? as usize / 8;
                self.write_memory(self.address(index)?, &value.to_le_bytes()[..width])
            }
            _ => Err(Stop::Unsupported),
        }
    }

    /// The linear address of memory operand `index`.
    pub fn address(&self, index: u32) -> Result<u64, Stop> {
        self.instruction
            .virtual_address(index, 0, |register, _, _| self.state.register(register))
            .ok_or(Stop::Unsupported)
    }

    /// Reads memory at a linear address.
    pub fn read_memory(&self, address: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        let mut done = 0;
        for (linear, length) in pages(address, bytes.len()) {
            let physical = translate(self.memory, self.state, linear, Access::Read)?;
            self.memory
                .read_slice(&mut bytes[done..done + length], GuestAddress(physical))
                .map_err(|_| Stop::OutsideMemory(physical))?;
            done += length;
        }
        Ok(())
    }

    /// Writes memory at a linear address; nothing when any part of it may not be written.
    pub fn write_memory(&self, address: u64, bytes: &[u8]) -> Result<(), Stop> {
        let mut parts = Vec::with_capacity(2);
        for (linear, length) in pages(address, bytes.len()) {
            parts.push((translate(self.memory, self.state, linear, Access::Write)?, length));
        }
        let mut done = 0;
        for (physical, length) in parts {
            self.memory
                .write_slice(&bytes[done..done + length], GuestAddress(physical))
                .map_err(|_| Stop::OutsideMemory(physical))?;
            done += length;
        }
        Ok(())
    }
}

/// The parts of a range that lie in one page each: linear address and length.
pub fn pages(address: u64, bytes: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == bytes {
            return None;
        }
        let linear = address.wrapping_add(done as u64);
        let length = (bytes - done).min((PAGE_BYTES - linear % PAGE_BYTES) as usize);
        done += length;
        Some((linear, length))
    })
}
