//! A running machine stands still, and is written down.

use std::fs::File;

use super::RunningMachine;
use crate::{
    kvm::{KvmError, vcpu_state::host_tsc, vm_state::VmState},
    lock::lock,
    memory::{self, MemoryError},
    pause::PauseError,
    snapshot::{self, MachineState, StateError},
};

/// Why a guest could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It does not stand still.
    #[error("Cannot stop the guest")]
    Pause(#[from] PauseError),
    /// KVM does not tell its state.
    #[error("Cannot read the state of the guest")]
    Kvm(#[from] KvmError),
    /// Its memory cannot be written.
    #[error("Cannot save the guest's memory")]
    Memory(#[from] MemoryError),
    /// The rest cannot be written.
    #[error("Cannot save the guest's state")]
    State(#[from] StateError),
}

impl RunningMachine {
    /// Stops the guest between two instructions and writes it to two empty files. It stands still afterwards, also after an
    /// error, until [`RunningMachine::resume`]. Returns the bytes of memory that are not holes.
    ///
    /// vCPUs first: what they ask of devices is then in the queues. The device threads finish what they are doing, and what
    /// is still in the queues is done when the guest is restored. The state of each vCPU is read once nothing moves any more:
    /// an interrupt that another vCPU or a device had sent after that would be in the state of none.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn save(&self, memory_file: &File, state_file: &File) -> Result<u64, SaveError> {
        self.brakes.apply(&self.vcpus)?;
        self.gate.close();
        let vcpus = self.brakes.states(&self.vcpus)?;
        let (serial, transports) = self.bus.save();
        let memory = self.vm.memory();
        let state = MachineState {
            version: crate::snapshot::VERSION.to_owned(),
            emulated: self.workarounds,
            host_tsc: host_tsc(),
            memory_bytes: memory::total(memory),
            vcpus,
            vm: VmState::read(&self.vm)?,
            serial,
            transports,
            disks: self.disks.clone(),
            vsock: lock(&*self.vsock).save(),
        };
        let bytes = memory::save(memory, memory_file)?;
        snapshot::write(&state, state_file)?;
        Ok(bytes)
    }

    /// Lets the vCPUs stand still between two instructions, until [`RunningMachine::resume`]; after an error they run on. What
    /// others send to the guest waits in its devices.
    ///
    /// # Errors
    /// [`PauseError`].
    pub fn pause(&self) -> Result<(), PauseError> {
        let standing = self.brakes.apply(&self.vcpus);
        if standing.is_err() {
            self.brakes.release();
        }
        standing
    }

    /// Lets a saved guest, or one that stands still, run on.
    pub fn resume(&self) {
        self.gate.open();
        self.brakes.release();
    }
}
