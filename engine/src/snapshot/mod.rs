//! A user's snapshots: a running sandbox, saved with its memory and its disk, that any number of new ones go on from.
//!
//! | module | job |
//! |---|---|
//! | here | what is written down about a snapshot, and the checks of it |
//! | [`store`] | snapshots on disk |
//! | [`sparse`] | the parts of a file that are not zeros, and a digest of them |
//! | [`archive`] | export to a tar, and import |
//!
//! The saved state is only ever parsed by brig-vmm, in its jail, and what is in the memory only ever runs in a guest.

pub mod archive;
pub mod sparse;
pub mod store;
#[cfg(test)]
mod tests;

use brig_protocol::{
    agent::VERSION as AGENT_VERSION,
    vmm::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, VCPUS_MAX},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::store::{Snapshot, Snapshots, Workspace};
use crate::{disk::DISK_BYTES, sandbox::Config, spec, template::key::Platform};

/// Version of `snapshot.json`.
pub const VERSION: u32 = 1;

/// Most bytes of a `snapshot.json`.
pub const RECORD_BYTES: u64 = 8 << 20;

/// Most bytes of the state. It has a few KiB for each vCPU and the connections' buffers.
const STATE_BYTES: u64 = 256 << 20;

/// Memory that a guest has beside what was asked for: holes of the address space are part of the file.
const MEMORY_SLACK_BYTES: u64 = 4 << 30;

/// Which disks a guest has, and where the sandbox's own is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// It booted: the image and the sandbox's disk.
    Booted,
    /// From a template, at the sandbox's first start: the image in a slot, the sandbox's disk, an empty slot.
    Fresh,
    /// From a template, at a later start: the image in a slot, a copy of the template's disk, the sandbox's disk in a
    /// slot.
    Used,
}

/// One of a snapshot's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its bytes, holes included.
    pub bytes: u64,
    /// Its [`sparse::digest`]; none of a snapshot that is there for a moment only.
    pub digest: Option<String>,
}

/// What is written down about a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it came from an archive: brig has not seen how it was made.
    pub imported: bool,
    /// The sandbox that was saved.
    pub config: Config,
    /// Its guest's disks.
    pub layout: Layout,
    /// `uname -r` of the guest, in its own words.
    pub kernel: String,
    /// Bytes of the unpacked image, which is not part of the snapshot.
    pub image_bytes: u64,
    /// Where it was made. brig-vmm decides whether it can go on here.
    pub platform: Platform,
    /// The guest's memory.
    pub memory: FileRecord,
    /// Everything else of the guest.
    pub state: FileRecord,
    /// The sandbox's disk.
    pub disk: FileRecord,
}

impl Record {
    /// Checks what a file from elsewhere could have wrong, so that everyone may rely on it.
    ///
    /// # Errors
    /// One line that follows "the snapshot".
    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("is of version {}, not {VERSION}", self.version));
        }
        if self.platform.agent != AGENT_VERSION {
            return Err("was made by another version of brig: its guest speaks another language".into());
        }
        let (vcpus, mib) = (self.config.cpus.vcpus(), self.config.memory.get());
        if !(1..=VCPUS_MAX).contains(&vcpus) || !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&mib) {
            return Err(format!(
                "has {vcpus} vCPUs and {mib} MiB of memory, which no guest has"
            ));
        }
        spec::check(&self.config).map_err(|e| format!("has a wrong configuration: {e}"))?;
        let limits = [
            (
                "memory",
                &self.memory,
                self.config.memory.bytes() + MEMORY_SLACK_BYTES,
            ),
            ("state", &self.state, STATE_BYTES),
            ("disk", &self.disk, DISK_BYTES),
        ];
        for (name, file, limit) in limits {
            if !(1..=limit).contains(&file.bytes) {
                return Err(format!("has {} bytes of {name}", file.bytes));
            }
        }
        Ok(())
    }
}
