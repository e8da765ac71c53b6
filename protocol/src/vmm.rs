//! Commands from the supervisor to brig-vmm and events back: one message each on a [`crate::channel`].
//!
//! brig-vmm opens nothing: every file that it uses comes with a command, named in it by an [`FdIndex`], the position
//! among the file descriptors that travelled with that message.

use std::num::NonZeroU64;

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

/// Bytes that a guest is told an empty slot for a disk has: 16 TiB, more than any disk that will be put there.
pub const SLOT_BYTES: u64 = 16 << 40;

/// The descriptor number of the channel in a freshly started brig-vmm: its standard input, so that it can be started without
/// a fork.
pub const CHANNEL_FD: i32 = 0;

/// From the supervisor to brig-vmm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Find out what kind of KVM this is. The one descriptor is `/dev/kvm`. Answered by [`Event::Probed`].
    Probe,
    /// Boot a guest, once in the life of a brig-vmm. Answered by [`Event::Booted`] or [`Event::Failed`]. `/dev/kvm` is
    /// descriptor 0 of the message.
    Boot(BootConfig),
    /// In place of a boot: go on where a guest was saved. Answered by [`Event::Restored`] or [`Event::Failed`].
    /// `/dev/kvm` is descriptor 0 of the message.
    Restore(RestoreConfig),
    /// Map the memory that a guest is likely to be restored from, with the pages that a start touches: a [`Command::Restore`]
    /// with the same files then has this done. Unanswered; what goes wrong is left for the restore. Descriptors 0 and 1 are the
    /// files of [`RestoreConfig::memory`] and [`RestoreConfig::prefetch`].
    MapAhead,
    /// Stop the guest between two instructions and save it. Answered by [`Event::Saved`] or [`Event::SaveFailed`]; the guest
    /// stands still from then on. Descriptor 0 is an empty file for the guest's memory, which becomes a sparse file as
    /// long as the memory, descriptor 1 an empty file for everything else.
    Save,
    /// Let its vCPUs stand still between two instructions, until [`Command::Resume`]. Answered by [`Event::Paused`] or
    /// [`Event::PauseFailed`].
    Pause,
    /// Let a guest that was saved or stands still run on. Unanswered.
    Resume,
    /// Write down which pages of a restored guest have been touched, for [`RestoreConfig::prefetch`] of the next one. Answered by
    /// [`Event::Recorded`]. Descriptor 0 is the process's own `/proc/PID/pagemap`, descriptor 1 an empty file.
    RecordPages,
    /// Tell what the guest has cost so far. Answered by [`Event::Counted`].
    Count,
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
    /// How fast they are.
    pub io: IoLimits,
    /// Ports of the host that the guest may connect to, each once.
    pub listeners: Vec<ListenerConfig>,
}

/// How much a guest may do with all of its disks together in a second; `None` is as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimits {
    /// Bytes read.
    pub read_bytes: Option<NonZeroU64>,
    /// Bytes written.
    pub write_bytes: Option<NonZeroU64>,
    /// Reads.
    pub read_operations: Option<NonZeroU64>,
    /// Writes, flushes and discards.
    pub write_operations: Option<NonZeroU64>,
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
    /// Bytes that the guest is told the disk has, a multiple of 512; `None`: as many as it has. A guest that is to be
    /// saved with an empty slot (no segments) is told [`SLOT_BYTES`], so that nothing changes for it when a restore puts
    /// a disk there: a request past the disk's real end fails.
    pub shown_bytes: Option<u64>,
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

/// A saved guest that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreConfig {
    /// What kind of KVM [`Event::Probed`] said this is.
    pub kvm: KvmKind,
    /// The memory that [`Command::Save`] wrote, open for reading. It must stay as it is as long as the guest runs; the
    /// guest's writes do not reach it.
    pub memory: FdIndex,
    /// The other file that it wrote.
    pub state: FdIndex,
    /// As [`BootConfig::console`].
    pub console: FdIndex,
    /// As many as the saved guest had. One that is not writable may be where it had a writable one: what it writes fails.
    pub disks: Vec<DiskConfig>,
    /// How fast they are.
    pub io: IoLimits,
    /// The connections of the saved guest that go on with a new host end. All others are reset; what the saved guest had
    /// sent on one that goes on, and its host end had not taken, comes first.
    pub streams: Vec<RejoinConfig>,
    /// What [`Command::RecordPages`] wrote: pages to map while the guest begins to run. What cannot be used is ignored, as
    /// the guest's own accesses map what is missing.
    pub prefetch: Option<FdIndex>,
}

