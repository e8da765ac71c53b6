//! The loop: what wakes the agent, and what it then does.

use std::{os::fd::OwnedFd, time::Instant};

use brig_protocol::{
    agent::{ExitStatus, FromAgent, ToAgent, UnpackSpec, VERSION, WakeSpec},
    frame::FrameError,
    spec::{Rlimit, SandboxSpec},
    stream::StreamHeader,
};
use rustix::{event::epoll::EventFlags, process::Pid, time::ClockId};

use crate::{
    control::Control,
    disks::Disks,
    error::{AgentError, Context, one_line},
    prepared::Prepared,
    priority,
    process::{Places, Process},
    reactor::{Reactor, Token},
    reaper::Reaper,
    streams::{Notice, Output, Streams},
    unpack,
    wake::{self, Machine},
};

/// The number of the sandbox's first process.
const FIRST: u32 = 0;

/// What the agent works with.
#[derive(Debug)]
pub struct Setup {
    /// The control connection, non-blocking.
    pub control: OwnedFd,
    /// A listening, non-blocking socket for streams.
    pub listener: OwnedFd,
    /// Its directories.
    pub places: Places,
    /// When its first instruction ran, see [`clock_us`].
    pub entered_us: u64,
    /// A limit that a process gets whose spec says nothing about it, as the agent's own must not be inherited.
    pub default_limit: Option<Rlimit>,
    /// The machine that a restore brings up to date.
    pub machine: Box<dyn Machine>,
    /// Ends everything when the supervisor is gone in the middle of work that cannot be left otherwise.
    pub abandon: fn() -> !,
}

/// Why the agent has nothing more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to shut down; everything is on the disks.
    Shutdown,
    /// The supervisor is gone.
    Disconnected,
}

/// Microseconds since the kernel started its clock.
pub fn clock_us() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Says hello, and serves the supervisor until it is told to stop or the supervisor is gone.
///
/// # Errors
/// [`AgentError`] when the agent itself cannot go on: a system call that it lives by failed, or the supervisor broke
/// the protocol.
pub fn serve(setup: Setup) -> Result<Outcome, AgentError> {
    let mut agent = Agent::new(setup)?;
    match agent.run() {
        Err(AgentError::Control(FrameError::Closed)) => Ok(Outcome::Disconnected),
        result => result,
    }
}

struct Agent {
    reactor: Reactor,
    control: Control,
    listener: OwnedFd,
    reaper: Reaper,
    streams: Streams,
    disks: Disks,
    prepared: Prepared,
    process: Option<Process>,
    places: Places,
    entered_us: u64,
    default_limit: Option<Rlimit>,
    machine: Box<dyn Machine>,
    abandon: fn() -> !,
    shutting_down: bool,
}

impl Agent {
    fn new(setup: Setup) -> Result<Self, AgentError> {
        let reactor = Reactor::new().step("create an epoll instance")?;
        let reaper = Reaper::new().step("take signals by descriptor")?;
        let add = |source: &dyn std::os::fd::AsFd, token| reactor.add(source.as_fd(), token, EventFlags::IN);
        add(&setup.control, Token::Control)
            .and_then(|()| add(&setup.listener, Token::Listener))
            .and_then(|()| add(&reaper, Token::Signals))
            .step("wait for events")?;
        Ok(Self {
            reactor,
            control: Control::new(setup.control),
            listener: setup.listener,
            reaper,
            streams: Streams::new(),
            disks: Disks::default(),
            prepared: Prepared::default(),
            process: None,
            places: setup.places,
            entered_us: setup.entered_us,
            default_limit: setup.default_limit,
            machine: setup.machine,
            abandon: setup.abandon,
            shutting_down: false,
        })
    }

