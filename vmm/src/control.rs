//! The command channel: what the supervisor may ask for, and what it is told.

use std::{
    error::Error,
    io, iter,
    os::fd::{AsFd, OwnedFd},
};

use brig_protocol::{
    channel::{self, ChannelError},
    vmm::{BootConfig, Command, Event, RestoreConfig, StopReason},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::{ClockId, clock_gettime},
};

use vm_memory::mmap::MmapRegionError;

use crate::{
    config::{self, ConfigError, MachineConfig, RestoredMachineConfig},
    jail,
    kvm::probe::{self, ProbeError},
    lock::lock,
    machine::{Machine, MachineError, Restored, RunningMachine},
    prefetch::MappedAhead,
    threads,
};

/// Why serving the channel ended early. The supervisor has been told, where that was possible.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The channel failed, or said something that is no command.
    #[error("Cannot talk to the supervisor")]
    Channel(#[from] ChannelError),
    /// poll(2) failed.
    #[error("Cannot wait for commands")]
    Poll(#[source] io::Error),
    /// The kind of KVM could not be found out.
    #[error("Cannot probe KVM")]
    Probe(#[from] ProbeError),
    /// The boot command makes no sense.
    #[error("Bad configuration")]
    Config(#[from] ConfigError),
    /// The machine could not be built.
    #[error("Cannot boot")]
    Machine(#[source] MachineError),
    /// The saved machine could not be restored.
    #[error("Cannot restore")]
    Restore(#[source] MachineError),
    /// The counters could not be read.
    #[error("Cannot count what the guest costs")]
    Count(#[source] io::Error),
    /// The process could not be walled off.
    #[error("Cannot enter the jail")]
    Jail(#[from] jail::JailError),
    /// A command came at the wrong time.
    #[error("Unexpected command: {0}")]
    Unexpected(&'static str),
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Serves commands from `channel` until the supervisor closes it or the guest stops. `main_ns` is when the process began.
///
/// # Errors
/// [`ControlError`] when a command failed. The supervisor has been sent [`Event::Failed`] or [`Event::Refused`].
pub fn serve(channel: &OwnedFd, main_ns: u64) -> Result<(), ControlError> {
    let result = Session {
        channel,
        main_ns,
        mapped: None,
        machine: None,
    }
    .run();
    if let Err(error) = &result {
        let message = chain(error);
        let event = if is_refusal(error) {
            Event::Refused { message }
        } else {
            Event::Failed { message }
        };
        // It may be gone, which ends this process just as well.
        let _ = channel::send(channel, &event, &[]);
    }
    result
}

/// Whether the host has too little of something, or gives this process too little.
fn is_refusal(error: &ControlError) -> bool {
    let causes = iter::successors(Some(error as &(dyn Error + 'static)), |&error| error.source());
    let errno = |error: &(dyn Error + 'static)| -> Option<i32> {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            error.raw_os_error()
        } else if let Some(error) = error.downcast_ref::<rustix::io::Errno>() {
            Some(error.raw_os_error())
        } else if let Some(MmapRegionError::Mmap(error)) = error.downcast_ref() {
            error.raw_os_error()
        } else {
            Some(error.downcast_ref::<kvm_ioctls::Error>()?.errno())
        }
    };
    causes
        .filter_map(errno)
        .any(|errno| [libc::ENOMEM, libc::EAGAIN, libc::EMFILE, libc::ENFILE].contains(&errno))
}

/// What happens next.
enum Next {
    Command(Command, Vec<OwnedFd>),
    Stopped(StopReason),
    SupervisorGone,
}

struct Session<'a> {
    channel: &'a OwnedFd,
    main_ns: u64,
    mapped: Option<MappedAhead>,
    machine: Option<RunningMachine>,
}

impl Session<'_> {
    fn run(&mut self) -> Result<(), ControlError> {
        loop {
            match self.next()? {
                Next::Command(command, fds) => self.carry_out(command, fds)?,
                Next::SupervisorGone => return Ok(()),
                Next::Stopped(reason) => {
                    if let Some(machine) = &self.machine {
                        machine.finish();
                    }
                    return match channel::send(self.channel, &Event::Stopped(reason), &[]) {
                        Ok(()) | Err(ChannelError::Closed) => Ok(()),
                        Err(e) => Err(e.into()),
                    };
                }
            }
        }
    }

    fn next(&self) -> Result<Next, ControlError> {
        loop {
            let mut fds = vec![PollFd::new(self.channel, PollFlags::IN)];
            if let Some(machine) = &self.machine {
                fds.push(PollFd::from_borrowed_fd(machine.stop().fd(), PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(ControlError::Poll(e.into())),
            }
            // Commands first: a stream that was connected before the guest's end gets its bytes.
            if !fds[0].revents().is_empty() {
                return match channel::receive(self.channel) {
                    Ok((command, fds)) => Ok(Next::Command(command, fds)),
                    Err(ChannelError::Closed) => Ok(Next::SupervisorGone),
                    Err(e) => Err(e.into()),
                };
            }
            if let Some(reason) = self.machine.as_ref().and_then(|machine| machine.stop().reason()) {
                return Ok(Next::Stopped(reason));
            }
        }
    }

    fn carry_out(&mut self, command: Command, mut fds: Vec<OwnedFd>) -> Result<(), ControlError> {
        match (command, &self.machine) {
            (Command::Probe, None) => {
                let kvm = probe::probe(&config::take_kvm(fds)?)?;
                self.send(&Event::Probed { kvm })
            }
            (Command::Boot(config), None) => self.boot(config, fds),
            (Command::Connect { port, header }, Some(machine)) => {
                let stream = fds.pop().ok_or(ConfigError::Descriptor(0))?;
                lock(machine.vsock()).connect(port, &header, stream);
                Ok(())
            }
            (Command::Restore(config), None) => self.restore(config, fds),
            (Command::MapAhead, None) => {
                let (memory, pages) = config::take_two_files(fds)?;
                self.mapped = MappedAhead::new(memory, &pages).ok();
                Ok(())
            }
            (Command::Save, Some(machine)) => {
                let (memory, state) = config::take_two_files(fds)?;
                self.send(&match machine.save(&memory, &state) {
                    Ok(memory_bytes) => Event::Saved { memory_bytes },
                    Err(error) => Event::SaveFailed {
                        message: chain(&error),
                    },
                })
            }
            (Command::Pause, Some(machine)) => self.send(&match machine.pause() {
                Ok(()) => Event::Paused,
                Err(error) => Event::PauseFailed {
                    message: chain(&error),
                },
            }),
            (Command::RecordPages, Some(machine)) => {
                let (pagemap, file) = config::take_two_files(fds)?;
                let pages = machine.record_pages(&pagemap, &file).ok();
                self.send(&Event::Recorded { pages })
            }
            (Command::Count, Some(machine)) => {
                let counters = machine.count().map_err(ControlError::Count)?;
                self.send(&Event::Counted(counters))
            }
            (Command::Resume, Some(machine)) => {
                machine.resume();
                Ok(())
            }
            (Command::Probe, Some(_)) => Err(ControlError::Unexpected("Probe after Boot")),
            (Command::Boot(_) | Command::Restore(_) | Command::MapAhead, Some(_)) => {
                Err(ControlError::Unexpected("a second guest"))
            }
            (
                Command::Connect { .. }
                | Command::Save
                | Command::Pause
                | Command::Resume
                | Command::RecordPages
                | Command::Count,
                None,
            ) => Err(ControlError::Unexpected("no guest yet")),
        }
    }

    fn boot(&mut self, config: BootConfig, fds: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.mapped = None;
        let machine = Machine::new(MachineConfig::new(config, fds)?).map_err(ControlError::Machine)?;
        jail::enter()?;
        let workarounds = machine.has_workarounds();
        let entry_ns = monotonic_ns();
        let machine = machine.start().map_err(ControlError::Machine)?;
        self.machine = Some(machine);
        self.send(&Event::Booted {
            main_ns: self.main_ns,
            entry_ns,
            workarounds,
        })
    }

    fn restore(&mut self, config: RestoreConfig, fds: Vec<OwnedFd>) -> Result<(), ControlError> {
        let Restored {
            machine,
            tsc,
            realtime_ns,
            tsc_khz,
        } = Machine::restore(RestoredMachineConfig::new(config, fds)?, self.mapped.take())
            .map_err(ControlError::Restore)?;
        jail::enter()?;
        let workarounds = machine.has_workarounds();
        let entry_ns = monotonic_ns();
        self.machine = Some(machine.start().map_err(ControlError::Restore)?);
        self.send(&Event::Restored {
            main_ns: self.main_ns,
            entry_ns,
            workarounds,
            tsc,
            realtime_ns,
            tsc_khz,
        })?;
        threads::trim_heap();
        Ok(())
    }

    fn send(&self, event: &Event) -> Result<(), ControlError> {
        Ok(channel::send(self.channel.as_fd(), event, &[])?)
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
