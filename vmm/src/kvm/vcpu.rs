//! One virtual processor: its first state, and the loop that runs it and answers its exits.

use std::{ops::ControlFlow, sync::Arc};

use brig_protocol::vmm::StopReason;
use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_cpuid_entry2,
    kvm_msr_entry, kvm_regs, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{
    KvmError, Vm, cpuid, failed,
    stats::VcpuStats,
    vcpu_state::{self, VcpuState},
};
use crate::{boot::long_mode, devices::bus::Bus, emulate::Emulator, pause::Brake, stop::Stop};

/// Lets `rep movs` and `rep stos` work by whole cache lines (Intel SDM, volume 4).
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// Memory is write-back where no range says otherwise.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offsets of the local APIC's LINT0 and LINT1 entries, and their delivery modes (Intel SDM, volume 3, 11.5.1).
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTINT: u32 = 7 << 8;

/// A virtual processor, ready to run.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
    bus: Arc<Bus>,
    stop: Arc<Stop>,
    emulator: Option<Emulator>,
    /// The leaves that it was given.
    cpuid: Vec<kvm_cpuid_entry2>,
    brake: Brake,
    /// What is read when it stands still.
    saved_msrs: Arc<[u32]>,
    /// Keeps the guest's memory mapped for as long as `fd` can run.
    _vm: Arc<Vm>,
}

/// What all vCPUs of a guest share.
#[derive(Debug)]
pub struct Shared {
    /// The machine.
    pub vm: Arc<Vm>,
    /// CPUID leaves from [`cpuid::for_guest`].
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// How many there are.
    pub count: u8,
    /// Where port and memory exits go.
    pub bus: Arc<Bus>,
    /// Where the end of the guest is reported.
    pub stop: Arc<Stop>,
    /// What brings them to a halt.
    pub brake: Brake,
    /// The MSRs of [`super::vcpu_state::saved_msrs`].
    pub saved_msrs: Arc<[u32]>,
}

