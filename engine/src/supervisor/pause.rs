//! A sandbox that stands still. Of a guest the vCPUs do, by its VMM. Of a container each process is stopped (`SIGSTOP`), the
//! parents before their children and the other way round when they go on: so none of them sees that another one was
//! stopped, as a shell would.

use std::time::Duration;

use brig_protocol::vmm::Command;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::sleep;

use crate::{
    Isolation,
    guest::{Failure, Guest},
    sandbox::{Config, Directory},
    stats::{self, Process},
};

/// Why nothing else is done meanwhile.
pub(super) const PAUSED: &str = "it is paused: brig unpause lets it go on";

/// The keeper and the cell's init, which serve the supervisor.
const OWN: usize = 2;

/// How often, and after what rests, it is looked whether all have stopped: one may have made others before it did.
const ROUNDS: usize = 2000;
const REST: Duration = Duration::from_millis(5);

/// Whether a sandbox stands still.
#[derive(Debug)]
pub(super) struct Pause<'a> {
    config: &'a Config,
    directory: &'a Directory,
    is_on: bool,
}

impl<'a> Pause<'a> {
    /// Of a sandbox that runs.
    pub fn new(config: &'a Config, directory: &'a Directory) -> Self {
        Self {
            config,
            directory,
            is_on: false,
        }
    }

    /// Whether it stands still.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Lets it stand still, or go on. What is wrong with that is the inner error, and nothing has changed then.
    pub async fn set(&mut self, still: bool, guest: &mut Guest) -> Result<Result<(), String>, Failure> {
        if still == self.is_on {
            let what = if still {
                "it is paused already"
            } else {
                "it is not paused"
            };
            return Ok(Err(what.to_owned()));
        }
        let done = match (self.config.isolation, still) {
            (Isolation::Vm, true) => guest.stand_still().await?,
            (Isolation::Vm, false) => {
                if guest.vmm.channel.send(&Command::Resume, &[]).await.is_err() {
                    return Err(guest.last_event().await);
                }
                Ok(())
            }
            (Isolation::Container, true) => stop_all(guest.vmm.pid()).await,
            (Isolation::Container, false) => {
                continue_all(guest.vmm.pid());
                Ok(())
            }
        };
        if done.is_ok() {
            self.is_on = still;
            // One that cannot be written (a full disk) is wrong until the sandbox goes on.
            if let Ok(mut state) = self.directory.read_state() {
                state.paused = still;
                let _ = self.directory.write_state(&state);
            }
        }
        Ok(done)
    }

    /// Whether the agent stands still too, as all of a guest does.
    pub fn holds_agent(&self) -> bool {
        self.is_on && self.config.isolation == Isolation::Vm
    }

    /// Lets it go on, if it stands still: it is to hear a signal.
    pub async fn end(&mut self, guest: &mut Guest) {
        if self.is_on {
            // A guest that has failed says so elsewhere.
            let _ = self.set(false, guest).await;
        }
    }
}

/// The sandbox's processes, parents before their children.
fn processes(keeper: Option<u32>) -> Vec<Process> {
    let mut all = keeper.map(stats::tree).unwrap_or_default();
    all.drain(..OWN.min(all.len()));
    all
}

async fn stop_all(keeper: Option<u32>) -> Result<(), String> {
    for _ in 0..ROUNDS {
        let running: Vec<Process> = processes(keeper)
            .into_iter()
            .filter(|process| !matches!(process.state, 'T' | 't' | 'Z' | 'X'))
            .collect();
        if running.is_empty() {
            return Ok(());
        }
        for process in &running {
            send(process, Signal::STOP);
        }
        // One that is in the kernel stops when it comes out.
        sleep(REST).await;
    }
    continue_all(keeper);
    Err("its processes do not stop".to_owned())
}

fn continue_all(keeper: Option<u32>) {
    for process in processes(keeper).iter().rev() {
        send(process, Signal::CONT);
    }
}

/// One that has ended needs none, and its pid may be another's.
fn send(process: &Process, signal: Signal) {
    if let Some(pid) = Pid::from_raw(process.pid as i32)
        && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
        && Process::read(process.pid).is_some_and(|now| now.parent == process.parent)
    {
        let _ = pidfd_send_signal(pidfd, signal);
    }
}
