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
//! | [`walls`] | what it gives up at its start |
//!
//! Everything runs in one thread.

mod ahead;
mod enter;
mod exec;
mod health;
mod life;
mod output;
mod pause;
mod ports;
mod resume;
mod save;
mod serve;
mod start;
mod walls;

use std::{fs::OpenOptions, os::fd::OwnedFd, time::Duration};

use brig_protocol::spec::WindowSize;
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::LocalSet,
};

pub use self::ahead::Likely;
use self::{
    ahead::Ahead,
    exec::ExecOrder,
    life::{End, Life},
    output::Output,
    serve::{Phase, Service},
};
pub(crate) use self::{enter::make_layer, start::Streams};
use crate::{
    Error, Isolation, Paths, SandboxId,
    cell::cgroups,
    clock::monotonic_ns,
    control::{self, Exit, FRAME_BYTES, REQUEST_BYTES, Reply, SavedSandbox},
    error::{CODE_BRIG, chain},
    frames::{self, FrameReader},
    host::Host,
    log::LogWriter,
    sandbox::{Config, Directory, Registry, State, lock::Lock},
};

/// What a supervisor that is told to end itself (SIGTERM, at the host's shutdown) leaves its process, in seconds.
const TERMINATED_TIMEOUT_S: u32 = 10;

/// Most orders that wait for the life of the guest to take them.
const ORDERS: usize = 16;

/// How long replies may take to reach clients that only wait; attached clients get the time that they need.
const FAREWELL: Duration = Duration::from_secs(2);

/// How often, and after what rests, it is looked whether the cgroups of a sandbox that has ended are empty.
const EMPTY_ROUNDS: usize = 50;
const EMPTY_REST: Duration = Duration::from_millis(10);

/// What clients want of the guest.
#[derive(Debug)]
enum Order {
    /// Send a signal to the process.
    Signal(u8),
    /// Send a signal, and SIGKILL later.
    Stop { signal: u8, timeout_s: Option<u32> },
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
    if matches!(likely, Likely::Vm(_)) {
        walls::build()?;
    }
    brig_image_store::removal::set_helper(crate::cell::empty);
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
    control: UnixListener,
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
        let log = LogWriter::open(&directory.log()).map_err(Error::file("open", &directory.log()))?;
        Ok((ports, Output::new(log), control::bind(&paths.runtime, id)?))
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
    if let Likely::Vm(Some(shape)) = likely {
        host.map(paths, shape).await;
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
        config,
        directory,
        lock,
        ports,
        control,
        output,
    } = prepared;
    if config.isolation == Isolation::Vm {
        host.confine(&config);
    }
    let (orders, order_queue) = mpsc::channel(ORDERS);
    let (phase, watched) = watch::channel(Phase::Starting(None));
    let stdin_once = config.stdin_once && !config.tty;
    let (service, stdin) = Service::new(orders.clone(), watched, output.clone(), stdin_once);
    service.clone().serve_starter(requests, write, begin);
    let listening = tokio::task::spawn_local(service.clone().listen(control));
    let terminated = tokio::task::spawn_local(stop_on_sigterm(orders.clone(), config.stop_signal.number()));

    let mut discard = false;
    let mut life = Life::new(paths, host, &config, &directory, &output, order_queue, began_ns);
    let (end, vmm) = life.run(begin, ports, stdin, &phase, orders).await;
    if let End::GivenUp { discard: wanted } = end {
        discard = wanted;
    }
    listening.abort();
    terminated.abort();
    output.close();
    let _ = std::fs::remove_file(control::socket_path(&paths.runtime, id));
    record(paths, &config, &directory, &lock, &end, discard);
    // The kernel takes the guest down meanwhile.
    if let Some(mut vmm) = vmm {
        vmm.kill().await;
    }
    // One that was given up while it was put into them ends by itself.
    for _ in 0..EMPTY_ROUNDS {
        if cgroups::forget(id) {
            break;
        }
        tokio::time::sleep(EMPTY_REST).await;
    }
    drop(lock);
    phase.send_replace(Phase::Over(farewell(end)));
    service.finish(FAREWELL).await;
}

async fn stop_on_sigterm(orders: mpsc::Sender<Order>, stop_signal: u8) {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    while terminate.recv().await.is_some() {
        let stop = Order::Stop {
            signal: stop_signal,
            timeout_s: Some(TERMINATED_TIMEOUT_S),
        };
        let _ = orders.send(stop).await;
    }
}

/// Writes the end down, or removes the sandbox when nobody wants it any more.
fn record(paths: &Paths, config: &Config, directory: &Directory, lock: &Lock, end: &End, discard: bool) {
    if let End::Exited(exit) = end {
        directory.note("die", &died(directory, exit));
    }
    if config.auto_remove || discard {
        let _ = Registry::new(paths.sandboxes()).remove(&config.id, lock);
        return;
    }
    let Ok(state) = directory.read_state() else { return };
    let _ = directory.write_state(&last_state(&state, end));
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
    }
}

/// The last reply to every client.
fn farewell(end: End) -> Reply {
    match end {
        End::Exited(exit) => Reply::Exited(exit),
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
