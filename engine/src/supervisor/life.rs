//! The life of one guest: its start and that of its process, the time that it runs, its end.

use std::time::Duration;

use brig_protocol::{
    agent::{ExitStatus, FromAgent, ToAgent},
    frame::FrameError,
};
use jiff::Timestamp;
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Order,
    exec::Execs,
    health,
    output::Output,
    pause::{PAUSED, Pause},
    ports,
    save::{Workspace, copy_frozen, save},
    serve::{Begin, Phase},
    start::{Start, Started, Streams},
    timekeeper::Timekeeper,
};
use crate::{
    Error, Isolation, Paths,
    cell::cgroups,
    clock::{Stage, Timing, monotonic_ns},
    control::Exit,
    error::{CODE_BRIG, chain},
    guest::{Failure, Guest, Origin, is_idle_talk},
    host::Host,
    log::Stream,
    sandbox::{
        Config, Directory, State,
        health::Health,
        state::{CRASHED_CODE, Ender, KILLED_CODE, Live},
    },
    signal::Signal,
    snapshot::Layout,
    vmm::{Vmm, VmmError},
    volume::Volumes,
};

/// How long a process may take to end after SIGKILL before its guest is ended around it. On an emulated KVM taking the
/// namespaces down takes seconds, and more when other guests share the CPU.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a guest may take to take a message. The buffers on its way hold hundreds of them.
const TELL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a guest may take to write everything to its disk and stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a guest whose agent has hung up may take to say why.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// How a life ended.
#[derive(Debug)]
pub(super) enum End {
    /// The process ended, or its guest around it.
    Exited(Box<Exit>),
    /// It could not be started.
    Failed { code: i32, message: String },
    /// The one who asked for the start is gone, or somebody stopped the sandbox before it ran.
    GivenUp {
        /// Whether the sandbox shall be removed.
        discard: bool,
    },
    /// It had ended so, and somebody stopped it before it was started again.
    Rested(Box<Exit>),
}

/// How the time that a process runs ended.
enum Over {
    /// The agent said so.
    Exited(ExitStatus),
    /// The guest or its VMM failed.
    Failed(Failure),
    /// The guest was ended on order.
    Killed,
}

/// A life and what it needs.
pub(super) struct Life<'a> {
    paths: &'a Paths,
    host: &'a dyn Host,
    config: &'a Config,
    directory: &'a Directory,
    output: &'a Output,
    orders: mpsc::Receiver<Order>,
    execs: Execs,
    timing: Timing,
    ender: Ender,
    /// How many of its processes were killed for want of memory, as far as that has been noted.
    oom_kills: u64,
}

impl<'a> Life<'a> {
    pub fn new(
        paths: &'a Paths,
        host: &'a dyn Host,
        config: &'a Config,
        directory: &'a Directory,
        output: &'a Output,
        orders: mpsc::Receiver<Order>,
        began_ns: u64,
    ) -> Self {
        let timing = Timing {
            supervisor_ns: Some(began_ns),
            ..Timing::default()
        };
        Self {
            paths,
            host,
            config,
            directory,
            output,
            orders,
            execs: Execs::new(config.snapshot.is_some(), directory.clone()),
            timing,
            ender: Ender::Itself,
            oom_kills: 0,
        }
    }

    /// Who has ended it, once it is over.
    pub fn ender(&self) -> Ender {
        self.ender
    }

    /// Rests before a start, and tells whether somebody has ended it meanwhile.
    pub async fn rest(&mut self, time: Duration) -> Option<Ender> {
        tokio::select! {
            biased;
            (_, ender) = given_up(&mut self.orders) => Some(ender),
            () = tokio::time::sleep(time) => None,
        }
    }

