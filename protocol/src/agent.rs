//! Messages on the control connection between the supervisor and the agent, each one [`crate::frame`].
//!
//! The agent connects to [`crate::stream::CONTROL_PORT`] of the host as soon as it is up and says
//! [`FromAgent::Hello`]. What an agent says is untrusted: the supervisor bounds it by [`FROM_AGENT_BYTES`] and takes
//! nothing in it for a path.

use serde::{Deserialize, Serialize};

use crate::{
    spec::{FileSpec, ProcessSpec, RootSpec, SandboxSpec, WindowSize},
    tool::Tool,
};

/// Version of these messages. The supervisor refuses an agent that says another.
pub const VERSION: u32 = 8;

/// Most bytes of a frame to the agent (the environment and the engine's files are in it).
pub const TO_AGENT_BYTES: usize = 2 << 20;

/// Most bytes of a frame from the agent.
pub const FROM_AGENT_BYTES: usize = 64 << 10;

/// Most processes that the agent starts beside the first and that have not ended.
pub const PROCESSES_MAX: usize = 1024;

/// Most layers of an image, as many as Docker's overlay2 takes. Their blobs travel in one message
/// ([`crate::vmm::FDS_MAX`]).
pub const LAYERS_MAX: usize = 128;

/// From the supervisor to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Build the sandbox and start its first process, which becomes process 0. Answered by
    /// [`FromAgent::Started`] or [`FromAgent::StartFailed`], once.
    Start(Box<SandboxSpec>),
    /// Start another process in the sandbox, whose first one runs. Answered by [`FromAgent::Started`] or
    /// [`FromAgent::StartFailed`], once, and after the former by [`FromAgent::Exited`]. Its streams may be opened before or
    /// after.
    Exec {
        /// The process: a number that has not been used for another one. Not 0.
        process: u32,
        /// What to run. The working directory has to be there.
        spec: Box<ProcessSpec>,
    },
    /// Do something in the sandbox in a process of the agent's own. Answered as [`ToAgent::Exec`]; it has all three streams.
    Tool {
        /// The process: a number as for [`ToAgent::Exec`].
        process: u32,
        /// What to do.
        tool: Tool,
        /// The files of a sandbox that does not run, in a guest or cell that runs none; `None` for the one that runs.
        root: Option<RootSpec>,
    },
    /// The terminal of a process has another size. Unanswered; a process that is gone or has none is no error.
    Resize {
        /// The process; 0 is the first.
        process: u32,
        /// The size.
        size: WindowSize,
    },
    /// Do now what a later [`ToAgent::Start`] with a spec like this one will need and what does not depend on the image:
    /// mount the writable disk of [`RootSpec::Disks`](crate::spec::RootSpec::Disks), make a process in its namespaces that
    /// waits for the rest of the spec, with the spec's mounts, masked and read-only paths ready. The image's disk is an
    /// empty slot still. Answered by [`FromAgent::Prepared`], or [`FromAgent::StartFailed`] when that is impossible. A
    /// `Start` whose mounts or paths are others than these makes its process anew; one whose writable disk is another
    /// mounts that one, and never touches the prepared one again, which may have become another disk since.
    Prepare(Box<SandboxSpec>),
    /// The guest has been restored from a snapshot: set the clock and reseed the kernel's random number generator before
    /// anything else is done. Answered by [`FromAgent::Awake`]. Sent first after each restore.
    Wake(WakeSpec),
    /// What time is it there? Answered by [`FromAgent::Clock`].
    Clock,
    /// The clock is wrong: move it by so much. Unanswered.
    ShiftClock {
        /// Nanoseconds; negative when it is ahead.
        ns: i64,
    },
    /// How much has gone through forwarded ports? Answered by [`FromAgent::Traffic`].
    Traffic,
    /// Send a signal to a process of the sandbox. Unanswered; a process that is gone is no error.
    Signal {
        /// The process; 0 is the first.
        process: u32,
        /// Signal number, 1 to 64.
        signal: u8,
    },
    /// Unpack layers into an EROFS image. Answered by any number of [`FromAgent::Unpacking`], then
    /// [`FromAgent::Unpacked`] or [`FromAgent::UnpackFailed`].
    Unpack(UnpackSpec),
    /// Write the files of a sandbox that does not run here to the stream
    /// [`StreamHeader::Stdout`](crate::stream::StreamHeader::Stdout) of process 0, which may be opened before or after.
    /// Answered by [`FromAgent::Packed`] or [`FromAgent::PackFailed`] once the stream is closed.
    Pack(PackSpec),
    /// Write everything to the writable disk and let nothing change it until [`ToAgent::Thaw`], so that it can be copied.
    /// Answered by [`FromAgent::Frozen`]. Who writes meanwhile waits.
    Freeze,
    /// The end of [`ToAgent::Freeze`]. Unanswered.
    Thaw,
    /// Write everything to the disks, then reset the machine. The VMM's end is the answer.
    Shutdown,
}

