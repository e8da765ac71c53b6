//! What a sandbox is: decided when it is created, never changed afterwards (`config.json`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::health::HealthConfig;
use crate::{
    Error, Isolation, SandboxId,
    cell::cgroups,
    device_rate::DeviceRates,
    options::{HostOptions, Swap},
    port::PublishedPort,
    resources::{Cpus, MemoryMib},
    signal::Signal,
    volume::VolumeMount,
};

/// Seconds between the stop signal and SIGKILL when nobody says: Docker's.
const STOP_TIMEOUT_S: i32 = 10;

/// Version of the layout of a sandbox's directory.
pub const VERSION: u32 = 1;

/// Limits of a sandbox on the host's kernel: a guest has what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all its processes.
    pub memory: Option<MemoryMib>,
    /// CPU time.
    pub cpus: Option<Cpus>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Memory and swap together.
    #[serde(default)]
    pub swap: Option<Swap>,
    /// Its share of CPU time where others want some too: 1024 is everybody's.
    #[serde(default)]
    pub cpu_shares: Option<u64>,
    /// Whether its processes wait for memory where the kernel would kill one.
    #[serde(default)]
    pub oom_kill_disable: bool,
}

impl Limits {
    /// Checks them against each other, and against what the isolation, this host and its kind of cgroups have.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::MemoryTooSmall`], [`Error::MemoryTooLarge`], [`Error::MemoryOfHost`].
    pub fn check(&self, isolation: Isolation) -> Result<(), Error> {
        match (self.swap, self.memory) {
            (Some(Swap::Total(_)), None) => {
                return Err(Error::option(
                    "--memory-swap",
                    "it needs --memory, of which it is a part",
                ));
            }
            (Some(Swap::Total(total)), Some(memory)) if total < memory => {
                return Err(Error::option(
                    "--memory-swap",
                    "it is memory and swap together: not less than --memory",
                ));
            }
            _ => {}
        }
        match isolation {
            Isolation::Vm => self.check_guest(),
            Isolation::Container => cgroups::check(self),
        }
    }

    fn check_guest(&self) -> Result<(), Error> {
        self.memory.unwrap_or(MemoryMib::DEFAULT).check_host()?;
        if self
            .swap
            .is_some_and(|swap| Some(swap) != self.memory.map(Swap::Total))
        {
            return Err(Error::option(
                "--memory-swap",
                "a guest has no swap: give it as much as --memory, or use --isolation container",
            ));
        }
        if self.cpu_shares.is_some() {
            return Err(Error::option(
                "--cpu-shares",
                "guests share the CPUs equally: use --cpus, or --isolation container",
            ));
        }
        if self.oom_kill_disable {
            return Err(Error::option(
                "--oom-kill-disable",
                "a guest's kernel has to kill something when its memory is full: use --memory",
            ));
        }
        Ok(())
    }
}

/// What a sandbox is made with. Names can be given anew, and what `update` changes; everything else stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// [`VERSION`] of the brig that made it.
    pub version: u32,
    /// Its id.
    pub id: SandboxId,
    /// Its name, unique among all sandboxes of the root.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The image's id, `sha256:…`.
    pub image_id: String,
    /// The image as the user wrote it.
    pub image: String,
    /// The program of the image's or the user's entrypoint, part of `args`.
    pub entrypoint: Vec<String>,
    /// The arguments of the image's or the user's command, part of `args`.
    pub command: Vec<String>,
    /// `NAME=value` entries of the first process.
    pub env: Vec<String>,
    /// Absolute working directory of the first process.
    pub working_dir: String,
    /// User of the first process, as in an image's `User`.
    pub user: String,
    /// Hostname.
    pub hostname: String,
    /// Whether the first process has a standard input.
    pub stdin: bool,
    /// Whether standard input ends when the first client leaves that is attached to it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Whether the first process has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// What it is walled off by.
    #[serde(default)]
    pub isolation: Isolation,
    /// What the user limits of a sandbox without a guest.
    #[serde(default)]
    pub limits: Limits,
    /// How fast it may read and write.
    #[serde(default)]
    pub device_rates: DeviceRates,
    /// Guest memory.
    pub memory: MemoryMib,
    /// CPU time.
    pub cpus: Cpus,
    /// Ports to publish.
    pub ports: Vec<PublishedPort>,
    /// Ports that the image exposes, such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// The signal that `stop` sends.
    pub stop_signal: Signal,
    /// Whether the sandbox is removed when its first process ends.
    pub auto_remove: bool,
    /// Whether its guest always boots, template or not.
    #[serde(default)]
    pub no_template: bool,
    /// The snapshot that its process goes on from at its first start.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// How it is found out whether it is well.
    #[serde(default)]
    pub health: Option<HealthConfig>,
    /// Paths at which the image wants volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Volumes and directories of the host's.
    #[serde(default)]
    pub mounts: Vec<VolumeMount>,
    /// What the user wants beside that.
    #[serde(default)]
    pub options: HostOptions,
    /// Labels of the image and the user.
    pub labels: BTreeMap<String, String>,
}

impl Config {
    /// The program and arguments of the first process.
    pub fn args(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.command).cloned().collect()
    }

    /// Seconds that its process has after the stop signal when `wanted` is what the user says now; `None` for ever.
    pub fn stop_timeout(&self, wanted: Option<i32>) -> Option<u32> {
        let seconds = wanted.or(self.options.stop_timeout).unwrap_or(STOP_TIMEOUT_S);
        u32::try_from(seconds).ok()
    }
}
