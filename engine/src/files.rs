//! Directories of files that appear as a whole: what templates and snapshots have in common.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use rustix::fs::{Mode, OFlags};

use crate::Error;

/// Opens a directory, to open what is in it by [`open_at`] however its name changes.
///
/// # Errors
/// Those of open(2).
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a file of a directory for reading.
///
/// # Errors
/// One line.
pub fn open_at(directory: &OwnedFd, name: &str) -> Result<File, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
        .map(File::from)
        .map_err(|e| format!("cannot open its {name}: {}", io::Error::from(e)))
}

/// As [`open_at`], of a file that has so many bytes.
///
/// # Errors
/// One line.
pub fn open_whole(directory: &OwnedFd, name: &str, bytes: u64) -> Result<File, String> {
    let file = open_at(directory, name)?;
    match file.metadata() {
        Ok(metadata) if metadata.len() == bytes => Ok(file),
        Ok(metadata) => Err(format!("its {name} has {} bytes, not {bytes}", metadata.len())),
        Err(e) => Err(format!("cannot read its {name}: {e}")),
    }
}

/// Reads all of a file that has at most `limit` bytes, in as few reads as it takes.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`]; those of read(2).
pub fn read_bounded(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    // One more, so that the end is seen without a longer buffer.
    let mut bytes = Vec::with_capacity(length.min(limit) as usize + 1);
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// As [`read_bounded`], of a file that has been written by somebody with this descriptor.
///
/// # Errors
/// As [`read_bounded`].
pub fn read_from_start(mut file: File, limit: u64) -> io::Result<Vec<u8>> {
    file.rewind()?;
    read_bounded(file, limit)
}

/// Makes a file that does not exist yet, for its owner alone.
///
/// # Errors
/// [`Error::File`].
pub fn make(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("make", path))
}

/// Nothing writes to the file any more; its length.
///
/// # Errors
/// [`Error::File`], also for an empty file.
pub fn seal(path: &Path) -> Result<u64, Error> {
    let length = fs::metadata(path).map_err(Error::file("read", path))?.len();
    if length == 0 {
        return Err(Error::file("use", path)(io::ErrorKind::UnexpectedEof.into()));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).map_err(Error::file("change", path))?;
    sync(path)?;
    Ok(length)
}

/// Brings a file or the names in a directory to the disk.
///
/// # Errors
/// [`Error::File`].
pub fn sync(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::file("write", path))
}

/// The names in a directory.
///
/// # Errors
/// [`Error::File`].
pub fn names(directory: &Path) -> Result<Vec<String>, Error> {
    fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .map_err(Error::file("list", directory))
}

/// Bytes that the files of a directory take on the disk.
pub fn allocated(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

/// Bytes that a directory's files take on the disk, all the way down. What goes meanwhile does not count.
pub fn allocated_below(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => allocated_below(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_up_to_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for bytes in [0, 1, 99, 100] {
            fs::write(&path, vec![7; bytes]).unwrap();
            let read = read_bounded(File::open(&path).unwrap(), 100).unwrap();
            assert_eq!(read, vec![7; bytes]);
        }
        fs::write(&path, vec![7; 101]).unwrap();
        let error = read_bounded(File::open(&path).unwrap(), 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        // One whose length the kernel does not tell.
        assert!(
            !read_bounded(File::open("/proc/self/stat").unwrap(), 100_000)
                .unwrap()
                .is_empty()
        );
    }
}