impl Vcpu {
    /// Makes vCPU `index`, which waits to be woken by another one.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(shared: &Shared, index: u8, emulator: Option<Emulator>) -> Result<Self, KvmError> {
        let leaves = cpuid::for_vcpu(&shared.cpuid, index, shared.count)?;
        let vcpu = Self::without_state(shared, index, emulator, leaves.as_slice())?;
        let fd = &vcpu.fd;
        fd.set_cpuid2(&leaves).map_err(failed("KVM_SET_CPUID2"))?;
        set_msrs(fd)?;
        set_local_interrupts(fd)?;
        fd.set_fpu(&long_mode::floating_point())
            .map_err(failed("KVM_SET_FPU"))?;
        Ok(vcpu)
    }

    /// Makes vCPU `index` with a saved state.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn restore(
        shared: &Shared,
        index: u8,
        emulator: Option<Emulator>,
        state: &VcpuState,
    ) -> Result<Self, KvmError> {
        let vcpu = Self::without_state(shared, index, emulator, state.cpuid())?;
        state.write(&vcpu.fd)?;
        Ok(vcpu)
    }

    fn without_state(
        shared: &Shared,
        index: u8,
        emulator: Option<Emulator>,
        cpuid: &[kvm_cpuid_entry2],
    ) -> Result<Self, KvmError> {
        Ok(Self {
            fd: shared.vm.create_vcpu(index)?,
            index,
            bus: Arc::clone(&shared.bus),
            stop: Arc::clone(&shared.stop),
            emulator,
            cpuid: cpuid.to_vec(),
            brake: shared.brake.clone(),
            saved_msrs: Arc::clone(&shared.saved_msrs),
            _vm: Arc::clone(&shared.vm),
        })
    }

    /// KVM's counters, which can be read while it runs.
    pub fn stats(&self) -> Option<VcpuStats> {
        VcpuStats::open(&self.fd)
    }

    /// The time stamp counter as a program in the guest reads it.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn tsc(&self) -> Result<u64, KvmError> {
        vcpu_state::read_tsc(&self.fd)
    }

    /// Lets this vCPU, the first, begin at `entry` in long mode.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn begin_at(&self, entry: u64) -> Result<(), KvmError> {
        let sregs = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        self.fd
            .set_sregs(&long_mode::special_registers(sregs))
            .map_err(failed("KVM_SET_SREGS"))?;
        self.fd
            .set_regs(&long_mode::registers(entry))
            .map_err(failed("KVM_SET_REGS"))
    }

    /// Frequency of the guest's time stamp counter in kHz.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn tsc_khz(&self) -> Result<u32, KvmError> {
        self.fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))
    }

    /// Runs the guest until it stops, then reports why.
    pub fn run(mut self) {
        let reason = loop {
            if self.brake.is_wanted() {
                match self.finish_exit() {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(reason) => break reason,
                }
                self.brake.stand(self.index, || {
                    VcpuState::read(&self.fd, &self.saved_msrs, &self.cpuid)
                });
            } else if let ControlFlow::Break(reason) = self.run_once() {
                break reason;
            }
        };
        self.stop.request(reason);
    }

    /// Lets KVM take over the answer to the last exit without a further instruction of the guest's: until then registers
    /// are not what they will be (api.rst, "The kvm_run structure", on KVM_EXIT_IO and KVM_EXIT_MMIO).
    fn finish_exit(&mut self) -> ControlFlow<StopReason> {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            let result = self.run_once();
            self.fd.set_kvm_immediate_exit(0);
            match result {
                // Interrupted: KVM has nothing more to finish.
                ControlFlow::Continue(true) => return ControlFlow::Continue(()),
                // It had, and that was the next part of the same instruction.
                ControlFlow::Continue(false) => {}
                ControlFlow::Break(reason) => return ControlFlow::Break(reason),
            }
        }
    }

    /// Enters the guest and answers its exit; says whether it was interrupted.
    fn run_once(&mut self) -> ControlFlow<StopReason, bool> {
        let mut interrupted = false;
        let emulate = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                if self.bus.port_write(port, data).is_break() {
                    return ControlFlow::Break(StopReason::Reset);
                }
                false
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.port_read(port, data);
                false
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.memory_read(address, data);
                false
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.memory_write(address, data);
                false
            }
            Ok(VcpuExit::Shutdown) => return ControlFlow::Break(self.failure("triple fault")),
            Ok(VcpuExit::SystemEvent(
                KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_CRASH,
                _,
            )) => return ControlFlow::Break(StopReason::Reset),
            Ok(VcpuExit::InternalError) => true,
            Ok(VcpuExit::Intr) => {
                interrupted = true;
                false
            }
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                interrupted = true;
                false
            }
            Ok(exit) => {
                let what = format!("{exit:?}");
                return ControlFlow::Break(self.failure(&what));
            }
            Err(e) => return ControlFlow::Break(self.failure(&format!("KVM_RUN: {e}"))),
        };
        if emulate {
            let error = internal_error(&mut self.fd);
            let Some(emulator) = &self.emulator else {
                return ControlFlow::Break(self.failure(&error));
            };
            if let Err(e) = emulator.step(&self.fd) {
                return ControlFlow::Break(self.failure(&format!("{error}: {e}")));
            }
        }
        ControlFlow::Continue(interrupted)
    }

    /// One line on why this vCPU cannot go on, with the registers that say where.
    fn failure(&self, what: &str) -> StopReason {
        let registers = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(general), Ok(special)) => registers(&general, &special),
            _ => "registers unknown".to_owned(),
        };
        StopReason::VcpuFailed(format!("vCPU {}: {what}; {registers}", self.index))
    }
}

/// The registers that tell where a vCPU is.
fn registers(r: &kvm_regs, s: &kvm_sregs) -> String {
    format!(
        "rip={:#x} rsp={:#x} rflags={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} rbp={:#x} \
         cs={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
        r.rip,
        r.rsp,
        r.rflags,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        s.cs.selector,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.efer
    )
}

/// Which internal error KVM reports.
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member; it consists of plain integers.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    format!("KVM_EXIT_INTERNAL_ERROR, suberror {suberror}")
}

fn set_msrs(fd: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
    .map_err(|_| KvmError::Cpuid)?;
    // A KVM that lacks one of them stops there; neither is needed for a guest to run.
    fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    Ok(())
}

/// Wires LINT0 to the PICs and LINT1 to NMI, as firmware does.
fn set_local_interrupts(fd: &VcpuFd) -> Result<(), KvmError> {
    let mut apic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    for (offset, mode) in [(APIC_LVT_LINT0, DELIVER_EXTINT), (APIC_LVT_LINT1, DELIVER_NMI)] {
        for (register, byte) in apic.regs[offset..].iter_mut().zip(mode.to_le_bytes()) {
            *register = byte as libc::c_char;
        }
    }
    fd.set_lapic(&apic).map_err(failed("KVM_SET_LAPIC"))
}
