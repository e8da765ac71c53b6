//! The engine's files (`/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`): written outside of the root filesystem and
//! bound over the image's, as Docker does. A process can write to them and cannot replace them; the image's own files
//! and the writable layer stay as they are.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use brig_protocol::spec::FileSpec;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use crate::{
    error::{Context, LaunchError},
    mounts,
};

/// Most links that are followed one after the other: the kernel's own limit (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// A file that is written, and bound nowhere yet.
pub(crate) struct Prepared<'a> {
    path: &'a str,
    tree: OwnedFd,
}

/// Writes `files` into `directory`. Called before the root filesystem is entered, when `directory` still has a name.
pub(crate) fn prepare<'a>(files: &'a [FileSpec], directory: &Path) -> Result<Vec<Prepared<'a>>, LaunchError> {
    files
        .iter()
        .enumerate()
        .map(|(index, file)| {
            let source = directory.join(index.to_string());
            write(&source, file).step_on("write", &file.path)?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, &source, flags).step_on("bind", &file.path)?;
            Ok(Prepared {
                path: &file.path,
                tree,
            })
        })
        .collect()
}

/// Gives file number `index` of a running sandbox's spec other content: the file in `directory` is the one that is bound.
///
/// # Errors
/// [`LaunchError::Step`].
pub fn rewrite(directory: &Path, index: usize, file: &FileSpec) -> Result<(), LaunchError> {
    write(&directory.join(index.to_string()), file).step_on("write", &file.path)
}

/// Binds the prepared files. Called inside of the root filesystem.
pub(crate) fn bind(files: Vec<Prepared<'_>>) -> Result<(), LaunchError> {
    for file in files {
        let target = target_file(file.path).step_on("bind a file over", file.path)?;
        mounts::attach(&file.tree, &target).step_on("bind a file over", file.path)?;
    }
    Ok(())
}

/// Writes one file anew.
fn write(source: &Path, file: &FileSpec) -> io::Result<()> {
    let mode = file.mode & 0o777;
    let mut opened = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(source)?;
    // The umask has taken some bits away, or the file is of an earlier start.
    if opened.metadata()?.permissions().mode() & 0o777 != mode {
        opened.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    io::Write::write_all(&mut opened, &file.content)
}

/// The image's file at `path`, links followed; an empty one is made when there is none.
fn target_file(path: &str) -> io::Result<OwnedFd> {
    if !path.starts_with('/') {
        return Err(io::Error::other("the path is not absolute"));
    }
    let open = || {
        openat2(
            CWD,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_MAGICLINKS,
        )
    };
    match open() {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    create(Path::new(path))?;
    Ok(open()?)
}

/// Makes an empty file and the directories above it. A link that leads nowhere is followed to where it points, as Docker
/// does: an image of a system with systemd has such a link for `/etc/resolv.conf`.
fn create(path: &Path) -> io::Result<()> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        fs::create_dir_all(&parent)?;
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match openat2(
            CWD,
            &path,
            flags,
            Mode::from_raw_mode(0o644),
            ResolveFlags::NO_MAGICLINKS,
        ) {
            // The directory that the link points into is missing.
            Err(Errno::NOENT) => path = parent.join(fs::read_link(&path)?),
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(()),
        }
    }
    Err(Errno::LOOP.into())
}
