//! Options of `run` and `create` beside those that everybody uses.

use std::net::IpAddr;

use brig_engine::options::{
    Capability, Device, ExtraHost, MountOption, SecurityOption, Swap, Sysctl, Tmpfs, Ulimit, VolumeOption,
    limit,
};
use clap::Args;

/// What a user may want of a sandbox.
#[derive(Debug, Args)]
pub struct Wishes {
    /// Mount a volume, which outlives the sandbox; a directory of the host's (container isolation): data:/data, data:/data:ro
    #[arg(short, long, value_name = "[NAME:]PATH[:ro]")]
    pub volume: Vec<VolumeOption>,
    /// Mount a volume, a tmpfs, or a directory of the host's: type=volume,source=data,target=/data,readonly
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub mount: Vec<MountOption>,
    /// Run an init that hands signals on and collects orphans
    #[arg(long)]
    pub init: bool,
    /// The root filesystem can only be read
    #[arg(long)]
    pub read_only: bool,
    /// Mount a filesystem in memory: /run, /tmp:size=64m,exec
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub tmpfs: Vec<Tmpfs>,
    /// Size of /dev/shm: 64m
    #[arg(long, value_name = "BYTES", value_parser = limit::shm)]
    pub shm_size: Option<u64>,
    /// Limit of each process: nofile=1024:4096, core=0
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<Ulimit>,
    /// Give the process a capability: NET_ADMIN, ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<Capability>,
    /// Take a capability away: CHOWN, ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<Capability>,
    /// no-new-privileges; seccomp=FILE, a profile in Docker's form; seccomp=unconfined
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<SecurityOption>,
    /// Give the process everything that its kernel has (with a guest: its own kernel)
    #[arg(long)]
    pub privileged: bool,
    /// Add the process to a group
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<ExtraHost>,
    /// Name a name server in /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,
    /// Look names up in this domain too
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option of the resolver
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// none: a sandbox has its loopback, and the ports that -p publishes
    #[arg(long, visible_alias = "net", value_name = "NETWORK", value_parser = super::unsupported::network)]
    pub network: Option<()>,
    /// Memory and swap together, -1 for no limit (container isolation)
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<Swap>,
    /// Share of CPU time where others want some: 1024 is everybody's (container isolation)
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    pub cpu_shares: Option<u64>,
    /// Let processes wait for memory instead of killing one (container isolation, cgroups of version 1)
    #[arg(long)]
    pub oom_kill_disable: bool,
    /// Where the output goes: json-file, the only one
    #[arg(long, value_name = "DRIVER", value_parser = ["json-file"])]
    pub log_driver: Option<String>,
    /// max-size=10m, max-file=3: how much of the output is kept
    #[arg(long, value_name = "NAME=VALUE")]
    pub log_opt: Vec<String>,
    /// size=20g: how much the sandbox can write (with a guest)
    #[arg(long, value_name = "NAME=VALUE")]
    pub storage_opt: Vec<String>,
    /// Set a setting of the kernel: net.core.somaxconn=1024
    #[arg(long, value_name = "NAME=VALUE")]
    pub sysctl: Vec<Sysctl>,
    /// Give it a device of the host's (container isolation)
    #[arg(long, value_name = "PATH[:PATH]")]
    pub device: Vec<Device>,
}
