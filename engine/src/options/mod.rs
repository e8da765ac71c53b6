//! What a user wants of a sandbox beside its image and its command: Docker's options of `run`, read, checked against the isolation,
//! and turned into what the agent takes.
//!
//! | module | options |
//! |---|---|
//! | [`capability`] | `--cap-add`, `--cap-drop`, `--privileged` |
//! | [`limit`] | `--ulimit`, `--memory-swap`, `--log-opt`, `--storage-opt` |
//! | [`mount`] | `--tmpfs`, `--device` |
//! | [`name`] | `--add-host`, `--dns`, `--sysctl` |
//! | [`restart`] | `--restart` |
//! | [`seccomp`] | `--security-opt` |
//! | [`volume`] | `--volume`, `--mount` |

pub mod capability;
pub mod limit;
pub mod mount;
pub mod name;
pub mod restart;
pub mod seccomp;
pub mod volume;

use std::net::IpAddr;

use brig_protocol::spec::CapabilitySet;
use serde::{Deserialize, Serialize};

pub use self::{
    capability::Capability,
    limit::{LogOptions, Swap, Ulimit},
    mount::{Device, Tmpfs},
    name::{ExtraHost, Sysctl},
    restart::RestartPolicy,
    seccomp::{SeccompOption, SecurityOption},
    volume::{MountOption, VolumeOption},
};
use crate::{Error, Isolation};

/// Most entries of a list that a user gives.
const ENTRIES: usize = 256;

/// The options, as `config.json` keeps them. The default is what a sandbox has whose user says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostOptions {
    /// What happens when the process has ended.
    pub restart: RestartPolicy,
    /// Seconds until SIGKILL when `stop` does not say; negative for ever.
    pub stop_timeout: Option<i32>,
    /// Whether an init of brig's runs the process.
    pub init: bool,
    /// Whether the root filesystem can only be read.
    pub read_only: bool,
    /// Filesystems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Bytes of `/dev/shm`.
    pub shm_bytes: Option<u64>,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// Capabilities beside Docker's.
    pub cap_add: Vec<Capability>,
    /// Capabilities that are taken away.
    pub cap_drop: Vec<Capability>,
    /// Whether the process has everything that its kernel can give.
    pub privileged: bool,
    /// Whether programs cannot gain privileges.
    pub no_new_privileges: bool,
    /// Which system calls there are.
    pub seccomp: SeccompOption,
    /// Further groups of the process.
    pub groups: Vec<String>,
    /// Further lines of `/etc/hosts`.
    pub hosts: Vec<ExtraHost>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domains in which names are looked up.
    pub dns_search: Vec<String>,
    /// Options of the resolver.
    pub dns_options: Vec<String>,
    /// What becomes of the log.
    pub log: LogOptions,
    /// Bytes of the writable layer.
    pub storage_bytes: Option<u64>,
    /// Settings of the kernel.
    pub sysctls: Vec<Sysctl>,
    /// Devices of the host's.
    pub devices: Vec<Device>,
}

impl HostOptions {
    /// Checks what does not depend on one option alone.
    ///
    /// # Errors
    /// [`Error::Option`] with what this isolation cannot do, or what contradicts something else.
    pub fn check(&self, isolation: Isolation) -> Result<(), Error> {
        let lists = [
            self.tmpfs.len(),
            self.ulimits.len(),
            self.cap_add.len(),
            self.cap_drop.len(),
            self.groups.len(),
            self.hosts.len(),
            self.dns.len(),
            self.dns_search.len(),
            self.dns_options.len(),
            self.sysctls.len(),
            self.devices.len(),
        ];
        if lists.into_iter().any(|count| count > ENTRIES) {
            return Err(Error::option(
                "an option is given more often",
                format!("than {ENTRIES} times"),
            ));
        }
        for domain in self.dns_search.iter().chain(&self.dns_options) {
            name::check_resolver_word(domain)?;
        }
        for group in &self.groups {
            if group.is_empty() || group.contains(['\0', ':', '\n']) {
                return Err(Error::option("--group-add", format!("{group:?} is no group")));
            }
        }
        match isolation {
            Isolation::Vm => self.check_in_guest(),
            Isolation::Container => self.check_on_host(),
        }
    }

    fn check_in_guest(&self) -> Result<(), Error> {
        if let Some(device) = self.devices.first() {
            return Err(Error::option(
                "--device",
                format!(
                    "a guest has no devices of the host's, so {} cannot be in it: use --isolation container",
                    device.host
                ),
            ));
        }
        Ok(())
    }

    fn check_on_host(&self) -> Result<(), Error> {
        if self.privileged {
            return Err(Error::option(
                "--privileged",
                "on the host's kernel a process gets no such rights: use --isolation vm, where the kernel is the sandbox's own",
            ));
        }
        if self.storage_bytes.is_some() {
            return Err(Error::option(
                "--storage-opt",
                "the size of a directory cannot be limited: use --isolation vm",
            ));
        }
        capability::check_on_host(&self.cap_add)?;
        name::check_sysctls_on_host(&self.sysctls)?;
        limit::check_ulimits_on_host(&self.ulimits)?;
        self.devices.iter().try_for_each(Device::check)
    }

    /// The capabilities of the process.
    pub fn capabilities(&self) -> CapabilitySet {
        if self.privileged {
            return CapabilitySet(u64::MAX);
        }
        capability::set(&self.cap_add, &self.cap_drop)
    }
}
