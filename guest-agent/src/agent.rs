//! The loop: what wakes the agent, and what it then does.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::OwnedFd,
    time::Instant,
};

use brig_launcher::{enter, filter::Filter};
use brig_protocol::{
    agent::{ExitStatus, FromAgent, PROCESSES_MAX, PackSpec, ToAgent, UnpackSpec, VERSION, WakeSpec},
    frame::FrameError,
    spec::{ProcessSpec, Rlimit, RootSpec, SandboxSpec},
    stream::StreamHeader,
    tool::Tool,
};
use rustix::{event::epoll::EventFlags, process::Pid, time::ClockId};

use crate::{
    control::Control,
    disks::{self, Disks},
    error::{AgentError, Context, one_line},
    pack,
    prepared::Prepared,
    priority,
    process::{Ends, Places, Process},
    reactor::{Reactor, Token},
    reaper::Reaper,
    sandbox::Sandbox,
    streams::{Arrivals, Notice, Output, Streams},
    tools, unpack,
    wake::{self, Machine},
};

/// Processes that could not be started and whose streams may still be on their way.
const FAILED_MAX: usize = 64;

/// The number of the sandbox's first process.
const FIRST: u32 = 0;

/// What the agent works with.
#[derive(Debug)]
pub struct Setup {
    /// The control connection, non-blocking.
    pub control: OwnedFd,
    /// Where streams come from, non-blocking.
    pub arrivals: Arrivals,
    /// Its directories.
    pub places: Places,
    /// What is ready.
    pub prepared: Prepared,
    /// What the sandbox's processes may ask of the kernel; `None` for everything.
    pub filter: Option<Filter>,
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
    arrivals: Arrivals,
    reaper: Reaper,
    streams: Streams,
    disks: Disks,
    prepared: Prepared,
    filter: Option<Filter>,
    sandbox: Option<Sandbox>,
    /// The other processes of the sandbox, by their numbers.
    others: BTreeMap<u32, Process>,
    /// The numbers of the last ones that could not be started.
    failed: VecDeque<u32>,
    /// A pack whose stream has not arrived.
    pack: Option<PackSpec>,
    places: Places,
    entered_us: u64,
    default_limit: Option<Rlimit>,
    machine: Box<dyn Machine>,
    abandon: fn() -> !,
    shutting_down: bool,
    /// What the kernel had logged of the last process that it killed for want of memory, when that was looked at.
    last_oom_kill: Option<String>,
}

