//! The writable disk of a sandbox: a sparse ext4 file, a copy of a blank one that is made once,
//! or of a template's. The disk of a volume is a copy of the same blank one.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek},
    io::Errno,
};

use crate::{Error, mke2fs, volume::DATA};

/// Bytes that the filesystem has to offer. The file takes from the host only what is written to it.
pub const DISK_BYTES: u64 = 10 << 30;

/// Bytes that are copied at a time where the kernel does not copy.
const COPY_BYTES: usize = 256 << 10;

/// Part of the blank disk's name: another one whenever [`FORMAT`] changes.
const FORMAT_VERSION: u32 = 3;

/// Features and layout, see mke2fs(8). What is left out costs the guest's kernel instructions at each mount or write:
/// checksums of metadata, a resize inode, backups of superblocks. A journal is kept, for a VMM may be killed at any
/// moment, and is small because the sandbox's own syncs are.
const FORMAT: [&str; 16] = [
    "-q",
    "-F",
    "-b",
    "4096",
    // Room for nanoseconds, years after 2038 and small extended attributes.
    "-I",
    "256",
    // 160,000 inodes on 10 GiB: fewer groups of them to look at.
    "-i",
    "65536",
    "-O",
    "none,has_journal,filetype,dir_index,extent,flex_bg,large_file,dir_nlink,extra_isize,sparse_super2,uninit_bg",
    "-J",
    "size=4",
    "-m",
    "0",
    "-E",
    "num_backup_sb=0,lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1,root_owner=0:0",
];

/// The directories on it: what overlayfs works with (launcher, rootfs/overlay.rs), and the one that is a volume.
const DIRECTORIES: [&str; 3] = ["upper", "work", DATA];

/// The name of the blank disk, which tells its size and its format.
pub fn blank_name() -> String {
    format!("blank-{}m-v{FORMAT_VERSION}.ext4", DISK_BYTES >> 20)
}

/// The blank disk of the directory `templates`, made when it is not there yet.
///
/// # Errors
/// [`Error::NoMke2fs`], [`Error::OtherMke2fs`], [`Error::Mke2fs`], [`Error::File`].
pub fn blank(templates: &Path) -> Result<PathBuf, Error> {
    let path = templates.join(blank_name());
    if !path.exists() {
        // Others may be making it too.
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        make_at(&temporary, &path, DISK_BYTES)?;
    }
    Ok(path)
}

/// The same, open to be copied.
///
/// # Errors
/// As [`blank`].
pub fn open_blank(templates: &Path) -> Result<File, Error> {
    let path = blank(templates)?;
    File::open(&path).map_err(Error::file("open", &path))
}

/// Makes a disk of another size, whole as soon as it is there.
///
/// # Errors
/// As [`blank`].
pub fn make_sized(path: &Path, bytes: u64) -> Result<(), Error> {
    make_at(&path.with_extension("new"), path, bytes)
}

/// Makes it at `temporary`, which nobody else writes, before it is at `path`.
fn make_at(temporary: &Path, path: &Path, bytes: u64) -> Result<(), Error> {
    let made = make_filesystem(temporary, bytes)
        .and_then(|()| fs::rename(temporary, path).map_err(Error::file("make", path)));
    if made.is_err() {
        let _ = fs::remove_file(temporary);
    }
    made
}

fn make_filesystem(path: &Path, bytes: u64) -> Result<(), Error> {
    let file = new_file(path)?;
    file.set_len(bytes).map_err(Error::file("make", path))?;
    drop(file);
    // The first directory of a new ext4 costs a guest's kernel 0.4 million instructions, so it is made here.
    let content = tempfile::tempdir().map_err(Error::file("make a directory in", &std::env::temp_dir()))?;
    for name in DIRECTORIES {
        let directory = content.path().join(name);
        fs::create_dir(&directory).map_err(Error::file("make", &directory))?;
    }
    let output = mke2fs::command()?
        .args(FORMAT)
        .arg("-d")
        .arg(content.path())
        .arg(path)
        .output()
        .map_err(Error::file("make", path))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Mke2fs(
        said.lines().last().unwrap_or("it said nothing").to_owned(),
    ))
}

