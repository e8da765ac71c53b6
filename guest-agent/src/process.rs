//! A process of the sandbox: its streams and its terminal, until its end can be reported. How the first one comes to be is in
//! [`crate::sandbox`].

use std::{
    fs::OpenOptions,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use brig_launcher::{Stdio, terminal};
use brig_protocol::{
    agent::ExitStatus,
    spec::{ProcessSpec, WindowSize},
};
use rustix::{
    io::ioctl_fionread,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process},
};

use crate::{
    disks,
    error::{AgentError, Context},
    streams::{Output, SandboxEnd},
};

/// How long the output of a process that has ended waits for a stream that takes it.
const UNCLAIMED: Duration = Duration::from_secs(10);

/// How long a process that has ended is waited for to be let go of by those that have its output too: a process other than the
/// first may leave some behind. As long as containerd waits (`pkg/process/utils.go`).
const LEFT_BEHIND: Duration = Duration::from_secs(2);

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

/// An output of a process, as far as the agent has it.
#[derive(Debug)]
enum OutputState {
    /// What is to be read from; no stream has come for it yet.
    Unclaimed(SandboxEnd),
    /// A stream relays it.
    Claimed,
    /// Every byte has been relayed.
    Ended,
}

/// The ends of a process's streams that stay in the agent.
#[derive(Debug)]
pub struct Ends {
    stdin: Option<SandboxEnd>,
    stdout: OutputState,
    stderr: OutputState,
    terminal: Option<OwnedFd>,
}

impl Ends {
    /// Makes the streams that `spec` asks for: the process's ends and the agent's. The latter lack the terminal, which the
    /// launcher makes, see [`Ends::with_terminal`].
    ///
    /// # Errors
    /// [`AgentError::System`].
    pub fn make(spec: &ProcessSpec, places: &Places) -> Result<(Stdio, Self), AgentError> {
        if spec.tty.is_some() {
            let ends = Self {
                stdin: None,
                stdout: OutputState::Ended,
                stderr: OutputState::Ended,
                terminal: None,
            };
            return Ok((Stdio::Terminal, ends));
        }
        let (streams, ends) = Self::pipes(spec.stdin, places)?;
        Ok((Stdio::Given(streams), ends))
    }

    /// Three pipes, the first only `with_stdin`.
    ///
    /// # Errors
    /// [`AgentError::System`].
    pub fn pipes(with_stdin: bool, places: &Places) -> Result<([OwnedFd; 3], Self), AgentError> {
        let (stdin_read, stdin) = standard_input(with_stdin, places)?;
        let (stdout, stdout_write) = pipe()?;
        let (stderr, stderr_write) = pipe()?;
        let ends = Self {
            stdin: stdin.map(SandboxEnd::Pipe),
            stdout: OutputState::Unclaimed(SandboxEnd::Pipe(stdout)),
            stderr: OutputState::Unclaimed(SandboxEnd::Pipe(stderr)),
            terminal: None,
        };
        Ok(([stdin_read, stdout_write, stderr_write], ends))
    }

    /// The same with the master of the terminal that the launcher has made, if it has.
    ///
    /// # Errors
    /// [`AgentError::System`].
    pub fn with_terminal(self, master: Option<OwnedFd>, takes_input: bool) -> Result<Self, AgentError> {
        let Some(master) = master else { return Ok(self) };
        let copy = || master.try_clone().step("duplicate a terminal");
        Ok(Self {
            stdin: takes_input.then(copy).transpose()?.map(SandboxEnd::Terminal),
            stdout: OutputState::Unclaimed(SandboxEnd::Terminal(copy()?)),
            stderr: OutputState::Ended,
            terminal: Some(master),
        })
    }
}

/// A process of the sandbox.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    is_first: bool,
    status: Option<(ExitStatus, Instant)>,
    ends: Ends,
    reported: bool,
}

impl Process {
    /// The process with this pid, as the agent sees it. The end of the first one is the end of all.
    pub fn new(pid: Pid, is_first: bool, ends: Ends) -> Self {
        Self {
            pid,
            is_first,
            status: None,
            ends,
            reported: false,
        }
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
        self.ends.stdin = None;
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

    /// Gives its terminal another size. Without one there is nothing to do.
    pub fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.ends.terminal {
            let _ = terminal::resize(terminal, size);
        }
    }

    /// Where its standard input is written to, once.
    pub fn take_stdin(&mut self) -> Option<SandboxEnd> {
        self.ends.stdin.take()
    }

    /// Where an output is read from, once.
    pub fn take_output(&mut self, output: Output) -> Option<SandboxEnd> {
        let state = self.output(output);
        match std::mem::replace(state, OutputState::Claimed) {
            OutputState::Unclaimed(end) => Some(end),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Notes that an output has been relayed to its end, or has nobody any more who takes it: for a terminal that is a hang-up
    /// once the input's stream has ended too.
    pub fn output_ended(&mut self, output: Output) {
        *self.output(output) = OutputState::Ended;
        self.ends.terminal = None;
    }

    /// How it ended, once, as soon as all its output has been relayed. Output that no stream has come for is waited for
    /// until [`Process::deadline`].
    pub fn report(&mut self) -> Option<ExitStatus> {
        let (status, at) = self.status?;
        let give_up = at.elapsed() >= UNCLAIMED;
        for state in [&mut self.ends.stdout, &mut self.ends.stderr] {
            if let OutputState::Unclaimed(end) = state
                && (give_up || ioctl_fionread(&*end).unwrap_or(0) == 0)
            {
                *state = OutputState::Ended;
            }
        }
        let relayed = [&self.ends.stdout, &self.ends.stderr]
            .iter()
            .all(|state| matches!(state, OutputState::Ended));
        (relayed && !std::mem::replace(&mut self.reported, relayed)).then_some(status)
    }

    /// When it has to be looked at again although nothing has happened.
    pub fn deadline(&self) -> Option<Instant> {
        let (_, at) = self.status.filter(|_| !self.reported)?;
        let any = |wanted: fn(&OutputState) -> bool| wanted(&self.ends.stdout) || wanted(&self.ends.stderr);
        if any(|state| matches!(state, OutputState::Unclaimed(_))) {
            return Some(at + UNCLAIMED);
        }
        // Later the relays that are not done have bytes, and hear when these can go on.
        (!self.is_first && any(|state| matches!(state, OutputState::Claimed)) && !self.is_left_behind())
            .then_some(at + LEFT_BEHIND)
    }

    /// Whether it has ended so long ago that only others can have its output.
    pub fn is_left_behind(&self) -> bool {
        !self.is_first && self.status.is_some_and(|(_, at)| at.elapsed() >= LEFT_BEHIND)
    }

    fn output(&mut self, output: Output) -> &mut OutputState {
        match output {
            Output::Stdout => &mut self.ends.stdout,
            Output::Stderr => &mut self.ends.stderr,
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
