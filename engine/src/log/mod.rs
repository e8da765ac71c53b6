//! What a sandbox's process wrote, one JSON object a line as Docker's json-file driver writes it:
//! `{"log":"text\n","stream":"stdout","time":"2026-01-02T03:04:05.678901234Z"}`.
//!
//! A log has at most two files, `log.json` and the older `log.json.1`, so that a sandbox cannot fill the host's disk; or as many of
//! the size that the user says.

mod reader;
mod writer;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::{
    reader::{Dated, LineReader, LogOptions, LogReader},
    writer::LogWriter,
};

/// Bytes of `log.json` before it is moved to `log.json.1`.
pub const FILE_BYTES: u64 = 64 << 20;

/// Files of a log.
pub const FILES: u32 = 2;

/// Bytes of a line before it is cut into several entries, as Docker does.
pub const LINE_BYTES: usize = 16 << 10;

/// Which of the process's outputs an entry was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line of the log, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What was written, the newline included. Bytes that are not UTF-8 are replaced, as with Docker.
    pub log: String,
    /// Where it was written to.
    pub stream: Stream,
    /// When the line's end arrived.
    pub time: Timestamp,
}
