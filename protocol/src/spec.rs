//! What to run and how to wall it off: the part of the OCI runtime specification's `config.json` that brig needs,
//! as data that the agent and the launcher take.

use serde::{Deserialize, Serialize};

/// One process to start in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments. The program is looked up in the `PATH` of `env` inside of the root
    /// filesystem when it has no slash. Never empty.
    pub args: Vec<String>,
    /// `NAME=value` entries. `HOME` is added from the image's passwd when it is missing, `PATH` and `HOSTNAME`
    /// are the engine's to add.
    pub env: Vec<String>,
    /// Absolute working directory inside of the root filesystem; made when it is missing.
    pub cwd: String,
    /// As in an image's `User`: ``, `name`, `uid`, `name:group`, `uid:gid` …, looked up in the image's own
    /// `/etc/passwd` and `/etc/group`.
    pub user: String,
    /// Supplementary groups beside those that the image gives the user: names or numbers.
    pub groups: Vec<String>,
    /// Bounding and permitted set; a user other than root has none of them after the exec.
    pub capabilities: CapabilitySet,
    /// Sets `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// What the process may ask of the kernel.
    pub seccomp: Seccomp,
    /// Whether an init of brig's runs the program as its child, hands signals on to it and collects orphans.
    pub init: bool,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Whether a [`crate::stream::StreamHeader::Stdin`] connection will come; without it standard input is
    /// `/dev/null`, or a terminal on which nobody types.
    pub stdin: bool,
    /// With a terminal of this size for its three streams. What it writes comes as
    /// [`crate::stream::StreamHeader::Stdout`] then, and there is no stream for standard error.
    pub tty: Option<WindowSize>,
}

/// A filter of system calls (seccomp(2)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// That of the isolation: none in a guest, as Docker's on the host's kernel.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// A program of classic BPF.
    Program(Vec<BpfInstruction>),
}

/// An instruction of classic BPF (linux/filter.h, `struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BpfInstruction {
    /// What it does.
    pub code: u16,
    /// Instructions to pass over when a comparison holds.
    pub jt: u8,
    /// The same when it does not.
    pub jf: u8,
    /// Its constant.
    pub k: u32,
}

/// The size of a terminal in characters; zeros where nobody knows it (`ioctl_tty(2)`, `TIOCSWINSZ`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// The sandbox around its first process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The sandbox's id, 64 hex digits.
    pub id: String,
    /// Hostname in the new UTS namespace.
    pub hostname: String,
    /// Where the root filesystem comes from.
    pub root: RootSpec,
    /// What is mounted over the root filesystem, in this order.
    pub mounts: Vec<MountSpec>,
    /// Files of the engine's that are bound over the image's: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`,
    /// `/etc/machine-id`.
    pub files: Vec<FileSpec>,
    /// Absolute paths of directories that are made where the image has nothing: it wants volumes there.
    pub directories: Vec<String>,
    /// Paths that are hidden: a directory behind an empty read-only tmpfs, a file behind `/dev/null`.
    pub masked_paths: Vec<String>,
    /// Paths that are made read-only.
    pub readonly_paths: Vec<String>,
    /// Limits of the sandbox's cgroup.
    pub cgroup: CgroupSpec,
    /// What only some sandboxes have.
    pub extras: Extras,
    /// The sandbox's first process.
    pub process: ProcessSpec,
}

/// What a user wants beside what every sandbox has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extras {
    /// What is mounted after everything else, in this order.
    pub mounts: Vec<UserMount>,
    /// Kernel settings: the file below `/proc/sys`, the value.
    pub sysctls: Vec<(String, String)>,
    /// Whether the root filesystem and the engine's files can only be read.
    pub read_only: bool,
    /// Whether device nodes can be made and opened, and all of the kernel's are there. On a kernel of its own only.
    pub all_devices: bool,
    /// Devices of the host's: the path at which each is to be. The caller has them in [`HOST_DEVICES`], under their
    /// positions.
    pub devices: Vec<String>,
}

/// Where the caller of the launcher has the devices of the host's that a sandbox gets.
pub const HOST_DEVICES: &str = "/dev/host";

/// A filesystem that the user mounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserMount {
    /// A new one. A tmpfs whose options say no mode has that of the directory that it covers, or 1777.
    New(MountSpec),
    /// Files that outlive the sandbox.
    Volume(VolumeSpec),
}

/// Files that outlive a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Where they come from.
    pub source: VolumeSource,
    /// Absolute path inside of the root filesystem; made when it is missing.
    pub target: String,
    /// Whether they can only be read.
    pub read_only: bool,
    /// Whether they become what the image has at the target, when there are none.
    pub copy: bool,
}

