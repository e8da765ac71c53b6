//! The engine's files (`/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`, `/etc/machine-id`): written outside of the root
//! filesystem and bound over the image's, as Docker does. A process can write to them and cannot replace them; the image's
//! own files and the writable layer stay as they are.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use brig_protocol::spec::{FileImages, FileSpec};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use crate::{
    error::{Context, LaunchError},
    mounts::{self, Reach},
};

/// Most links that are followed one after the other: the kernel's own limit (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// A file that is written, and bound nowhere yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    spec: FileSpec,
    file: File,
    tree: OwnedFd,
}

/// Writes `files` into `directory`, each under its number. Called before the root filesystem is entered, when `directory` still
/// has a name.
pub(crate) fn prepare(files: &[FileSpec], directory: &Path) -> Result<Vec<Prepared>, LaunchError> {
    (0..)
        .zip(files)
        .map(|(index, file)| Prepared::new(index, file, directory))
        .collect()
}

/// The same for those that `image` gets. Those of `before`, which have been written in advance, get what has changed of their
/// content.
pub(crate) fn prepare_for(
    image: &Path,
    files: &[FileSpec],
    directory: &Path,
    before: Vec<Prepared>,
) -> Result<Vec<Prepared>, LaunchError> {
    let mut before = before.into_iter();
    let mut prepared = Vec::with_capacity(files.len());
    for (index, file) in (0..).zip(files) {
        let in_advance = before.next();
        if !is_for(file, image).step_on("look in the image for", &file.path)? {
            continue;
        }
        prepared.push(match in_advance {
            Some(written) if written.spec.path == file.path && written.spec.mode == file.mode => {
                written.with_content(&file.content).step_on("write", &file.path)?
            }
            _ => Prepared::new(index, file, directory)?,
        });
    }
    Ok(prepared)
}

impl Prepared {
    fn new(index: usize, file: &FileSpec, directory: &Path) -> Result<Self, LaunchError> {
        let source = &directory.join(index.to_string());
        let opened = write(source, file).step_on("write", &file.path)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, source, flags).step_on("bind", &file.path)?;
        Ok(Self {
            spec: file.clone(),
            file: opened,
            tree,
        })
    }

    fn with_content(mut self, content: &[u8]) -> io::Result<Self> {
        if self.spec.content != content {
            if self.spec.content.len() != content.len() {
                self.file.set_len(0)?;
            }
            self.file.write_all_at(content, 0)?;
            self.spec.content = content.to_vec();
        }
        Ok(self)
    }
}

/// Whether the image that is mounted at `image` gets `file`.
fn is_for(file: &FileSpec, image: &Path) -> io::Result<bool> {
    match file.images {
        FileImages::All => Ok(true),
        FileImages::WithFile => has_regular_file(image, &file.path),
    }
}

/// Whether the image has a regular file at `path`. Its links lead nowhere but into it.
fn has_regular_file(image: &Path, path: &str) -> io::Result<bool> {
    let top = open(
        image,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&top, path, flags, Mode::empty(), resolve) {
        Ok(found) => Ok(FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Gives file number `index` of a running sandbox's spec other content: the file in `directory` is the one that is bound.
///
/// # Errors
/// [`LaunchError::Step`].
pub fn rewrite(directory: &Path, index: usize, file: &FileSpec) -> Result<(), LaunchError> {
    write(&directory.join(index.to_string()), file)
        .map(drop)
        .step_on("write", &file.path)
}

/// Binds the prepared files, `read_only` or not. Called inside of the root filesystem.
pub(crate) fn bind(files: &[Prepared], read_only: bool) -> Result<(), LaunchError> {
    for Prepared { spec, tree, .. } in files {
        if read_only {
            mounts::set_attributes(tree, libc::MOUNT_ATTR_RDONLY, Reach::Itself)
                .step_on("make read-only", &spec.path)?;
        }
        let target = target_file(&spec.path).step_on("bind a file over", &spec.path)?;
        mounts::attach(tree, &target).step_on("bind a file over", &spec.path)?;
    }
    Ok(())
}

/// Writes one file anew.
fn write(source: &Path, file: &FileSpec) -> io::Result<File> {
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
    io::Write::write_all(&mut opened, &file.content)?;
    Ok(opened)
}

/// The image's file at `path`, links followed; an empty one is made when there is none.
fn target_file(path: &str) -> io::Result<OwnedFd> {
    if !path.starts_with('/') {
        return Err(io::Error::other("the path is not absolute"));
    }
    match openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    ) {
        Err(Errno::NOENT) => create(Path::new(path)),
        opened => Ok(opened?),
    }
}

/// Makes an empty file, and the directories above it when they are missing. A link that leads nowhere is followed to where it points, as Docker
/// does: an image of a system with systemd has such a link for `/etc/resolv.conf`.
fn create(path: &Path) -> io::Result<OwnedFd> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match create_file(&path) {
            Err(Errno::NOENT) => {}
            created => return Ok(created?),
        }
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        fs::create_dir_all(&parent)?;
        match create_file(&path) {
            // The directory that the link points into is missing.
            Err(Errno::NOENT) => path = parent.join(fs::read_link(&path)?),
            created => return Ok(created?),
        }
    }
    Err(Errno::LOOP.into())
}

fn create_file(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat2(
        CWD,
        path,
        flags,
        Mode::from_raw_mode(0o644),
        ResolveFlags::NO_MAGICLINKS,
    )
}