    /// From the boot to the end. Nothing of the guest is left then but perhaps a VMM that has been killed and not ended yet.
    pub async fn run(
        &mut self,
        begin: Begin,
        listeners: Vec<ports::Listener>,
        stdin: mpsc::Receiver<Vec<u8>>,
        phase: &watch::Sender<Phase>,
        own_orders: mpsc::Sender<Order>,
    ) -> (End, Option<Vmm>) {
        let Self {
            paths,
            host,
            config,
            directory,
            timing,
            orders,
            ..
        } = self;
        let start = Start {
            paths,
            host: *host,
            config,
            directory,
            cold: begin.cold,
            count: begin.count,
            size: begin.size,
            notice: &|notice| {
                phase.send_replace(Phase::Starting(Some(notice)));
            },
        };
        let started = tokio::select! {
            biased;
            (discard, ender) = given_up(orders) => {
                self.ender = ender;
                return (End::GivenUp { discard }, None);
            }
            started = start.run(timing) => started,
        };
        let Started {
            mut guest,
            streams,
            layout,
            image_bytes,
        } = match started {
            Ok(started) => started,
            Err(e) => {
                let code = e.exit_code();
                let message = chain(&e);
                return (End::Failed { code, message }, None);
            }
        };
        let unconfined = guest.vmm.confined().await;
        let forwarding = match self.enter_running(&guest, listeners, unconfined) {
            Ok(forwarding) => forwarding,
            Err(e) => {
                guest.vmm.start_kill();
                let message = chain(&e);
                let code = CODE_BRIG;
                return (End::Failed { code, message }, Some(guest.vmm));
            }
        };
        let pumps = self.pump(streams, stdin);
        let checks = self.config.health.clone().map(|health| {
            let checks = health::watch(health, self.directory.clone(), own_orders);
            tokio::task::spawn_local(checks)
        });
        phase.send_modify(Phase::run);
        // After the starter has been told, which wakes another task before this one.
        tokio::task::spawn_local(async { trim_heap() });
        let over = self.while_running(&mut guest, (layout, image_bytes)).await;
        self.timing.exit_ns = Some(monotonic_ns());
        if let Some(checks) = checks {
            checks.abort();
        }
        self.execs.finish();
        if begin.count && matches!(over, Over::Exited(_)) {
            guest.count(Stage::Exit, &mut self.timing).await;
        }
        self.output.process_ended();
        // Its ports are free from here on.
        drop(forwarding);
        let exit = self.settle(&mut guest, over, pumps).await;
        (End::Exited(Box::new(exit)), Some(guest.vmm))
    }

    /// Writes down that the process runs, and opens the published ports.
    fn enter_running(
        &self,
        guest: &Guest,
        listeners: Vec<ports::Listener>,
        unconfined: Option<String>,
    ) -> Result<ports::Forwarding, Error> {
        let live = Live {
            supervisor_pid: std::process::id(),
            vmm_pid: guest.vmm.pid(),
            ports: listeners.iter().map(|listener| listener.port.clone()).collect(),
            kernel: guest.kernel.clone(),
            origin: self.timing.origin.unwrap_or(Origin::Boot),
            workarounds: self.timing.workarounds,
            unconfined,
        };
        let mut state = self.directory.read_state()?.running(Timestamp::now(), live);
        state.health = self.config.health.as_ref().map(|_| Health::starting());
        self.directory.write_state(&state)?;
        self.directory.note("start", &[]);
        ports::Forwarding::start(listeners, &guest.vmm.channel)
    }

    /// Starts the tasks that move output and input.
    fn pump(&self, streams: Streams, stdin: mpsc::Receiver<Vec<u8>>) -> Pumps {
        let output = |stream, socket| tokio::task::spawn_local(self.output.clone().pump(stream, socket));
        Pumps {
            stdout: output(Stream::Stdout, streams.stdout),
            stderr: streams.stderr.map(|socket| output(Stream::Stderr, socket)),
            stdin: streams
                .stdin
                .map(|socket| tokio::task::spawn_local(feed(socket, stdin))),
        }
    }

