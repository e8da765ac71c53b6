//! Whether a sandbox's supervisor is alive: a write lock on the sandbox's `lock` file, which the kernel releases when
//! its holder ends, however it ends. A pid could have been given to another process.
//!
//! Open file description locks (fcntl(2), `F_OFD_SETLK`) are used because, other than flock(2), they can be asked
//! about without being taken: looking at a sandbox never keeps its supervisor from starting.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use crate::Error;

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, or gives `None` when another process or another part of this one holds it.
    ///
    /// # Errors
    /// [`Error::File`], with kind `NotFound` as its source when the sandbox is gone.
    pub fn try_take(path: &Path) -> Result<Option<Self>, Error> {
        let file = open(path)?;
        match set_lock(&file, libc::F_OFD_SETLK) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(Error::file("lock", path)(e)),
        }
        still_there(path, file).map(Some)
    }

    /// Takes the lock, waiting for its holder. For locks that are held for moments only.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn take(path: &Path) -> Result<Self, Error> {
        let file = open(path)?;
        loop {
            match set_lock(&file, libc::F_OFD_SETLKW) {
                Ok(_) => return still_there(path, file),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::file("lock", path)(e)),
            }
        }
    }
}

impl Lock {
    /// The lock that another process holds, of whose open file `file` is a copy: a lock of this kind is the open file's.
    pub(crate) fn of_another(file: OwnedFd) -> Self {
        Self { file: file.into() }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether anyone holds the lock. A lock file that is gone is held by no one.
///
/// # Errors
/// [`Error::File`].
pub fn is_held(path: &Path) -> Result<bool, Error> {
    let file = match OpenOptions::new().read(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::file("open", path)(e)),
    };
    let lock = set_lock(&file, libc::F_OFD_GETLK).map_err(Error::file("query the lock", path))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

fn open(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("open", path))
}

/// The file may have been unlinked between open and lock; a lock on it then means nothing.
fn still_there(path: &Path, file: File) -> Result<Lock, Error> {
    let held = file.metadata().map_err(Error::file("open", path))?;
    let named = std::fs::metadata(path).map_err(Error::file("open", path))?;
    if (held.dev(), held.ino()) != (named.dev(), named.ino()) {
        return Err(Error::file("lock", path)(io::ErrorKind::NotFound.into()));
    }
    Ok(Lock { file })
}

/// One of the `F_OFD_*` operations, for a write lock on the whole file.
fn set_lock(file: &File, operation: libc::c_int) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        // Must be 0 for these operations.
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed, the three F_OFD operations take a pointer to a
    // `struct flock` as their argument, and `lock` is one that lives and is borrowed mutably over the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), operation, &raw mut lock) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let lock = Lock::try_take(&path).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(Lock::try_take(&path).unwrap().is_none());
        drop(lock);
        assert!(!is_held(&path).unwrap());
        Lock::take(&path).unwrap();
    }

    #[test]
    fn a_lock_in_a_directory_that_is_gone_is_an_error() {
        assert!(Lock::try_take(Path::new("/nonexistent/lock")).is_err());
        assert!(!is_held(Path::new("/nonexistent/lock")).unwrap());
    }
}