    fn run(&mut self) -> Result<Outcome, AgentError> {
        let hello = FromAgent::Hello {
            version: VERSION,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            init_us: self.entered_us,
            ready_us: clock_us(),
        };
        self.send(&hello)?;
        let mut events = Vec::new();
        loop {
            self.reactor
                .wait(self.deadline(), &mut events)
                .step("wait for events")?;
            for (token, flags) in events.drain(..) {
                self.handle(token, flags)?;
            }
            let notices = self.streams.resume(&self.reactor);
            self.heed_all(notices);
            self.report_exit()?;
            if self.shutting_down && !self.process.as_ref().is_some_and(Process::is_running) {
                // Its mounts lie over the disk.
                self.process = None;
                self.prepared = Prepared::default();
                self.disks.release();
                return Ok(Outcome::Shutdown);
            }
        }
    }

    /// When to go on although nothing has happened.
    fn deadline(&self) -> Option<Instant> {
        if self.streams.has_unfinished() {
            return Some(Instant::now());
        }
        self.process.as_ref().and_then(Process::deadline)
    }

    fn handle(&mut self, token: Token, flags: EventFlags) -> Result<(), AgentError> {
        match token {
            Token::Control => self.handle_control(flags),
            Token::Listener => {
                let notices = self
                    .streams
                    .accept(&self.listener, &self.reactor)
                    .step("accept a stream")?;
                self.heed_all(notices);
                Ok(())
            }
            Token::Signals => {
                let (process, prepared) = (&mut self.process, &mut self.prepared);
                self.reaper
                    .collect(|pid, status| {
                        note_end(process, pid, status);
                        prepared.child_ended(pid);
                    })
                    .step("collect a child")
            }
            Token::Stream { id, end } => {
                let notice = self.streams.advance(id, end, flags, &self.reactor);
                self.heed_all(notice);
                Ok(())
            }
        }
    }

