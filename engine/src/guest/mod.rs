//! A guest: its VMM, its agent's control connection and its console. The supervisor, the unpacker and the maker of
//! templates each use one.
//!
//! | module | job |
//! |---|---|
//! | here | what a guest is, booting one, saying why one failed |
//! | [`cell`] | in place of a guest: a cell on the host's kernel |
//! | [`restore`] | in place of a boot: going on where a guest was saved |
//! | [`save`] | writing a guest down |

mod cell;
mod restore;
mod save;

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
        BootConfig, Command, DiskConfig, Event, FdIndex, IoLimits, KvmKind, ListenerConfig, SLOT_BYTES,
        SegmentConfig, StopReason,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

pub use self::cell::CellPlan;
pub(crate) use self::restore::PAGES;
pub use self::restore::{Saved, SavedGuest};
use crate::{
    Error, Paths,
    clock::{Counters, Stage, Timing, monotonic_ns},
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

/// How often and at most how many times a guest is looked at for [`Guest::settle`].
const SETTLE_INTERVAL: Duration = Duration::from_millis(250);
const SETTLE_ROUNDS: usize = 20;

/// A guest that leaves its vCPUs so rarely in an interval does nothing: a few timers go off in an idle kernel.
const SETTLED_EXITS: u64 = 40;

/// Most characters of a text that a guest chose and a user sees.
const GUEST_TEXT: usize = 1000;

/// How a guest came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Its kernel booted.
    Boot,
    /// It was restored from a template: a booted guest in which nothing had run.
    Template,
    /// It was restored from a user's snapshot.
    Snapshot,
    /// There is no guest: it is a cell on the host's kernel.
    Container,
}

impl Origin {
    /// The word for it in records and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Template => "template",
            Self::Snapshot => "snapshot",
            Self::Container => "container",
        }
    }
}

/// The host's KVM, opened for one guest.
#[derive(Debug)]
pub struct Kvm {
    /// `/dev/kvm`.
    pub device: File,
    /// What kind it is.
    pub kind: KvmKind,
}

impl Kvm {
    /// Opens it, and finds out what it is when that is not known yet.
    ///
    /// # Errors
    /// Those of [`Host::kvm`] and [`crate::kvm::kind`].
    pub async fn open(paths: &Paths, host: &dyn Host) -> Result<Self, Error> {
        let device = host.kvm()?;
        let kind = crate::kvm::kind(paths, &device, host).await?;
        Ok(Self { device, kind })
    }
}

/// A guest to boot.
#[derive(Debug)]
pub struct Plan {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory.
    pub memory: MemoryMib,
    /// Its block devices, in order.
    pub disks: Vec<Disk>,
    /// How fast they are.
    pub io: IoLimits,
}

/// A block device.
#[derive(Debug)]
pub struct Disk {
    /// What it consists of, with the bytes of each.
    pub files: Vec<(File, u64)>,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// Whether the guest is told [`SLOT_BYTES`], so that other files can be there after a restore.
    pub slot: bool,
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
            slot: false,
        })
    }

    /// A slot with nothing in it.
    pub fn empty_slot(writable: bool) -> Self {
        Self {
            files: Vec::new(),
            writable,
            slot: true,
        }
    }

    /// The same disk in a slot.
    #[must_use]
    pub fn in_slot(self) -> Self {
        Self { slot: true, ..self }
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
    /// Until when a restored guest's agent has to say that it is awake; `None` when it has, and after a boot.
    pub(crate) asleep_until: Option<Instant>,
    /// The page map of a restored guest's VMM, when it shall be recorded.
    page_map: Option<File>,
    collecting: Vec<JoinHandle<()>>,
}

