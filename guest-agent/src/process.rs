//! The sandbox's first process: made through the launcher, with pipes for its streams, until its end can be reported.

use std::{
    fs::OpenOptions,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use brig_launcher::{Launch, files, running};
use brig_protocol::{
    agent::{ExitStatus, Identity},
    spec::{RootSpec, SandboxSpec},
};
use rustix::{
    io::ioctl_fionread,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process},
};

use crate::{
    disks::{self, Disks},
    error::{AgentError, Context},
    prepared::{Prepared, make_cgroup},
    streams::Output,
};

/// How long the output of a process that has ended waits for a stream that takes it.
const UNCLAIMED: Duration = Duration::from_secs(10);

/// Directories of the agent's own: in a guest in the initial ramfs, in a test anywhere.
#[derive(Clone, Debug)]
pub struct Places {
    base: PathBuf,
}

impl Places {
    /// The directories below `base`, which exist.
    pub fn under(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// Where device nodes are.
    pub fn devices(&self) -> PathBuf {
        self.base.join("dev")
    }

    /// Where the image is mounted.
    pub fn image(&self) -> PathBuf {
        self.base.join("image")
    }

    /// Where the writable disk is mounted.
    pub fn disk(&self) -> PathBuf {
        self.base.join("disk")
    }

    /// Where the sandbox's root filesystem is put together.
    pub fn root(&self) -> PathBuf {
        self.base.join("root")
    }

    /// Where the engine's files are written.
    pub fn files(&self) -> PathBuf {
        self.base.join("files")
    }

    /// Where cgroups are.
    pub fn cgroups(&self) -> PathBuf {
        self.base.join("cgroup")
    }
}

/// An output of the process, as far as the agent has it.
#[derive(Debug)]
enum OutputState {
    /// The read end of its pipe; no stream has come for it yet.
    Unclaimed(OwnedFd),
    /// A stream relays it.
    Claimed,
    /// Every byte has been relayed.
    Ended,
}

/// The first process of the sandbox.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// Its mount namespace, which its end would take apart before anybody hears of it.
    _mounts: Option<OwnedFd>,
    /// The paths of the engine's files, in the order of the spec.
    files: Vec<String>,
    status: Option<(ExitStatus, Instant)>,
    stdin: Option<OwnedFd>,
    stdout: OutputState,
    stderr: OutputState,
    reported: bool,
}

impl Process {
    /// Builds the sandbox that `spec` describes and starts its process.
    ///
    /// # Errors
    /// [`AgentError`]; its [`start_failure`](AgentError::start_failure) is what the supervisor is told.
    pub fn start(
        spec: &SandboxSpec,
        places: &Places,
        disks: &mut Disks,
        prepared: &mut Prepared,
    ) -> Result<Self, AgentError> {
        let root = match &spec.root {
            RootSpec::Disks { image, writable } => disks.make_root(*image, *writable, places)?,
            RootSpec::Directory { path } => brig_launcher::Root::Directory(path.into()),
        };
        prepared.enter_network()?;
        let zygote = prepared.take_zygote(spec);
        let cgroup = match &zygote {
            // It is in its cgroup.
            Some(_) => None,
            None => make_cgroup(&spec.cgroup, &places.cgroups())?,
        };
        let (stdin_read, stdin) = standard_input(spec.process.stdin, places)?;
        let (stdout, stdout_write) = pipe()?;
        let (stderr, stderr_write) = pipe()?;
        let launch = Launch {
            spec,
            root: &root,
            files: &places.files(),
            cgroup: cgroup.as_ref(),
            stdio: [stdin_read, stdout_write, stderr_write],
        };
        let started = brig_launcher::start(launch, zygote)?;
        Ok(Self {
            pid: started.pid,
            // Without it the end is said later.
            _mounts: started.mounts,
            files: spec.files.iter().map(|file| file.path.clone()).collect(),
            status: None,
            stdin,
            stdout: OutputState::Unclaimed(stdout),
            stderr: OutputState::Unclaimed(stderr),
            reported: false,
        })
    }

    /// Its pid, as the agent sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.status.is_none()
    }

    /// Notes how it ended.
    pub fn ended(&mut self, status: ExitStatus) {
        self.status = Some((status, Instant::now()));
        // Nobody reads it any more.
        self.stdin = None;
    }

    /// Sends it a signal. That it has ended already is no error, and a number that is no signal does nothing.
    pub fn signal(&self, number: u8) {
        if self.is_running() && (1..=64).contains(&number) {
            // SAFETY: the number is a signal's. Those that a C library keeps to itself are its own business: the one that
            // gets the signal is another program.
            let signal = unsafe { Signal::from_raw_unchecked(i32::from(number)) };
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Makes it who `identity` says. A file that is not among those of its spec is passed over, and one that has ended is no
    /// error.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn rename(&self, identity: &Identity, places: &Places) -> Result<(), AgentError> {
        for file in &identity.files {
            if let Some(index) = self.files.iter().position(|path| *path == file.path) {
                files::rewrite(&places.files(), index, file)?;
            }
        }
        if self.is_running() {
            running::set_hostname(self.pid, &identity.hostname).step("set the sandbox's hostname")?;
        }
        Ok(())
    }

    /// The write end of its standard input, once.
    pub fn take_stdin(&mut self) -> Option<OwnedFd> {
        self.stdin.take()
    }

    /// The read end of an output, once.
    pub fn take_output(&mut self, output: Output) -> Option<OwnedFd> {
        let state = self.output(output);
        match std::mem::replace(state, OutputState::Claimed) {
            OutputState::Unclaimed(pipe) => Some(pipe),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Notes that an output has been relayed to its end.
    pub fn output_ended(&mut self, output: Output) {
        *self.output(output) = OutputState::Ended;
    }

    /// How it ended, once, as soon as all its output has been relayed. Output that no stream has come for is waited for
    /// until [`Process::deadline`].
    pub fn report(&mut self) -> Option<ExitStatus> {
        let (status, at) = self.status?;
        let give_up = at.elapsed() >= UNCLAIMED;
        for state in [&mut self.stdout, &mut self.stderr] {
            if let OutputState::Unclaimed(pipe) = state
                && (give_up || ioctl_fionread(&*pipe).unwrap_or(0) == 0)
            {
                *state = OutputState::Ended;
            }
        }
        let relayed = [&self.stdout, &self.stderr]
            .iter()
            .all(|state| matches!(state, OutputState::Ended));
        (relayed && !std::mem::replace(&mut self.reported, relayed)).then_some(status)
    }

    /// When [`Process::report`] has to be asked again although nothing has happened.
    pub fn deadline(&self) -> Option<Instant> {
        let unclaimed = [&self.stdout, &self.stderr]
            .iter()
            .any(|state| matches!(state, OutputState::Unclaimed(_)));
        self.status
            .filter(|_| unclaimed && !self.reported)
            .map(|(_, at)| at + UNCLAIMED)
    }

    fn output(&mut self, output: Output) -> &mut OutputState {
        match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), AgentError> {
    pipe_with(PipeFlags::CLOEXEC).step("create a pipe")
}

/// Standard input of the process, and where the agent writes to when bytes for it will come.
fn standard_input(wanted: bool, places: &Places) -> Result<(OwnedFd, Option<OwnedFd>), AgentError> {
    if wanted {
        let (read_end, write_end) = pipe()?;
        return Ok((read_end, Some(write_end)));
    }
    disks::ensure_devices(&places.devices())?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open(places.devices().join("null"));
    Ok((null.step("open /dev/null")?.into(), None))
}