    fn handle_control(&mut self, flags: EventFlags) -> Result<(), AgentError> {
        if flags.contains(EventFlags::OUT) {
            self.control.flush()?;
            self.watch_control()?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return Ok(());
        }
        for message in self.control.receive()? {
            match message {
                ToAgent::Start(spec) => self.start(*spec)?,
                ToAgent::Signal {
                    process: FIRST,
                    signal,
                } => {
                    if let Some(process) = &self.process {
                        process.signal(signal);
                    }
                }
                // There is no other process.
                ToAgent::Signal { .. } => {}
                ToAgent::Unpack(spec) => self.unpack(&spec)?,
                ToAgent::Prepare(spec) => self.prepare(&spec)?,
                ToAgent::Wake(spec) => self.wake(&spec)?,
                ToAgent::Shutdown => {
                    self.shutting_down = true;
                    if let Some(process) = &self.process {
                        process.signal(libc::SIGKILL as u8);
                    }
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, mut spec: SandboxSpec) -> Result<(), AgentError> {
        let began = Instant::now();
        if let Some(default) = self.default_limit
            && !spec
                .process
                .rlimits
                .iter()
                .any(|limit| limit.resource == default.resource)
        {
            spec.process.rlimits.push(default);
        }
        let result = match self.process {
            Some(_) => Err(AgentError::AlreadyStarted),
            None => Process::start(&spec, &self.places, &mut self.disks, &mut self.prepared),
        };
        let answer = match result {
            Ok(process) => {
                self.process = Some(process);
                let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                // It is the first in its pid namespace.
                FromAgent::Started {
                    process: FIRST,
                    pid: 1,
                    took_us,
                }
            }
            Err(error) => start_failed(&error),
        };
        self.send(&answer)?;
        let arrived: Vec<_> = self.streams.waiting();
        self.heed_all(
            arrived
                .into_iter()
                .map(|(id, header)| Notice::Arrived { id, header }),
        );
        Ok(())
    }

    fn prepare(&mut self, spec: &SandboxSpec) -> Result<(), AgentError> {
        let result = match self.process {
            Some(_) => Err(AgentError::AlreadyStarted),
            None => self
                .machine
                .open(&self.places)
                .and_then(|()| self.prepared.make(spec, &self.places, &mut self.disks)),
        };
        let answer = match result {
            Ok(()) => {
                priority::raise();
                FromAgent::Prepared
            }
            Err(error) => start_failed(&error),
        };
        self.send(&answer)
    }

    /// Brings a restored guest up to date. One that cannot be is ended: its random numbers may be another guest's.
    fn wake(&mut self, spec: &WakeSpec) -> Result<(), AgentError> {
        wake::wake(&mut *self.machine, spec, &self.places)?;
        if let (Some(identity), Some(process)) = (&spec.identity, &self.process) {
            process.rename(identity, &self.places)?;
        }
        self.send(&FromAgent::Awake)?;
        priority::normal();
        Ok(())
    }

    /// Unpacks an image; the loop stands still meanwhile, as there is nothing else to serve.
    fn unpack(&mut self, spec: &UnpackSpec) -> Result<(), AgentError> {
        let (control, abandon) = (&mut self.control, self.abandon);
        let mut report = |bytes| {
            // What waits in the socket is enough for a supervisor that is slow.
            let sent = if control.is_backed_up() {
                control.flush()
            } else {
                control.send(&FromAgent::Unpacking { bytes })
            };
            if sent.is_err() {
                abandon();
            }
        };
        let answer = unpack::run(spec, &self.places, &mut report);
        self.send(&answer)
    }

    /// Acts on what streams have to tell, and on what that brings about.
    fn heed_all(&mut self, notices: impl IntoIterator<Item = Notice>) {
        for notice in notices {
            let mut next = Some(notice);
            while let Some(notice) = next {
                next = self.heed(notice);
            }
        }
    }

    fn heed(&mut self, notice: Notice) -> Option<Notice> {
        let (id, header) = match notice {
            Notice::OutputEnded(output) => {
                if let Some(process) = &mut self.process {
                    process.output_ended(output);
                }
                return None;
            }
            Notice::Arrived { id, header } => (id, header),
        };
        let (streams, reactor) = (&mut self.streams, &self.reactor);
        let output = match header {
            StreamHeader::Tcp { port } => return streams.connect(id, port, reactor),
            StreamHeader::Stdin { process: FIRST } => None,
            StreamHeader::Stdout { process: FIRST } => Some(Output::Stdout),
            StreamHeader::Stderr { process: FIRST } => Some(Output::Stderr),
            _ => return streams.close(id),
        };
        let Some(process) = &mut self.process else {
            streams.keep_waiting(id, header);
            return None;
        };
        match output {
            None => match process.take_stdin() {
                Some(pipe) => streams.give_input(id, pipe, reactor),
                None => streams.close(id),
            },
            Some(output) => match process.take_output(output) {
                Some(pipe) => streams.give_output(id, output, pipe, reactor),
                None => streams.close(id),
            },
        }
    }

    fn report_exit(&mut self) -> Result<(), AgentError> {
        match self.process.as_mut().and_then(Process::report) {
            Some(status) => self.send(&FromAgent::Exited {
                process: FIRST,
                status,
            }),
            None => Ok(()),
        }
    }

    fn send(&mut self, message: &FromAgent) -> Result<(), AgentError> {
        self.control.send(message)?;
        if self.control.is_backed_up() {
            self.watch_control()
        } else {
            Ok(())
        }
    }

    /// Waits for room in the control connection as long as something is to be sent.
    fn watch_control(&self) -> Result<(), AgentError> {
        let mut events = EventFlags::IN;
        events.set(EventFlags::OUT, self.control.is_backed_up());
        self.reactor
            .modify(&self.control, Token::Control, events)
            .step("wait for events")
    }
}

/// What the supervisor is told of a start, or of its preparation, that failed.
fn start_failed(error: &AgentError) -> FromAgent {
    FromAgent::StartFailed {
        process: FIRST,
        kind: error.start_failure(),
        message: one_line(error),
    }
}

/// Registers the end of a child; an orphan that PID 1 inherited is of no interest to anybody.
fn note_end(process: &mut Option<Process>, pid: Pid, status: ExitStatus) {
    if let Some(process) = process
        && process.pid() == pid
    {
        process.ended(status);
    }
}