    /// Takes orders, events and messages until the process or the guest has ended.
    async fn while_running(&mut self, guest: &mut Guest, disks: (Layout, u64)) -> Over {
        let mut deadlines = Deadlines::default();
        let mut pause = Pause::new(self.config, self.directory);
        let mut time = Timekeeper::new(self.config);
        // Who waits for the agent's next answer about its ports.
        let mut curious = Vec::new();
        loop {
            tokio::select! {
                // An agent that talks without end must not keep an order from being heard, and its last word comes
                // before its VMM's.
                biased;
                Some(order) = self.orders.recv() => match order {
                    Order::Pause { still, done } => {
                        let answer = match pause.set(still, guest).await {
                            Ok(answer) => answer,
                            Err(failure) => return Over::Failed(failure),
                        };
                        let _ = done.send(answer);
                        ask_for_time(&mut time, &pause, guest).await;
                    }
                    Order::Signal(signal) => {
                        // As Docker: whoever sends one of these does not want it to be started again.
                        if [Signal::KILL.number(), self.config.stop_signal.number()].contains(&signal) {
                            self.ender = Ender::User;
                        }
                        pause.end(guest).await;
                        send_signal(guest, signal, &mut deadlines).await;
                    }
                    Order::Stop { signal, timeout_s, ender } => {
                        self.ender = ender;
                        pause.end(guest).await;
                        deadlines.kill_process_in(timeout_s);
                        send_signal(guest, signal, &mut deadlines).await;
                    }
                    Order::Save { done, .. } if pause.is_on() => {
                        let _ = done.send(Err(PAUSED.to_owned()));
                    }
                    Order::CopyDisk { done, .. } if pause.is_on() => {
                        let _ = done.send(Err(PAUSED.to_owned()));
                    }
                    Order::Traffic { done } if pause.holds_agent() => {
                        let _ = done.send(Err(PAUSED.to_owned()));
                    }
                    Order::Exec(order) if pause.is_on() => order.refuse(PAUSED),
                    Order::Save { workspace, done } => {
                        // Other orders wait: none of them could be carried out now.
                        let to = Workspace { paths: self.paths, host: self.host, name: &workspace };
                        let saved = save(self.config, self.directory, to, guest, disks).await;
                        match saved {
                            Ok(answer) => {
                                let _ = done.send(answer);
                            }
                            Err(failure) => {
                                let _ = done.send(Err("its guest failed at that".to_owned()));
                                return Over::Failed(failure);
                            }
                        }
                    }
                    Order::CopyDisk { workspace, done } => {
                        let execs = &mut self.execs;
                        let mut others = |message| execs.heed(&message);
                        let to = Workspace { paths: self.paths, host: self.host, name: &workspace };
                        match copy_frozen(self.directory, to, guest, &mut others).await {
                            Ok((answer, exit)) => {
                                let _ = done.send(answer);
                                if let Some(status) = exit {
                                    return Over::Exited(status);
                                }
                            }
                            Err(failure) => {
                                let _ = done.send(Err("its guest failed at that".to_owned()));
                                return Over::Failed(failure);
                            }
                        }
                    }
                    Order::Traffic { done } => {
                        // Some have given up waiting.
                        curious.retain(|done: &oneshot::Sender<_>| !done.is_closed());
                        curious.push(done);
                        tell(guest, &ToAgent::Traffic).await;
                    }
                    Order::Exec(order) => self.execs.begin(guest, self.config, order).await,
                    Order::SignalProcess { process, signal } => {
                        tell(guest, &ToAgent::Signal { process, signal }).await;
                    }
                    Order::Resize { process, size } => tell(guest, &ToAgent::Resize { process, size }).await,
                    Order::Kill | Order::GiveUp { .. } => {
                        self.ender = Ender::User;
                        return Over::Killed;
                    }
                },
                () = deadlines.kill_guest() => return Over::Killed,
                () = deadlines.kill_process() => send_signal(guest, Signal::KILL.number(), &mut deadlines).await,
                message = guest.from_agent.next() => match message {
                    Ok(FromAgent::OomKilled) => self.note_oom(),
                    Ok(FromAgent::Exited { process: 0, status }) => {
                        self.look_for_oom();
                        return Over::Exited(status);
                    }
                    Ok(message @ FromAgent::Exited { .. }) => {
                        self.look_for_oom();
                        self.execs.heed(&message);
                    }
                    Ok(message @ FromAgent::Clock { .. }) => {
                        if let Some(told) = time.heed(&message) {
                            tell(guest, &told).await;
                        }
                    }
                    Ok(FromAgent::Traffic(traffic)) => {
                        for done in curious.drain(..) {
                            let _ = done.send(Ok(traffic));
                        }
                    }
                    // What is of no use to anybody does no harm.
                    Ok(message) => self.execs.heed(&message),
                    Err(FrameError::Closed | FrameError::Io(_)) => {
                        return Over::Failed(guest.last_event().await);
                    }
                    Err(e) => return Over::Failed(Failure::Agent(format!("broke the protocol: {}", chain(&e)))),
                },
                () = time.due() => ask_for_time(&mut time, &pause, guest).await,
                event = guest.vmm.channel.event() => {
                    let failure = match event {
                        Ok(event) if is_idle_talk(&event) => continue,
                        Ok(event) => Failure::Event(event),
                        Err(_) => Failure::Ended,
                    };
                    return last_exit(guest).await.map_or(Over::Failed(failure), Over::Exited);
                },
            }
        }
    }

