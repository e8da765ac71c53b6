//! Writes an image into a directory, for a sandbox on the host's kernel.
//!
//! ```text
//! <target>/root/    the image's files under their names, once all layers have been applied
//! <target>/data/    the data of files as it comes, each under a number; gone at the end
//! ```
//! The layers meet in memory ([`super::tree`]), as they do for EROFS: what is written is their sum, without whiteouts. All of it is
//! made anew in a directory that was empty, each name by a call relative to the descriptor of the directory that was made for
//! it: no link of the image's is ever followed and no `..` ever leads anywhere.
//!
//! Device nodes are left out: nobody could open them in the sandbox. Owners and set-id bits are those of the user namespace that
//! the caller is root of: on the host they mean ids that are nobody's.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::File,
    io::{Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
        fsetxattr, linkat, mkdirat, mknodat, openat, renameat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    Sink, UnpackError,
    costs::{Step, Stopwatch},
    tree::{Attributes, Content, NodeId, ROOT, Tree},
};

/// The name of the directory for the image in the target.
pub const ROOT_NAME: &str = "root";

/// The name of the directory for the data of files.
const DATA_NAME: &str = "data";

/// Most directories in each other. A descriptor is open for each on the way down.
const DEPTH_MAX: usize = 512;

/// What an inode is taken to need of the disk beside its data.
const INODE_BYTES: u64 = 512;

/// Mode of a directory as long as it is being filled.
const PRIVATE: Mode = Mode::RWXU;

/// Whose the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The image's, of which the namespace has so many, from 0 on.
    Kept {
        /// How many.
        count: u32,
    },
    /// The caller's alone, as there is nobody else.
    Caller,
}

/// The data of a file: its number.
#[derive(Debug)]
pub struct FileData(u64);

/// An image that is being written into a directory.
pub struct DirectoryWriter<'a> {
    target: OwnedFd,
    data: OwnedFd,
    owners: Owners,
    watch: &'a Stopwatch,
    current: Option<File>,
    next: u64,
    used: u64,
    max_bytes: u64,
}

impl<'a> DirectoryWriter<'a> {
    /// An image in the empty directory `target`, with at most `max_bytes` bytes of data.
    ///
    /// # Errors
    /// [`UnpackError::Write`].
    pub fn new(
        target: OwnedFd,
        owners: Owners,
        max_bytes: u64,
        watch: &'a Stopwatch,
    ) -> Result<Self, UnpackError> {
        mkdirat(&target, DATA_NAME, PRIVATE).map_err(|e| failed(e, max_bytes))?;
        let data = open_directory(&target, DATA_NAME.as_bytes()).map_err(|e| failed(e, max_bytes))?;
        Ok(Self {
            target,
            data,
            owners,
            watch,
            current: None,
            next: 0,
            used: 0,
            max_bytes,
        })
    }

    fn file(&mut self) -> Result<&mut File, UnpackError> {
        self.current
            .as_mut()
            .ok_or_else(|| UnpackError::Write(std::io::ErrorKind::InvalidInput.into()))
    }
}

