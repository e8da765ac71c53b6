//! A machine that goes on where another was saved.

use std::sync::Arc;

use brig_protocol::vmm::{KvmKind, VCPUS_MAX};
use kvm_bindings::kvm_cpuid_entry2;
use rustix::time::{ClockId, clock_gettime};

use super::{
    Machine, MachineError,
    boot::{emulator, guest_cpuid},
    parts::{self, Devices},
};
use crate::{
    config::{RestoredMachineConfig, Slot},
    devices::{bus::Bus, serial::SerialPort, virtio::mmio},
    kvm::{
        cpuid,
        vcpu::{Shared, Vcpu},
        vcpu_state::{host_tsc, saved_msrs},
    },
    lock::lock,
    memory,
    pause::brakes,
    prefetch::{self, MappedAhead},
    snapshot::{self, DiskState, MachineState, StateError},
    stop::Stop,
};

/// Why a saved guest does not go on here.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state file is damaged, or of another version.
    #[error("The state file cannot be used")]
    State(#[from] StateError),
    /// Its kernel knows what kind of KVM it runs on.
    #[error("It was saved on a KVM of another kind")]
    Kvm,
    /// Its clock would stand still.
    #[error(
        "The host has been restarted since it was saved, and this KVM cannot set a guest's time stamp counter"
    )]
    Restarted,
    /// A limit was passed.
    #[error("It has {0} vCPUs")]
    Vcpus(usize),
    /// Its programs may use what this processor lacks.
    #[error("This processor is not the one that it was saved on: CPUID leaf {leaf:#x}, {index:#x} differs")]
    Cpu {
        /// EAX of the leaf.
        leaf: u32,
        /// ECX of it.
        index: u32,
    },
    /// Another number of disks, or another kind.
    #[error("It has other disks than those that came")]
    Disks,
    /// The serial port's registers make no sense.
    #[error("Its serial port is unusable")]
    Serial,
    /// The virtio devices do not fit.
    #[error("Its devices do not fit")]
    Device(#[from] mmio::RestoreError),
}

/// A restored machine, and what its guest has to be told of the time.
#[derive(Debug)]
pub struct Restored {
    /// The machine; its vCPUs stand still.
    pub machine: Machine,
    /// The time stamp counter as a program in the guest reads it, at an instant …
    pub tsc: u64,
    /// … and `CLOCK_REALTIME` then, in nanoseconds.
    pub realtime_ns: u64,
    /// Frequency of the counter.
    pub tsc_khz: u32,
}

impl Machine {
    /// Restores what `config` names, in the memory that has been mapped for it ahead, if that is the one.
    ///
    /// # Errors
    /// [`MachineError::Restore`] for what is wrong with the saved guest; nothing is left then.
    pub fn restore(
        config: RestoredMachineConfig,
        mapped: Option<MappedAhead>,
    ) -> Result<Restored, MachineError> {
        let state = snapshot::read(&config.state).map_err(RestoreError::from)?;
        check(&state, &config)?;
        let mapped = mapped.and_then(|mapped| mapped.into_memory_of(&config.memory, state.memory_bytes));
        let (memory, prefetch) = if let Some(memory) = mapped {
            (memory, Vec::new())
        } else {
            let prefetch = config
                .prefetch
                .and_then(|file| prefetch::read(&file, state.memory_bytes).ok())
                .unwrap_or_default();
            (memory::restore(config.memory, state.memory_bytes)?, prefetch)
        };
        let vm = parts::vm(&config.kvm, memory)?;
        let disks = slots(config.disks, &state.disks);
        let devices = Devices::new(&vm, disks, &config.io, Vec::new())?;
        let serial = SerialPort::restore(&state.serial, parts::serial_interrupt(&vm)?, config.console)
            .map_err(|_| RestoreError::Serial)?;
        let bus = Arc::new(Bus::new(serial, devices.transports));
        let stop = Arc::new(Stop::new()?);
        let (brake, brakes) = brakes();
        let shared = Shared {
            cpuid: Vec::new(),
            vm: Arc::clone(&vm),
            count: state.vcpus.len() as u8,
            bus: Arc::clone(&bus),
            stop: Arc::clone(&stop),
            brake,
            saved_msrs: saved_msrs(&config.kvm)?.into(),
        };
        let vcpus = (0..)
            .zip(&state.vcpus)
            .map(|(index, state_of_one)| {
                Vcpu::restore(&shared, index, emulator(&shared, state.emulated), state_of_one)
            })
            .collect::<Result<Vec<_>, _>>()?;
        // The I/O APIC delivers what it holds to the local APICs, and the devices raise lines of the I/O APIC.
        state.vm.write(&vm)?;
        lock(&*devices.vsock).restore(state.vsock, config.streams);
        bus.restore_transports(&state.transports)
            .map_err(RestoreError::from)?;
        let (tsc, realtime_ns) = clock_pair(&vcpus[0], config.kind)?;
        Ok(Restored {
            tsc,
            realtime_ns,
            tsc_khz: vcpus[0].tsc_khz()?,
            machine: Self {
                vm,
                bus,
                stop,
                vsock: devices.vsock,
                disks: devices.disks,
                event_loops: devices.event_loops,
                vcpus,
                brakes,
                prefetch,
                workarounds: state.emulated,
            },
        })
    }
}

