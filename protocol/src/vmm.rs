//! Commands from the supervisor to brig-vmm and events back: one message each on a [`crate::channel`].
//!
//! brig-vmm opens nothing: every file that it uses comes with a command, named in it by an [`FdIndex`], the position
//! among the file descriptors that travelled with that message.

use serde::{Deserialize, Serialize};

use crate::stream::HEADER_BYTES;

/// Position of a file descriptor among those that came with a message.
pub type FdIndex = u8;

/// Most file descriptors of one message (the kernel's `SCM_MAX_FD` is 253).
pub const FDS_MAX: usize = 200;

/// Most bytes of one message.
pub const MESSAGE_BYTES: usize = 64 << 10;

/// Most vCPUs of a guest.
pub const VCPUS_MAX: u8 = 32;

/// Least guest memory, in MiB.
pub const MEMORY_MIB_MIN: u32 = 64;

/// Most guest memory, in MiB.
pub const MEMORY_MIB_MAX: u32 = 256 << 10;

/// The descriptor number of the channel in a freshly started brig-vmm.
pub const CHANNEL_FD: i32 = 3;

/// From the supervisor to brig-vmm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Find out what kind of KVM this is. The one descriptor is `/dev/kvm`. Answered by [`Event::Probed`].
    Probe,
    /// Boot a guest, once in the life of a brig-vmm. Answered by [`Event::Booted`] or [`Event::Failed`]. `/dev/kvm` is
    /// descriptor 0 of the message.
    Boot(BootConfig),
    /// Connect a stream to a vsock port of the guest and move bytes between it and the one descriptor that comes along:
    /// a connected, non-blocking stream socket or one end of a pipe. The header is sent first. When the guest
    /// refuses, the descriptor is closed.
    Connect {
        /// Port in the guest.
        port: u32,
        /// First bytes for the guest, see [`crate::stream::StreamHeader`].
        header: [u8; HEADER_BYTES],
    },
}

/// A guest to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Guest memory in MiB, [`MEMORY_MIB_MIN`] to [`MEMORY_MIB_MAX`].
    pub memory_mib: u32,
    /// What kind of KVM [`Event::Probed`] said this is.
    pub kvm: KvmKind,
    /// An uncompressed ELF vmlinux.
    pub kernel: FdIndex,
    /// An initrd: a cpio archive.
    pub initrd: FdIndex,
    /// The write end of a pipe for the kernel's log, non-blocking; what does not fit is dropped.
    pub console: FdIndex,
    /// Added to the command line that brig-vmm makes itself.
    pub extra_command_line: String,
    /// Block devices: the first is `/dev/vda` in the guest.
    pub disks: Vec<DiskConfig>,
    /// Ports of the host that the guest may connect to, each once.
    pub listeners: Vec<ListenerConfig>,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// What the disk consists of, one after the other. Each starts at a multiple of 4,096 bytes of the disk; what
    /// is between the end of one and the start of the next reads as zeros. A writable disk has exactly one.
    pub segments: Vec<SegmentConfig>,
    /// Whether the guest may write to it. Enforced in the device; descriptors of read-only disks are also opened
    /// read-only.
    pub writable: bool,
}

/// A piece of a [`DiskConfig`]: a whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentConfig {
    /// The file.
    pub file: FdIndex,
    /// Bytes of the file, from its start.
    pub length: u64,
}

/// A vsock port of the host that the guest may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerConfig {
    /// The port.
    pub port: u32,
    /// The connected stream socket that the guest's one connection is joined with.
    pub socket: FdIndex,
}

/// The two kinds of KVM that brig runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvmKind {
    /// VMX or SVM runs the guest's kernel.
    Standard,
    /// The guest's kernel mode is interpreted by KVM's instruction emulator: workarounds are active.
    Emulated,
}

/// From brig-vmm to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Answer to [`Command::Probe`].
    Probed {
        /// What was found.
        kvm: KvmKind,
    },
    /// The vCPUs are about to run. Times are of `CLOCK_MONOTONIC`, in nanoseconds.
    Booted {
        /// When brig-vmm's `main` began.
        main_ns: u64,
        /// When the first vCPU was about to enter the kernel.
        entry_ns: u64,
        /// Whether workarounds for an emulated KVM are active.
        workarounds: bool,
    },
    /// The guest has stopped; brig-vmm ends after this.
    Stopped(StopReason),
    /// The command failed; brig-vmm ends after this. One line, causes included.
    Failed {
        /// What failed and why.
        message: String,
    },
}

/// Why a guest stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// It asked for a reset through the i8042 or by a triple fault: an orderly shutdown and a panic both end so.
    Reset,
    /// KVM or the emulation of an instruction failed. One line, registers included.
    VcpuFailed(String),
}
