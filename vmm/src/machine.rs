//! Builds a machine from its configuration, runs it, and ends it.

use std::{
    io,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use brig_protocol::vmm::KvmKind;
use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{
    boot::{self, BootError, Payload, command_line},
    config::MachineConfig,
    devices::{
        bus::Bus,
        serial::SerialPort,
        virtio::{
            SharedDevice, VirtioDevice,
            block::{Block, Disk},
            entropy::Entropy,
            interrupt::Interrupt,
            lock,
            mmio::{MmioTransport, QUEUE_NOTIFY},
            vsock::Vsock,
        },
    },
    emulate::{self, Emulator},
    event_loop::EventLoop,
    kvm::{
        self, KvmError, Vm, cpuid,
        vcpu::{Shared, Vcpu},
    },
    layout::{SERIAL_IRQ, VIRTIO_IRQ_FIRST, VIRTIO_MMIO, VIRTIO_MMIO_BYTES},
    memory::{self, MemoryError},
    stop::Stop,
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
    bus: Arc<Bus>,
    stop: Arc<Stop>,
    vsock: Arc<Mutex<Vsock>>,
    event_loops: Vec<(&'static str, EventLoop)>,
    vcpus: Vec<Vcpu>,
    workarounds: bool,
}

/// A machine that runs.
#[derive(Debug)]
pub struct RunningMachine {
    bus: Arc<Bus>,
    stop: Arc<Stop>,
    vsock: Arc<Mutex<Vsock>>,
}

/// Connects devices to the machine, one after the other.
struct Attacher<'a> {
    vm: &'a Vm,
    transports: Vec<MmioTransport>,
}

impl Machine {
    /// Builds everything that `config` asks for.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left then.
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        kvm::check(&config.kvm)?;
        let memory = memory::create(config.memory_bytes)?;
        let vm = Arc::new(Vm::new(&config.kvm, memory)?);
        vm.create_interrupt_controllers()?;

        let mut attacher = Attacher {
            vm: &vm,
            transports: Vec::new(),
        };
        let mut disk_loop = EventLoop::new()?;
        attach_disks(&mut attacher, &mut disk_loop, config.disks)?;
        let mut stream_loop = EventLoop::new()?;
        let vsock = Arc::new(Mutex::new(Vsock::new(
            stream_loop.streams_of_next(),
            config.listeners,
        )));
        attacher.attach(vsock.clone(), &mut stream_loop)?;
        attacher.attach(Arc::new(Mutex::new(Entropy::default())), &mut stream_loop)?;

        let devices = attacher.transports.len();
        let bus = Arc::new(Bus::new(serial_port(&vm, config.console)?, attacher.transports));
        let stop = Arc::new(Stop::new()?);
        let workarounds = config.kind == KvmKind::Emulated;
        let vcpus = make_vcpus(
            &Shared {
                cpuid: guest_cpuid(&config.kvm, config.vcpus, config.kind)?,
                vm: Arc::clone(&vm),
                count: config.vcpus,
                bus: Arc::clone(&bus),
                stop: Arc::clone(&stop),
            },
            workarounds,
        )?;

        let parameters = if workarounds {
            emulate::KERNEL_PARAMETERS
        } else {
            ""
        };
        let extra = &config.extra_command_line;
        let command_line = command_line::build(vcpus[0].tsc_khz()?, parameters, devices, extra)?;
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
            bus,
            stop,
            vsock,
            event_loops: vec![("disks", disk_loop), ("streams", stream_loop)],
            vcpus,
            workarounds,
        })
    }

    /// Whether workarounds for an emulated KVM are active.
    pub fn has_workarounds(&self) -> bool {
        self.workarounds
    }

    /// Starts the threads of the devices and of the vCPUs.
    ///
    /// # Errors
    /// [`MachineError::Device`] when a thread cannot be made; the process is to end then.
    pub fn start(self) -> Result<RunningMachine, MachineError> {
        for (name, event_loop) in self.event_loops {
            event_loop.spawn(name)?;
        }
        for (index, vcpu) in self.vcpus.into_iter().enumerate() {
            thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || vcpu.run())?;
        }
        Ok(RunningMachine {
            bus: self.bus,
            stop: self.stop,
            vsock: self.vsock,
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

    /// After the guest has stopped: brings its last bytes to where they belong.
    pub fn finish(&self) {
        self.bus.flush_console();
        lock(&*self.vsock).finish(Instant::now() + LAST_BYTES_TIMEOUT);
    }
}

impl Attacher<'_> {
    /// Puts `device` at the next free slot, its queues and interrupt connected, to be served by `event_loop`.
    fn attach<D: VirtioDevice + 'static>(
        &mut self,
        device: Arc<Mutex<D>>,
        event_loop: &mut EventLoop,
    ) -> Result<(), MachineError> {
        let slot = self.transports.len() as u64;
        let base = VIRTIO_MMIO + slot * VIRTIO_MMIO_BYTES;
        let interrupt = Arc::new(Interrupt::new()?);
        self.vm
            .connect_interrupt(interrupt.event(), VIRTIO_IRQ_FIRST + slot as u32)?;
        let queues = lock(&*device).queue_sizes().len() as u32;
        let mut notifications = Vec::new();
        for queue in 0..queues {
            let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
            self.vm.connect_notification(&event, base + QUEUE_NOTIFY, queue)?;
            notifications.push(event);
        }
        let device: SharedDevice = device;
        let memory = Arc::clone(self.vm.memory());
        self.transports
            .push(MmioTransport::new(Arc::clone(&device), memory, interrupt)?);
        event_loop.add(device, notifications)?;
        Ok(())
    }
}

fn attach_disks(
    attacher: &mut Attacher<'_>,
    event_loop: &mut EventLoop,
    disks: Vec<Disk>,
) -> Result<(), MachineError> {
    for disk in disks {
        attacher.attach(Arc::new(Mutex::new(Block::new(disk))), event_loop)?;
    }
    Ok(())
}

fn make_vcpus(shared: &Shared, workarounds: bool) -> Result<Vec<Vcpu>, KvmError> {
    (0..shared.count)
        .map(|index| {
            let emulator = workarounds.then(|| Emulator::new(Arc::clone(shared.vm.memory())));
            Vcpu::new(shared, index, emulator)
        })
        .collect()
}

fn serial_port(vm: &Vm, console: std::os::fd::OwnedFd) -> Result<SerialPort, MachineError> {
    let interrupt = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
    vm.connect_interrupt(&interrupt, SERIAL_IRQ)?;
    Ok(SerialPort::new(interrupt, console))
}

fn guest_cpuid(kvm: &Kvm, vcpus: u8, kind: KvmKind) -> Result<Vec<kvm_bindings::kvm_cpuid_entry2>, KvmError> {
    let masks = match kind {
        KvmKind::Standard => &[][..],
        KvmKind::Emulated => emulate::CPUID_MASKS,
    };
    cpuid::for_guest(kvm, vcpus, masks)
}
