//! A machine: built from its configuration or from a saved guest, run, saved, ended.
//!
//! | room | does |
//! |---|---|
//! | [`parts`] | what a new and a restored machine have in common: interrupt controllers, devices and their connections |
//! | [`boot`] | a new machine |
//! | [`restore`] | one that goes on where another was saved |
//! | [`save`] | stands still, and is written down |

mod boot;
mod parts;
mod restore;
mod save;

use std::{
    fs::File,
    io,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use brig_protocol::vmm::Counters;

pub use self::{
    restore::{RestoreError, Restored},
    save::SaveError,
};
use crate::{
    boot::BootError,
    devices::{bus::Bus, virtio::vsock::Vsock},
    event_loop::EventLoop,
    jail::filters::Kind,
    kvm::{KvmError, Vm, stats::VcpuStats, vcpu::Vcpu},
    lock::lock,
    memory::MemoryError,
    pause::{self, Brakes, Gate},
    prefetch,
    snapshot::DiskState,
    stop::Stop,
    threads::Crew,
};

/// How long the end of a guest waits for readers that have not taken its last bytes yet.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a machine could not be built or started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused something.
    #[error("Cannot make the virtual machine")]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error("Cannot make the guest's memory")]
    Memory(#[from] MemoryError),
    /// The kernel or what belongs to it could not be loaded.
    #[error("Cannot prepare the boot")]
    Boot(#[from] BootError),
    /// The saved guest does not fit.
    #[error("Cannot restore the saved guest")]
    Restore(#[from] RestoreError),
    /// A device could not be made.
    #[error("Cannot make a device")]
    Device(#[from] io::Error),
    /// A device has a queue of an impossible size.
    #[error("Cannot make a queue")]
    Queue(#[from] virtio_queue::Error),
}

/// A machine whose guest is loaded and whose vCPUs stand still.
#[derive(Debug)]
pub struct Machine {
    vm: Arc<Vm>,
    bus: Arc<Bus>,
    stop: Arc<Stop>,
    vsock: Arc<Mutex<Vsock>>,
    disks: Vec<DiskState>,
    event_loops: Vec<(&'static str, Kind, EventLoop)>,
    vcpus: Vec<Vcpu>,
    brakes: Brakes,
    /// What is mapped while it begins to run.
    prefetch: Vec<prefetch::Range>,
    workarounds: bool,
}

/// A machine that runs, or stands still to be saved.
#[derive(Debug)]
pub struct RunningMachine {
    vm: Arc<Vm>,
    bus: Arc<Bus>,
    stop: Arc<Stop>,
    vsock: Arc<Mutex<Vsock>>,
    disks: Vec<DiskState>,
    vcpus: Vec<JoinHandle<()>>,
    stats: Vec<VcpuStats>,
    brakes: Brakes,
    gate: Arc<Gate>,
    workarounds: bool,
}

impl Machine {
    /// Whether workarounds for an emulated KVM are active.
    pub fn has_workarounds(&self) -> bool {
        self.workarounds
    }

    /// Starts the threads of the devices and of the vCPUs. Each of them, and the calling one, is under its filter of system calls
    /// (`jail::filters`) before any of them goes on.
    ///
    /// # Errors
    /// [`MachineError::Device`] when a thread cannot be made or has no filter; the process is to end then.
    pub fn start(self) -> Result<RunningMachine, MachineError> {
        pause::prepare_signal()?;
        let gate = Arc::new(Gate::default());
        let prefetches = usize::from(!self.prefetch.is_empty());
        let mut crew = Crew::of(self.event_loops.len() + self.vcpus.len() + prefetches);
        for (name, kind, event_loop) in self.event_loops {
            event_loop.spawn(&mut crew, name, kind, Arc::clone(&gate))?;
        }
        let stats = self.vcpus.iter().filter_map(Vcpu::stats).collect();
        let vcpus = self
            .vcpus
            .into_iter()
            .enumerate()
            .map(|(index, vcpu)| crew.spawn(&format!("vcpu{index}"), Kind::Vcpu, move || vcpu.run()))
            .collect::<Result<_, _>>()?;
        if !self.prefetch.is_empty() {
            prefetch::start(&mut crew, Arc::clone(self.vm.memory()), self.prefetch)?;
        }
        crew.begin()?;
        Ok(RunningMachine {
            vm: self.vm,
            bus: self.bus,
            stop: self.stop,
            vsock: self.vsock,
            disks: self.disks,
            vcpus,
            stats,
            brakes: self.brakes,
            gate,
            workarounds: self.workarounds,
        })
    }
}

impl RunningMachine {
    /// Tells the end of the guest.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// The socket device.
    pub fn vsock(&self) -> &Mutex<Vsock> {
        &self.vsock
    }

    /// Writes down which pages of the guest's memory have been touched, see [`prefetch::record`].
    ///
    /// # Errors
    /// Those of reading `pagemap` and writing `file`.
    pub fn record_pages(&self, pagemap: &File, file: &File) -> io::Result<u64> {
        prefetch::record(self.vm.memory(), pagemap, file)
    }

    /// What the guest and its process have cost so far.
    ///
    /// # Errors
    /// Those of reading KVM's counters.
    pub fn count(&self) -> io::Result<Counters> {
        let mut counters = Counters::default();
        for stats in &self.stats {
            stats.add_to(&mut counters)?;
        }
        // SAFETY: an rusage is plain integers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` is an rusage for the kernel to fill.
        if unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } != 0 {
            return Err(io::Error::last_os_error());
        }
        counters.minor_faults = usage.ru_minflt as u64;
        counters.major_faults = usage.ru_majflt as u64;
        counters.waits = usage.ru_nvcsw as u64;
        Ok(counters)
    }

    /// After the guest has stopped: brings its last bytes to where they belong.
    pub fn finish(&self) {
        self.bus.flush_console();
        lock(&*self.vsock).finish(Instant::now() + LAST_BYTES_TIMEOUT);
    }
}
