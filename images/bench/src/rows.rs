//! What is measured.

mod cpu;
mod disk;
mod kernel;
mod memory;
mod network;
mod pipes;

use std::io;

use crate::{
    options::Options,
    sampler::{self, Budget, Monotonic, Times},
};

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Of its values.
    pub unit: Unit,
    /// How it is measured, in a sentence.
    pub how: &'static str,
    /// Measures it.
    pub measure: fn(&Options) -> io::Result<Measured>,
}

/// What the values of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Time of an operation.
    Nanoseconds,
    /// 2^20 bytes in a second, where an operation moves this many.
    MebibytesPerSecond {
        /// Of an operation.
        bytes: u64,
    },
    /// Things in a second, where an operation does this many.
    PerSecond {
        /// Of an operation.
        things: u64,
    },
}

impl Unit {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::MebibytesPerSecond { .. } => "MiB/s",
            Self::PerSecond { .. } => "1/s",
        }
    }

    /// The value of an operation that takes `time` nanoseconds.
    pub fn of(self, time: f64) -> f64 {
        match self {
            Self::Nanoseconds => time,
            Self::MebibytesPerSecond { bytes } => bytes as f64 / f64::from(1 << 20) * 1e9 / time,
            Self::PerSecond { things } => things as f64 * 1e9 / time,
        }
    }
}

/// What a row came to.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Of its operations.
    pub times: Times,
    /// What else is to be known, as JSON.
    pub notes: Vec<(&'static str, String)>,
}

impl Measured {
    fn note(mut self, name: &'static str, value: impl ToString) -> Self {
        self.notes.push((name, value.to_string()));
        self
    }
}

/// Measures something whose batches may be as long as they like.
fn measure(
    options: &Options,
    operation: impl FnMut(u64) -> io::Result<std::time::Duration>,
) -> io::Result<Measured> {
    measure_batches(options, u64::MAX, operation)
}

/// Measures something of which at most `batch` is done between two readings of the clock.
fn measure_batches(
    options: &Options,
    batch: u64,
    operation: impl FnMut(u64) -> io::Result<std::time::Duration>,
) -> io::Result<Measured> {
    let budget = Budget {
        time: options.seconds,
        samples: options.samples,
        batch,
    };
    let times = sampler::sample(&Monotonic::start(), budget, operation)?;
    Ok(Measured {
        times,
        notes: Vec::new(),
    })
}

