//! Tells a standard KVM from one without hardware virtualization, which interprets the guest's kernel mode with an
//! instruction emulator.
//!
//! The emulator does not know `fwait` and `popcnt`; a processor does. So a guest of a few instructions runs them in
//! 64-bit kernel mode: either it comes as far as its `out`, or KVM reports an emulation failure.

use brig_protocol::vmm::KvmKind;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{KvmError, Vm, failed};
use crate::{
    boot::long_mode,
    memory::{self, MemoryError},
};

/// Page tables and GDT end below 0xc000.
const MEMORY_BYTES: u64 = 0x1_0000;
const CODE: u64 = 0xd000;
const PORT: u16 = 0x80;
const OPERAND: u64 = 0x00ff_0f01;

/// `fwait; popcnt eax, ecx; out 0x80, al`
const GUEST: [u8; 7] = [0x9b, 0xf3, 0x0f, 0xb8, 0xc1, 0xe6, PORT as u8];

/// Signals that may interrupt the few instructions before the probe gives up.
const ATTEMPTS: usize = 100;

/// Why a KVM could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The guest could not be made or run.
    #[error("Cannot run the probe")]
    Kvm(#[from] KvmError),
    /// Its memory could not be made.
    #[error("Cannot make the probe's memory")]
    Memory(#[from] MemoryError),
    /// Its memory could not be written.
    #[error("Cannot write the probe's memory")]
    Write(#[from] GuestMemoryError),
    /// The guest neither came to its end nor failed as an emulated one does.
    #[error("The probe ended with an unexpected exit: {0}")]
    Unexpected(String),
}

/// Runs the probe.
///
/// # Errors
/// [`ProbeError`].
pub fn probe(kvm: &Kvm) -> Result<KvmKind, ProbeError> {
    super::check(kvm)?;
    let memory = memory::create(MEMORY_BYTES)?;
    long_mode::write_tables(&memory)?;
    memory.write_slice(&GUEST, GuestAddress(CODE))?;
    let vm = Vm::new(kvm, memory)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    vcpu.set_sregs(&long_mode::special_registers(sregs))
        .map_err(failed("KVM_SET_SREGS"))?;
    let mut registers = long_mode::registers(CODE);
    registers.rcx = OPERAND;
    vcpu.set_regs(&registers).map_err(failed("KVM_SET_REGS"))?;
    run(&mut vcpu)
}

fn run(vcpu: &mut VcpuFd) -> Result<KvmKind, ProbeError> {
    for _ in 0..ATTEMPTS {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, &[count])) if u32::from(count) == OPERAND.count_ones() => {
                return Ok(KvmKind::Standard);
            }
            Ok(VcpuExit::InternalError) => return Ok(KvmKind::Emulated),
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => return Err(ProbeError::Unexpected(format!("{exit:?}"))),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return Err(failed("KVM_RUN")(e).into()),
        }
    }
    Err(ProbeError::Unexpected("interrupted again and again".to_owned()))
}