    /// Looks at what the cgroups of a cell have counted: its agent does not see that.
    fn look_for_oom(&mut self) {
        if self.config.isolation == Isolation::Container && self.config.limits.memory.is_some() {
            let kills = cgroups::oom_kills(&self.config.id);
            if kills > std::mem::replace(&mut self.oom_kills, kills) {
                self.note_oom();
            }
        }
    }

    /// Writes down that the kernel has killed something for want of memory.
    fn note_oom(&mut self) {
        self.directory.note("oom", &[]);
        if let Ok(state) = self.directory.read_state()
            && !state.oom_killed
        {
            let state = State {
                oom_killed: true,
                ..state
            };
            let _ = self.directory.write_state(&state);
        }
    }

    /// Takes the rest of the output, ends the guest in good order where there is one, and says how it all ended. The VMM has
    /// been killed then.
    async fn settle(&mut self, guest: &mut Guest, over: Over, pumps: Pumps) -> Exit {
        let (code, error) = match over {
            Over::Exited(status) => {
                tokio::select! {
                    () = pumps.finish() => {}
                    () = killed(&mut self.orders) => {}
                }
                // What it has written is of use to nobody otherwise.
                let goes = self.config.auto_remove
                    && Volumes::new(&self.paths.root).are_its_own(&self.config.mounts);
                if !goes {
                    shut_down(guest, &mut self.orders).await;
                }
                guest.vmm.start_kill();
                (status.code(), None)
            }
            Over::Killed => {
                guest.vmm.kill().await;
                pumps.finish().await;
                (KILLED_CODE, None)
            }
            Over::Failed(failure) => {
                let error = guest.explain(failure).await;
                pumps.finish().await;
                let code = match error {
                    Error::Vmm(VmmError::Killed(_)) => KILLED_CODE,
                    _ => CRASHED_CODE,
                };
                (code, Some(chain(&error)))
            }
        };
        self.timing.output_ns = self.output.first_byte_ns();
        Exit {
            code,
            error,
            timing: self.timing.clone(),
        }
    }
}

/// Gives back what the heap needed for the start and does not need any more.
fn trim_heap() {
    // SAFETY: only pages go that no allocation is in.
    unsafe { libc::malloc_trim(0) };
}

