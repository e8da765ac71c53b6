//! The root filesystem: put together, entered, and the old one let go (pivot_root(2)).

mod overlay;

use std::path::PathBuf;

use rustix::{
    mount::{MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount},
    process::{chdir, pivot_root},
};

pub use self::overlay::Overlay;
use crate::error::{Context, LaunchError};

/// A root filesystem, as the caller of [`crate::start`] has made it ready.
#[derive(Clone, Debug)]
pub enum Root {
    /// Layers that are put together in the sandbox's mount namespace.
    Overlay(Overlay),
    /// A directory.
    Directory(PathBuf),
}

impl Root {
    /// Makes it the root of the calling process, which is alone in a new mount namespace. Nothing of the old root is left
    /// in that namespace.
    ///
    /// The process's root must not be the kernel's initial ramfs itself, which cannot be pivoted: a guest binds `/` over
    /// itself first.
    pub(crate) fn enter(&self) -> Result<(), LaunchError> {
        // What is mounted here must not appear in the caller's namespace.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .step("make the mount namespace private")?;
        let root = match self {
            Self::Overlay(overlay) => overlay.mount()?,
            Self::Directory(path) => {
                // pivot_root takes mount points only.
                mount_bind_recursive(path, path).step_on("bind the root filesystem", path.display())?;
                path
            }
        };
        chdir(root).step_on("enter the root filesystem", root.display())?;
        // The old root is stacked over the new one and is what "." then means: pivot_root(2), "pivot_root(".", ".")".
        pivot_root(".", ".").step_on("pivot to the root filesystem", root.display())?;
        unmount(".", UnmountFlags::DETACH).step("let go of the old root filesystem")?;
        chdir("/").step("enter the new root filesystem")
    }
}
