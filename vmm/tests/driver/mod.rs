//! Plays the supervisor: starts a brig-vmm, hands it descriptors, and reads its events. Shared by the tests and the
//! `boot` example.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use brig_jail::spawn::{Process, Program};
use brig_protocol::{
    channel::{self, ChannelError},
    vmm::{
        BootConfig, Command, DiskConfig, Event, FdIndex, IoLimits, KvmKind, RejoinConfig, RestoreConfig,
        SavedStream, SegmentConfig,
    },
};

/// A brig-vmm and the channel to it. It ends when this is dropped.
pub struct Vmm {
    /// The process.
    pub child: Process,
    channel: Option<OwnedFd>,
}

impl Vmm {
    /// Starts `binary`.
    pub fn spawn(binary: &Path) -> io::Result<Self> {
        let (ours, theirs) = channel::pair()?;
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        // The channel is a VMM's standard input: `CHANNEL_FD`.
        let child = brig_jail::spawn::spawn(&Program {
            file: File::open(binary)?.as_fd(),
            arguments: &[c"brig-vmm".to_owned()],
            streams: [theirs.as_fd(), null.as_fd(), stderr.as_fd()],
        })
        .map_err(io::Error::other)?;
        Ok(Self {
            child,
            channel: Some(ours),
        })
    }

    fn channel(&self) -> Result<&OwnedFd, ChannelError> {
        self.channel.as_ref().ok_or(ChannelError::Closed)
    }

    /// Closes the channel, as a supervisor that dies.
    #[allow(dead_code)]
    pub fn close_channel(&mut self) {
        self.channel = None;
    }

    /// Sends a command with descriptors.
    pub fn send(&self, command: &Command, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        channel::send(self.channel()?, command, fds)
    }

    /// Waits for the next event.
    pub fn event(&self) -> Result<Event, ChannelError> {
        channel::receive(self.channel()?).map(|(event, _)| event)
    }

    /// Asks what kind of KVM this is.
    pub fn probe(&self, kvm: &File) -> Result<KvmKind, String> {
        self.send(&Command::Probe, &[kvm.as_fd()])
            .map_err(|e| e.to_string())?;
        match self.event() {
            Ok(Event::Probed { kvm }) => Ok(kvm),
            other => Err(format!("{other:?}")),
        }
    }

    /// Boots a guest.
    pub fn boot(&self, guest: Guest) -> Result<Event, ChannelError> {
        let fds: Vec<_> = guest.fds.iter().map(AsFd::as_fd).collect();
        self.send(&Command::Boot(guest.config), &fds)?;
        self.event()
    }
}

#[allow(dead_code)]
impl Vmm {
    /// Saves the guest, which stands still then.
    pub fn save(&self, saved: &Saved) -> Result<Event, ChannelError> {
        self.send(&Command::Save, &[saved.memory.as_fd(), saved.state.as_fd()])?;
        self.event()
    }

    /// Restores a guest.
    pub fn restore(&self, guest: Restored) -> Result<Event, ChannelError> {
        let fds: Vec<_> = guest.fds.iter().map(AsFd::as_fd).collect();
        self.send(&Command::Restore(guest.config), &fds)?;
        self.event()
    }
}

/// The files of a saved guest.
#[allow(dead_code)]
pub struct Saved {
    /// Memory.
    pub memory: File,
    /// Everything else.
    pub state: File,
}

/// A restore command in the making.
#[allow(dead_code)]
pub struct Restored {
    /// The command.
    pub config: RestoreConfig,
    fds: Vec<OwnedFd>,
}

#[allow(dead_code)]
impl Restored {
    /// A guest that goes on from `saved`; its console is the reader that is returned.
    pub fn new(kvm: &File, kind: KvmKind, saved: &Saved) -> io::Result<(Self, io::PipeReader)> {
        let (reader, writer) = io::pipe()?;
        let guest = Self {
            config: RestoreConfig {
                kvm: kind,
                memory: 1,
                state: 2,
                console: 3,
                disks: Vec::new(),
                io: IoLimits::default(),
                streams: Vec::new(),
                prefetch: None,
            },
            fds: vec![
                kvm.try_clone()?.into(),
                saved.memory.try_clone()?.into(),
                saved.state.try_clone()?.into(),
                writer.into(),
            ],
        };
        Ok((guest, reader))
    }

    fn add(&mut self, fd: impl Into<OwnedFd>) -> FdIndex {
        self.fds.push(fd.into());
        (self.fds.len() - 1) as FdIndex
    }

    /// Puts a disk into the next slot.
    pub fn disk(&mut self, file: &File, length: u64, writable: bool) -> io::Result<()> {
        let file = self.add(file.try_clone()?);
        self.config.disks.push(DiskConfig {
            segments: vec![SegmentConfig { file, length }],
            writable,
            shown_bytes: None,
        });
        Ok(())
    }

    /// Lets a saved connection go on with `socket`.
    pub fn rejoin(&mut self, stream: SavedStream, socket: impl Into<OwnedFd>) {
        let socket = self.add(socket);
        self.config.streams.push(RejoinConfig { stream, socket });
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.child.kill();
        let _ = self.child.wait();
    }
}

/// A boot command in the making: descriptors are added as they are named.
pub struct Guest {
    /// The command.
    pub config: BootConfig,
    fds: Vec<OwnedFd>,
}

impl Guest {
    /// A guest of one vCPU and 128 MiB; its console is the reader that is returned.
    pub fn new(kvm: &File, kind: KvmKind, kernel: File, initrd: File) -> io::Result<(Self, io::PipeReader)> {
        let (reader, writer) = io::pipe()?;
        let mut guest = Self {
            config: BootConfig {
                vcpus: 1,
                memory_mib: 128,
                kvm: kind,
                kernel: 0,
                initrd: 0,
                console: 0,
                extra_command_line: String::new(),
                disks: Vec::new(),
                io: IoLimits::default(),
                listeners: Vec::new(),
            },
            fds: vec![kvm.try_clone()?.into()],
        };
        guest.config.kernel = guest.add(kernel);
        guest.config.initrd = guest.add(initrd);
        guest.config.console = guest.add(writer);
        Ok((guest, reader))
    }

    /// Adds a descriptor; returns its index.
    pub fn add(&mut self, fd: impl Into<OwnedFd>) -> FdIndex {
        self.fds.push(fd.into());
        (self.fds.len() - 1) as FdIndex
    }
}

/// Opens `/dev/kvm` as a supervisor does.
pub fn open_kvm() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/kvm")
}
