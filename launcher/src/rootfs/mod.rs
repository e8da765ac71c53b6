//! The root filesystem: put together, entered, and the old one let go (pivot_root(2)).

mod disk;
mod overlay;

use std::path::{Path, PathBuf};

use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount},
    process::{chdir, pivot_root},
};
use serde::{Deserialize, Serialize};

pub use self::{
    disk::{Content, Disk},
    overlay::Overlay,
};
use crate::{
    error::{Context, LaunchError},
    mounts::{self, Reach},
};

/// A root filesystem, as the caller of [`crate::start`] has made it ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Root {
    /// Layers that are put together in the sandbox's mount namespace.
    Overlay(Overlay),
    /// A directory.
    Directory(PathBuf),
}

/// Which device nodes open anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// Those of `/dev` that the launcher has made.
    Few,
    /// All that are there or that somebody makes.
    All,
}

/// Keeps what the calling process, which is alone in a new mount namespace, mounts from appearing in another one.
pub(crate) fn make_private() -> Result<(), LaunchError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step("make the mount namespace private")
}

impl Root {
    /// Mounts it somewhere in the mount namespace of the calling process, see [`make_private`], and returns where.
    pub(crate) fn mount(&self) -> Result<&Path, LaunchError> {
        match self {
            Self::Overlay(overlay) => overlay.mount(),
            Self::Directory(path) => {
                // pivot_root takes mount points only.
                mount_bind_recursive(path, path).step_on("bind the root filesystem", path.display())?;
                Ok(path)
            }
        }
    }

    /// Where the image is, once it is mounted.
    pub(crate) fn image(&self) -> &Path {
        match self {
            Self::Overlay(overlay) => &overlay.image,
            Self::Directory(path) => path,
        }
    }

    /// Does once, and undoes, what mounting it will do, as far as it leaves nothing behind.
    pub(crate) fn rehearse(&self) -> Result<(), LaunchError> {
        match self {
            Self::Overlay(overlay) => overlay.rehearse(),
            Self::Directory(_) => Ok(()),
        }
    }
}

/// Makes the mount at `root` the root of the calling process. Nothing of the old root is left in its mount namespace.
///
/// The old root must not be the kernel's initial ramfs itself, which cannot be pivoted: a guest binds `/` over itself
/// first.
pub(crate) fn enter(root: &Path, devices: Devices) -> Result<(), LaunchError> {
    chdir(root).step_on("enter the root filesystem", root.display())?;
    // The old root is stacked over the new one and is what "." then means: pivot_root(2), "pivot_root(".", ".")".
    pivot_root(".", ".").step_on("pivot to the root filesystem", root.display())?;
    unmount(".", UnmountFlags::DETACH).step("let go of the old root filesystem")?;
    chdir("/").step("enter the new root filesystem")?;
    if devices == Devices::All {
        return Ok(());
    }
    // A device node of the image, or one that root makes, opens nothing: only those of `/dev` do (devices).
    let top = open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step("open the new root filesystem")?;
    mounts::set_attributes(&top, libc::MOUNT_ATTR_NODEV, Reach::Below)
        .step("forbid device nodes in the root filesystem")
}
