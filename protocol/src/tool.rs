//! Work of the agent's own in a sandbox: what looks at its processes and moves its files ([`crate::agent::ToAgent::Tool`]).
//!
//! It is done by a process that the agent makes, in the sandbox's root filesystem: every path is resolved there and nowhere else,
//! by the kernel. What it writes to standard output is untrusted, as the sandbox decides what there is to be told.

use serde::{Deserialize, Serialize};

/// Most bytes of a frame that a tool writes.
pub const FRAME_BYTES: usize = 64 << 10;

/// Most processes that are told of.
pub const PROCESSES_MAX: usize = 100_000;

/// Most bytes of a process's arguments that are told.
pub const ARGUMENTS_BYTES: usize = 4096;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tool {
    /// Tell which processes the sandbox has: [`Listed`] frames.
    Processes,
    /// Tell what they take: a [`Usage`] frame for each byte of standard input.
    Usage,
    /// Write what is at a path to standard output: a tar stream of it, under the last component of the path.
    Read {
        /// The absolute path, of bytes that are no NUL.
        path: Vec<u8>,
        /// Whether the last component is followed if it is a link.
        follow: bool,
    },
    /// Take a tar stream from standard input and write it to a path.
    Write {
        /// The absolute path, of bytes that are no NUL.
        path: Vec<u8>,
        /// What is copied, as [`Tool::Read`] writes it: it goes to the path, or into it when that is a directory. Without it the
        /// path is a directory, and the names of the stream are meant as they are.
        source: Option<Source>,
    },
}

/// What is copied into a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: Vec<u8>,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Whether what is in that directory is meant, and not itself.
    pub contents: bool,
}

/// A frame of [`Tool::Processes`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listed {
    /// One process.
    Process(Box<Process>),
    /// There are no more.
    End,
}

/// A process, as proc(5) of its sandbox tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid in the sandbox.
    pub pid: u32,
    /// Its parent's; 0 for the first one's.
    pub ppid: u32,
    /// Its effective user.
    pub uid: u32,
    /// `R`, `S`, `D`, `Z`, …
    pub state: String,
    /// Its controlling terminal's device number; 0 for none.
    pub tty: u32,
    /// CPU time in clock ticks, of which there are 100 in a second.
    pub cpu_ticks: u64,
    /// When it began, in ticks since the kernel did.
    pub start_ticks: u64,
    /// What time it is by the same clock.
    pub now_ticks: u64,
    /// Threads.
    pub threads: u32,
    /// KiB of address space.
    pub virtual_kib: u64,
    /// KiB in memory.
    pub resident_kib: u64,
    /// The name of its program.
    pub name: String,
    /// Its arguments with spaces between them, cut; empty for one without.
    pub arguments: String,
}

/// What a sandbox's processes take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processes and threads.
    pub threads: u64,
}
