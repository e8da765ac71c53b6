//! One brig-vmm process and the channel to it.

mod process;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    process::ExitStatus,
    rc::Rc,
    time::Duration,
};

use brig_jail::spawn::{Program, SpawnError, spawn};
use brig_protocol::{
    cell::Begin,
    channel::{self, ChannelError},
    vmm::{Command, Event},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
    time::timeout,
};

pub use self::process::Process;
use crate::{
    SandboxId,
    cell::{
        Cgroups,
        cgroups::{self, Preparing},
    },
    console::Console,
    error::chain,
    sandbox::config::Limits,
    volume::Held,
};

/// How long a VMM that has said its last word may take to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a VMM could not be used.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The program is not there or cannot be opened.
    #[error("cannot open {path}: run `make build`, or set BRIG_LIBDIR to the directory that has it")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why it cannot be opened.
        source: io::Error,
    },
    /// The host gives it no jail.
    #[error("cannot start brig-vmm")]
    Jail(#[from] SpawnError),
    /// It was not started by whoever does that for a supervisor, who says why.
    #[error("{0}")]
    NotStarted(String),
    /// The channel could not be made or used.
    #[error("cannot talk to brig-vmm")]
    Channel(#[from] ChannelError),
    /// It ended without a word.
    #[error("brig-vmm {0}")]
    Ended(String),
    /// It said that it failed.
    #[error("brig-vmm: {0}")]
    Failed(String),
    /// It said that the host refused it what it needs.
    #[error("brig-vmm: {0}")]
    Refused(String),
    /// It was killed.
    #[error("{0}")]
    Killed(String),
    /// The guest in it failed.
    #[error("{0}")]
    Guest(String),
    /// It did not answer in time.
    #[error("brig-vmm did not answer within {0} seconds")]
    Timeout(u64),
}

impl VmmError {
    /// Whether the host is to blame, so that another way to start a guest fails just so.
    pub fn is_of_host(&self) -> bool {
        matches!(
            self,
            Self::Spawn { .. } | Self::Jail(_) | Self::NotStarted(_) | Self::Refused(_)
        )
    }
}

/// Something that makes VMMs: brig-vmm processes, or in a test what plays one.
pub trait Spawn {
    /// Starts a VMM.
    ///
    /// # Errors
    /// [`VmmError::Spawn`], [`VmmError::Jail`] or [`VmmError::Channel`].
    fn spawn(&self) -> Result<Vmm, VmmError>;
}

/// Starts the real brig-vmm.
#[derive(Clone, Debug)]
pub struct BrigVmm {
    /// The program.
    pub program: PathBuf,
}

impl Spawn for BrigVmm {
    fn spawn(&self) -> Result<Vmm, VmmError> {
        Vmm::started(|streams| self.start(streams, spawn))
    }
}

impl BrigVmm {
    /// Has `spawn` start the program with these standard streams.
    pub(crate) fn start(
        &self,
        streams: [BorrowedFd<'_>; 3],
        spawn: impl FnOnce(&Program<'_>) -> Result<brig_jail::spawn::Process, SpawnError>,
    ) -> Result<brig_jail::spawn::Process, VmmError> {
        let program = File::open(&self.program).map_err(|source| VmmError::Spawn {
            path: self.program.clone(),
            source,
        })?;
        // What it does to itself is in `brig_vmm::jail`.
        Ok(spawn(&Program {
            file: program.as_fd(),
            arguments: &[c"brig-vmm".to_owned()],
            streams,
        })?)
    }
}

/// The channel to a VMM.
#[derive(Debug)]
pub struct VmmChannel(AsyncFd<OwnedFd>);

impl VmmChannel {
    /// Sends a command with its descriptors; several tasks may do so at once.
    ///
    /// # Errors
    /// [`VmmError::Channel`].
    pub async fn send(&self, command: &Command, fds: &[BorrowedFd<'_>]) -> Result<(), VmmError> {
        self.io(Interest::WRITABLE, |socket| channel::send(socket, command, fds))
            .await
    }

    /// Tells a brig-cell what to do.
    ///
    /// # Errors
    /// [`VmmError::Channel`].
    pub async fn begin(&self, begin: &Begin, fds: &[BorrowedFd<'_>]) -> Result<(), VmmError> {
        self.io(Interest::WRITABLE, |socket| channel::send(socket, begin, fds))
            .await
    }

    /// The next event. Cancel safe. Descriptors that a VMM sends along are closed: none is expected.
    ///
    /// # Errors
    /// [`VmmError::Channel`], with [`ChannelError::Closed`] when it has ended.
    pub async fn event(&self) -> Result<Event, VmmError> {
        let (event, _) = self
            .io(Interest::READABLE, |socket| channel::receive(socket))
            .await?;
        Ok(event)
    }

    async fn io<T>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(&OwnedFd) -> Result<T, ChannelError>,
    ) -> Result<T, VmmError> {
        let mut failure = None;
        let result = self
            .0
            .async_io(interest, |socket| {
                operation(socket).map_err(|e| match e {
                    ChannelError::Io(e) => e,
                    other => {
                        failure = Some(other);
                        io::ErrorKind::Other.into()
                    }
                })
            })
            .await;
        result.map_err(|e| VmmError::Channel(failure.unwrap_or(ChannelError::Io(e))))
    }
}

/// A VMM. Dropping it kills it.
#[derive(Debug)]
pub struct Vmm {
    /// How to talk to it.
    pub channel: Rc<VmmChannel>,
    /// What it writes to its standard error, until someone takes it.
    stderr: Option<OwnedFd>,
    /// `None` when what is at the other end is no child of this process.
    process: Option<Process>,
    /// Whether it is a brig-cell.
    is_cell: bool,
    /// Volumes that its guest has. They are let go of after the process.
    volumes: Vec<Held>,
    /// The cgroups that it is in. They go after the process: one that is not empty stays.
    cgroups: Option<Cgroups>,
    /// Those that it is being put into.
    entering: Option<Preparing>,
}

impl Vmm {
    /// The VMM that `start` starts with these standard streams; the first is `brig_protocol::vmm::CHANNEL_FD`. Needs a tokio runtime.
    pub(crate) fn started(
        start: impl FnOnce([BorrowedFd<'_>; 3]) -> Result<brig_jail::spawn::Process, VmmError>,
    ) -> Result<Self, VmmError> {
        let (ours, theirs) = channel::pair().map_err(ChannelError::Io)?;
        let (said, stderr) = io::pipe().map_err(ChannelError::Io)?;
        let null = OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .map_err(ChannelError::Io)?;
        let process = start([theirs.as_fd(), null.as_fd(), stderr.as_fd()])?;
        let process = Process::new(process).map_err(ChannelError::Io)?;
        Self::new(ours, said.into(), Some(process))
    }

    /// The VMM at the other end of `channel`, which complains to the pipe `stderr`. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`VmmError::Channel`] when the channel cannot be waited for.
    pub fn new(channel: OwnedFd, stderr: OwnedFd, process: Option<Process>) -> Result<Self, VmmError> {
        rustix::io::ioctl_fionbio(&channel, true).map_err(|e| ChannelError::Io(e.into()))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: an `OwnedFd` names the same open descriptor as long as it lives, and the `AsyncFd` owns it.
        let channel = unsafe { AsyncFd::register_with_interest(channel, interest) }
            .map_err(|e| ChannelError::Io(e.into()))?;
        Ok(Self {
            channel: Rc::new(VmmChannel(channel)),
            stderr: Some(stderr),
            process,
            is_cell: false,
            cgroups: None,
            entering: None,
            volumes: Vec::new(),
        })
    }

    /// Says that it is a brig-cell.
    #[must_use]
    pub(crate) fn of_a_cell(self) -> Self {
        Self {
            is_cell: true,
            ..self
        }
    }

    /// Lets go of these when it is gone.
    pub(crate) fn keep_volumes(&mut self, volumes: Vec<Held>) {
        self.volumes = volumes;
    }

    /// Removes these when it is gone.
    pub(crate) fn keep(&mut self, cgroups: Cgroups) {
        self.cgroups = Some(cgroups);
    }

    /// Has it enter cgroups of the sandbox `id` with these limits.
    pub(crate) fn confine(&mut self, id: &SandboxId, limits: Limits) {
        self.entering = self
            .pid()
            .and_then(|pid| cgroups::prepare(id.clone(), limits, pid));
    }

    /// Waits until it is in its cgroups, and says why it is in none.
    pub(crate) async fn confined(&mut self) -> Option<String> {
        let entering = self.entering.take()?;
        match entering.await {
            Ok(Ok(cgroups)) => {
                self.cgroups = cgroups;
                None
            }
            Ok(Err(e)) => Some(chain(&e)),
            Err(_) => Some("the thread that makes them has ended".to_owned()),
        }
    }

    /// Whether it is a brig-cell.
    pub(crate) fn is_cell(&self) -> bool {
        self.is_cell
    }

    /// The name of its program.
    pub(crate) fn name(&self) -> &'static str {
        if self.is_cell {
            crate::cell::NAME
        } else {
            "brig-vmm"
        }
    }

    /// Has a console collect what it complains about, in a task of its own.
    ///
    /// # Errors
    /// [`VmmError::Channel`] when the pipe cannot be waited for.
    pub fn complain_to(&mut self, console: &Console) -> Result<JoinHandle<()>, VmmError> {
        let stderr = self.stderr.take().ok_or(ChannelError::Closed)?;
        Ok(console.collect(stderr).map_err(ChannelError::Io)?)
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::pid)
    }

    /// Waits for a VMM that has closed its channel or said its last word, kills it when that takes too long, and
    /// tells how it ended.
    pub async fn ended(&mut self) -> Option<ExitStatus> {
        let process = self.process.as_mut()?;
        if let Ok(status) = timeout(END_TIMEOUT, process.wait()).await {
            return status.ok();
        }
        self.kill().await
    }

    /// Kills it and waits for its end.
    pub async fn kill(&mut self) -> Option<ExitStatus> {
        self.start_kill();
        self.process.as_mut()?.wait().await.ok()
    }

    /// Kills it; [`Self::kill`] waits for its end.
    pub fn start_kill(&mut self) {
        // For one that is no child the end of its channel is all that there is.
        let _ = rustix::net::shutdown(&self.channel.0, rustix::net::Shutdown::Both);
        let Some(process) = &self.process else { return };
        // The keeper of a cell ends after everything that is in it, and is told to end that.
        let keeper = process.pid().filter(|_| self.is_cell);
        match keeper.and_then(|pid| Pid::from_raw(pid as i32)) {
            Some(pid) => drop(kill_process(pid, Signal::TERM)),
            None => process.kill(),
        }
    }
}

/// The end of a process in words: `was killed by signal 9`, `ended with status 1`.
pub(crate) fn describe_end(status: Option<ExitStatus>) -> String {
    match status {
        Some(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => format!("was killed by signal {signal}"),
            (None, Some(code)) => format!("ended with status {code}"),
            (None, None) => "ended".to_owned(),
        },
        None => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn(program: &str) -> Result<Vmm, VmmError> {
        BrigVmm {
            program: program.into(),
        }
        .spawn()
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_named() {
        let error = spawn("/nonexistent/brig-vmm").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/brig-vmm"), "{error}");
    }

    #[tokio::test]
    async fn the_end_of_a_vmm_is_seen_on_its_channel() {
        let mut vmm = spawn("/bin/true").unwrap();
        assert!(matches!(
            vmm.channel.event().await,
            Err(VmmError::Channel(ChannelError::Closed))
        ));
        assert_eq!(describe_end(vmm.ended().await), "ended with status 0");
    }

    #[tokio::test]
    async fn a_killed_vmm_is_reaped() {
        let mut vmm = spawn("/bin/cat").unwrap();
        let pid = vmm.pid().unwrap();
        let status = vmm.kill().await;
        assert!(describe_end(status).contains("ended") || describe_end(status).contains("signal 9"));
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
