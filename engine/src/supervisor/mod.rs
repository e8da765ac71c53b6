//! The supervisor: one process a sandbox, from the start of its guest to its end. It owns the sandbox's published ports,
//! log, exit status and control socket, and holds the sandbox's lock as long as it lives.
//!
//! | module | job |
//! |---|---|
//! | [`life`] | the guest from its start to its end: an order, an event or a message at a time |
//! | [`ahead`] | a VMM that comes up while it is looked up what it shall run |
//! | [`start`] | a guest, restored or booted, with the process in it |
//! | [`enter`] | a cell in the place of a guest |
//! | [`resume`] | a guest that goes on from a snapshot, with the process in it |
//! | [`pause`] | a sandbox that stands still, and goes on |
//! | [`save`] | a running guest and its disk, written down |
//! | [`serve`] | the engine's connections: what they ask becomes orders, what happens becomes replies |
//! | [`output`] | the process's output, to the log and to attached clients |
//! | [`exec`] | further processes, each joined with a client's connection |
//! | [`health`] | such a process from time to time, to find out whether the sandbox is well |
//! | [`ports`] | published ports |
//! | [`needs`] | what the sandbox's starts need of the host's files |
//! | [`walls`] | what it gives up |
//! | [`steward`] | a process outside of its walls that does chores for it |
//!
//! Everything runs in one thread.

mod ahead;
mod enter;
mod exec;
mod health;
mod life;
mod needs;
mod output;
mod pause;
mod ports;
mod resume;
mod save;
mod serve;
mod start;
mod steward;
mod timekeeper;
mod walls;

use std::{
    cell::{Cell, RefCell},
    fs::OpenOptions,
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use brig_protocol::{agent::Traffic, spec::WindowSize};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet, LocalSet},
};

use self::{
    ahead::Ahead,
    exec::ExecOrder,
    life::{End, Life},
    output::Output,
    serve::{Begin, Phase, Service},
    steward::{Steward, Walled},
};
pub use self::{ahead::Likely, needs::Needs};
pub(crate) use self::{enter::make_layer, start::Streams};
use crate::{
    Error, Isolation, Paths, SandboxId,
    cell::cgroups,
    clock::monotonic_ns,
    control::{self, Exit, FRAME_BYTES, REQUEST_BYTES, Reply, SavedSandbox},
    error::{CODE_BRIG, chain},
    frames::{self, FrameReader},
    guest::Kvm,
    host::Host,
    kvm,
    log::LogWriter,
    options::restart::Rests,
    sandbox::{Config, Directory, Registry, State, lock::Lock, state::Ender},
};

/// What a supervisor that is told to end itself (SIGTERM, at the host's shutdown) leaves its process, in seconds.
const TERMINATED_TIMEOUT_S: u32 = 10;

/// Most orders that wait for the life of the guest to take them.
const ORDERS: usize = 16;

/// How long replies may take to reach clients that only wait; attached clients get the time that they need.
const FAREWELL: Duration = Duration::from_secs(2);