/// Waits for an order that ends a start, and tells whether the sandbox shall go with it, and who says so.
async fn given_up(orders: &mut mpsc::Receiver<Order>) -> (bool, Ender) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::GiveUp { discard } => return (discard, Ender::User),
            Order::Stop { ender, .. } => return (false, ender),
            Order::Kill | Order::Signal(9) => return (false, Ender::User),
            // There is no process yet that it could be sent to, or that could be saved.
            Order::Signal(_)
            | Order::Pause { .. }
            | Order::Save { .. }
            | Order::CopyDisk { .. }
            | Order::Traffic { .. }
            | Order::Exec(_)
            | Order::SignalProcess { .. }
            | Order::Resize { .. } => {}
        }
    }
    std::future::pending().await
}

/// Waits for an order to end the guest at once.
async fn killed(orders: &mut mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        if matches!(order, Order::Kill | Order::Signal(9)) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// An exit that the agent told before its guest ended.
async fn last_exit(guest: &mut Guest) -> Option<ExitStatus> {
    while let Ok(Ok(message)) = timeout(LAST_WORDS_TIMEOUT, guest.from_agent.next()).await {
        if let FromAgent::Exited { process: 0, status } = message {
            return Some(status);
        }
    }
    None
}

async fn send_signal(guest: &mut Guest, signal: u8, deadlines: &mut Deadlines) {
    if signal == Signal::KILL.number() {
        deadlines.kill_guest_soon();
    }
    tell(guest, &ToAgent::Signal { process: 0, signal }).await;
}

/// Asks a guest that does not stand still what time it is there. One that does is asked when it goes on.
async fn ask_for_time(time: &mut Timekeeper, pause: &Pause<'_>, guest: &mut Guest) {
    if !pause.is_on()
        && let Some(question) = time.ask()
    {
        tell(guest, &question).await;
    }
}

async fn tell(guest: &mut Guest, message: &ToAgent) {
    // A guest that takes no messages any more is ended by a deadline or by the loop, which sees its end.
    let _ = timeout(TELL_TIMEOUT, guest.tell(message)).await;
}

/// Waits until the guest has written everything to its disk and stopped, no longer than it may take, or until it is to be killed.
async fn shut_down(guest: &mut Guest, orders: &mut mpsc::Receiver<Order>) {
    tokio::select! {
        _ = timeout(SHUTDOWN_TIMEOUT, guest.shut_down()) => {}
        () = killed(orders) => {}
    }
}

/// When a stop becomes a kill, and a kill of the process one of the guest.
#[derive(Default)]
struct Deadlines {
    process: Option<Instant>,
    guest: Option<Instant>,
}

impl Deadlines {
    /// A later stop may shorten the time that an earlier one gave, and not lengthen it.
    fn kill_process_in(&mut self, timeout_s: Option<u32>) {
        let Some(seconds) = timeout_s else { return };
        let deadline = Instant::now() + Duration::from_secs(seconds.into());
        self.process = Some(self.process.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    fn kill_guest_soon(&mut self) {
        self.process = None;
        self.guest.get_or_insert_with(|| Instant::now() + KILL_TIMEOUT);
    }

    async fn kill_process(&self) {
        at(self.process).await;
    }

    async fn kill_guest(&self) {
        at(self.guest).await;
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// The tasks that move the process's streams.
struct Pumps {
    stdout: JoinHandle<()>,
    stderr: Option<JoinHandle<()>>,
    stdin: Option<JoinHandle<()>>,
}

impl Pumps {
    /// Waits for the end of the output; there is no use for input any more.
    async fn finish(mut self) {
        let _ = (&mut self.stdout).await;
        if let Some(stderr) = &mut self.stderr {
            let _ = stderr.await;
        }
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.stdout.abort();
        for task in self.stderr.iter().chain(&self.stdin) {
            task.abort();
        }
    }
}

/// Moves what clients write to a process's standard input; its end is passed on.
pub(super) async fn feed(mut socket: UnixStream, mut pieces: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = pieces.recv().await {
        if socket.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = socket.shutdown().await;
    // The socket stays until the process has read what is on its way; whoever began the task ends it.
    std::future::pending::<()>().await;
}
