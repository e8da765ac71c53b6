//! A booted guest: its VMM, its agent's control connection and its console. The supervisor and the unpacker each use one.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt},
    },
    path::Path,
    time::Duration,
};

use brig_protocol::{
    agent::{self, FROM_AGENT_BYTES, FromAgent, TO_AGENT_BYTES, ToAgent},
    channel::ChannelError,
    frame::FrameError,
    stream::{CONTROL_PORT, STREAM_PORT, StreamHeader},
    vmm::{
        BootConfig, Command, DiskConfig, Event, FdIndex, KvmKind, ListenerConfig, SegmentConfig, StopReason,
    },
};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
    time::timeout,
};

use crate::{
    Error, Paths,
    clock::{Timing, monotonic_ns},
    console::Console,
    error::one_line,
    frames::{self, FrameReader},
    host::Host,
    resources::MemoryMib,
    vmm::{Vmm, VmmChannel, VmmError, describe_end},
};

/// How long a guest may take from the start of its VMM to its agent's hello. An emulated KVM needs some 10 s when
/// nothing else runs, and minutes when several guests share a CPU.
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);

/// How long the last lines of the console may take to arrive after the VMM's end.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Most characters of a text that a guest chose and a user sees.
const GUEST_TEXT: usize = 1000;

/// A guest to boot.
#[derive(Debug)]
pub struct Plan {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory.
    pub memory: MemoryMib,
    /// Its block devices, in order.
    pub disks: Vec<Disk>,
}

/// A block device.
#[derive(Debug)]
pub struct Disk {
    /// What it consists of, with the bytes of each.
    pub files: Vec<(File, u64)>,
    /// Whether the guest may write to it.
    pub writable: bool,
}

impl Disk {
    /// A disk of one whole file.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn whole(file: File, writable: bool) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self {
            files: vec![(file, length)],
            writable,
        })
    }
}

/// A guest whose agent is ready. Dropping it kills it.
#[derive(Debug)]
pub struct Guest {
    /// Its VMM.
    pub vmm: Vmm,
    /// From its agent.
    pub from_agent: FrameReader<OwnedReadHalf, FromAgent>,
    /// To its agent.
    pub to_agent: OwnedWriteHalf,
    /// Its kernel's log.
    pub console: Console,
    /// `uname -r` in it, in its own words.
    pub kernel: String,
    collecting: Vec<JoinHandle<()>>,
}

impl Guest {
    /// Boots a guest and waits for its agent. Dropping the future kills it.
    ///
    /// # Errors
    /// Those of opening KVM and the installation's files; [`Error::Vmm`] with the guest's last words when it fails.
    pub async fn boot(
        paths: &Paths,
        host: &dyn Host,
        plan: Plan,
        console: Console,
        timing: &mut Timing,
    ) -> Result<Self, Error> {
        let kvm = host.kvm()?;
        let kind = crate::kvm::kind(paths, &kvm, host).await?;
        timing.kvm = Some(kind);
        let kernel = installation(&paths.kernel())?;
        let initrd = installation(&paths.initrd())?;
        let (stderr, stderr_task) = console.pipe().map_err(no_descriptors)?;
        let (log, log_task) = console.pipe().map_err(no_descriptors)?;
        rustix::io::ioctl_fionbio(&log, true).map_err(|e| no_descriptors(e.into()))?;
        let (ours, theirs) = stream_pair()?;
        let vmm = host.spawn(stderr)?;
        {
            let (config, files) = message(&plan, kind, [&kvm, &kernel, &initrd], log.as_fd(), theirs.as_fd());
            vmm.channel.send(&Command::Boot(config), &files).await?;
        }
        // The VMM has its own; their ends are to be seen here.
        drop((log, theirs));
        let (from_agent, to_agent) = ours.into_split();
        let mut guest = Self {
            vmm,
            from_agent: FrameReader::new(from_agent, FROM_AGENT_BYTES),
            to_agent,
            console,
            kernel: String::new(),
            collecting: vec![stderr_task, log_task],
        };
        match timeout(BOOT_TIMEOUT, guest.wait_for_hello(timing)).await {
            Ok(Ok(())) => Ok(guest),
            Ok(Err(failure)) => Err(guest.explain(failure).await),
            Err(_) => Err(guest
                .explain(Failure::Agent("did not come up in time".into()))
                .await),
        }
    }

    async fn wait_for_hello(&mut self, timing: &mut Timing) -> Result<(), Failure> {
        loop {
            tokio::select! {
                // What the VMM says comes before what happens in its guest.
                biased;
                event = self.vmm.channel.event() => match event {
                    Ok(Event::Booted { main_ns, entry_ns, workarounds }) => {
                        timing.vmm_ns = Some(main_ns);
                        timing.entry_ns = Some(entry_ns);
                        timing.workarounds = workarounds;
                    }
                    Ok(event) => return Err(Failure::Event(event)),
                    Err(_) => return Err(Failure::Ended),
                },
                message = self.from_agent.next() => match message {
                    Ok(FromAgent::Hello { version: agent::VERSION, kernel, init_us, ready_us }) => {
                        timing.hello(monotonic_ns(), init_us, ready_us);
                        self.kernel = one_line(&kernel, 64);
                        return Ok(());
                    }
                    Ok(FromAgent::Hello { version, .. }) => {
                        let text = format!("speaks version {version}, not {}: run `make build` again", agent::VERSION);
                        return Err(Failure::Agent(text));
                    }
                    Ok(_) => return Err(Failure::Agent("did not say hello".into())),
                    // The VMM closed the socket: its own end or its word about it follows.
                    Err(FrameError::Closed | FrameError::Io(_)) => return Err(self.last_event().await),
                    Err(e) => return Err(Failure::Agent(crate::error::chain(&e))),
                },
            }
        }
    }