impl Guest {
    /// Boots a guest and waits for its agent. Dropping the future kills it.
    ///
    /// # Errors
    /// Those of opening the installation's files; [`Error::Vmm`] with the guest's last words when it fails.
    pub async fn boot(
        paths: &Paths,
        host: &dyn Host,
        kvm: &Kvm,
        plan: Plan,
        console: Console,
        timing: &mut Timing,
    ) -> Result<Self, Error> {
        timing.kvm = Some(kvm.kind);
        timing.origin = Some(Origin::Boot);
        let kernel = installation(&paths.kernel())?;
        let initrd = installation(&paths.initrd())?;
        let begun = Begun::new(host, &console)?;
        {
            let fixed = [&kvm.device, &kernel, &initrd];
            let (config, files) = message(&plan, kvm.kind, fixed, &begun);
            begun.vmm.channel.send(&Command::Boot(config), &files).await?;
        }
        let mut guest = begun.into_guest(console, String::new());
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
                Ok(Ok(event)) if is_idle_talk(&event) => {}
                Ok(Ok(event)) => return Failure::Event(event),
                Ok(Err(_)) => return Failure::Ended,
                Err(_) => return Failure::Agent("closed its connection".into()),
            }
        }
    }

    /// Ends the guest and says why it failed, with its kernel's last words.
    pub(crate) async fn explain(&mut self, failure: Failure) -> Error {
        let error = match failure {
            Failure::Event(Event::Failed { message }) if self.vmm.is_cell() => {
                let message = one_line(&message, GUEST_TEXT);
                VmmError::Guest(format!("{}: {message}", self.vmm.name()))
            }
            Failure::Event(Event::Failed { message }) => VmmError::Failed(one_line(&message, GUEST_TEXT)),
            Failure::Event(Event::Refused { message }) => VmmError::Refused(one_line(&message, GUEST_TEXT)),
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
                    Some(_) => VmmError::Killed(format!("{} {end}", self.vmm.name())),
                    None if self.vmm.is_cell() => {
                        let what = format!("{} {end}", self.vmm.name());
                        VmmError::Guest(self.last_words(&what).await)
                    }
                    None => VmmError::Ended(self.last_words(&end).await),
                }
            }
            Failure::Agent(text) => {
                self.vmm.kill().await;
                let whose = if self.vmm.is_cell() { "cell" } else { "guest" };
                VmmError::Guest(self.last_words(&format!("the {whose}'s agent {text}")).await)
            }
            Failure::Silent(seconds) => VmmError::Timeout(seconds),
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

    /// Asks the guest to write everything to its disk and stop, and waits until it has. The caller says how long at most.
    pub(crate) async fn shut_down(&mut self) {
        if self.tell(&ToAgent::Shutdown).await.is_ok() {
            while self
                .vmm
                .channel
                .event()
                .await
                .is_ok_and(|event| is_idle_talk(&event))
            {}
        }
    }

    /// Enters into `timing` what the guest has cost so far. One that cannot tell any more is none of this function's
    /// business.
    pub(crate) async fn count(&self, stage: Stage, timing: &mut Timing) {
        if let Some(counters) = self.counters().await {
            timing.costs.push((stage, counters));
        }
    }

    async fn counters(&self) -> Option<Counters> {
        let counted = async {
            self.vmm.channel.send(&Command::Count, &[]).await.ok()?;
            loop {
                match self.vmm.channel.event().await.ok()? {
                    Event::Counted(counters) => return Some(counters),
                    event if is_idle_talk(&event) => {}
                    _ => return None,
                }
            }
        };
        timeout(CONSOLE_TIMEOUT, counted).await.ok().flatten()
    }

    /// Waits until the guest has nothing to do, so that a restore does not begin with the rest of it; not for ever, as some
    /// kernel thread may always have something.
    pub(crate) async fn settle(&self) {
        let mut before = None;
        for _ in 0..SETTLE_ROUNDS {
            let Some(now) = self.counters().await else { return };
            if before.is_some_and(|before| now.exits - before <= SETTLED_EXITS) {
                return;
            }
            before = Some(now.exits);
            sleep(SETTLE_INTERVAL).await;
        }
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

/// Whether an event means nothing to one who waits for a guest's end.
pub(crate) fn is_idle_talk(event: &Event) -> bool {
    matches!(
        event,
        Event::Booted { .. }
            | Event::Restored { .. }
            | Event::Probed { .. }
            | Event::Saved { .. }
            | Event::Counted(_)
            | Event::Recorded { .. }
            | Event::Paused
            | Event::PauseFailed { .. }
    )
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
    /// The VMM did not answer for so many seconds.
    Silent(u64),
}

/// A VMM that has not been told yet what to run, and what its guest will be connected with.
struct Begun {
    vmm: Vmm,
    /// The far end of the console, which the guest's log goes to.
    log: OwnedFd,
    /// The far end of the connection to the agent, and the near one.
    control: OwnedFd,
    near: UnixStream,
    collecting: Vec<JoinHandle<()>>,
}

impl Begun {
    fn new(host: &dyn Host, console: &Console) -> Result<Self, Error> {
        let mut vmm = host.spawn()?;
        let complaints = vmm.complain_to(console)?;
        let (log, log_task) = console.pipe().map_err(no_descriptors)?;
        rustix::io::ioctl_fionbio(&log, true).map_err(|e| no_descriptors(e.into()))?;
        let (near, control) = stream_pair()?;
        Ok(Self {
            vmm,
            log,
            control,
            near,
            collecting: vec![complaints, log_task],
        })
    }

    /// The guest, once its VMM has been told. The VMM has the far ends then: their closing is to be seen here, so they go.
    fn into_guest(self, console: Console, kernel: String) -> Guest {
        let (from_agent, to_agent) = self.near.into_split();
        Guest {
            vmm: self.vmm,
            from_agent: FrameReader::new(from_agent, FROM_AGENT_BYTES),
            to_agent,
            console,
            kernel,
            asleep_until: None,
            page_map: None,
            collecting: self.collecting,
        }
    }
}

/// The boot command for `plan` and the descriptors that go with it.
fn message<'a>(
    plan: &'a Plan,
    kvm: KvmKind,
    [device, kernel, initrd]: [&'a File; 3],
    begun: &'a Begun,
) -> (BootConfig, Vec<BorrowedFd<'a>>) {
    let mut files = vec![
        device.as_fd(),
        kernel.as_fd(),
        initrd.as_fd(),
        begun.log.as_fd(),
        begun.control.as_fd(),
    ];
    let disks = describe_disks(&plan.disks, &mut files);
    let config = BootConfig {
        vcpus: plan.vcpus,
        memory_mib: plan.memory.get(),
        kvm,
        kernel: 1,
        initrd: 2,
        console: 3,
        extra_command_line: String::new(),
        disks,
        io: plan.io,
        listeners: vec![ListenerConfig {
            port: CONTROL_PORT,
            socket: 4,
        }],
    };
    (config, files)
}

/// The disks as the VMM takes them. Their files are added to `files`.
fn describe_disks<'a>(disks: &'a [Disk], files: &mut Vec<BorrowedFd<'a>>) -> Vec<DiskConfig> {
    let mut described = Vec::with_capacity(disks.len());
    for disk in disks {
        let mut segments = Vec::with_capacity(disk.files.len());
        for (file, length) in &disk.files {
            // More than 256 would also be more than the channel takes, which then refuses them.
            segments.push(SegmentConfig {
                file: files.len() as FdIndex,
                length: *length,
            });
            files.push(file.as_fd());
        }
        described.push(DiskConfig {
            segments,
            writable: disk.writable,
            shown_bytes: disk.slot.then_some(SLOT_BYTES),
        });
    }
    described
}

/// A connected pair of non-blocking stream sockets: the near end for tokio, the far end for the VMM.
pub(crate) fn stream_pair() -> Result<(UnixStream, OwnedFd), Error> {
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
