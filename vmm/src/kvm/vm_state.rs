//! What KVM knows of a machine beside its vCPUs: interrupt controllers and clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm, failed};

/// The interrupt controllers of [`Vm::create_interrupt_controllers`].
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// A machine whose vCPUs stand still.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VmState {
    chips: Vec<kvm_irqchip>,
    /// Nanoseconds of the paravirtual clock, from which the guest's monotonic clock comes.
    clock_ns: u64,
}

impl VmState {
    /// Reads it.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn read(vm: &Vm) -> Result<Self, KvmError> {
        let clock = vm.fd.get_clock().map_err(failed("KVM_GET_CLOCK"))?;
        let chips = CHIPS
            .iter()
            .map(|&chip_id| {
                let mut chip = kvm_irqchip {
                    chip_id,
                    ..Default::default()
                };
                vm.fd.get_irqchip(&mut chip).map_err(failed("KVM_GET_IRQCHIP"))?;
                Ok(chip)
            })
            .collect::<Result<_, KvmError>>()?;
        Ok(Self {
            chips,
            clock_ns: clock.clock,
        })
    }

    /// Gives it to a new machine, whose vCPUs have their states: an interrupt that the I/O APIC holds is delivered to a
    /// local APIC at once.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn write(&self, vm: &Vm) -> Result<(), KvmError> {
        for chip in &self.chips {
            vm.fd.set_irqchip(chip).map_err(failed("KVM_SET_IRQCHIP"))?;
        }
        // Without flags: the guest's clock goes on where it stood, as if no time had passed.
        let clock = kvm_clock_data {
            clock: self.clock_ns,
            ..Default::default()
        };
        vm.fd.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))
    }
}