/// The rows that `bench run` measures.
pub const LOCAL: &[Row] = &[
    Row {
        name: "getppid",
        unit: Unit::Nanoseconds,
        how: "the getppid system call, which does next to nothing in the kernel",
        measure: kernel::getppid,
    },
    Row {
        name: "open_close",
        unit: Unit::Nanoseconds,
        how: "open(2) for reading and close(2) of one small file in --directory",
        measure: kernel::open_close,
    },
    Row {
        name: "fork_exec",
        unit: Unit::Nanoseconds,
        how: "fork(2), execve(2) of this static program, which ends at once, and waitpid(2)",
        measure: kernel::fork_exec,
    },
    Row {
        name: "page_fault",
        unit: Unit::Nanoseconds,
        how: "the first write to a page of new anonymous memory, without huge pages; mmap and munmap are not counted",
        measure: memory::page_fault,
    },
    Row {
        name: "mmap_munmap",
        unit: Unit::Nanoseconds,
        how: "mmap(2) and munmap(2) of 1 MiB that nobody touches",
        measure: memory::mmap_munmap,
    },
    Row {
        name: "memory_copy",
        unit: Unit::MebibytesPerSecond {
            bytes: memory::COPY_BYTES,
        },
        how: "copying 16 MiB that are in memory already",
        measure: memory::copy,
    },
    Row {
        name: "memory_read",
        unit: Unit::MebibytesPerSecond {
            bytes: memory::COPY_BYTES,
        },
        how: "adding up 16 MiB that are in memory already",
        measure: memory::read,
    },
    Row {
        name: "context_switch",
        unit: Unit::PerSecond { things: 2 },
        how: "a byte sent to and fro between two processes on one CPU by two pipes: switches a second",
        measure: pipes::context_switch,
    },
    Row {
        name: "wake_up",
        unit: Unit::Nanoseconds,
        how: "a byte to another process and one back by two pipes, on whatever CPUs the kernel chooses: the round trip",
        measure: pipes::wake_up,
    },
    Row {
        name: "pipe_latency",
        unit: Unit::Nanoseconds,
        how: "a byte written to a pipe and read from it by the same process",
        measure: pipes::latency,
    },
    Row {
        name: "pipe_throughput",
        unit: Unit::MebibytesPerSecond {
            bytes: pipes::BLOCK as u64,
        },
        how: "blocks of 64 KiB written to a pipe that another process reads",
        measure: pipes::throughput,
    },
    Row {
        name: "cpu_integer",
        unit: Unit::Nanoseconds,
        how: "1000 steps of a xorshift generator with a multiplication, each on the result of the one before",
        measure: cpu::integer,
    },
    Row {
        name: "cpu_float",
        unit: Unit::Nanoseconds,
        how: "1000 steps of the logistic map in double precision, each on the result of the one before",
        measure: cpu::float,
    },
    Row {
        name: "sequential_write",
        unit: Unit::MebibytesPerSecond {
            bytes: disk::BLOCK as u64,
        },
        how: "writes of 1 MiB one behind the other, then fdatasync(2), which is counted",
        measure: disk::sequential_write,
    },
    Row {
        name: "sequential_read",
        unit: Unit::MebibytesPerSecond {
            bytes: disk::BLOCK as u64,
        },
        how: "reads of 1 MiB one behind the other; nothing of the file is in the page cache at the start of a pass",
        measure: disk::sequential_read,
    },
    Row {
        name: "random_write",
        unit: Unit::PerSecond { things: 1 },
        how: "writes of 4 KiB anywhere in a file, one after another, then fdatasync(2), which is counted: writes a second",
        measure: disk::random_write,
    },
    Row {
        name: "random_read",
        unit: Unit::PerSecond { things: 1 },
        how: "reads of 4 KiB anywhere in a file, one after another: reads a second",
        measure: disk::random_read,
    },
    Row {
        name: "fsync",
        unit: Unit::Nanoseconds,
        how: "a write of 4 KiB at the start of a file and fsync(2)",
        measure: disk::fsync,
    },
    Row {
        name: "create",
        unit: Unit::Nanoseconds,
        how: "creating, writing (--file-bytes) and closing a new file in one directory",
        measure: disk::create,
    },
    Row {
        name: "unlink",
        unit: Unit::Nanoseconds,
        how: "removing such a file",
        measure: disk::unlink,
    },
];

/// The rows that `bench client` measures.
pub const NETWORK: &[Row] = &[
    Row {
        name: "connect",
        unit: Unit::Nanoseconds,
        how: "a new TCP connection until the server's first byte is here: a published port accepts before it has reached anyone",
        measure: network::connect,
    },
    Row {
        name: "round_trip",
        unit: Unit::Nanoseconds,
        how: "a byte to the server and back, on a connection that is there already",
        measure: network::round_trip,
    },
    Row {
        name: "requests",
        unit: Unit::PerSecond { things: 1 },
        how: "128 bytes to the server and back, on --connections at once: requests a second of all of them together",
        measure: network::requests,
    },
    Row {
        name: "upload",
        unit: Unit::MebibytesPerSecond {
            bytes: network::BLOCK as u64,
        },
        how: "blocks of 64 KiB on one connection; the server has read all of a sample when its time is taken",
        measure: network::upload,
    },
    Row {
        name: "download",
        unit: Unit::MebibytesPerSecond {
            bytes: network::BLOCK as u64,
        },
        how: "blocks of 64 KiB on one connection, as the server sends what it is asked for",
        measure: network::download,
    },
];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Options that are over at once, with a directory of their own.
    pub(crate) fn quick(directory: &std::path::Path) -> Options {
        let line = "--seconds 0.01 --samples 3 --size 2 --files 8 run";
        let mut options = Options::parse(line.split(' ').map(Into::into)).unwrap();
        options.directory = directory.into();
        options
    }

    #[test]
    fn names_are_of_one_row_each() {
        let mut names: Vec<_> = LOCAL.iter().chain(NETWORK).map(|row| row.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn values_are_what_their_unit_says() {
        assert!((Unit::Nanoseconds.of(5.0) - 5.0).abs() < 1e-9);
        assert!((Unit::MebibytesPerSecond { bytes: 1 << 21 }.of(1e9) - 2.0).abs() < 1e-9);
        assert!((Unit::PerSecond { things: 2 }.of(1e6) - 2000.0).abs() < 1e-9);
    }

    // Each row that forks does so in tests/bench.rs, where the program runs as itself: a process of many threads, as tests are,
    // must not fork.
}