impl Sink for DirectoryWriter<'_> {
    type Data = FileData;

    fn begin(&mut self, size: u64) -> Result<(), UnpackError> {
        // What a higher layer replaces counts too: it is there until the end.
        self.used = self.used.saturating_add(size).saturating_add(INODE_BYTES);
        if self.used > self.max_bytes {
            return Err(UnpackError::NoSpace(self.max_bytes));
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = self.next.to_string();
        let file = self.watch.time(Step::Write, || {
            openat(&self.data, name, flags, Mode::RUSR | Mode::WUSR)
        });
        self.current = Some(file.map_err(|e| failed(e, self.max_bytes))?.into());
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let (watch, max_bytes) = (self.watch, self.max_bytes);
        let file = self.file()?;
        watch
            .time(Step::Write, || file.write_all(bytes))
            .map_err(|e| full_or(e, max_bytes))
    }

    fn zeros(&mut self, count: u64) -> Result<(), UnpackError> {
        let max_bytes = self.max_bytes;
        let count = i64::try_from(count).map_err(|_| UnpackError::NoSpace(max_bytes))?;
        let file = self.file()?;
        file.seek(SeekFrom::Current(count))
            .map(drop)
            .map_err(|e| full_or(e, max_bytes))
    }

    fn end(&mut self) -> Result<FileData, UnpackError> {
        let max_bytes = self.max_bytes;
        let mut file = self
            .current
            .take()
            .ok_or_else(|| UnpackError::Write(std::io::ErrorKind::InvalidInput.into()))?;
        // Zeros at the end are only a position so far.
        let length = file.stream_position().map_err(|e| full_or(e, max_bytes))?;
        file.set_len(length).map_err(|e| full_or(e, max_bytes))?;
        let data = FileData(self.next);
        self.next += 1;
        Ok(data)
    }

    fn finish(self, tree: &Tree<FileData>, _id: [u8; 16]) -> Result<u64, UnpackError> {
        let watch = self.watch;
        watch.time(Step::Write, || {
            Filler {
                writer: &self,
                tree,
                made: HashSet::new(),
            }
            .fill()
        })?;
        let emptied = empty(&self.data).and_then(|()| unlinkat(&self.target, DATA_NAME, AtFlags::REMOVEDIR));
        emptied.map_err(|e| failed(e, self.max_bytes))?;
        Ok(self.used)
    }
}

/// A directory that is being filled.
struct Level {
    directory: OwnedFd,
    node: NodeId,
    name: Box<[u8]>,
    left: std::vec::IntoIter<(Box<[u8]>, NodeId)>,
}

/// Gives everything its names.
struct Filler<'a, 'w> {
    writer: &'a DirectoryWriter<'w>,
    tree: &'a Tree<FileData>,
    /// Nodes with several names that have been made, in the directory of data.
    made: HashSet<NodeId>,
}

impl Filler<'_, '_> {
    fn fill(&mut self) -> Result<(), UnpackError> {
        let max_bytes = self.writer.max_bytes;
        let io = |e| failed(e, max_bytes);
        let mut way = vec![
            self.enter(self.writer.target.as_fd(), ROOT_NAME.as_bytes(), ROOT)
                .map_err(io)?,
        ];
        while let Some(level) = way.last_mut() {
            let Some((name, node)) = level.left.next() else {
                let Some(done) = way.pop() else { break };
                // Only now: what came into it has changed its time, and its mode may keep everybody out.
                let parent = way
                    .last()
                    .map_or(self.writer.target.as_fd(), |above| above.directory.as_fd());
                let attributes = &self.tree.node(done.node).attributes;
                set_xattrs(&done.directory, attributes);
                self.set_attributes(parent, &done.name, attributes, true)?;
                continue;
            };
            if self.tree.is_directory(node) {
                let entered = self.enter(level.directory.as_fd(), &name, node).map_err(io)?;
                if way.len() >= DEPTH_MAX {
                    return Err(UnpackError::TooLarge("directories in each other"));
                }
                way.push(entered);
            } else if self.tree.node(node).links > 1 {
                let shared = format!("n{node}");
                if self.made.insert(node) {
                    self.make(self.writer.data.as_fd(), shared.as_bytes(), node)?;
                }
                match linkat(
                    &self.writer.data,
                    &*shared,
                    &level.directory,
                    path(&name),
                    AtFlags::empty(),
                ) {
                    // A device node, which was left out.
                    Err(Errno::NOENT) => {}
                    linked => linked.map_err(io)?,
                }
            } else {
                let directory = level
                    .directory
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(UnpackError::Write)?;
                self.make(directory.as_fd(), &name, node)?;
            }
        }
        Ok(())
    }