/// What clients want of the guest.
#[derive(Debug)]
enum Order {
    /// Send a signal to the process.
    Signal(u8),
    /// Send a signal, and SIGKILL later.
    Stop {
        /// The first signal.
        signal: u8,
        /// Seconds to wait; `None` for ever.
        timeout_s: Option<u32>,
        /// Who says so.
        ender: Ender,
    },
    /// Let the sandbox stand still, or go on. Dropping `done` says that this is no time for it.
    Pause {
        /// Whether it shall stand still.
        still: bool,
        /// Takes the answer: what is wrong is one line.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Save the guest and the sandbox's disk. Dropping `done` says that this is no time for it.
    Save {
        /// The name of the directory for the files.
        workspace: String,
        /// Takes the answer: what is wrong is one line.
        done: oneshot::Sender<Result<SavedSandbox, String>>,
    },
    /// Copy the sandbox's disk. Dropping `done` says that this is no time for it.
    CopyDisk {
        /// The name of the directory for the copy.
        workspace: String,
        /// Takes the answer: what is wrong is one line.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Tell what has gone through published ports. Dropping `done` says that this is no time for it.
    Traffic {
        /// Takes the answer: what is wrong is one line.
        done: oneshot::Sender<Result<Traffic, String>>,
    },
    /// Start another process.
    Exec(ExecOrder),
    /// Send a signal to such a process.
    SignalProcess { process: u32, signal: u8 },
    /// The terminal of a process has another size.
    Resize { process: u32, size: WindowSize },
    /// End the guest at once.
    Kill,
    /// The one who asked for the start is gone.
    GiveUp {
        /// Whether the sandbox shall be removed.
        discard: bool,
    },
}

/// The whole life of a supervisor process. `starter` is the socket that it was born with.
///
/// # Errors
/// Those of setting the process up; what happens to the sandbox is told to its clients and its state.
pub fn main(
    paths: &Paths,
    id: &SandboxId,
    likely: Likely,
    starter: OwnedFd,
    host: &dyn Host,
) -> Result<(), Error> {
    // The sandbox outlives the shell that it was started from, and the directory that it was started in. It fails for a
    // process that has a session of its own.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    brig_image_store::removal::set_helper(crate::cell::empty);
    let walled;
    let host = if matches!(likely, Likely::Vm(_)) {
        walls::build()?;
        walled = Walled::new(host, Steward::fork(paths, id)?);
        &walled
    } else {
        host
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let starter = std::os::unix::net::UnixStream::from(starter);
    runtime.block_on(LocalSet::new().run_until(async {
        starter.set_nonblocking(true).map_err(Error::Runtime)?;
        let starter = UnixStream::from_std(starter).map_err(Error::Runtime)?;
        supervise(paths, id, likely, starter, host).await;
        Ok(())
    }))
}

/// What a supervisor has before anything is started.
struct Prepared {
    config: Config,
    directory: Directory,
    lock: Lock,
    ports: Vec<ports::Listener>,
    control: Rc<UnixListener>,
    output: Output,
}

fn prepare(paths: &Paths, id: &SandboxId, host: &dyn Host) -> Result<Prepared, Error> {
    let directory = Registry::new(paths.sandboxes()).directory(id);
    let lock = Lock::try_take(&directory.lock())
        .map_err(|e| e.missing_as(|| Error::NoSuchSandbox(id.to_string())))?
        .ok_or_else(|| Error::AlreadyRunning(id.short().to_owned()))?;
    let config = directory.read_config()?;
    let prepared = || {
        host.complain_to(open_log(&directory)?)?;
        let ports = ports::bind_all(&config.ports)?;
        let output = open_output(&config, &directory)?;
        let control = Rc::new(control::bind(&paths.runtime, id)?);
        if config.isolation == Isolation::Vm {
            host.wall_in(&Needs::lay_out(paths, &config, &directory)?)?;
        }
        Ok((ports, output, control))
    };
    match prepared() {
        Ok((ports, output, control)) => Ok(Prepared {
            config,
            directory,
            lock,
            ports,
            control,
            output,
        }),
        Err(e) => {
            if let Ok(state) = directory.read_state() {
                let _ = directory.write_state(&state.start_failed(CODE_BRIG, chain(&e)));
            }
            Err(e)
        }
    }
}

fn open_output(config: &Config, directory: &Directory) -> Result<Output, Error> {
    let path = directory.log();
    let log = LogWriter::open(&path, config.options.log).map_err(Error::file("open", &path))?;
    Ok(Output::new(log))
}

/// The log of what the supervisor itself has to say when it fails.
fn open_log(directory: &Directory) -> Result<std::fs::File, Error> {
    let path = directory.supervisor_log();
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(Error::file("open", &path))
}

async fn supervise(paths: &Paths, id: &SandboxId, likely: Likely, starter: UnixStream, host: &dyn Host) {
    let began_ns = monotonic_ns();
    let host = &match likely {
        Likely::Vm(_) => Ahead::new(host),
        Likely::Cell => Ahead::with_cell(host),
    };
    if let Likely::Vm(shape) = likely {
        if let Some(shape) = shape {
            host.map(paths, shape).await;
        }
        // Once a host, and while the answer can still be written down. Whatever goes wrong is left for the start.
        if kvm::remembered(paths).is_none() {
            let _ = Kvm::open(paths, host).await;
        }
    }
    let (read, mut write) = starter.into_split();
    let mut requests = FrameReader::new(read, REQUEST_BYTES);
    // The starter may leave before it asks for a start: nothing has happened then.
    let Some(begin) = serve::begin(&mut requests).await else {
        return;
    };
    let prepared = match prepare(paths, id, host) {
        Ok(prepared) => prepared,
        Err(e) => {
            let reply = Reply::Failed {
                code: CODE_BRIG,
                message: chain(&e),
            };
            let _ = frames::write(&mut write, &reply, FRAME_BYTES).await;
            return;
        }
    };
    let Prepared {
        mut config,
        directory,
        lock,
        ports,
        control,
        mut output,
    } = prepared;
    let (mut starter, mut begin, mut ports) = (Some((requests, write)), begin, Some(ports));
    let terminated = Terminated::watch();
    let mut farewells = JoinSet::new();
    let mut rests = Rests::default();
    let mut resting: Option<(Duration, Box<Exit>)> = None;
    // Its process is started again as long as its policy wants that.
    loop {
        if config.isolation == Isolation::Vm {
            host.confine(&config);
        }
        let (orders, order_queue) = mpsc::channel(ORDERS);
        let (phase, watched) = watch::channel(Phase::Starting(None));
        let stdin_once = config.stdin_once && !config.tty;
        let (service, stdin) = Service::new(orders.clone(), watched, output.clone(), stdin_once);
        if let Some((requests, write)) = starter.take() {
            service.clone().serve_starter(requests, write, begin);
        }
        let listening = tokio::task::spawn_local(service.clone().listen(Rc::clone(&control)));
        terminated.tell(orders.clone(), config.stop_signal.number());

        let mut life = Life::new(paths, host, &config, &directory, &output, order_queue, began_ns);
        let given_up = match resting.take() {
            Some((time, last)) => life.rest(time).await.map(|ender| (last, ender)),
            None => None,
        };
        let (end, ender, vmm) = match given_up {
            Some((last, ender)) => (End::Rested(last), ender, None),
            None => match ports.take().map_or_else(|| ports::bind_all(&config.ports), Ok) {
                Ok(ports) => {
                    let (end, vmm) = life.run(begin, ports, stdin, &phase, orders).await;
                    (end, life.ender(), vmm)
                }
                Err(e) => (failed(&e), Ender::Itself, None),
            },
        };
        drop(life);
        listening.abort();
        output.close();
        let ender = if terminated.has_come() { Ender::Host } else { ender };
        let mut discard = false;
        if let End::GivenUp { discard: wanted } = end {
            discard = wanted;
        }
        let next = match &end {
            End::Exited(exit) if !discard => start_again(&directory, &mut config, exit, ender),
            _ => None,
        };
        // What could not be opened again ends it.
        let reopened = next.map(|ran| open_output(&config, &directory).map(|output| (ran, output)));
        let Some(Ok((ran, reopened))) = reopened else {
            host.remove_socket(paths, id);
            if let End::Exited(exit) = &end {
                directory.note("die", &died(&directory, exit));
            }
            let unwanted = config.auto_remove || discard;
            if !unwanted || host.remove_sandbox(paths, id, &lock).is_err() {
                record(&directory, &end, ender);
            }
            // The kernel takes the guest down meanwhile.
            for mut vmm in vmm.into_iter().chain(host.unused()) {
                vmm.kill().await;
            }
            cgroups::forget_when_empty(id).await;
            drop(lock);
            phase.send_replace(Phase::Over(farewell(end)));
            service.finish(FAREWELL).await;
            break;
        };
        output = reopened;
        if let Some(mut vmm) = vmm {
            vmm.kill().await;
        }
        cgroups::forget_when_empty(id).await;
        if let End::Exited(exit) = &end {
            directory.note("die", &died(&directory, exit));
            if let Ok(state) = directory.read_state() {
                let rest = state.resting(jiff::Timestamp::now(), exit.code, exit.error.clone());
                let _ = directory.write_state(&rest);
            }
            resting = Some((rests.next(ran), exit.clone()));
        }
        begin = Begin::default();
        phase.send_replace(Phase::Over(farewell(end)));
        // A client that does not take what it is told keeps nobody from going on.
        farewells.spawn_local(async move { service.finish(FAREWELL).await });
    }
    while farewells.join_next().await.is_some() {}
}

fn failed(error: &Error) -> End {
    End::Failed {
        code: CODE_BRIG,
        message: chain(error),
    }
}

/// Whether the process is started again that has just ended: how long it has run, then. The configuration is read anew, as the policy
/// may be another one by now.
fn start_again(directory: &Directory, config: &mut Config, exit: &Exit, ender: Ender) -> Option<Duration> {
    if ender != Ender::Itself {
        return None;
    }
    if let Ok(now) = directory.read_config() {
        *config = now;
    }
    let state = directory.read_state().ok()?;
    let wanted = !config.auto_remove && config.options.restart.wants(exit.code, state.restarts);
    let ran = jiff::Timestamp::now().duration_since(state.started?);
    wanted.then(|| Duration::try_from(ran).unwrap_or_default())
}

/// Who takes an order, and the stop signal.
type Listener = Rc<RefCell<Option<(mpsc::Sender<Order>, u8)>>>;

/// The signal that tells a supervisor to end its process, at the host's shutdown.
struct Terminated {
    /// Who takes the order, and the stop signal.
    told: Listener,
    has_come: Rc<Cell<bool>>,
    task: JoinHandle<()>,
}

impl Terminated {
    fn watch() -> Self {
        let told = Listener::default();
        let has_come: Rc<Cell<bool>> = Rc::default();
        let (listener, come) = (Rc::clone(&told), Rc::clone(&has_come));
        let task = tokio::task::spawn_local(async move {
            let Ok(mut terminate) = signal(SignalKind::terminate()) else {
                return;
            };
            while terminate.recv().await.is_some() {
                come.set(true);
                let listener = listener.borrow().clone();
                if let Some((orders, signal)) = listener {
                    let _ = orders.send(stop_with_host(signal)).await;
                }
            }
        });
        Self { told, has_come, task }
    }

    /// The one who takes the order from now on.
    fn tell(&self, orders: mpsc::Sender<Order>, stop_signal: u8) {
        if self.has_come.get() {
            // It was for the last one, which had ended by itself.
            let _ = orders.try_send(stop_with_host(stop_signal));
        }
        self.told.replace(Some((orders, stop_signal)));
    }

    fn has_come(&self) -> bool {
        self.has_come.get()
    }
}

impl Drop for Terminated {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn stop_with_host(signal: u8) -> Order {
    Order::Stop {
        signal,
        timeout_s: Some(TERMINATED_TIMEOUT_S),
        ender: Ender::Host,
    }
}

/// Writes the end down.
fn record(directory: &Directory, end: &End, ender: Ender) {
    let Ok(state) = directory.read_state() else { return };
    let _ = directory.write_state(&last_state(&state, end).by(ender));
}

/// What is told of an end beside who it was.
fn died(directory: &Directory, exit: &Exit) -> Vec<(&'static str, String)> {
    let mut told = vec![("exitCode", exit.code.to_string())];
    if let Some(started) = directory.read_state().ok().and_then(|state| state.started) {
        let ran = jiff::Timestamp::now().duration_since(started).as_secs();
        told.push(("execDuration", ran.to_string()));
    }
    told
}

fn last_state(state: &State, end: &End) -> State {
    match end {
        End::Exited(exit) => state.exited(jiff::Timestamp::now(), exit.code, exit.error.clone()),
        End::Failed { code, message } => state.start_failed(*code, message.clone()),
        End::GivenUp { .. } => state.start_failed(CODE_BRIG, Error::Interrupted.to_string()),
        End::Rested(_) => state.rested(Ender::Itself),
    }
}

/// The last reply to every client.
fn farewell(end: End) -> Reply {
    match end {
        End::Exited(exit) | End::Rested(exit) => Reply::Exited(exit),
        End::Failed { code, message } => Reply::Failed { code, message },
        End::GivenUp { .. } => Reply::Exited(Box::new(Exit {
            code: CODE_BRIG,
            error: Some(Error::Interrupted.to_string()),
            ..Exit::default()
        })),
    }
}

#[cfg(test)]
mod tests;