impl Agent {
    fn new(setup: Setup) -> Result<Self, AgentError> {
        enter::keep_to_oneself().step("keep other processes from looking into this one")?;
        let reactor = Reactor::new().step("create an epoll instance")?;
        let reaper = Reaper::new().step("take signals by descriptor")?;
        let add = |source: &dyn std::os::fd::AsFd, token| reactor.add(source.as_fd(), token, EventFlags::IN);
        add(&setup.control, Token::Control)
            .and_then(|()| add(&setup.arrivals, Token::Listener))
            .and_then(|()| add(&reaper, Token::Signals))
            .step("wait for events")?;
        Ok(Self {
            reactor,
            control: Control::new(setup.control),
            arrivals: setup.arrivals,
            reaper,
            streams: Streams::new(),
            disks: Disks::default(),
            prepared: setup.prepared,
            filter: setup.filter,
            sandbox: None,
            others: BTreeMap::new(),
            failed: VecDeque::new(),
            pack: None,
            places: setup.places,
            entered_us: setup.entered_us,
            default_limit: setup.default_limit,
            machine: setup.machine,
            abandon: setup.abandon,
            shutting_down: false,
            last_oom_kill: None,
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
            self.pack_when_possible()?;
            self.let_go_of_left_behind();
            self.report_exits()?;
            let runs = |sandbox: &Sandbox| sandbox.first.is_running();
            if self.shutting_down && !self.sandbox.as_ref().is_some_and(runs) {
                // Its mounts lie over the disk.
                self.sandbox = None;
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
        self.processes().filter_map(Process::deadline).min()
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        let first = self.sandbox.as_ref().map(|sandbox| &sandbox.first);
        first.into_iter().chain(self.others.values())
    }

    fn process(&self, number: u32) -> Option<&Process> {
        match number {
            FIRST => self.sandbox.as_ref().map(|sandbox| &sandbox.first),
            number => self.others.get(&number),
        }
    }

    fn process_mut(&mut self, number: u32) -> Option<&mut Process> {
        match number {
            FIRST => self.sandbox.as_mut().map(|sandbox| &mut sandbox.first),
            number => self.others.get_mut(&number),
        }
    }

    fn handle(&mut self, token: Token, flags: EventFlags) -> Result<(), AgentError> {
        match token {
            Token::Control => self.handle_control(flags),
            Token::Listener => {
                let notices = match self.streams.accept(&self.arrivals, &self.reactor) {
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                        return Err(FrameError::Closed.into());
                    }
                    accepted => accepted.step("accept a stream")?,
                };
                self.heed_all(notices);
                Ok(())
            }
            Token::Signals => {
                let (sandbox, others, prepared) = (&mut self.sandbox, &mut self.others, &mut self.prepared);
                self.reaper
                    .collect(|pid, status| {
                        let first = sandbox.as_mut().map(|sandbox| &mut sandbox.first);
                        note_end(first.into_iter().chain(others.values_mut()), pid, status);
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
                ToAgent::Exec { process, spec } => self.exec(process, *spec)?,
                ToAgent::Tool { process, tool, root } => self.tool(process, &tool, root.as_ref())?,
                ToAgent::Signal { process, signal } => {
                    if let Some(process) = self.process(process) {
                        process.signal(signal);
                    }
                }
                ToAgent::Resize { process, size } => {
                    if let Some(process) = self.process(process) {
                        process.resize(size);
                    }
                }
                ToAgent::Unpack(spec) => self.unpack(&spec)?,
                ToAgent::Prepare(spec) => self.prepare(&spec)?,
                ToAgent::Pack(spec) => self.pack = Some(spec),
                ToAgent::Freeze => {
                    let failure = self.disks.freeze().err().map(|error| one_line(&error));
                    self.send(&FromAgent::Frozen { failure })?;
                }
                ToAgent::Thaw => self.disks.thaw(),
                ToAgent::Wake(spec) => self.wake(&spec)?,
                ToAgent::Clock => {
                    let realtime_ns = wake::realtime_ns();
                    self.send(&FromAgent::Clock { realtime_ns })?;
                }
                ToAgent::Traffic => {
                    let traffic = self.streams.traffic();
                    self.send(&FromAgent::Traffic(traffic))?;
                }
                ToAgent::ShiftClock { ns } => {
                    // A clock that stays wrong is better than a guest that ends.
                    let _ = self.machine.shift_clock(ns);
                }
                ToAgent::Shutdown => {
                    self.shutting_down = true;
                    if let Some(process) = self.process(FIRST) {
                        process.signal(libc::SIGKILL as u8);
                    }
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, mut spec: SandboxSpec) -> Result<(), AgentError> {
        let began = Instant::now();
        self.add_default_limit(&mut spec.process);
        let result = match self.sandbox {
            Some(_) => Err(AgentError::AlreadyStarted),
            None => Sandbox::start(
                &spec,
                &self.places,
                &mut self.disks,
                &mut self.prepared,
                self.filter,
            ),
        };
        let answer = match result {
            Ok(sandbox) => {
                self.sandbox = Some(sandbox);
                // It is the first in its pid namespace.
                started(FIRST, 1, began)
            }
            Err(error) => start_failed(FIRST, &error),
        };
        self.send(&answer)?;
        self.join_waiting_streams();
        Ok(())
    }

    fn exec(&mut self, number: u32, mut spec: ProcessSpec) -> Result<(), AgentError> {
        let began = Instant::now();
        self.add_default_limit(&mut spec);
        let entered = self.enter(number, |sandbox, places| sandbox.enter(&spec, places));
        self.answer(number, entered, began)
    }

    /// Starts a process of the agent's own in the sandbox.
    fn tool(&mut self, number: u32, tool: &Tool, root: Option<&RootSpec>) -> Result<(), AgentError> {
        let began = Instant::now();
        let entered = match root {
            None => self.enter(number, |sandbox, places| sandbox.visit(tool, places)),
            Some(root) => self.visit_stopped(number, tool, root),
        };
        self.answer(number, entered, began)
    }

    /// The same with the files of a sandbox that does not run.
    fn visit_stopped(
        &mut self,
        number: u32,
        tool: &Tool,
        root: &RootSpec,
    ) -> Result<(Process, u32), AgentError> {
        if self.sandbox.is_some() {
            return Err(AgentError::AlreadyStarted);
        }
        if number == FIRST || self.others.contains_key(&number) {
            return Err(AgentError::ProcessExists(number));
        }
        let root = match root {
            RootSpec::Disks { image, writable } => self.disks.make_root(*image, *writable, &self.places)?,
            RootSpec::Directory { path } => brig_launcher::Root::Directory(path.into()),
            RootSpec::Cell => disks::mounted_root(&self.places),
        };
        let (stdio, ends) = Ends::pipes(true, &self.places)?;
        let pid = brig_launcher::visit_root(&root, &stdio, self.filter, || tools::run(tool))?;
        Ok((Process::new(pid, false, ends), 0))
    }

    /// Says what has become of a start.
    fn answer(
        &mut self,
        number: u32,
        entered: Result<(Process, u32), AgentError>,
        began: Instant,
    ) -> Result<(), AgentError> {
        let answer = match entered {
            Ok((process, pid)) => {
                self.failed.retain(|&failed| failed != number);
                self.others.insert(number, process);
                started(number, pid, began)
            }
            Err(error) => {
                if self.process(number).is_none() {
                    self.streams.close_all_of(number);
                    self.failed.push_back(number);
                    if self.failed.len() > FAILED_MAX {
                        self.failed.pop_front();
                    }
                }
                start_failed(number, &error)
            }
        };
        self.send(&answer)?;
        self.join_waiting_streams();
        Ok(())
    }

    fn enter(
        &mut self,
        number: u32,
        start: impl FnOnce(&mut Sandbox, &Places) -> Result<(Process, u32), AgentError>,
    ) -> Result<(Process, u32), AgentError> {
        if self.process(number).is_some() {
            return Err(AgentError::ProcessExists(number));
        }
        if self.others.len() >= PROCESSES_MAX {
            return Err(AgentError::TooManyProcesses);
        }
        match &mut self.sandbox {
            Some(sandbox) => start(sandbox, &self.places),
            None => Err(AgentError::NotRunning),
        }
    }

    fn add_default_limit(&self, spec: &mut ProcessSpec) {
        if let Some(default) = self.default_limit
            && !spec
                .rlimits
                .iter()
                .any(|limit| limit.resource == default.resource)
        {
            spec.rlimits.push(default);
        }
    }

    /// Joins the streams that have come before their process.
    fn join_waiting_streams(&mut self) {
        let arrived = self.streams.waiting();
        self.heed_all(
            arrived
                .into_iter()
                .map(|(id, header)| Notice::Arrived { id, header }),
        );
    }

    fn prepare(&mut self, spec: &SandboxSpec) -> Result<(), AgentError> {
        let result = match self.sandbox {
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
            Err(error) => start_failed(FIRST, &error),
        };
        self.send(&answer)
    }

    /// Brings a restored guest up to date. One that cannot be is ended: its random numbers may be another guest's.
    fn wake(&mut self, spec: &WakeSpec) -> Result<(), AgentError> {
        wake::wake(&mut *self.machine, spec, &self.places)?;
        // A copy has carried nothing yet.
        self.streams.forget_traffic();
        if let (Some(identity), Some(sandbox)) = (&spec.identity, &self.sandbox) {
            sandbox.rename(identity, &self.places)?;
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

    /// Packs once the stream for it has arrived; the loop stands still meanwhile, as there is nothing else to serve.
    fn pack_when_possible(&mut self) -> Result<(), AgentError> {
        let is_output = |header: &StreamHeader| matches!(header, StreamHeader::Stdout { process: FIRST });
        if self.pack.is_none() {
            return Ok(());
        }
        let waiting = self.streams.waiting();
        let Some(stream) = waiting
            .iter()
            .find(|(_, header)| is_output(header))
            .and_then(|(id, _)| self.streams.take(*id))
        else {
            return Ok(());
        };
        let Some(spec) = self.pack.take() else {
            return Ok(());
        };
        let answer = pack::run(&spec, &self.places, &mut self.disks, stream);
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
            Notice::OutputEnded { process, output } => {
                if let Some(process) = self.process_mut(process) {
                    process.output_ended(output);
                }
                return None;
            }
            Notice::Arrived { id, header } => (id, header),
        };
        let (number, output) = match header {
            StreamHeader::Tcp { port } => return self.streams.connect(id, port, &self.reactor),
            StreamHeader::Stdin { process } => (process, None),
            StreamHeader::Stdout { process } => (process, Some(Output::Stdout)),
            StreamHeader::Stderr { process } => (process, Some(Output::Stderr)),
        };
        let Some(process) = self.process_mut(number) else {
            if self.failed.contains(&number) {
                return self.streams.close(id);
            }
            // Its process may not have come yet. Whoever waits for that in vain closes it.
            self.streams.keep_waiting(id, header);
            return None;
        };
        let end = match output {
            None => process.take_stdin(),
            Some(output) => process.take_output(output),
        };
        let (streams, reactor) = (&mut self.streams, &self.reactor);
        match (end, output) {
            (None, _) => streams.close(id),
            (Some(sink), None) => streams.give_input(id, number, sink, reactor),
            (Some(source), Some(output)) => streams.give_output(id, number, output, source, reactor),
        }
    }

    /// Ends the streams of processes that have ended some time ago and left others behind, as far as they have nothing to relay.
    fn let_go_of_left_behind(&mut self) {
        let left = |(number, process): (&u32, &Process)| process.is_left_behind().then_some(*number);
        let numbers: Vec<u32> = self.others.iter().filter_map(left).collect();
        for number in numbers {
            let notices = self.streams.end_dry_outputs(number, &self.reactor);
            self.heed_all(notices);
        }
    }

    fn report_exits(&mut self) -> Result<(), AgentError> {
        let mut over = Vec::new();
        for (number, process) in &mut self.others {
            over.extend(process.report().map(|status| (*number, status)));
        }
        for (process, status) in over {
            self.others.remove(&process);
            self.streams.close_all_of(process);
            self.report_oom(status)?;
            self.send(&FromAgent::Exited { process, status })?;
        }
        // Last: the supervisor asks for nothing more then.
        if let Some(status) = self.process_mut(FIRST).and_then(Process::report) {
            let process = FIRST;
            self.report_oom(status)?;
            self.send(&FromAgent::Exited { process, status })?;
        }
        Ok(())
    }

    /// Says that the kernel has killed something for want of memory, when a process may have ended so: it was killed, or tells by its
    /// code that one of its own was.
    fn report_oom(&mut self, status: ExitStatus) -> Result<(), AgentError> {
        if status.code() != 128 + libc::SIGKILL {
            return Ok(());
        }
        let last = self.machine.last_oom_kill();
        if last.is_some() && last != self.last_oom_kill {
            self.last_oom_kill = last;
            self.send(&FromAgent::OomKilled)?;
        }
        Ok(())
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

/// What the supervisor is told of a start.
fn started(process: u32, pid: u32, began: Instant) -> FromAgent {
    FromAgent::Started {
        process,
        pid,
        took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
    }
}

/// What the supervisor is told of a start, or of its preparation, that failed.
fn start_failed(process: u32, error: &AgentError) -> FromAgent {
    FromAgent::StartFailed {
        process,
        kind: error.start_failure(),
        message: one_line(error),
    }
}

/// Registers the end of a child; an orphan that PID 1 inherited is of no interest to anybody.
fn note_end<'a>(mut processes: impl Iterator<Item = &'a mut Process>, pid: Pid, status: ExitStatus) {
    // One that has ended is not the one: its pid may be another's now.
    if let Some(process) = processes.find(|process| process.pid() == pid && process.is_running()) {
        process.ended(status);
    }
}
