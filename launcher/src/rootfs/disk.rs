//! The filesystems on a guest's block devices.

use std::{ffi::CStr, path::PathBuf};

use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
};
use serde::{Deserialize, Serialize};

use crate::error::{Context, LaunchError};

/// Options of the writable disk. Without `noinit_itable` a kernel thread would write zeros to a new filesystem's inode
/// tables for minutes, each byte of them work and space of the host's.
const EXT4_OPTIONS: &CStr = c"noinit_itable,no_prefetch_block_bitmaps";

/// A filesystem on a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What is on it.
    pub content: Content,
    /// The block device.
    pub device: PathBuf,
    /// The existing directory that it is mounted on.
    pub at: PathBuf,
}

/// What a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// An image: EROFS, never written.
    Image,
    /// A writable layer: ext4.
    Writable,
}

impl Disk {
    /// Mounts it in the mount namespace of the calling process. A writable layer that is mounted there already is left as it
    /// is: the caller's own mount, which this namespace is a copy of.
    ///
    /// # Errors
    /// [`LaunchError::Step`].
    pub fn mount(&self) -> Result<(), LaunchError> {
        let quiet = MountFlags::NOATIME;
        let (what, kind, flags, options) = match self.content {
            Content::Image => ("the image", "erofs", quiet | MountFlags::RDONLY, None),
            Content::Writable => ("the writable layer", "ext4", quiet, Some(EXT4_OPTIONS)),
        };
        match mount(&self.device, &self.at, kind, flags, options) {
            Err(Errno::BUSY) if self.content == Content::Writable => Ok(()),
            result => result.step_on(&format!("mount {what} from"), self.device.display()),
        }
    }
}
