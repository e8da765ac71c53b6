//! A new machine, whose guest begins at its kernel's first instruction.

use std::sync::Arc;

use brig_protocol::vmm::KvmKind;
use kvm_ioctls::Kvm;

use super::{
    Machine, MachineError,
    parts::{self, Devices},
};
use crate::{
    boot::{self, Payload, command_line},
    config::MachineConfig,
    devices::{bus::Bus, serial::SerialPort},
    emulate::{self, Emulator},
    kvm::{
        KvmError, cpuid,
        vcpu::{Shared, Vcpu},
        vcpu_state::saved_msrs,
    },
    memory,
    pause::brakes,
    stop::Stop,
};

impl Machine {
    /// Builds everything that `config` asks for.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left then.
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        let vm = parts::vm(&config.kvm, memory::create(config.memory_bytes)?)?;
        let devices = Devices::new(&vm, config.disks, &config.io, config.listeners)?;
        let slots = devices.transports.len();
        let serial = SerialPort::new(parts::serial_interrupt(&vm)?, config.console);
        let bus = Arc::new(Bus::new(serial, devices.transports));
        let stop = Arc::new(Stop::new()?);
        let (brake, brakes) = brakes();
        let workarounds = config.kind == KvmKind::Emulated;
        let shared = Shared {
            cpuid: guest_cpuid(&config.kvm, config.vcpus, config.kind)?,
            vm: Arc::clone(&vm),
            count: config.vcpus,
            bus: Arc::clone(&bus),
            stop: Arc::clone(&stop),
            brake,
            saved_msrs: saved_msrs(&config.kvm)?.into(),
        };
        let vcpus = (0..shared.count)
            .map(|index| Vcpu::new(&shared, index, emulator(&shared, workarounds)))
            .collect::<Result<Vec<_>, _>>()?;

        let parameters = if workarounds {
            emulate::KERNEL_PARAMETERS
        } else {
            ""
        };
        let extra = &config.extra_command_line;
        let command_line = command_line::build(vcpus[0].tsc_khz()?, parameters, slots, extra)?;
        let (mut kernel, mut initrd) = (config.kernel, config.initrd);
        let entry = boot::load(
            vm.memory(),
            Payload {
                kernel: &mut kernel,
                initrd: &mut initrd,
                initrd_bytes: config.initrd_bytes,
                command_line: &command_line,
                vcpus: config.vcpus,
            },
        )?;
        vcpus[0].begin_at(entry)?;
        Ok(Self {
            vm,
            bus,
            stop,
            vsock: devices.vsock,
            disks: devices.disks,
            event_loops: devices.event_loops,
            vcpus,
            brakes,
            prefetch: Vec::new(),
            workarounds,
        })
    }
}

/// What carries out the instructions that an emulated KVM lacks; a standard one gets none.
pub(super) fn emulator(shared: &Shared, workarounds: bool) -> Option<Emulator> {
    workarounds.then(|| Emulator::new(Arc::clone(shared.vm.memory())))
}

/// The CPUID leaves that all vCPUs of a guest share.
pub(super) fn guest_cpuid(
    kvm: &Kvm,
    vcpus: u8,
    kind: KvmKind,
) -> Result<Vec<kvm_bindings::kvm_cpuid_entry2>, KvmError> {
    let masks = match kind {
        KvmKind::Standard => &[][..],
        KvmKind::Emulated => emulate::CPUID_MASKS,
    };
    cpuid::for_guest(kvm, vcpus, masks)
}