    /// Makes a directory and begins to fill it.
    fn enter(&self, parent: BorrowedFd<'_>, name: &[u8], node: NodeId) -> Result<Level, Errno> {
        mkdirat(parent, path(name), PRIVATE)?;
        let children: Vec<_> = match &self.tree.node(node).content {
            Content::Directory(children) => children
                .iter()
                .map(|(name, child)| (name.clone(), child.node))
                .collect(),
            _ => Vec::new(),
        };
        Ok(Level {
            directory: open_directory(parent, name)?,
            node,
            name: name.into(),
            left: children.into_iter(),
        })
    }

    /// Makes anything but a directory.
    fn make(&self, parent: BorrowedFd<'_>, name: &[u8], node: NodeId) -> Result<(), UnpackError> {
        let io = |e| failed(e, self.writer.max_bytes);
        let node = self.tree.node(node);
        match &node.content {
            Content::File(FileData(number)) => {
                renameat(&self.writer.data, number.to_string(), parent, path(name)).map_err(io)?;
                if node.attributes.xattrs.is_some() {
                    self.set_owner(parent, name, &node.attributes)?;
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let file = openat(parent, path(name), flags, Mode::empty()).map_err(io)?;
                    set_xattrs(&file, &node.attributes);
                }
            }
            Content::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), parent, path(name)).map_err(io)?;
                self.set_owner(parent, name, &node.attributes)?;
                return set_time(parent, name, &node.attributes).map_err(io);
            }
            Content::Fifo => {
                mknodat(parent, path(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(io)?;
            }
            Content::CharDevice(_) | Content::BlockDevice(_) | Content::Directory(_) => return Ok(()),
        }
        let has_owner = matches!(node.content, Content::File(_)) && node.attributes.xattrs.is_some();
        self.set_attributes(parent, name, &node.attributes, !has_owner)
    }

    /// Owner, mode and time, in the order in which one does not undo the other. A new owner takes capabilities away: it is set
    /// only when `owner` says so.
    fn set_attributes(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        attributes: &Attributes,
        owner: bool,
    ) -> Result<(), UnpackError> {
        let io = |e| failed(e, self.writer.max_bytes);
        if owner {
            self.set_owner(parent, name, attributes)?;
        }
        // No link: the name was made here, for something else.
        let mode = Mode::from_raw_mode(u32::from(attributes.mode) & 0o7777);
        chmodat(parent, path(name), mode, AtFlags::empty()).map_err(io)?;
        set_time(parent, name, attributes).map_err(io)
    }

    fn set_owner(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        let Owners::Kept { count } = self.writer.owners else {
            return Ok(());
        };
        let (uid, gid) = (attributes.uid, attributes.gid);
        if (uid, gid) == (0, 0) {
            // What root makes is root's.
            return Ok(());
        }
        if let Some(id) = [uid, gid].into_iter().find(|&id| id >= count) {
            return Err(UnpackError::NoSuchOwner { id, count });
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(
            parent,
            path(name),
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| failed(e, self.writer.max_bytes))
    }
}

/// A name of the tree's as a path: it has no slash and is no `..`, see [`super::layer`].
fn path(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, path(name), flags, Mode::empty())
}

/// Sets what can be set. A filesystem may have no such attributes, and the root of a user namespace may not set all of them.
fn set_xattrs(file: impl AsFd, attributes: &Attributes) {
    for (name, value) in attributes.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
        let _ = fsetxattr(&file, OsStr::from_bytes(name), value, XattrFlags::empty());
    }
}

fn set_time(parent: BorrowedFd<'_>, name: &[u8], attributes: &Attributes) -> Result<(), Errno> {
    let time = Timespec {
        tv_sec: attributes.mtime.seconds,
        tv_nsec: i64::from(attributes.mtime.nanoseconds),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(parent, path(name), &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes the files of a directory that has no directories.
fn empty(directory: &OwnedFd) -> Result<(), Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        unlinkat(directory, name, AtFlags::empty())?;
    }
    Ok(())
}

fn failed(error: Errno, max_bytes: u64) -> UnpackError {
    full_or(error.into(), max_bytes)
}

fn full_or(error: std::io::Error, max_bytes: u64) -> UnpackError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT) => UnpackError::NoSpace(max_bytes),
        _ => UnpackError::Write(error),
    }
}