/// Copies `from` to the new file `to`, sharing its blocks where the filesystem can and leaving holes as holes.
///
/// # Errors
/// [`Error::File`] with `to`.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<(), Error> {
    let source = File::open(from).map_err(Error::file("open", from))?;
    copy_file(&source, &new_file(to)?).map_err(Error::file("write", to))
}

/// As [`copy_sparse`], for an open file; `to` is whole as soon as it is there.
///
/// # Errors
/// [`Error::File`] with `to`.
pub fn copy_whole(source: &File, to: &Path) -> Result<(), Error> {
    let unfinished = to.with_extension("new");
    let made = new_file(&unfinished).and_then(|target| {
        copy_file(source, &target)
            .and_then(|()| fs::rename(&unfinished, to))
            .map_err(Error::file("write", to))
    });
    if made.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    made
}

/// A copy without a name, in the filesystem of `directory`: it goes with its last descriptor.
///
/// # Errors
/// [`Error::File`] with `directory`.
pub fn copy_unnamed(source: &File, directory: &Path) -> Result<File, Error> {
    let copy = || {
        let target = tempfile::tempfile_in(directory)?;
        copy_file(source, &target)?;
        Ok(target)
    };
    copy().map_err(Error::file("make a file in", directory))
}

/// Copies into an empty file.
///
/// # Errors
/// Those of the file systems.
pub fn copy_file(source: &File, target: &File) -> io::Result<()> {
    if ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    copy_data(source, target)
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position = 0;
    while position < length {
        let data = match seek(source, SeekFrom::Data(position)) {
            Ok(data) => data,
            // No data up to the end.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let hole = seek(source, SeekFrom::Hole(data))?;
        copy_extent(source, target, data, hole)?;
        position = hole;
    }
    Ok(())
}

fn copy_extent(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let length = usize::try_from(end - from).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Between filesystems of different kinds the kernel leaves it to the caller.
            Err(Errno::XDEV) => return copy_bytes(source, target, from, end),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_bytes(source: &File, target: &File, mut position: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    while position < end {
        let length = usize::try_from(end - position).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
        source.read_exact_at(&mut buffer[..length], position)?;
        target.write_all_at(&buffer[..length], position)?;
        position += length as u64;
    }
    Ok(())
}

fn new_file(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("make", path))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Seek, Write},
        os::unix::fs::MetadataExt,
    };

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let mut file = File::create(&from).unwrap();
        file.set_len(8 << 20).unwrap();
        for position in [4096, 3 << 20, (8 << 20) - 5] {
            file.seek(io::SeekFrom::Start(position)).unwrap();
            file.write_all(b"bytes").unwrap();
        }
        copy_sparse(&from, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn an_empty_file_and_one_that_is_a_single_hole_are_copied() {
        let directory = tempfile::tempdir().unwrap();
        for length in [0, 1 << 20] {
            let (from, to) = (directory.path().join("from"), directory.path().join("to"));
            File::create(&from).unwrap().set_len(length).unwrap();
            copy_sparse(&from, &to).unwrap();
            assert_eq!(fs::metadata(&to).unwrap().len(), length);
        }
    }

    #[test]
    fn the_blank_disk_is_made_once_and_takes_little_space() {
        let directory = tempfile::tempdir().unwrap();
        let path = match blank(directory.path()) {
            Err(Error::NoMke2fs) => return eprintln!("skipped: e2fsprogs is not installed"),
            made => made.unwrap(),
        };
        let made = fs::metadata(&path).unwrap();
        assert_eq!(made.len(), DISK_BYTES);
        assert!(made.blocks() * 512 < 16 << 20, "{} bytes", made.blocks() * 512);
        assert_eq!(
            fs::metadata(blank(directory.path()).unwrap()).unwrap().ino(),
            made.ino()
        );
    }
}