/// From the agent to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The agent is ready. Always the first message.
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
        /// `uname -r` of the guest.
        kernel: String,
        /// Microseconds from the kernel's start of its clock to the agent's first instruction.
        init_us: u64,
        /// Microseconds from the kernel's start of its clock to this message.
        ready_us: u64,
    },
    /// Answer to [`ToAgent::Prepare`]: nothing is in motion any more, and the guest may be saved.
    Prepared,
    /// Answer to [`ToAgent::Wake`]: clock and random numbers are those of a new guest.
    Awake,
    /// Answer to [`ToAgent::Clock`].
    Clock {
        /// `CLOCK_REALTIME` in nanoseconds since 1970.
        realtime_ns: u64,
    },
    /// Answer to [`ToAgent::Traffic`].
    Traffic(Traffic),
    /// The exec of a process succeeded.
    Started {
        /// The process; 0 is the first.
        process: u32,
        /// Its pid in the sandbox's pid namespace.
        pid: u32,
        /// Microseconds from the receipt of the request to the exec.
        took_us: u64,
    },
    /// A process could not be started; nothing of it is left.
    StartFailed {
        /// The process; 0 is the first.
        process: u32,
        /// What kind of failure; it decides the exit code.
        kind: StartFailure,
        /// One line for the user, such as `exec /bin/x: no such file or directory`.
        message: String,
    },
    /// A process ended, and every byte that it wrote to its streams has been handed to vsock. Those of a process other than the
    /// first are closed then, although another one that it has left behind may have them still.
    Exited {
        /// The process; 0 is the first.
        process: u32,
        /// How it ended.
        status: ExitStatus,
    },
    /// Progress of an unpack.
    Unpacking {
        /// Compressed bytes read so far, of all layers.
        bytes: u64,
    },
    /// The EROFS image is whole and on its disk.
    Unpacked {
        /// Bytes of the image, from the start of the disk.
        bytes: u64,
        /// Inodes in it.
        inodes: u64,
        /// Where the time went.
        costs: UnpackCosts,
    },
    /// The guest's kernel has killed a process for want of memory. Said before the end of a process that may be why.
    OomKilled,
    /// Answer to [`ToAgent::Pack`]: everything has been written to the stream.
    Packed {
        /// Bytes of it.
        bytes: u64,
    },
    /// The files could not be packed; what the stream carried is not whole.
    PackFailed {
        /// One line for the user.
        message: String,
    },
    /// Answer to [`ToAgent::Freeze`].
    Frozen {
        /// Why the disk cannot be frozen, one line; nothing is frozen then.
        failure: Option<String>,
    },
    /// The layers could not be unpacked.
    UnpackFailed {
        /// What kind of failure.
        kind: UnpackFailure,
        /// One line for the user.
        message: String,
    },
}

/// What to pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackSpec {
    /// Where image and writable layer are; no [`RootSpec::Directory`].
    pub root: RootSpec,
    /// What is wanted.
    pub what: Pack,
    /// Paths that the engine puts over the image's, absolute: they are not the sandbox's.
    pub hidden: Vec<String>,
}

