//! An empty root: a filesystem of its own that has nothing in it and takes nothing.

use std::{ffi::CStr, os::fd::AsFd};

use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
    },
    process::{chdir, chroot, fchdir, pivot_root},
};

use crate::{Step, WallError};

/// Nothing can be put into the root directory, whose inode is the one. It can be entered, which is all that this module needs.
const OPTIONS: [(&CStr, &CStr); 3] = [(c"nr_inodes", c"1"), (c"size", c"4k"), (c"mode", c"111")];

/// Puts this process, which is in a mount namespace of its own, into an empty root and takes every other mount away.
///
/// # Errors
/// [`WallError`].
pub fn enter_empty() -> Result<(), WallError> {
    let filesystem = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step("make an empty root")?;
    for (key, value) in OPTIONS {
        fsconfig_set_string(filesystem.as_fd(), key, value).step("limit the empty root")?;
    }
    fsconfig_create(filesystem.as_fd()).step("make an empty root")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .step("mount the empty root")?;
    // Over the old one, as that is the one directory that is always there.
    move_mount(
        root.as_fd(),
        c"",
        CWD,
        c"/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .step("mount the empty root")?;
    fchdir(root.as_fd()).step("enter the empty root")?;
    // The old root then lies over the new one, whence it is taken away with all that is mounted in it (pivot_root(2),
    // "pivot_root(".", ".")").
    match pivot_root(c".", c".") {
        Ok(()) => unmount(c".", UnmountFlags::DETACH).step("leave the old root")?,
        // The kernel's first root, an initramfs, cannot be taken away. Below the new root nobody gets at it who has neither
        // capabilities nor a descriptor of it.
        Err(rustix::io::Errno::INVAL) => chroot(c".").step("enter the empty root")?,
        Err(e) => return Err(e).step("change the root"),
    }
    chdir(c"/").step("enter the empty root")
}