/// Where a volume comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// The directory of this name on the ext4 filesystem of a disk.
    Disk {
        /// The disk's position.
        disk: u8,
        /// The directory.
        directory: String,
    },
    /// What the caller has in [`HOST_VOLUMES`], under this number: a directory, or a file.
    Host(u8),
}

/// Where the caller of the launcher has the volumes that a sandbox gets on the host's kernel.
pub const HOST_VOLUMES: &str = "/volumes";

/// Where a root filesystem comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootSpec {
    /// In a guest: an EROFS image on one virtio block device, with an overlay whose upper layer is the ext4
    /// filesystem on another. Numbers are positions in [`crate::vmm::BootConfig::disks`].
    Disks {
        /// The read-only EROFS image.
        image: u8,
        /// The writable ext4 filesystem.
        writable: u8,
    },
    /// A directory that the caller has made ready.
    Directory {
        /// Its path.
        path: String,
    },
    /// On the host's kernel, in a user namespace: the image's directory and the one for the writable layer are mounted in
    /// their places already.
    Cell,
}

/// A filesystem to mount inside of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path inside of the root filesystem; made when it is missing.
    pub target: String,
    /// Filesystem type: `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue`, `cgroup2`.
    pub kind: String,
    /// What stands in the first column of `/proc/mounts`.
    pub source: String,
    /// `mount(8)` options: `nosuid`, `noexec`, `nodev`, `ro`, `relatime`, and those of the filesystem (`size=64m`).
    pub options: Vec<String>,
}

/// A small file with content that the engine chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Absolute path inside of the root filesystem.
    pub path: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// For which images.
    pub images: FileImages,
}

/// Which images get a [`FileSpec`] over what they have at its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileImages {
    /// All; the file is made where it is missing.
    #[default]
    All,
    /// Those that have a regular file there, as an image with links followed inside of it alone. What the writable layer
    /// has there does not count.
    WithFile,
}

/// Limits of a cgroup; zero means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSpec {
    /// `cpu.max`: microseconds of CPU time in each period of 100,000 µs.
    pub cpu_quota_us: u64,
    /// `pids.max`.
    pub pids_max: u64,
    /// `memory.max` in bytes.
    pub memory_max: u64,
}

/// A resource limit, see getrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The number of the resource (`RLIMIT_NOFILE` is 7).
    pub resource: u8,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// The names of resource limits as `--ulimit` takes them, in the order of their numbers (asm-generic/resource.h).
pub const RESOURCES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// A set of capabilities, bit N standing for capability number N (capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySet(pub u64);

impl CapabilitySet {
    /// Docker's default: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE,
    /// NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP
    /// (moby, `daemon/pkg/oci/caps/defaults.go`).
    pub const DOCKER_DEFAULT: Self = Self(
        1 | 1 << 1
            | 1 << 3
            | 1 << 4
            | 1 << 5
            | 1 << 6
            | 1 << 7
            | 1 << 8
            | 1 << 10
            | 1 << 13
            | 1 << 18
            | 1 << 27
            | 1 << 29
            | 1 << 31,
    );
}

impl SandboxSpec {
    /// The filesystems that Docker mounts in every container, in its order.
    pub fn default_mounts(shm_bytes: u64) -> Vec<MountSpec> {
        let mount = |target: &str, kind: &str, source: &str, options: &[&str]| MountSpec {
            target: target.into(),
            kind: kind.into(),
            source: source.into(),
            options: options.iter().map(|&o| o.into()).collect(),
        };
        let shm_size = format!("size={shm_bytes}");
        vec![
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount(
                "/dev",
                "tmpfs",
                "tmpfs",
                &["nosuid", "strictatime", "mode=755", "size=65536k"],
            ),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5",
                ],
            ),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount(
                "/sys/fs/cgroup",
                "cgroup2",
                "cgroup",
                &["ro", "nosuid", "noexec", "nodev"],
            ),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", &shm_size],
            ),
        ]
    }

    /// The paths that Docker hides by default (moby, `daemon/pkg/oci/defaults.go`).
    pub fn default_masked_paths() -> Vec<String> {
        [
            "/proc/acpi",
            "/proc/asound",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/sys/devices/virtual/powercap",
            "/sys/firmware",
        ]
        .map(String::from)
        .to_vec()
    }

    /// The paths that Docker makes read-only by default.
    pub fn default_readonly_paths() -> Vec<String> {
        [
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ]
        .map(String::from)
        .to_vec()
    }
}