/// What of a sandbox's files is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pack {
    /// All files as the sandbox saw them, as a tar archive.
    Files,
    /// What it changed, as a layer (image-spec, `layer.md`).
    Layer,
    /// The paths that it changed: `A` (added), `C` (changed) or `D` (removed), the absolute path, a NUL byte, for each.
    Changes,
}

/// What a restored guest has to be told. A time stamp counter that a program can read tells the time to the microsecond,
/// however long the message takes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeSpec {
    /// The guest's time stamp counter (`rdtsc` in the agent) at an instant …
    pub tsc: u64,
    /// … and `CLOCK_REALTIME` in nanoseconds at that instant.
    pub realtime_ns: u64,
    /// Frequency of that counter.
    pub tsc_khz: u32,
    /// Fresh random bytes of the host's for the kernel's generator.
    pub seed: [u8; 32],
    /// For a guest that was saved while a sandbox ran in it: who that sandbox is now.
    pub identity: Option<Identity>,
}

/// What forwarded ports have carried since the sandbox was started, or copied from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes that the sandbox has received.
    pub received: u64,
    /// Bytes that it has sent.
    pub sent: u64,
}

/// What tells a sandbox from the one that it is a copy of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Host name, for the sandbox's UTS namespace.
    pub hostname: String,
    /// The engine's files with their new content; the paths are those of [`SandboxSpec::files`].
    pub files: Vec<FileSpec>,
}

impl std::fmt::Debug for WakeSpec {
    // The seed is a secret of the guest's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WakeSpec")
            .field("realtime_ns", &self.realtime_ns)
            .finish_non_exhaustive()
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called exit with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl ExitStatus {
    /// The exit code that a shell and Docker show: the code, or 128 + the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code),
            Self::Signal(signal) => 128 + i32::from(signal),
        }
    }
}

/// Why a process could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailure {
    /// The program does not exist: exit code 127.
    NotFound,
    /// The program exists and cannot be executed: exit code 126.
    NotExecutable,
    /// The user or group of the spec is not in the image: exit code 125 … as Docker's daemon errors.
    UnknownUser,
    /// Anything else: exit code 125.
    Other,
}

/// Why layers could not be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnpackFailure {
    /// The layers are damaged, malformed or lie about themselves.
    BadLayer,
    /// The image does not fit on its disk.
    NoSpace,
    /// A limit of the spec was passed.
    TooLarge,
    /// A disk failed or the agent ran out of memory.
    Other,
}

/// Microseconds of an unpack, by what they went to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackCosts {
    /// Reading compressed layers from their disk.
    pub read_us: u64,
    /// Decompressing them.
    pub decompress_us: u64,
    /// Hashing what they decompress to.
    pub hash_us: u64,
    /// Writing the image to its disk.
    pub write_us: u64,
    /// Everything else: names, attributes, copying.
    pub rest_us: u64,
}

/// What to unpack. The blobs are on the first disk ([`crate::vmm::BootConfig::disks`]), one after the other, each
/// starting at a multiple of 4,096 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackSpec {
    /// The layers, lowest first; at most [`LAYERS_MAX`].
    pub layers: Vec<LayerSpec>,
    /// Position of the disk that the EROFS image goes to: 1 after a boot; 2 after a restore from a template, whose guest
    /// has another one mounted in between.
    pub target: u8,
    /// Most bytes that the EROFS image may have.
    pub max_bytes: u64,
    /// Most inodes that it may have.
    pub max_inodes: u64,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// First byte on the disk of blobs.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// How the tar stream is compressed.
    pub compression: Compression,
    /// SHA-256 of the uncompressed tar stream, from the image's configuration.
    pub diff_id: [u8; 32],
}

/// Compression of a layer, as its media type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// A plain tar stream.
    None,
    /// gzip (RFC 1952), several members allowed.
    Gzip,
    /// zstd (RFC 8878), several frames allowed.
    Zstd,
}