    /// What the VMM says when the agent's connection has ended.
    pub(crate) async fn last_event(&mut self) -> Failure {
        loop {
            match timeout(CONSOLE_TIMEOUT, self.vmm.channel.event()).await {
                Ok(Ok(Event::Booted { .. } | Event::Probed { .. })) => {}
                Ok(Ok(event)) => return Failure::Event(event),
                Ok(Err(_)) => return Failure::Ended,
                Err(_) => return Failure::Agent("closed its connection".into()),
            }
        }
    }

    /// Ends the guest and says why it failed, with its kernel's last words.
    pub(crate) async fn explain(&mut self, failure: Failure) -> Error {
        let error = match failure {
            Failure::Event(Event::Failed { message }) => VmmError::Failed(one_line(&message, GUEST_TEXT)),
            Failure::Event(Event::Stopped(StopReason::VcpuFailed(message))) => {
                self.vmm.ended().await;
                VmmError::Failed(format!("a vCPU failed: {}", one_line(&message, GUEST_TEXT)))
            }
            Failure::Event(_) => {
                self.vmm.ended().await;
                VmmError::Guest(self.last_words("the guest stopped").await)
            }
            Failure::Ended => {
                let status = self.vmm.ended().await;
                let end = describe_end(status);
                match status.and_then(|status| status.signal()) {
                    Some(_) => VmmError::Killed(end),
                    None => VmmError::Ended(self.last_words(&end).await),
                }
            }
            Failure::Agent(text) => {
                self.vmm.kill().await;
                VmmError::Guest(self.last_words(&format!("the guest's agent {text}")).await)
            }
        };
        self.vmm.kill().await;
        error.into()
    }

    async fn last_words(&mut self, what: &str) -> String {
        for task in self.collecting.drain(..) {
            let _ = timeout(CONSOLE_TIMEOUT, task).await;
        }
        match self.console.reason() {
            Some(reason) => format!("{what}: {reason}"),
            None => what.to_owned(),
        }
    }

    /// Sends a message to the agent.
    ///
    /// # Errors
    /// [`FrameError`]; a guest that has ended is one.
    pub async fn tell(&mut self, message: &ToAgent) -> Result<(), FrameError> {
        frames::write(&mut self.to_agent, message, TO_AGENT_BYTES).await
    }

    /// Opens a stream to the agent and gives the near end.
    ///
    /// # Errors
    /// [`Error::Vmm`].
    pub async fn connect(&self, header: StreamHeader) -> Result<UnixStream, Error> {
        let (ours, theirs) = stream_pair()?;
        connect(&self.vmm.channel, header, theirs.as_fd()).await?;
        Ok(ours)
    }
}

/// Hands `socket` to the VMM, to be joined with a stream to the agent.
///
/// # Errors
/// [`VmmError::Channel`].
pub async fn connect(vmm: &VmmChannel, header: StreamHeader, socket: BorrowedFd<'_>) -> Result<(), VmmError> {
    let command = Command::Connect {
        port: STREAM_PORT,
        header: header.encode(),
    };
    vmm.send(&command, &[socket]).await
}

/// How a guest failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The VMM said so.
    Event(Event),
    /// The VMM ended without a word.
    Ended,
    /// The agent did, in words that follow "the guest's agent".
    Agent(String),
}

/// The boot command for `plan` and the descriptors that go with it.
fn message<'a>(
    plan: &'a Plan,
    kvm: KvmKind,
    [device, kernel, initrd]: [&'a File; 3],
    console: BorrowedFd<'a>,
    control: BorrowedFd<'a>,
) -> (BootConfig, Vec<BorrowedFd<'a>>) {
    let mut files = vec![device.as_fd(), kernel.as_fd(), initrd.as_fd(), console, control];
    let mut disks = Vec::with_capacity(plan.disks.len());
    for disk in &plan.disks {
        let mut segments = Vec::with_capacity(disk.files.len());
        for (file, length) in &disk.files {
            // More than 256 would also be more than the channel takes, which then refuses them.
            segments.push(SegmentConfig {
                file: files.len() as FdIndex,
                length: *length,
            });
            files.push(file.as_fd());
        }
        disks.push(DiskConfig {
            segments,
            writable: disk.writable,
            shown_bytes: None,
        });
    }
    let config = BootConfig {
        vcpus: plan.vcpus,
        memory_mib: plan.memory.get(),
        kvm,
        kernel: 1,
        initrd: 2,
        console: 3,
        extra_command_line: String::new(),
        disks,
        listeners: vec![ListenerConfig {
            port: CONTROL_PORT,
            socket: 4,
        }],
    };
    (config, files)
}

/// A connected pair of non-blocking stream sockets: the near end for tokio, the far end for the VMM.
fn stream_pair() -> Result<(UnixStream, OwnedFd), Error> {
    let make = || {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    make().map_err(no_descriptors)
}

fn no_descriptors(source: io::Error) -> Error {
    VmmError::from(ChannelError::from(source)).into()
}

fn installation(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Installation {
        path: path.to_owned(),
        source,
    })
}