/// A connection of a saved guest that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejoinConfig {
    /// Which one.
    pub stream: SavedStream,
    /// Its new host end, as in [`Command::Connect`] and [`ListenerConfig`].
    pub socket: FdIndex,
}

/// How a connection is told from the others after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedStream {
    /// The one that the guest opened to this port of the host.
    ToHost {
        /// Port of the host.
        port: u32,
    },
    /// The one that [`Command::Connect`] opened with this header. Of several with the same, the first.
    ToGuest {
        /// See [`crate::stream::StreamHeader`].
        header: [u8; HEADER_BYTES],
    },
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
    /// The vCPUs of a saved guest are about to run on.
    Restored {
        /// When brig-vmm's `main` began, in nanoseconds of `CLOCK_MONOTONIC`.
        main_ns: u64,
        /// When the first vCPU was about to enter the guest, likewise.
        entry_ns: u64,
        /// Whether workarounds for an emulated KVM are active.
        workarounds: bool,
        /// The guest's time stamp counter, as a program in it reads it, at an instant …
        tsc: u64,
        /// … and the host's `CLOCK_REALTIME` at that instant, in nanoseconds.
        realtime_ns: u64,
        /// Frequency of that counter.
        tsc_khz: u32,
    },
    /// Answer to [`Command::Save`].
    Saved {
        /// Bytes of memory that are not holes in the file.
        memory_bytes: u64,
    },
    /// Answer to a [`Command::Save`] that could not be carried out. The guest stands still and can be resumed; what the files
    /// hold is of no use.
    SaveFailed {
        /// What failed and why, one line.
        message: String,
    },
    /// Answer to [`Command::Pause`].
    Paused,
    /// Answer to a [`Command::Pause`] that could not be carried out. The guest runs on.
    PauseFailed {
        /// What failed and why, one line.
        message: String,
    },
    /// Answer to [`Command::RecordPages`].
    Recorded {
        /// Pages that were found; `None` when they could not be written down, which harms nothing.
        pages: Option<u64>,
    },
    /// Answer to [`Command::Count`].
    Counted(Counters),
    /// The guest has stopped; brig-vmm ends after this.
    Stopped(StopReason),
    /// The command failed; brig-vmm ends after this. One line, causes included.
    Failed {
        /// What failed and why.
        message: String,
    },
    /// The same, for want of memory, descriptors or threads that the host does not give: what the guest was to be made of is not to blame.
    Refused {
        /// What failed and why.
        message: String,
    },
}

/// What a guest has cost since its brig-vmm began: of all its vCPUs, as KVM counts it (zero where KVM does not count), and
/// of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Times that a vCPU left the guest, whether KVM or brig-vmm handled it.
    pub exits: u64,
    /// Accesses to ports that brig-vmm answered.
    pub io_exits: u64,
    /// Accesses to registers in memory that brig-vmm answered.
    pub mmio_exits: u64,
    /// Times that a vCPU had nothing to do.
    pub halts: u64,
    /// Interrupts that were delivered.
    pub interrupts: u64,
    /// Instructions that KVM carried out itself: on an emulated KVM all of the guest's kernel.
    pub emulated_instructions: u64,
    /// Pages that were mapped for the guest when it touched them.
    pub guest_faults: u64,
    /// Page faults of the process that needed no I/O (getrusage(2), `ru_minflt`), those for guest memory among them.
    pub minor_faults: u64,
    /// Page faults that did (`ru_majflt`).
    pub major_faults: u64,
    /// Times that a thread of the process waited (`ru_nvcsw`).
    pub waits: u64,
}

/// Why a guest stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// It asked for a reset through the i8042: an orderly shutdown and a panic both end so.
    Reset,
    /// KVM or the emulation of an instruction failed, or the guest's kernel could not even take an exception any more (a triple
    /// fault). One line, registers included.
    VcpuFailed(String),
}
