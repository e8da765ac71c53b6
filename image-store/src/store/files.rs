//! Locks, working directories and atomic replacement of files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use tempfile::TempDir;

use super::StoreError;
use crate::removal::remove_tree;

/// Starts the names of files that are being written, beside the one that they are to replace.
pub const UNFINISHED: &str = ".new-";

/// Takes the exclusive lock of the file at `path`, which is made when it is missing; waits while another process has
/// it. The lock goes when the file is dropped or its process dies (flock(2)).
pub fn lock(path: &Path) -> Result<File, StoreError> {
    loop {
        let file = open_lock(path)?;
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) if is_at(&file, path) => return Ok(file),
            // It was removed before it was locked, and another one may be there.
            Ok(()) | Err(Errno::INTR) => {}
            Err(e) => return Err(StoreError::io("lock", path)(e.into())),
        }
    }
}

/// As [`lock`], but `None` when another process has the lock.
pub fn try_lock(path: &Path) -> Result<Option<File>, StoreError> {
    let file = open_lock(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(is_at(&file, path).then_some(file)),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
        Err(e) => Err(StoreError::io("lock", path)(e.into())),
    }
}

/// Whether an open file is the one at `path`.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn open_lock(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(StoreError::io("open", path))
}

/// A directory for files that are not whole yet. It goes when it is dropped; when its process dies, the next
/// [`sweep`] removes it.
#[derive(Debug)]
pub struct Workspace {
    /// Locked for as long as the directory is in use. Dropped after the directory is gone.
    directory: TempDir,
    _lock: File,
}

impl Workspace {
    /// Makes a directory under `parent`. The caller holds the store's lock, so that no [`sweep`] comes between the
    /// directory and its lock.
    pub fn new(parent: &Path) -> Result<Self, StoreError> {
        let directory = TempDir::new_in(parent).map_err(StoreError::io("make a directory in", parent))?;
        let lock = File::open(directory.path()).map_err(StoreError::io("open", directory.path()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| StoreError::io("lock", directory.path())(e.into()))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes the directories under `parent` whose processes are gone. The caller holds the store's lock.
pub fn sweep(parent: &Path) -> Result<(), StoreError> {
    for path in entries(parent)? {
        let Ok(directory) = File::open(&path) else {
            continue;
        };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_tree(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The paths in a directory.
pub fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(StoreError::io("read", directory))
}

/// Replaces the file at `path` with `content`: a reader sees the old one or the new one, whole, even after a crash.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(parent)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(StoreError::io("write", path))?;
    sync_directory(parent)
}

/// Writes a directory's entries to its disk, so that a rename in it survives a crash.
pub fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreError::io("sync", path))
}

/// A file's content, or `None` when there is no file.
pub fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io("read", path)(e)),
    }
}

/// Opens a file for reading, or `None` when there is no file.
pub fn open_if_present(path: &Path) -> Result<Option<File>, StoreError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io("open", path)(e)),
    }
}