/// Checks what does not depend on a machine.
fn check(state: &MachineState, config: &RestoredMachineConfig) -> Result<(), MachineError> {
    if state.emulated != (config.kind == KvmKind::Emulated) {
        return Err(RestoreError::Kvm.into());
    }
    if state.emulated && host_tsc() < state.host_tsc {
        return Err(RestoreError::Restarted.into());
    }
    let vcpus = state.vcpus.len();
    if vcpus == 0 || vcpus > usize::from(VCPUS_MAX) {
        return Err(RestoreError::Vcpus(vcpus).into());
    }
    // One that cannot be written to may be in a slot of the other kind: what the guest writes then fails.
    let fits = |(slot, saved): (&Slot, &DiskState)| {
        slot.disk.is_writable() <= saved.writable && slot.disk.bytes() <= saved.shown_bytes
    };
    if config.disks.len() != state.disks.len() || !config.disks.iter().zip(&state.disks).all(fits) {
        return Err(RestoreError::Disks.into());
    }
    let here = guest_cpuid(&config.kvm, vcpus as u8, config.kind)?;
    for (index, vcpu) in (0..).zip(&state.vcpus) {
        let here = cpuid::for_vcpu(&here, index, vcpus as u8)?;
        check_cpu(vcpu.cpuid(), here.as_slice())?;
    }
    Ok(())
}

/// Leaves that name the processor and its features: a guest that has seen other values cannot go on.
fn check_cpu(saved: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), RestoreError> {
    const BASIC: u32 = 0;
    const FEATURES: u32 = 1;
    const EXTENDED_FEATURES: u32 = 7;
    const XSAVE: u32 = 0xd;
    const KVM_FEATURES: u32 = 0x4000_0001;
    const AMD_FEATURES: u32 = 0x8000_0001;
    // OSXSAVE and OSPKE mirror what the guest has set in CR4.
    let volatile = |leaf: u32, index: u32| match (leaf, index) {
        (FEATURES, _) => 1 << 27,
        (EXTENDED_FEATURES, 0) => 1 << 4,
        _ => 0,
    };
    for entry in saved {
        let (leaf, index) = (entry.function, entry.index);
        let features = |e: &kvm_cpuid_entry2| match leaf {
            BASIC => Some([e.ebx, e.ecx, e.edx]),
            // The vCPU's number is in EBX.
            FEATURES => Some([e.eax, e.ecx & !volatile(leaf, index), e.edx]),
            EXTENDED_FEATURES => Some([e.ebx, e.ecx & !volatile(leaf, index), e.edx]),
            XSAVE if index < 2 => Some([e.eax, 0, e.edx]),
            KVM_FEATURES => Some([e.eax, 0, 0]),
            AMD_FEATURES => Some([0, e.ecx, e.edx]),
            _ => None,
        };
        let Some(needed) = features(entry) else {
            continue;
        };
        let found = here
            .iter()
            .find(|other| (other.function, other.index) == (leaf, index))
            .and_then(features);
        if found != Some(needed) {
            return Err(RestoreError::Cpu { leaf, index });
        }
    }
    Ok(())
}

/// The disks, each shown as the saved guest knows it.
fn slots(disks: Vec<Slot>, saved: &[DiskState]) -> Vec<Slot> {
    disks
        .into_iter()
        .zip(saved)
        .map(|(slot, saved)| Slot {
            disk: slot.disk,
            shown: *saved,
        })
        .collect()
}

/// How often the two clocks are read for a pair, and how close together two readings of the one are close enough.
const CLOCK_READINGS: usize = 10;
const CLOCK_APART_NS: u64 = 50_000;

/// The time stamp counter that programs in the guest read, and the time of day, at the same instant: the reading of the
/// counter that took least, half-way between two of the time.
fn clock_pair(vcpu: &Vcpu, kind: KvmKind) -> Result<(u64, u64), MachineError> {
    let now_ns = || {
        let now = clock_gettime(ClockId::Realtime);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    };
    let mut best = (u64::MAX, (0, 0));
    for _ in 0..CLOCK_READINGS {
        let before = now_ns();
        let tsc = match kind {
            KvmKind::Standard => vcpu.tsc()?,
            // It does not offset the counter: the guest reads the processor's.
            KvmKind::Emulated => host_tsc(),
        };
        let apart = now_ns().saturating_sub(before);
        if apart < best.0 {
            best = (apart, (tsc, before + apart / 2));
        }
        if apart <= CLOCK_APART_NS {
            break;
        }
    }
    Ok(best.1)
}
