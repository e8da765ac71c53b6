//! Paths of `/proc` and `/sys` that are hidden or made read-only, as Docker does for every container. A path that
//! does not exist needs nothing.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use crate::{
    devices,
    error::{Context, LaunchError},
    mounts::{self, Reach},
};

/// Hides `paths`: a directory behind an empty read-only tmpfs, anything else behind the null device.
pub(crate) fn hide<'a>(paths: impl Iterator<Item = &'a String>) -> Result<(), LaunchError> {
    let mut cover = None;
    for path in paths {
        let Some(target) = existing(path).step_on("hide", path)? else {
            continue;
        };
        hide_one(&target, &mut cover).step_on("hide", path)?;
    }
    Ok(())
}

/// Hides one path. `cover` is a path that an empty tmpfs is mounted on already: one is enough for all directories.
fn hide_one(target: &OwnedFd, cover: &mut Option<OwnedFd>) -> io::Result<()> {
    if FileType::from_raw_mode(fstat(target)?.st_mode) != FileType::Directory {
        if !devices::null_is_null()? {
            return Err(io::Error::other("/dev/null is not the null device"));
        }
        return mounts::attach(&clone_tree(CWD, "/dev/null", OpenTreeFlags::empty())?, target);
    }
    let tree = match cover {
        Some(cover) => clone_tree(&*cover, "", OpenTreeFlags::empty())?,
        None => mounts::new_tree("tmpfs", "tmpfs", &["ro".into(), "nosuid".into(), "nodev".into()])?,
    };
    mounts::attach(&tree, target)?;
    // The descriptor of a mount that has been attached is its root.
    cover.get_or_insert(tree);
    Ok(())
}

/// Makes `paths` read-only by binding each over itself.
pub(crate) fn make_read_only<'a>(paths: impl Iterator<Item = &'a String>) -> Result<(), LaunchError> {
    for path in paths {
        let Some(target) = existing(path).step_on("make read-only", path)? else {
            continue;
        };
        make_one_read_only(&target).step_on("make read-only", path)?;
    }
    Ok(())
}

fn make_one_read_only(target: &OwnedFd) -> io::Result<()> {
    let tree = clone_tree(target, "", OpenTreeFlags::AT_RECURSIVE)?;
    mounts::set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, Reach::Below)?;
    mounts::attach(&tree, target)
}

/// Opens a path that may not exist.
fn existing(path: &str) -> Result<Option<OwnedFd>, Errno> {
    match openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A detached copy of the mount at a path (open_tree(2)).
pub(crate) fn clone_tree(
    directory: impl std::os::fd::AsFd,
    path: &str,
    flags: OpenTreeFlags,
) -> io::Result<OwnedFd> {
    let flags = flags
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(directory, path, flags)?)
}
