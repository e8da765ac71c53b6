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

pub use self::store::{Part, Snapshot, Snapshots, Workspace};
use crate::{
    Isolation,
    disk::DISK_BYTES,
    sandbox::Config,
    spec::{self, FRESH_DISK, USED_DISK},
    template::{VOLUME_SLOTS, key::Platform},
    volume::VOLUMES_MAX,
};

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
    /// It booted: the image, the sandbox's disk, its volumes.
    Booted,
    /// From a template, at the sandbox's first start: the image in a slot, the sandbox's disk, an empty slot, slots for volumes.
    Fresh,
    /// From a template, at a later start: the image in a slot, a copy of the template's disk, the sandbox's disk in a
    /// slot, slots for volumes.
    Used,
}

impl Layout {
    /// The number of the sandbox's own disk.
    pub fn writable(self) -> u8 {
        match self {
            Self::Booted | Self::Fresh => FRESH_DISK,
            Self::Used => USED_DISK,
        }
    }

    /// The number of its first volume's.
    pub fn first_volume(self) -> u8 {
        match self {
            Self::Booted => FRESH_DISK + 1,
            Self::Fresh | Self::Used => USED_DISK + 1,
        }
    }

    /// Most volumes in such a guest.
    pub fn volumes_max(self) -> usize {
        match self {
            Self::Booted => VOLUMES_MAX,
            Self::Fresh | Self::Used => VOLUME_SLOTS,
        }
    }
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
    /// Its volumes' disks, in the order of the configuration's mounts.
    #[serde(default)]
    pub volumes: Vec<FileRecord>,
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
        if self.config.isolation != Isolation::Vm {
            return Err("is of a sandbox without a guest".into());
        }
        let (volumes, mounts) = (self.volumes.len(), self.config.mounts.len());
        if volumes != mounts || volumes > self.layout.volumes_max() {
            return Err(format!("has {volumes} volumes for {mounts} mounts"));
        }
        for (part, file) in self.files() {
            let limit = match part {
                Part::Memory => self.config.memory.bytes() + MEMORY_SLACK_BYTES,
                Part::State => STATE_BYTES,
                Part::Disk => self.config.options.storage_bytes.unwrap_or(DISK_BYTES),
                Part::Volume(_) => DISK_BYTES,
            };
            if !(1..=limit).contains(&file.bytes) {
                return Err(format!("has {} bytes of {}", file.bytes, part.name()));
            }
        }
        Ok(())
    }

    /// Its files, in the order in which they are in an archive.
    pub fn files(&self) -> impl Iterator<Item = (Part, &FileRecord)> {
        let volumes = (0..).zip(&self.volumes);
        [
            (Part::Memory, &self.memory),
            (Part::State, &self.state),
            (Part::Disk, &self.disk),
        ]
        .into_iter()
        .chain(volumes.map(|(index, file)| (Part::Volume(index), file)))
    }
}
